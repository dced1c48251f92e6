package e2e

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/lab"
)

// scenario is a run of `certsync issue` that is killed at every place it passes.
type scenario struct {
	title string
	lab   lab.Options
	// name is the certificate that is issued, domain what is asked for in handshakes.
	name, domain string
}

// scenarios: the renewal of a bundle that HAProxy serves, and the first issue of one that it has never seen, into a
// folder and into a crt-list file.
func scenarios() []scenario {
	const added = "added.example.org"
	both := []lab.CertificateOptions{
		{Name: name, Domains: []string{name, "*." + name}, Foreign: true}, {Name: added, Domains: []string{added}, New: true},
	}
	return []scenario{
		{"renewal", lab.Options{}, name, domain},
		{"first_issue", lab.Options{Certificates: both}, added, added},
		{"first_issue_into_a_crt-list", lab.Options{Certificates: both, CrtList: true}, added, added},
	}
}

// start begins a scenario's lab with clients on both nodes and a watch over both disks.
func (s scenario) start(t *testing.T, haproxy string) (*lab.Lab, *lab.Load, *watch) {
	o := s.lab
	o.HAProxy = haproxy
	l := newLab(t, o)
	load := lab.StartLoad(t.Context(), lab.LoadOptions{Addresses: l.TLSAddresses(), ServerName: s.domain, Rate: 20, InFlight: 16, KeepAlive: 2,
		Timeout: patience})
	return l, load, startWatch(t.Context(), l.Nodes...)
}

