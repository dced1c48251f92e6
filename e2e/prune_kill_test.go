package e2e

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.yaml.in/yaml/v3"

	"certsync/internal/cert"
	"certsync/internal/lab"
)

// without is a node's configuration without one of its certificates.
func without(t *testing.T, config []byte, name string) []byte {
	t.Helper()
	var file map[string]any
	if err := yaml.Unmarshal(config, &file); err != nil {
		t.Fatal(err)
	}
	all, ok := file["certificates"].([]any)
	if !ok {
		t.Fatalf("no certificates in %s", config)
	}
	file["certificates"] = slices.DeleteFunc(all, func(c any) bool { return c.(map[string]any)["name"] == name })
	out, err := yaml.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// pruning is a node whose certificate of that name comes and goes.
type pruning struct {
	l          *lab.Lab
	node       *lab.Node
	name       string
	full, less []byte
}

func startPruning(t *testing.T, haproxy string, crtList bool) *pruning {
	t.Helper()
	const added = "added.example.org"
	l := newLab(t, lab.Options{HAProxy: haproxy, CrtList: crtList, Certificates: []lab.CertificateOptions{
		{Name: name, Domains: []string{name, "*." + name}}, {Name: added, Domains: []string{added}, New: true}}})
	certsync(t, l.Nodes[0], []string{"issue", "--json"}, 0)
	config, err := os.ReadFile(l.Nodes[0].Config)
	if err != nil {
		t.Fatal(err)
	}
	return &pruning{l: l, node: l.Nodes[0], name: added, full: config, less: without(t, config, added)}
}

func (p *pruning) configure(t *testing.T, config []byte) {
	t.Helper()
	if err := os.WriteFile(p.node.Config, config, 0o600); err != nil {
		t.Fatal(err)
	}
}

// passed lists the places of a whole prune, and has the certificate back then.
func (p *pruning) passed(t *testing.T) []string {
	t.Helper()
	trace := filepath.Join(t.TempDir(), "trace")
	p.configure(t, p.less)
	r, err := p.node.CertsyncEnv(t.Context(), []string{"CERTSYNC_FAILPOINT_TRACE=" + trace}, "prune", "--yes")
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	p.wantGone(t)
	p.comeBack(t)
	return places(strings.Fields(string(text)))
}

// comeBack configures the certificate again: the peer has it still, so that it is adopted and not ordered.
func (p *pruning) comeBack(t *testing.T) {
	t.Helper()
	p.configure(t, p.full)
	certsync(t, p.node, []string{"issue", "--json"}, 0)
	if f, err := p.node.Handshake(t.Context(), p.name); err != nil || f != fingerprintOn(t, p.l.Nodes[1], p.name) {
		t.Fatalf("it does not come back: %s, %v", f.Short(), err)
	}
}

func fingerprintOn(t *testing.T, n *lab.Node, name string) cert.Fingerprint {
	t.Helper()
	b, err := n.Bundle(name)
	if err != nil {
		t.Fatal(err)
	}
	return b.Fingerprint()
}

// wantGone wants nothing left of the certificate on the node, and everything on its peer.
func (p *pruning) wantGone(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(p.node.BundleFile(p.name)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the bundle is still there (%v)", err)
	}
	// A kill may leave the folders, empty.
	if left, err := filepath.Glob(filepath.Join(p.node.StateDir, "generations", p.name, "*", "*")); err != nil || len(left) > 0 {
		t.Errorf("still in the store: %v, %v", left, err)
	}
	gone := fingerprintOn(t, p.l.Nodes[1], p.name)
	if f, err := p.node.Handshake(t.Context(), p.name); err != nil || f == gone {
		t.Errorf("%s still serves it, or nothing: %s, %v", p.node.Name, f.Short(), err)
	}
	if f, err := p.l.Nodes[1].Handshake(t.Context(), p.name); err != nil || f != gone {
		t.Errorf("the peer does not serve it any more: %s, %v", f.Short(), err)
	}
	if err := p.node.CheckHAProxyConfig(t.Context()); err != nil {
		t.Error(err)
	}
	wantNoDotFiles(t, p.node)
}

// TestAPruneKilledAtEveryStepIsFinishedByASecondRun: promise 3 holds after the kill, the second run leaves nothing
// behind, and the clients of the certificate that stays notice nothing of it all.
func TestAPruneKilledAtEveryStepIsFinishedByASecondRun(t *testing.T) {
	for _, crtList := range []bool{false, true} {
		t.Run(map[bool]string{false: "folder", true: "crt-list"}[crtList], func(t *testing.T) {
			h, err := lab.FindHAProxy(t.Context(), branches[0])
			if err != nil {
				missing(t, err)
			}
			p := startPruning(t, h.Path, crtList)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			load := lab.StartLoad(ctx, lab.LoadOptions{Addresses: p.l.TLSAddresses(), ServerName: domain, Rate: 20, InFlight: 16, KeepAlive: 2, Timeout: patience})
			orders := p.l.CA.Counts().Certificates
			for _, at := range p.passed(t) {
				base, _, _ := strings.Cut(at, "#")
				if strings.HasPrefix(base, "haproxy.previous.") {
					continue // the copy is there from the first time; internal/haproxy is killed at its making
				}
				if crtList && !full() && base != "haproxy.prune.unlisted" {
					continue // elsewhere it is the same as in a folder
				}
				t.Run(at, func(t *testing.T) { p.killThenRunAgain(t, at) })
			}
			if err := load.Stop().Err(); err != nil {
				t.Errorf("clients noticed: %v", err)
			}
			if n := p.l.CA.Counts().Certificates; n != orders {
				t.Errorf("%d certificates were ordered", n-orders)
			}
		})
	}
}

func (p *pruning) killThenRunAgain(t *testing.T, at string) {
	p.configure(t, p.less)
	defer p.comeBack(t)
	r, err := p.node.CertsyncEnv(t.Context(), []string{"CERTSYNC_FAILPOINT=" + at}, "prune", "--yes")
	if err != nil {
		t.Fatal(err)
	}
	if r.Signal != syscall.SIGKILL {
		t.Fatalf("certsync was not killed at %s (exit code %d)\n%s", at, r.Code, r.Stderr)
	}
	if err := p.node.CheckHAProxyConfig(t.Context()); err != nil {
		t.Errorf("after the kill: %v", err)
	}
	certsync(t, p.node, []string{"prune", "--yes"}, 0)
	p.wantGone(t)
}
