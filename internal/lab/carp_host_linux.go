package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh/knownhosts"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// Host is one of a Pair: a station of the segment with HAProxy, OpenSSH's sshd, certsync and ucarp.
type Host struct {
	Name string
	// Node has its folders and its certsync.yaml. Do not start or dial anything by Node's own methods: they are for a
	// host that shares the machine's network; Host's do the same in the host's own.
	Node    *Node
	Station *Station
	// Address is its own.
	Address netip.Addr
	// Preempt lets the host take the virtual address from one with a higher advskew, from the next StartCARP on.
	Preempt bool

	pair   *Pair
	skew   int
	carp   *process
	relays []*relay
}

// The ports are the real ones: a host of a pair has them to itself.
const (
	hostSSHPort = 22
	hostTLSPort = 443
)

// prepare writes what the host's programs read; the keys are made by then.
func (h *Host) prepare() error {
	n := h.Node
	n.TLSAddress = loopback(hostTLSPort)
	for path, text := range map[string]string{
		n.HAProxyConfig: h.haproxyConfig(),
		n.KnownHosts:    h.pair.knownHosts(),
		h.script("up"):  fmt.Sprintf(upScript, h.movesFile()), h.script("down"): fmt.Sprintf(downScript, h.movesFile()),
		h.movesFile(): "",
	} {
		if err := writeFile(path, []byte(text)); err != nil {
			return fmt.Errorf("host %s: %w", h.Name, err)
		}
	}
	for _, which := range []string{"up", "down"} {
		if err := os.Chmod(h.script(which), 0o700); err != nil { //nolint:gosec // a script
			return fmt.Errorf("host %s: %w", h.Name, err)
		}
	}
	return nil
}

// haproxyConfig has binds on the host's own address and on the virtual one beside that on loopback.
func (h *Host) haproxyConfig() string {
	config := h.Node.haproxyConfig()
	for _, a := range []netip.Addr{h.Address, VirtualAddress.Addr()} {
		config += fmt.Sprintf("    bind %s ssl crt %s/\n", netip.AddrPortFrom(a, hostTLSPort), h.Node.BundleDir)
	}
	return config
}

// connect makes the CA and the name server reachable.
func (h *Host) connect() error {
	directory, err := url.Parse(h.pair.Lab.CA.Directory())
	if err != nil {
		return fmt.Errorf("host %s: %w", h.Name, err)
	}
	for _, address := range []string{h.pair.Lab.DNS.Address(), directory.Host} {
		r, err := newRelay(h.Station.ns, address)
		if err != nil {
			return fmt.Errorf("host %s: %w", h.Name, err)
		}
		h.relays = append(h.relays, r)
	}
	return nil
}

// boot starts what a host starts at boot.
func (h *Host) boot(ctx context.Context) error {
	for _, start := range []func(context.Context) error{h.StartSSH, h.StartHAProxy, h.StartCARP} {
		if err := start(ctx); err != nil {
			return err
		}
	}
	return nil
}

// StartHAProxy starts the host's HAProxy and waits until it answers.
func (h *Host) StartHAProxy(ctx context.Context) error {
	return h.Station.ns.start(func() error { return h.Node.StartHAProxy(ctx) })
}

// StartSSH starts the host's sshd and waits until it listens.
func (h *Host) StartSSH(ctx context.Context) error {
	n := h.Node
	n.StopSSH()
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // see startOpenSSH
		return fmt.Errorf("sshd of %s: %w", h.Name, err)
	}
	if err := n.writeOpenSSH(); err != nil {
		return fmt.Errorf("sshd of %s: %w", h.Name, err)
	}
	listen := netip.AddrPortFrom(h.Address, hostSSHPort).String()
	config := filepath.Join(n.Dir, "sshd_config")
	if err := os.WriteFile(config, fmt.Appendf(nil, sshdConfig, listen, n.Dir), 0o600); err != nil {
		return fmt.Errorf("sshd of %s: %w", h.Name, err)
	}
	program, err := systemProgram("sshd")
	if err != nil {
		return fmt.Errorf("sshd of %s: %w", h.Name, err)
	}
	p, err := h.start(program, []string{"-D", "-e", "-f", config}, nil, nil)
	if err != nil {
		return fmt.Errorf("sshd of %s: %w", h.Name, err)
	}
	n.ssh = &opensshServer{process: p}
	return h.awaitListener(ctx, p, listen)
}

// StopSSH ends the host's sshd; sessions that are open go on.
func (h *Host) StopSSH() { h.Node.StopSSH() }