// passed lists the places that a run of the scenario passes on the MASTER, or with onPeer on the BACKUP: "NAME#1",
// "NAME#2", ...
func (s scenario) passed(t *testing.T, onPeer bool) []string {
	t.Helper()
	trace := filepath.Join(t.TempDir(), "trace")
	env := []string{"CERTSYNC_FAILPOINT_TRACE=" + trace}
	l := newLab(t, s.lab)
	if onPeer {
		l.Nodes[1].ServeEnv, env = env, nil
		if err := l.Nodes[1].StartSSH(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	r, err := l.Nodes[0].CertsyncEnv(t.Context(), env, "issue", s.name)
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatalf("no place was passed: %v", err)
	}
	return places(strings.Fields(string(text)))
}

// places numbers the names of a trace.
func places(trace []string) []string {
	passed := map[string]int{}
	for i, at := range trace {
		passed[at]++
		trace[i] = fmt.Sprintf("%s#%d", at, passed[at])
	}
	return trace
}

// tried are the places of all that are tried on a branch: every one on the first, and on the others those that touch
// HAProxy, since nothing else depends on its version. Without full() it is the last of each name only, those that touch
// HAProxy on the branches in turn (internal/haproxy is killed there on each), and of the later scenarios only these.
func (s scenario) tried(all []string, branch string) []string {
	first := branch == branches[0]
	var out []string
	later := map[string]bool{}
	turn := 0
	for _, at := range slices.Backward(all) {
		base, _, _ := strings.Cut(at, "#")
		last := !later[base]
		later[base] = true
		touches := strings.HasPrefix(at, "haproxy.")
		switch {
		case full():
			if touches || first {
				out = append(out, at)
			}
		case !last:
		case touches:
			if branches[turn%len(branches)] == branch {
				out = append(out, at)
			}
			turn++
		case first && s.title == scenarios()[0].title:
			out = append(out, at)
		}
	}
	slices.Reverse(out)
	return out
}

// atEach runs a test at each place that is tried, on each branch.
func (s scenario) atEach(t *testing.T, onPeer bool, test func(t *testing.T, haproxy, at string)) {
	t.Run(s.title, func(t *testing.T) {
		all := s.passed(t, onPeer)
		onEachHAProxy(t, func(t *testing.T, haproxy string) {
			_, branch, _ := strings.Cut(filepath.Base(t.Name()), "_")
			for _, at := range s.tried(all, branch) {
				t.Run(at, func(t *testing.T) {
					t.Parallel()
					test(t, haproxy, at)
				})
			}
		})
	})
}

// hit finds the places in the source whose names are written out.
var hit = regexp.MustCompile(`failpoint\.Hit\("([^"]+)"\)`)

const pruneKills = "certsync prune: TestAPruneKilledAtEveryStepIsFinishedByASecondRun"

const bootstrapKills = "a write to a system file: internal/bootstrap/sysfile"

// reloadKills tells where the reload of HAProxy is killed: no node of these scenarios needs one.
const reloadKills = "HAProxy is reloaded for what cannot be changed at run time: internal/haproxy"

// backKills tells where a rollback and a revocation are killed: at each of their effects.
const backKills = "certsync rollback and revoke: internal/reconcile, and TestARollbackAndARevocationOutliveKillsAndABackupThatIsAway"

// elsewhere are the places that neither scenario passes, and where they are killed instead.
var elsewhere = map[string]string{
	"store.aside":    "a state file that is torn is set aside: internal/store",
	"reconcile.held": backKills, "reconcile.restored": backKills, "reconcile.condemned": backKills, "reconcile.buried": backKills,
	"reconcile.revoked": backKills, "acme.revoked": backKills,
	"store.alarms":       "what was told of alarms is kept, by the daemon: internal/store",
	"haproxy.retired":    "a certificate goes from one key type to both: internal/haproxy",
	"store.remove":       "a generation or a record that is too old is dropped: internal/store",
	"haproxy.prune.kept": pruneKills, "haproxy.prune.unloaded": pruneKills, "haproxy.prune.unlisted": pruneKills, "haproxy.prune.removed": pruneKills,
	"haproxy.reload.temp": reloadKills, "haproxy.reload.synced": reloadKills, "haproxy.reload_recorded": reloadKills, "haproxy.reloaded": reloadKills,
	"store.forgotten": pruneKills, "reconcile.pruned": pruneKills,
	"reconcile.asked": "the CA is asked when to renew, of what a run before has issued: TestACertificateIsRenewedWhenTheCASuggestsIt",
	// No command of the flow edits system files.
	"sysfile.temp": bootstrapKills, "sysfile.written": bootstrapKills, "sysfile.backup": bootstrapKills, "sysfile.rename": bootstrapKills,
	"sysfile.renamed": bootstrapKills,
}

// TestEveryPlaceIsPassedBySomeScenario keeps a new failpoint from being tried nowhere.
func TestEveryPlaceIsPassedBySomeScenario(t *testing.T) {
	passed := map[string]bool{}
	for _, s := range scenarios() {
		for _, onPeer := range []bool{false, true} {
			for _, at := range s.passed(t, onPeer) {
				base, _, _ := strings.Cut(at, "#")
				passed[base] = true
			}
		}
	}
	found := 0
	err := filepath.WalkDir("../internal", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range hit.FindAllSubmatch(source, -1) {
			found++
			if at := string(m[1]); !passed[at] && elsewhere[at] == "" {
				t.Errorf("%s: no scenario passes %s, so that nobody tries to be killed there", path, at)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found == 0 {
		t.Error("no failpoint in the source")
	}
}

// TestKillAtEveryStepThenASecondRun kills the issuing certsync with SIGKILL at each place that it passes and runs it
// again on the same node. Promises 2 (never older), 3 (all or nothing), 4 (everywhere before anywhere) and 7 (no order
// is repeated) must hold, the clients must notice nothing, and at the end both nodes serve what was issued.
func TestKillAtEveryStepThenASecondRun(t *testing.T) {
	for _, s := range scenarios() {
		s.atEach(t, false, s.killThenRunAgain)
	}
}

func (s scenario) killThenRunAgain(t *testing.T, haproxy, at string) {
	l, load, disk := s.start(t, haproxy)
	master, backup := l.Nodes[0], l.Nodes[1]
	r, err := master.CertsyncEnv(t.Context(), []string{"CERTSYNC_FAILPOINT=" + at}, "issue", s.name, "--json")
	if err != nil {
		t.Fatal(err)
	}
	if r.Signal != syscall.SIGKILL {
		t.Fatalf("certsync was not killed at %s (exit code %d)\n%s", at, r.Code, r.Stderr)
	}
	s.wantEverywhereBeforeAnywhere(t, l)

	// Not by name: that would order a new one where the first was kept already.
	second := reconcile(t, master)
	s.wantAllWell(t, l, load, disk)
	wantServedFor(t, s.domain, newest(t, l), master, backup)
	for _, n := range second.Nodes {
		if len(n.Problems) > 0 {
			t.Errorf("%s reports problems: %q", n.Node, n.Problems)
		}
	}
}

// wantAllWell is what must hold after the run that follows a kill.
func (s scenario) wantAllWell(t *testing.T, l *lab.Lab, load *lab.Load, disk *watch) {
	t.Helper()
	disk.end(t)
	if err := load.Stop().Err(); err != nil {
		t.Errorf("clients noticed: %v", err)
	}
	wantOrders(t, l, 1)
	if c := l.CA.Counts(); c.Certificates != 1 || c.NewAccounts != 1 {
		t.Errorf("the CA issued %d certificates and made %d accounts, want 1 and 1", c.Certificates, c.NewAccounts)
	}
	wantNoTXT(t, l)
	for _, n := range l.Nodes {
		if _, err := n.Bundle(s.name); err != nil {
			t.Error(err)
		}
		if err := n.CheckHAProxyConfig(t.Context()); err != nil {
			t.Error(err)
		}
		wantNoDotFiles(t, n)
	}
}

// wantEverywhereBeforeAnywhere wants a generation that any node serves, or has in HAProxy's folder, to be in the store
// of every node, and the MASTER not to serve one that the BACKUP does not.
func (s scenario) wantEverywhereBeforeAnywhere(t *testing.T, l *lab.Lab) {
	t.Helper()
	held := map[cert.Fingerprint]int{}
	for _, n := range l.Nodes {
		for _, g := range ownStatus(t, n).Held {
			held[g.Fingerprint]++
		}
	}
	isNew := func(f cert.Fingerprint) bool {
		return slices.ContainsFunc(l.CA.Leaves(), func(c *x509.Certificate) bool { return lab.FingerprintOf(c) == f })
	}
	var shown []cert.Fingerprint
	for _, n := range l.Nodes {
		f, err := n.Handshake(t.Context(), s.domain)
		if err != nil {
			t.Fatal(err)
		}
		shown = append(shown, f)
		there := map[string]cert.Fingerprint{"serves": f}
		if b, err := n.Bundle(s.name); err == nil {
			there["has on disk"] = b.Fingerprint()
		} else if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after the kill: %v", err)
		}
		for what, f := range there {
			if isNew(f) && held[f] != len(l.Nodes) {
				t.Errorf("after the kill, %s %s %s, which %d of %d stores hold", n.Name, what, f.Short(), held[f], len(l.Nodes))
			}
		}
	}
	if isNew(shown[0]) && shown[1] != shown[0] {
		t.Errorf("after the kill, the MASTER serves %s before the BACKUP, which serves %s", shown[0].Short(), shown[1].Short())
	}
}

// TestKillOfThePeersSideThenASecondRun kills the BACKUP's serve-peer at each place that it passes: the MASTER reports it
// or gets through, the disk stays whole, no client notices, and the next run has the BACKUP in line without an order.
func TestKillOfThePeersSideThenASecondRun(t *testing.T) {
	for _, s := range scenarios() {
		s.atEach(t, true, s.killPeerThenRunAgain)
	}
}

func (s scenario) killPeerThenRunAgain(t *testing.T, haproxy, at string) {
	l, load, disk := s.start(t, haproxy)
	master, backup := l.Nodes[0], l.Nodes[1]
	backup.ServeEnv = []string{"CERTSYNC_FAILPOINT=" + at}
	if err := backup.StartSSH(t.Context()); err != nil {
		t.Fatal(err)
	}
	certsync(t, master, []string{"issue", s.name, "--json"}, 0, 4)

	backup.ServeEnv = nil
	if err := backup.StartSSH(t.Context()); err != nil {
		t.Fatal(err)
	}
	reconcile(t, master)
	s.wantAllWell(t, l, load, disk)
	wantServedFor(t, s.domain, newest(t, l), master, backup)
}

// TestKilledMasterThenFailover kills the MASTER in the middle of its order, as a host that dies, and gives the role to
// the other node: it takes the order up, with its key, and orders nothing.
func TestKilledMasterThenFailover(t *testing.T) {
	for _, step := range cluster.Steps() {
		t.Run(step.String(), func(t *testing.T) {
			l := newLab(t, lab.Options{})
			first, second := l.Nodes[0], l.Nodes[1]
			r, err := first.CertsyncEnv(t.Context(), []string{"CERTSYNC_FAILPOINT=order." + step.String()}, "issue", name)
			if err != nil {
				t.Fatal(err)
			}
			if r.Signal != syscall.SIGKILL {
				t.Fatalf("not killed: %s", r.Stderr)
			}
			first.StopSSH()
			if err := l.SetMaster(t.Context(), second); err != nil {
				t.Fatal(err)
			}
			got := issue(t, second, 4)
			// Before the CA was asked there is only the record to take up, with its key.
			if !got.Certificates[0].Resumed && step > cluster.StepPlanned {
				t.Errorf("the order was not taken up: %s", asJSON(got.Certificates))
			}
			wantOrders(t, l, 1)
			wantServed(t, newest(t, l), second)
			wantServed(t, l.Old[name].Fingerprint(), first)
			wantNoTXT(t, l)
		})
	}
}

// watch runs `haproxy -c` on every node and reads every bundle, again and again, until its end: at no moment may the
// disk hold what HAProxy would not start with.
type watch struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	checks int
	errs   []error
}

func startWatch(ctx context.Context, nodes ...*lab.Node) *watch {
	ctx, cancel := context.WithCancel(ctx)
	w := &watch{cancel: cancel}
	pause := 250 * time.Millisecond // each check costs a start of HAProxy
	if full() {
		pause = 100 * time.Millisecond
	}
	for _, n := range nodes {
		w.wg.Go(func() {
			for ctx.Err() == nil {
				w.note(ctx, n.CheckHAProxyConfig(ctx))
				time.Sleep(pause)
			}
		})
		w.wg.Go(func() {
			for ctx.Err() == nil {
				_, err := n.Bundle(name)
				w.note(ctx, err)
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	return w
}

func (w *watch) note(ctx context.Context, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.checks++
	if err != nil && ctx.Err() == nil {
		w.errs = append(w.errs, err)
	}
}

// end stops it and fails the test for what it saw.
func (w *watch) end(t *testing.T) {
	t.Helper()
	w.cancel()
	w.wg.Wait()
	if w.checks == 0 {
		t.Error("the disk was never checked")
	}
	for i, err := range w.errs {
		if i == 3 {
			t.Errorf("and %d more", len(w.errs)-i)
			break
		}
		t.Errorf("at some moment: %v", err)
	}
}

// ownStatus is what n says of itself.
func ownStatus(t *testing.T, n *lab.Node) cluster.NodeStatus {
	t.Helper()
	r, err := n.Certsync(t.Context(), "status", "--json")
	if err != nil {
		t.Fatal(err)
	}
	nodes, err := lab.ParseStatus(r.Stdout)
	if err != nil {
		t.Fatalf("%v\n%s", err, r.Stderr)
	}
	return nodeIn(t, cluster.Report{Nodes: nodes}, n)
}

// wantNoDotFiles wants no temporary file left in HAProxy's folder, where each would hold a private key.
func wantNoDotFiles(t *testing.T, n *lab.Node) {
	t.Helper()
	entries, err := os.ReadDir(n.BundleDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			t.Errorf("%s has left %s in HAProxy's folder", n.Name, e.Name())
		}
	}
}

// TestNoPrivateKeyIsTold looks for key material in what certsync says.
func TestNoPrivateKeyIsTold(t *testing.T) {
	l := newLab(t, lab.Options{})
	for _, args := range [][]string{{"issue", name}, {"issue", name, "--json"}, {"status"}, {"status", "--json"}} {
		r := certsync(t, l.Nodes[0], args)
		b, err := l.Nodes[0].Bundle(name)
		if err != nil {
			t.Fatal(err)
		}
		// A line from the middle of the key's PEM, which every encoding of it in PEM or base64 would hold.
		secret := bytes.Split(b.KeyPEM(), []byte("\n"))[1][16:48]
		for stream, said := range map[string][]byte{"standard output": r.Stdout, "standard error": r.Stderr} {
			if bytes.Contains(said, []byte("PRIVATE KEY")) || bytes.Contains(said, secret) {
				t.Errorf("%v tells a private key on %s", args, stream)
			}
		}
	}
}
