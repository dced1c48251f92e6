package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
)

// Options says what a lab is to be. The zero value is two healthy nodes, one certificate (example.org and
// *.example.org), and certsync built from the source around the current folder.
type Options struct {
	// Binary is certsync's program; "" builds it, with the tag fewproviders.
	Binary string
	// HAProxy is the program for every node that names none; "" means the earliest of HAProxies.
	HAProxy string
	// Nodes defaults to two. The first is MASTER at the start.
	Nodes []NodeOptions
	// Certificates defaults to one, example.org.
	Certificates []CertificateOptions
	// OldLeft is what is left of the lifetime of the bundles that the nodes begin with (3 days of 90): under a tenth, the
	// MASTER does not wait for a BACKUP that serves the wrong thing.
	OldLeft time.Duration
	// SSHD is the path of OpenSSH's sshd, which then takes the place of the embedded server; only root can start it.
	SSHD string
	// CrtList has HAProxy load its bundles by a crt-list file, which certsync may add to, and not by their folder.
	CrtList bool
	// CA and DNS say how the embedded CA and DNS server are to be.
	CA  CAOptions
	DNS DNSOptions
	// Env is added to certsync's environment on every node.
	Env []string
}

// CertificateOptions is an entry of `certificates`, with one ec256 key.
type CertificateOptions struct {
	Name    string
	Domains []string
	// New leaves HAProxy without an old bundle for it.
	New bool
	// Foreign leaves it out of certsync.yaml: HAProxy serves it, and certsync has nothing to do with it.
	Foreign bool
}

// oldLifetime is that of the bundles that the nodes begin with.
const oldLifetime = 90 * 24 * time.Hour

// Lab is a pair (or more) of hosts on loopback, each with an HAProxy that serves an old certificate, and what they need
// around them: a CA, a DNS server, SSH. Everything lives in one folder and ends with Close.
type Lab struct {
	// Root is the folder that holds everything.
	Root string
	// Binary is certsync's program.
	Binary string
	Nodes  []*Node
	CA     *CA
	DNS    *DNS
	// Old has the bundle that every node began with, by the certificate's name.
	Old map[string]*cert.Bundle

	o      Options
	master string
}

// New builds and starts a lab. What it started is stopped again where it fails.
func New(ctx context.Context, o Options) (*Lab, error) {
	l := &Lab{o: withDefaults(o), Old: map[string]*cert.Bundle{}}
	for _, step := range []func(context.Context) error{
		l.makeRoot, l.findPrograms, l.startServices, l.makeNodes, l.makeOld, l.connectNodes, l.writeConfigs, l.startHAProxies,
	} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("lab: %w", err), l.Close())
		}
	}
	return l, nil
}

func withDefaults(o Options) Options {
	if len(o.Nodes) == 0 {
		o.Nodes = make([]NodeOptions, 2)
	}
	nodes := make([]NodeOptions, len(o.Nodes))
	for i, n := range o.Nodes {
		n.Name = cmp.Or(n.Name, fmt.Sprintf("proxy%d", i+1))
		n.StatsLevel = cmp.Or(n.StatsLevel, "admin")
		nodes[i] = n
	}
	o.Nodes = nodes
	o.OldLeft = cmp.Or(o.OldLeft, 3*24*time.Hour)
	if len(o.Certificates) == 0 {
		o.Certificates = []CertificateOptions{{Name: "example.org", Domains: []string{"example.org", "*.example.org"}}}
	}
	return o
}

// maxRoot leaves room below Root for "/proxy1/run/certsync.sock" and the suffix of a temporary name: the path of a unix
// socket has at most 103 bytes on FreeBSD (sun_path in unix(4)).
const maxRoot = 60

func (l *Lab) makeRoot(context.Context) error {
	parent := os.TempDir()
	if len(parent) > maxRoot-len("/certsync-0123456789") {
		parent = "/tmp"
	}
	root, err := os.MkdirTemp(parent, "certsync-")
	if err != nil {
		return err
	}
	l.Root = root
	return nil
}

