package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/distribute"
)

// emptyNode is a distribute.Local that holds nothing.
type emptyNode struct{}

func (emptyNode) Inventory(context.Context) (cluster.Inventory, error) {
	return cluster.Inventory{API: cluster.API, Node: "proxy2", Version: os.Getenv("SSH_ORIGINAL_COMMAND")}, nil
}
func (emptyNode) Fetch(context.Context, []cert.Generation, func(cluster.Kept) error) error {
	return nil
}
func (emptyNode) Stage(context.Context, string, []cluster.Kept) ([]cluster.StageResult, error) {
	return nil, cluster.ErrBusy
}
func (emptyNode) Record(context.Context, string, cluster.Records) error { return nil }
func (emptyNode) Release(context.Context, string, []cluster.Release) ([]cluster.Placement, error) {
	return nil, nil
}
func (emptyNode) Status(context.Context) (cluster.NodeStatus, error) {
	return cluster.NodeStatus{Node: "proxy2"}, nil
}

func (emptyNode) CARP(context.Context) (cluster.CARP, error) { return cluster.CARP{}, nil }

const sshChild = "CERTSYNC_LAB_SSH_CHILD"

// TestSSHServer_Child is no test but the forced command of the others: they run this binary with sshChild set.
func TestSSHServer_Child(t *testing.T) {
	if os.Getenv(sshChild) == "" {
		return
	}
	if pids := os.Getenv("CERTSYNC_LAB_SSH_PID"); pids != "" {
		if err := os.WriteFile(pids, []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
			os.Exit(3)
		}
	}
	handler := distribute.AsNode("proxy1", distribute.NewHandler(emptyNode{}, distribute.HandlerOptions{Peers: []string{"proxy1"}}))
	if err := distribute.ServeConn(context.Background(), distribute.Stdio(os.Stdin, os.Stdout), handler); err != nil {
		os.Exit(4)
	}
	os.Exit(0)
}

// sshPair is a server whose one key runs this binary as serve-peer, and a client of it.
func sshPair(t *testing.T, argv ...string) (*SSHServer, *distribute.Peer, string) {
	t.Helper()
	key, err := NewKeyPair()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	pid := filepath.Join(dir, "pid")
	if argv == nil {
		argv = []string{self, "-test.run=^TestSSHServer_Child$"}
	}
	s, err := NewSSHServer(SSHOptions{Access: []SSHAccess{{Key: key.Signer().PublicKey(), Argv: argv,
		Env: []string{sshChild + "=1", "CERTSYNC_LAB_SSH_PID=" + pid}}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	known, keyFile := filepath.Join(dir, "known_hosts"), filepath.Join(dir, "id_ed25519")
	if err := os.WriteFile(known, []byte(s.KnownHostsLine()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := key.Write(keyFile); err != nil {
		t.Fatal(err)
	}
	p := distribute.NewPeer(distribute.PeerConfig{Name: "proxy2", Node: "proxy1", Address: "127.0.0.1", Port: s.Port(), User: "anyone",
		KeyFile: keyFile, KnownHosts: known})
	t.Cleanup(func() { _ = p.Close() })
	return s, p, pid
}

func TestSSHServer_RunsTheForcedCommandWhateverIsAskedFor(t *testing.T) {
	_, p, _ := sshPair(t)
	for range 3 {
		i, err := p.Inventory(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if i.Version != "certsync serve-peer" {
			t.Errorf("SSH_ORIGINAL_COMMAND is %q", i.Version)
		}
	}
}

func TestSSHServer_OtherKeysAndHostsAreRefused(t *testing.T) {
	s, _, _ := sshPair(t)
	other, err := NewKeyPair()
	if err != nil {
		t.Fatal(err)
	}
	known := filepath.Join(t.TempDir(), "known_hosts")
	ask := func(line string) error {
		if err := os.WriteFile(known, []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
		p := distribute.NewPeer(distribute.PeerConfig{Name: "proxy2", Node: "proxy1", Address: "127.0.0.1", Port: s.Port(),
			Signer: other.Signer(), KnownHosts: known})
		defer p.Close()
		_, err := p.Inventory(t.Context())
		return err
	}
	if err := ask(s.KnownHostsLine()); !errors.Is(err, cluster.ErrUnreachable) || !strings.Contains(fmt.Sprint(err), "refused the key") {
		t.Errorf("another key: %v", err)
	}
	if err := ask(""); !errors.Is(err, cluster.ErrUnreachable) || !strings.Contains(fmt.Sprint(err), "is not in") {
		t.Errorf("a host that is not pinned: %v", err)
	}
}

func TestSSHServer_ACommandThatEndsIsTold(t *testing.T) {
	for want, argv := range map[string][]string{
		"exit status 3: no such thing": {"/bin/sh", "-c", "echo no such thing >&2; exit 3"},
		"exit status 127":              {"/nowhere/certsync", "serve-peer"},
	} {
		_, p, _ := sshPair(t, argv...)
		if _, err := p.Inventory(t.Context()); !errors.Is(err, cluster.ErrUnreachable) || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%v: error %v, want %q", argv, err, want)
		}
	}
}

func TestSSHServer_LeavesNoCommandBehind(t *testing.T) {
	for name, end := range map[string]func(*SSHServer, *distribute.Peer){
		"the client goes": func(_ *SSHServer, p *distribute.Peer) { _ = p.Close() },
		"the server ends": func(s *SSHServer, _ *distribute.Peer) { _ = s.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			s, p, pidFile := sshPair(t)
			if _, err := p.Inventory(t.Context()); err != nil {
				t.Fatal(err)
			}
			data, err := os.ReadFile(pidFile)
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(string(data))
			if err != nil || syscall.Kill(pid, 0) != nil {
				t.Fatalf("the command does not run: %v", err)
			}
			end(s, p)
			for deadline := time.Now().Add(10 * time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("process %d still runs", pid)
				}
			}
		})
	}
}

func TestSSHServer_StartsAgainAtItsAddressWithItsKey(t *testing.T) {
	s, p, _ := sshPair(t)
	if _, err := p.Inventory(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Inventory(t.Context()); !errors.Is(err, cluster.ErrUnreachable) || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("while it is down: %v", err)
	}
	again, err := NewSSHServer(SSHOptions{Address: s.Address(), HostKey: s.hostKey, Access: s.access})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := p.Inventory(t.Context()); err != nil {
		t.Errorf("up again: %v", err)
	}
}

func TestSSHServer_ClientsThatSayNothingAreNoMatter(t *testing.T) {
	s, p, _ := sshPair(t)
	for range 5 {
		c, err := net.Dial("tcp", s.Address())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if _, err := p.Inventory(t.Context()); err != nil {
		t.Error(err)
	}
}
