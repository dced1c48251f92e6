package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"certsync/internal/cert"
)

// NodeOptions says what is special about a node. The zero value is a healthy one.
type NodeOptions struct {
	// Name defaults to proxy1, proxy2, ...
	Name string
	// HAProxy is its HAProxy's program; "" means Options.HAProxy.
	HAProxy string
	// StatsLevel is that of its runtime socket: admin (the default), operator or user; only admin can change
	// certificates.
	StatsLevel string
	// HideBundle gives its TLS bind another bundle for the same names before the bundle folder: that is the bind's
	// default and hides what the folder has.
	HideBundle bool
}

// Node is one host of the lab: folders, an HAProxy and an SSH server of its own on a loopback port each.
type Node struct {
	Name string
	// Dir holds everything of the node.
	Dir string
	// Config is its certsync.yaml.
	Config string
	// StateDir and RunDir are certsync's; BundleDir is HAProxy's certificate folder.
	StateDir, RunDir, BundleDir string
	// HAProxy is the program, HAProxyConfig its configuration, StatsSocket its runtime socket.
	HAProxy, HAProxyConfig, StatsSocket string
	// TLSAddress is where its HAProxy serves.
	TLSAddress string
	// KeyFile and KnownHosts are what it enters its peers with.
	KeyFile, KnownHosts string
	// ServeEnv is added to the environment of `certsync serve-peer` on this node, from the next StartSSH of the embedded
	// server on.
	ServeEnv []string

	o       NodeOptions
	lab     *Lab
	haproxy *process
	running []*process
	ssh     sshServer
	sshPort int
	key     *KeyPair
	hostKey *KeyPair
}

// newNode makes the folders and picks the ports; it starts nothing.
func newNode(l *Lab, o NodeOptions) (*Node, error) {
	dir := filepath.Join(l.Root, o.Name)
	n := &Node{
		Name: o.Name, Dir: dir, Config: filepath.Join(dir, "certsync.yaml"),
		StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), BundleDir: filepath.Join(dir, "certs"),
		HAProxy: o.HAProxy, HAProxyConfig: filepath.Join(dir, "haproxy.cfg"), StatsSocket: filepath.Join(dir, "haproxy.sock"),
		KeyFile: filepath.Join(dir, "id_ed25519"), KnownHosts: filepath.Join(dir, "known_hosts"),
		o: o, lab: l,
	}
	for _, d := range []string{n.Dir, n.StateDir, n.RunDir, n.BundleDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("node %s: %w", n.Name, err)
		}
	}
	port, err := FreePort()
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", n.Name, err)
	}
	n.TLSAddress = loopback(port)
	if err := os.WriteFile(n.HAProxyConfig, []byte(n.haproxyConfig()), 0o600); err != nil {
		return nil, fmt.Errorf("node %s: %w", n.Name, err)
	}
	return n, nil
}

// BundleFile is where the node's HAProxy has the bundle of a certificate of one key type.
func (n *Node) BundleFile(name string) string { return filepath.Join(n.BundleDir, name+".pem") }

// Bundle reads the bundle of a certificate from the node's HAProxy folder, whole and checked.
func (n *Node) Bundle(name string) (*cert.Bundle, error) {
	data, err := os.ReadFile(n.BundleFile(name))
	if err != nil {
		return nil, fmt.Errorf("bundle on %s: %w", n.Name, err)
	}
	b, err := cert.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("bundle on %s: %w", n.Name, err)
	}
	return b, nil
}

// placeOld gives the node the bundle that it begins with.
func (n *Node) placeOld(c CertificateOptions, b *cert.Bundle) error {
	if n.o.HideBundle {
		if err := os.WriteFile(n.hidingFile(), b.PEM(), 0o600); err != nil {
			return err
		}
	}
	if c.New {
		return nil
	}
	if err := os.WriteFile(n.BundleFile(c.Name), b.PEM(), 0o600); err != nil {
		return err
	}
	list, err := os.OpenFile(n.crtList(), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = list.WriteString(n.BundleFile(c.Name) + "\n")
	return errors.Join(err, list.Close())
}

// crtList is the crt-list file of a lab with Options.CrtList.
func (n *Node) crtList() string { return filepath.Join(n.Dir, "crt-list") }

func (n *Node) hidingFile() string { return filepath.Join(n.Dir, "hiding.pem") }

// Handshake makes a fresh TLS handshake with the node's HAProxy and gives the leaf that it showed.
func (n *Node) Handshake(ctx context.Context, serverName string) (cert.Fingerprint, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, leaf, err := dialTLS(ctx, n.TLSAddress, serverName)
	if err != nil {
		return cert.Fingerprint{}, fmt.Errorf("handshake with %s: %w", n.Name, err)
	}
	closeHard(conn)
	return leaf, nil
}

// Running is a certsync that was started and not yet waited for.
type Running struct {
	args    []string
	process *process
	stdout  *tail
	start   time.Time
}

// Signal sends sig to it.
func (r *Running) Signal(sig syscall.Signal) { signalGroup(r.process.pid(), sig) }

// Wait waits for its end.
func (r *Running) Wait() Result {
	<-r.process.done
	return resultOf(r.process.cmd, r.args, []byte(r.stdout.String()), []byte(r.process.output.String()), time.Since(r.start))
}

// StartCertsync starts certsync on the node and returns at once. The last 64 KiB of each stream are kept. Close ends it
// where it still runs.
func (n *Node) StartCertsync(args ...string) (*Running, error) {
	args = append(args[:len(args):len(args)], "-c", n.Config)
	r := &Running{args: args, stdout: &tail{}, start: time.Now()}
	p, err := startProcess(n.lab.Binary, args, n.lab.env(), r.stdout)
	if err != nil {
		return nil, err
	}
	r.process = p
	n.running = append(n.running, p)
	return r, nil
}

// Certsync runs certsync on the node with `-c FILE` added. The error is non-nil only where it could not be run or ctx
// ended; how it ended is in the Result.
func (n *Node) Certsync(ctx context.Context, args ...string) (Result, error) {
	return n.CertsyncEnv(ctx, nil, args...)
}

// CertsyncEnv is Certsync with more environment (NAME=VALUE).
func (n *Node) CertsyncEnv(ctx context.Context, env []string, args ...string) (Result, error) {
	args = append(args[:len(args):len(args)], "-c", n.Config)
	return runCommand(ctx, n.lab.Binary, args, append(n.lab.env(), env...), n.Dir)
}

// forcedCommand is what peer may run on this node by SSH, and all that it may run.
func (n *Node) forcedCommand(peer *Node) []string {
	return []string{n.lab.Binary, "serve-peer", "--node", peer.Name, "-c", n.Config}
}

func (n *Node) forcedCommandLine(peer *Node) string { return strings.Join(n.forcedCommand(peer), " ") }

// close ends what runs on the node.
func (n *Node) close() {
	for _, p := range n.running {
		p.kill()
	}
	n.StopSSH()
	n.StopHAProxy()
}