func (l *Lab) findPrograms(ctx context.Context) error {
	l.Binary = l.o.Binary
	if l.Binary == "" {
		binary, err := Build(ctx, l.Root, "fewproviders")
		if err != nil {
			return err
		}
		l.Binary = binary
	}
	if l.o.HAProxy == "" {
		h, err := FindHAProxy(ctx, "")
		if err != nil {
			return err
		}
		l.o.HAProxy = h.Path
	}
	return nil
}

// Build builds certsync into dir with build tags, from the module that holds the current folder, and gives the
// program's path.
func Build(ctx context.Context, dir string, tags ...string) (string, error) {
	out := filepath.Join(dir, "certsync")
	// With the flags of `make build`, so that what is tried is what is shipped, and what it is made of is compiled once.
	args := []string{"build", "-trimpath", "-tags", strings.Join(tags, ","), "-o", out, "certsync/cmd/certsync"}
	r, err := runCommand(ctx, "go", args, append(baseEnv(), "CGO_ENABLED=0"), "")
	if err != nil {
		return "", fmt.Errorf("build certsync: %w", err)
	}
	if err := r.Err(); err != nil {
		return "", fmt.Errorf("build certsync: go %w", err)
	}
	return out, nil
}

func (l *Lab) startServices(context.Context) error {
	var err error
	if l.DNS, err = NewDNS(l.o.DNS); err != nil {
		return err
	}
	options := l.o.CA
	options.DNS, options.Dir = l.DNS.Address(), l.Root
	l.CA, err = NewCA(options)
	return err
}

func (l *Lab) makeNodes(context.Context) error {
	for _, o := range l.o.Nodes {
		o.HAProxy = cmp.Or(o.HAProxy, l.o.HAProxy)
		n, err := newNode(l, o)
		if err != nil {
			return err
		}
		l.Nodes = append(l.Nodes, n)
	}
	l.master = l.Nodes[0].Name
	return nil
}

// makeOld gives every node the same bundles from a CA of the past, soon to expire, as a person left them there.
func (l *Lab) makeOld(context.Context) error {
	past, err := certtest.New()
	if err != nil {
		return err
	}
	end := time.Now().Add(l.o.OldLeft)
	for _, c := range l.o.Certificates {
		b, err := past.Make(certtest.Options{Domains: c.Domains, NotBefore: end.Add(-oldLifetime), NotAfter: end})
		if err != nil {
			return err
		}
		l.Old[c.Name] = b
		for _, n := range l.Nodes {
			if err := n.placeOld(c, b); err != nil {
				return fmt.Errorf("old bundle: %w", err)
			}
		}
	}
	return nil
}

func (l *Lab) startHAProxies(ctx context.Context) error {
	for _, n := range l.Nodes {
		if err := n.StartHAProxy(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Master is the node that the configuration says is MASTER.
func (l *Lab) Master() *Node {
	for _, n := range l.Nodes {
		if n.Name == l.master {
			return n
		}
	}
	return nil
}

// SetMaster moves the virtual address: from now on every certsync that reads its configuration takes n for the MASTER.
func (l *Lab) SetMaster(ctx context.Context, n *Node) error {
	l.master = n.Name
	if err := l.writeConfigs(ctx); err != nil {
		return fmt.Errorf("make %s MASTER: %w", n.Name, err)
	}
	return nil
}

// TLSAddresses are those of the nodes' HAProxies, for a load.
func (l *Lab) TLSAddresses() []string {
	var out []string
	for _, n := range l.Nodes {
		out = append(out, n.TLSAddress)
	}
	return out
}

// Close stops everything and removes Root. It may be called twice.
func (l *Lab) Close() error {
	var errs []error
	for _, n := range l.Nodes {
		n.close()
	}
	if l.CA != nil {
		errs = append(errs, l.CA.Close())
	}
	if l.DNS != nil {
		errs = append(errs, l.DNS.Close())
	}
	l.CA, l.DNS = nil, nil
	if l.Root != "" {
		errs = append(errs, os.RemoveAll(l.Root))
	}
	return errors.Join(errs...)
}

// env is certsync's environment on every node.
func (l *Lab) env() []string { return append(baseEnv(), l.o.Env...) }

// HasGo tells whether Build can work here.
func HasGo() bool {
	_, err := exec.LookPath("go")
	return err == nil
}