// awaitListener waits until p accepts connections at an address.
func (h *Host) awaitListener(ctx context.Context, p *process, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		err := h.Station.ns.do(func() error {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
			if err != nil {
				return err
			}
			return conn.Close()
		})
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("sshd of %s: it ended: %w\n%s", h.Name, p.err, p.output)
		case <-ctx.Done():
			return fmt.Errorf("sshd of %s: %w\n%s", h.Name, err, p.output)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// start starts a program on the host that runs until it is ended.
func (h *Host) start(program string, args, env []string, stdout io.Writer) (p *process, err error) {
	err = h.Station.ns.start(func() error {
		p, err = startProcess(program, args, append(h.pair.Lab.env(), env...), stdout)
		return err
	})
	return p, err
}

// Certsync runs certsync on the host with `-c FILE` added; see Node.Certsync.
func (h *Host) Certsync(ctx context.Context, args ...string) (Result, error) {
	return h.CertsyncEnv(ctx, nil, args...)
}

// CertsyncEnv is Certsync with more environment (NAME=VALUE).
func (h *Host) CertsyncEnv(ctx context.Context, env []string, args ...string) (r Result, err error) {
	err = h.Station.ns.do(func() error {
		r, err = h.Node.CertsyncEnv(ctx, env, args...)
		return err
	})
	return r, err
}

// StartCertsync starts certsync on the host, with its standard output going to stdout, and returns at once. The pair's
// Close ends it where it still runs, and so does PowerOff.
func (h *Host) StartCertsync(stdout io.Writer, args ...string) (*Running, error) {
	return h.StartProgram(stdout, nil, h.pair.Lab.Binary, append(args[:len(args):len(args)], "-c", h.Node.Config)...)
}

// StartProgram is StartCertsync for any program, with more environment (NAME=VALUE).
func (h *Host) StartProgram(stdout io.Writer, env []string, program string, args ...string) (*Running, error) {
	p, err := h.start(program, args, env, stdout)
	if err != nil {
		return nil, err
	}
	h.Node.running = append(h.Node.running, p)
	return &Running{args: args, process: p, stdout: &tail{}, start: time.Now()}, nil
}

// Handshake makes a fresh TLS handshake on the host with its own HAProxy and gives the leaf that it showed.
func (h *Host) Handshake(ctx context.Context, serverName string) (leaf cert.Fingerprint, err error) {
	err = h.Station.ns.do(func() error {
		leaf, err = h.Node.Handshake(ctx, serverName)
		return err
	})
	return leaf, err
}

// HasVirtual tells whether the host has the virtual address now, and whether that is written in the journal of Moves
// already: if not, one of ucarp's scripts is between the two, and to kill it there would spoil the journal.
func (h *Host) HasVirtual() (has, written bool, err error) {
	moves, err := h.Moves()
	if err != nil {
		return false, false, err
	}
	if has, err = h.hasVirtual(); err != nil {
		return false, false, fmt.Errorf("addresses of %s: %w", h.Name, err)
	}
	return has, has == (len(moves) > 0 && moves[len(moves)-1].Role == cluster.Master), nil
}

func (h *Host) hasVirtual() (has bool, err error) {
	err = h.Station.ns.do(func() error {
		iface, err := net.InterfaceByName(h.Station.Interface)
		if err != nil {
			return err
		}
		addresses, err := iface.Addrs()
		has = slices.ContainsFunc(addresses, func(a net.Addr) bool { return a.String() == VirtualAddress.String() })
		return err
	})
	return has, err
}

// PowerOff is the host's sudden death: everything that runs there is killed, and its link goes, with the virtual
// address where it has it.
func (h *Host) PowerOff(ctx context.Context) error {
	if err := errors.Join(h.Station.Unplug(ctx), h.Station.ns.kill(), h.dropVirtual(ctx)); err != nil {
		return fmt.Errorf("power off %s: %w", h.Name, err)
	}
	// They are dead; this waits until that is known here.
	h.KillCARP()
	h.Node.KillHAProxy()
	h.Node.StopSSH()
	return nil
}

// PowerOn boots a host that was powered off.
func (h *Host) PowerOn(ctx context.Context) error {
	if err := h.Station.Plug(ctx); err != nil {
		return fmt.Errorf("power on %s: %w", h.Name, err)
	}
	return h.boot(ctx)
}

// close closes what of the host is in our own process; its programs end with its station.
func (h *Host) close() error {
	var errs []error
	for _, r := range h.relays {
		errs = append(errs, r.Close())
	}
	return errors.Join(errs...)
}

// The scripts of ucarp, run with the interface and the virtual address: they move the address, and write every move
// that was one into a journal. Taking away what is not there, as ucarp does at its start, is none.
const (
	upScript = `#!/bin/sh
ip address add "$2/32" dev "$1" && echo MASTER "$(date +%%s.%%N)" >>'%s'
`
	downScript = `#!/bin/sh
ip address delete "$2/32" dev "$1" && echo BACKUP "$(date +%%s.%%N)" >>'%s'
`
)

func (h *Host) script(which string) string { return filepath.Join(h.Node.Dir, "carp-"+which) }

func (h *Host) movesFile() string { return filepath.Join(h.Node.Dir, "moves") }

// StartCARP starts the host's ucarp; a host that is not MASTER drops the virtual address where it lingers.
func (h *Host) StartCARP(context.Context) error {
	if h.carp != nil && h.carp.alive() {
		return fmt.Errorf("start ucarp on %s: it runs already", h.Name)
	}
	program, err := systemProgram("ucarp")
	if err != nil {
		return fmt.Errorf("start ucarp on %s: %w", h.Name, err)
	}
	args := []string{"--interface=" + h.Station.Interface, "--srcip=" + h.Address.String(), fmt.Sprintf("--vhid=%d", virtualID),
		"--passfile=" + h.pair.passwordFile(), "--addr=" + VirtualAddress.Addr().String(), "--upscript=" + h.script("up"),
		"--downscript=" + h.script("down"), "--advbase=1", fmt.Sprintf("--advskew=%d", h.skew), "--shutdown"}
	if h.Preempt {
		args = append(args, "--preempt")
	}
	if h.carp, err = h.start(program, args, nil, nil); err != nil {
		return fmt.Errorf("start ucarp on %s: %w", h.Name, err)
	}
	return nil
}

// StopCARP ends the host's ucarp in an orderly way: it gives the address up.
func (h *Host) StopCARP() {
	if h.carp != nil {
		h.carp.stop()
	}
}

// KillCARP ends the host's ucarp as a crash would: where the host has the virtual address, it keeps it, and the other
// takes it too.
func (h *Host) KillCARP() {
	if h.carp != nil {
		h.carp.kill()
	}
}

// DropCARP ends the host's ucarp together with its address, as if the host were dead, while everything else on it
// goes on.
func (h *Host) DropCARP(ctx context.Context) error {
	h.KillCARP()
	if err := h.dropVirtual(ctx); err != nil {
		return fmt.Errorf("drop the virtual address of %s: %w", h.Name, err)
	}
	return nil
}

// Demote has a MASTER step back: its ucarp gives the address up, and waits 3 s before it looks for another MASTER.
func (h *Host) Demote() { signalGroup(h.carp.pid(), syscall.SIGUSR2) }

// CARPLog is what the host's ucarp said since its start.
func (h *Host) CARPLog() string {
	if h.carp == nil {
		return ""
	}
	return h.carp.output.String()
}

// dropVirtual takes the address away where it is there.
func (h *Host) dropVirtual(ctx context.Context) error {
	if has, err := h.hasVirtual(); err != nil || !has {
		return err
	}
	r, err := h.Station.ns.run(ctx, h.script("down"), []string{h.Station.Interface, VirtualAddress.Addr().String()}, baseEnv())
	if err != nil {
		return err
	}
	return r.Err()
}

// Move is one of the virtual address: to the host (MASTER) or away from it (BACKUP).
type Move struct {
	Role cluster.Role
	// Time is when the move had been made.
	Time time.Time
}

// Moves are those that the virtual address made to and from the host, in order: the truth that is to be seen by who
// watches it.
func (h *Host) Moves() ([]Move, error) {
	f, err := os.Open(h.movesFile())
	if err != nil {
		return nil, fmt.Errorf("moves of %s: %w", h.Name, err)
	}
	defer func() { _ = f.Close() }()
	var out []Move
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var role string
		var sec, nsec int64
		if _, err := fmt.Sscanf(lines.Text(), "%s %d.%d", &role, &sec, &nsec); err != nil {
			return nil, fmt.Errorf("moves of %s: %q: %w", h.Name, lines.Text(), err)
		}
		m := Move{Time: time.Unix(sec, nsec)}
		if err := m.Role.UnmarshalText([]byte(role)); err != nil {
			return nil, fmt.Errorf("moves of %s: %w", h.Name, err)
		}
		out = append(out, m)
	}
	return out, lines.Err()
}

func (p *Pair) knownHosts() string {
	var known strings.Builder
	for _, h := range p.Hosts {
		address := netip.AddrPortFrom(h.Address, hostSSHPort).String()
		known.WriteString(knownhosts.Line([]string{address}, h.Node.hostKey.Signer().PublicKey()) + "\n")
	}
	return known.String()
}
