//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"certsync/internal/carp"
	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/lab"
)

// newPair boots a pair with real CARP, and returns when its first host is MASTER. It ends with the test.
func newPair(t *testing.T, o lab.PairOptions) *lab.Pair {
	t.Helper()
	o.Binary = binary
	p, err := lab.NewPair(t.Context(), o)
	if errors.Is(err, lab.ErrNoSegment) || errors.Is(err, lab.ErrNoHAProxy) {
		missing(t, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, h := range p.Hosts {
				t.Logf("ucarp of %s:\n%s", h.Name, h.CARPLog())
			}
		}
		if err := p.Close(); err != nil {
			t.Errorf("close the pair: %v", err)
		}
	})
	awaitVirtual(t, p, p.Hosts[0])
	return p
}

// await polls until ok, and fails the test where that takes a minute: CARP itself takes up to 4 s, and the machine may
// be busy.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited a minute for %s", what)
		}
	}
}

// awaitVirtual waits until exactly these hosts have the virtual address.
func awaitVirtual(t *testing.T, p *lab.Pair, want ...*lab.Host) {
	t.Helper()
	await(t, "the virtual address to be on "+names(want), func() bool {
		var have []*lab.Host
		for _, h := range p.Hosts {
			has, written, err := h.HasVirtual()
			if err != nil {
				t.Fatal(err)
			}
			if !written {
				return false
			}
			if has {
				have = append(have, h)
			}
		}
		return slices.Equal(have, want)
	})
}

func names(hosts []*lab.Host) string {
	var out []string
	for _, h := range hosts {
		out = append(out, h.Name)
	}
	return strings.Join(out, " and ")
}

// other is the one that h is paired with.
func other(p *lab.Pair, h *lab.Host) *lab.Host {
	if p.Hosts[0] == h {
		return p.Hosts[1]
	}
	return p.Hosts[0]
}

// onHost runs certsync there and fails the test where it does not end with one of codes.
func onHost(t *testing.T, h *lab.Host, args []string, codes ...int) lab.Result {
	t.Helper()
	r, err := h.Certsync(t.Context(), args...)
	if err == nil {
		err = r.Err(codes...)
	}
	if err != nil {
		t.Fatalf("on %s: %v", h.Name, err)
	}
	return r
}

// carpReport is what `carp status --json` prints.
type carpReport struct {
	Time     time.Time
	Nodes    []cluster.CARP
	Findings []carp.Finding
}

// roles are those of the nodes, each as it sees itself, this node's first.
func (r carpReport) roles() []cluster.Role {
	var out []cluster.Role
	for _, n := range r.Nodes {
		out = append(out, n.Role)
	}
	return out
}

// findsBothMaster tells whether it says that both hosts are MASTER.
func (r carpReport) findsBothMaster(hosts []*lab.Host) bool {
	return slices.ContainsFunc(r.Findings, func(f carp.Finding) bool {
		return f.Kind == carp.BothMaster && len(f.Nodes) == 2 && slices.Contains(f.Nodes, hosts[0].Name) && slices.Contains(f.Nodes, hosts[1].Name)
	})
}

// carpStatus runs `certsync carp status --json` on a host.
func carpStatus(t *testing.T, h *lab.Host) (r carpReport, code int) {
	t.Helper()
	result := onHost(t, h, []string{"carp", "status", "--json"}, 0, 4)
	if err := json.Unmarshal(result.Stdout, &r); err != nil {
		t.Fatalf("carp status on %s: %v\n%s", h.Name, err, result.Stdout)
	}
	if len(r.Nodes) == 0 || r.Nodes[0].Node != h.Name {
		t.Fatalf("carp status on %s does not begin with it: %s", h.Name, result.Stdout)
	}
	return r, result.Code
}

// lines takes a program's output, a JSON object a line, and keeps what each was decoded to.
type lines[T any] struct {
	mu   sync.Mutex
	part []byte
	all  []T
	err  error
}

func (l *lines[T]) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.part = append(l.part, p...)
	for {
		line, rest, found := bytes.Cut(l.part, []byte("\n"))
		if !found {
			return len(p), nil
		}
		var v T
		if err := json.Unmarshal(line, &v); err != nil && l.err == nil {
			l.err = fmt.Errorf("%w: %s", err, line)
		}
		l.all, l.part = append(l.all, v), rest
	}
}

// read gives the lines so far.
func (l *lines[T]) read(t *testing.T) []T {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		t.Fatal(l.err)
	}
	return slices.Clone(l.all)
}

// carpWatch is a `carp status --watch` on a host, and where the virtual address was when it began.
type carpWatch struct {
	host  *lab.Host
	lines lines[carpReport]
	begun int // the moves before
	first cluster.Role
}

// watchCARP starts one, and returns when it has told the first state. The address is at rest by then.
func watchCARP(t *testing.T, h *lab.Host) *carpWatch {
	t.Helper()
	w := &carpWatch{host: h, first: cluster.Backup}
	before := moves(t, h)
	if w.begun = len(before); w.begun > 0 {
		w.first = before[w.begun-1].Role
	}
	if _, err := h.StartCertsync(&w.lines, "carp", "status", "--json", "--watch"); err != nil {
		t.Fatal(err)
	}
	await(t, "the first line of carp status --watch on "+h.Name, func() bool { return len(w.lines.read(t)) > 0 })
	return w
}

func moves(t *testing.T, h *lab.Host) []lab.Move {
	t.Helper()
	m, err := h.Moves()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// told is what the watch told of its host: MASTER or not, each change.
func (w *carpWatch) told(t *testing.T) []cluster.Role {
	t.Helper()
	var out []cluster.Role
	for _, line := range w.lines.read(t) {
		if len(line.Nodes) == 0 || line.Nodes[0].Node != w.host.Name {
			t.Fatalf("a line of the watch on %s does not begin with it: %+v", w.host.Name, line)
		}
		role := line.Nodes[0].Role
		if role == cluster.Init { // the link is down
			role = cluster.Backup
		}
		out = append(out, role)
	}
	return slices.Compact(out)
}

// moved is what happened to its host meanwhile.
func (w *carpWatch) moved(t *testing.T) []lab.Move {
	t.Helper()
	return append([]lab.Move{{Role: w.first}}, moves(t, w.host)[w.begun:]...)
}

// glimpse is how soon the address may go again for nobody to be held to have seen that it was there: a watch tells
// states, not events. CARP itself does so only where an advertisement was late.
const glimpse = 100 * time.Millisecond

// tellsAll tells whether the roles that were told are all the moves, in order and no other, but for glimpses.
func tellsAll(told []cluster.Role, moved []lab.Move) bool {
	if len(moved) == 0 {
		return len(told) == 0
	}
	if len(told) > 0 && told[0] == moved[0].Role && tellsAll(told[1:], moved[1:]) {
		return true
	}
	return len(moved) > 1 && moved[1].Time.Sub(moved[0].Time) < glimpse && tellsAll(told, moved[2:])
}

// awaitToldAll waits until the watch has told every move, in order, and no other.
func (w *carpWatch) awaitToldAll(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		told, moved := w.told(t), w.moved(t)
		if tellsAll(told, moved) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("carp status --watch on %s told %v, but the address moved %v", w.host.Name, told, moved)
		}
	}
}

// failover is a way for a MASTER to lose the virtual address, and what makes the host whole again.
type failover struct {
	name      string
	lose      func(*testing.T, *lab.Host) error
	makeWhole func(*testing.T, *lab.Host) error
}

var failovers = []failover{
	{"ucarp_dies_with_its_address",
		func(t *testing.T, h *lab.Host) error { return h.DropCARP(t.Context()) },
		func(t *testing.T, h *lab.Host) error { return h.StartCARP(t.Context()) }},
	{"link_down",
		func(t *testing.T, h *lab.Host) error { return h.Station.LinkDown(t.Context()) },
		func(t *testing.T, h *lab.Host) error {
			if err := h.Station.LinkUp(t.Context()); err != nil {
				return err
			}
			h.StopCARP() // which ended with the link, if it has noticed
			return h.StartCARP(t.Context())
		}},
	{"demoted",
		func(_ *testing.T, h *lab.Host) error { h.Demote(); return nil },
		func(*testing.T, *lab.Host) error { return nil }},
	{"ucarp_stops",
		func(_ *testing.T, h *lab.Host) error { h.StopCARP(); return nil },
		func(t *testing.T, h *lab.Host) error { return h.StartCARP(t.Context()) }},
}

// TestCARPMovesAreToldOneByOne: over failovers of every kind, the watch on both hosts tells every move of the virtual
// address in order, as the scripts that move it wrote them down; and clients meet the host that it says.
func TestCARPMovesAreToldOneByOne(t *testing.T) {
	t.Parallel()
	times := 4 // and one more in returnAndPreempt
	if full() {
		times = 49
	}
	p := newPair(t, lab.PairOptions{})
	watches := []*carpWatch{watchCARP(t, p.Hosts[0]), watchCARP(t, p.Hosts[1])}
	roles := []*roleTeller{tellRoles(t, p.Hosts[0]), tellRoles(t, p.Hosts[1])}
	master := p.Hosts[0]
	for i := range times {
		f := failovers[i%len(failovers)]
		if err := f.lose(t, master); err != nil {
			t.Fatalf("%s on %s: %v", f.name, master.Name, err)
		}
		next := other(p, master)
		awaitVirtual(t, p, next)
		if err := f.makeWhole(t, master); err != nil {
			t.Fatalf("after %s on %s: %v", f.name, master.Name, err)
		}
		master = next
		for _, w := range watches {
			w.awaitToldAll(t)
		}
	}
	wantAnswer(t, p, master)
	returnAndPreempt(t, p, roles)
	for _, w := range watches {
		w.awaitToldAll(t)
	}
	wantNeverTwo(t, roles)
}

// returnAndPreempt has the first host come back and take the address at once, while the second still has it: the moment
// that the settle time is for.
func returnAndPreempt(t *testing.T, p *lab.Pair, roles []*roleTeller) {
	t.Helper()
	first, second := p.Hosts[0], p.Hosts[1]
	if err := first.DropCARP(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitVirtual(t, p, second)
	roles[1].awaitMaster(t)
	first.Preempt = true
	if err := first.StartCARP(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitVirtual(t, p, first)
	roles[0].awaitMaster(t)
}

// wantAnswer wants a client at the virtual address to meet h.
func wantAnswer(t *testing.T, p *lab.Pair, h *lab.Host) lab.Answer {
	t.Helper()
	var a lab.Answer
	var err error
	await(t, "a client to meet "+h.Name, func() bool {
		a, err = p.AskVirtual(t.Context(), domain)
		return err == nil && a.Host == h.Name
	})
	return a
}

// awaitStatus waits until `carp status` on h says what is wanted.
func awaitStatus(t *testing.T, h *lab.Host, what string, ok func(r carpReport, code int) bool) {
	t.Helper()
	var last carpReport
	var code int
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if last, code = carpStatus(t, h); ok(last, code) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("carp status on %s: waited a minute for: %s; it says (exit code %d) %s", h.Name, what, code, asJSON(last))
		}
	}
}

// whole is a pair as it should be: one MASTER, one BACKUP, nothing to say.
func whole(r carpReport, code int) bool {
	roles := r.roles()
	slices.Sort(roles)
	return code == 0 && len(r.Findings) == 0 && slices.Equal(roles, []cluster.Role{cluster.Backup, cluster.Master})
}

// TestCARPSplitBrain: where the hosts cannot hear each other both are MASTER, and each says so; when they can again, it
// ends.
func TestCARPSplitBrain(t *testing.T) {
	t.Parallel()
	p := newPair(t, lab.PairOptions{})
	first, second := p.Hosts[0], p.Hosts[1]
	watches := []*carpWatch{watchCARP(t, first), watchCARP(t, second)}
	for _, h := range p.Hosts {
		awaitStatus(t, h, "all is well", whole)
	}
	if err := p.Split(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitVirtual(t, p, first, second)
	for _, w := range watches {
		w.awaitToldAll(t)
		if told := w.told(t); told[len(told)-1] != cluster.Master {
			t.Errorf("%s is MASTER of a split segment, its watch tells %v", w.host.Name, told)
		}
	}
	awaitStatus(t, first, "it is MASTER and cannot reach the other", func(r carpReport, code int) bool {
		return code == 4 && r.Nodes[0].Role == cluster.Master && r.Nodes[1].Error != ""
	})
	if err := p.Segment.Heal(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitVirtual(t, p, first)
	for _, h := range p.Hosts {
		awaitStatus(t, h, "all is well again", whole)
	}
	for _, w := range watches {
		w.awaitToldAll(t)
	}

	// The address lingers: its ucarp is dead, nobody takes it away, and the other host takes it too. The hosts reach each
	// other, so that each can say that there are two.
	first.KillCARP()
	awaitVirtual(t, p, first, second)
	for _, h := range p.Hosts {
		awaitStatus(t, h, "both are MASTER", func(r carpReport, code int) bool {
			return code == 4 && slices.Equal(r.roles(), []cluster.Role{cluster.Master, cluster.Master}) && r.findsBothMaster(p.Hosts)
		})
	}
	if err := first.StartCARP(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitVirtual(t, p, second)
	for _, h := range p.Hosts {
		awaitStatus(t, h, "all is well again", whole)
	}
	for _, w := range watches {
		w.awaitToldAll(t)
	}
}

// wantHostsServe wants every host's own HAProxy to show the leaf.
func wantHostsServe(t *testing.T, want cert.Fingerprint, hosts ...*lab.Host) {
	t.Helper()
	for _, h := range hosts {
		have, err := h.Handshake(t.Context(), domain)
		if err != nil {
			t.Error(err)
		} else if have != want {
			t.Errorf("%s serves %s, want %s", h.Name, have.Short(), want.Short())
		}
	}
}

// TestCARPDecidesWhoIssues: the BACKUP refuses and says who is MASTER; the MASTER issues; after a failover the other one
// adopts what it missed and can issue; and where the MASTER is demoted or dies in the middle of an order, the other takes
// that order up.
func TestCARPDecidesWhoIssues(t *testing.T) {
	t.Parallel()
	p := newPair(t, lab.PairOptions{})
	first, second := p.Hosts[0], p.Hosts[1]
	refused := onHost(t, second, []string{"issue", name}, 3)
	if !strings.Contains(string(refused.Stderr), first.Name) {
		t.Errorf("the MASTER's name is not in: %s", refused.Stderr)
	}
	if c := p.Lab.CA.Counts(); len(c.Requests) != 0 {
		t.Errorf("the CA was asked: %v", c.Requests)
	}

	// The second misses the first's certificate, and gets it when it is MASTER, without an order.
	second.StopSSH()
	onHost(t, first, []string{"issue", name}, 4)
	wantHostsServe(t, newest(t, p.Lab), first)
	wantHostsServe(t, p.Lab.Old[name].Fingerprint(), second)
	if err := second.StartSSH(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := first.DropCARP(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitVirtual(t, p, second)
	onHost(t, second, []string{"issue"})
	wantOrders(t, p.Lab, 1)
	wantHostsServe(t, newest(t, p.Lab), first, second)
	if n := p.Lab.CA.Counts().NewAccounts; n != 1 {
		t.Errorf("the CA made %d accounts, want 1 for both hosts", n)
	}
	if err := first.StartCARP(t.Context()); err != nil {
		t.Fatal(err)
	}
	demotedWhileIssuing(t, p, second)
	if err := second.StartCARP(t.Context()); err != nil {
		t.Fatal(err)
	}
	diesWhileIssuing(t, p, first)
	wantNoTXT(t, p.Lab)
}

// atFinalize has something happen when the next request to finalise an order has reached the CA; the CA goes on with it
// whatever becomes of its client.
func atFinalize(p *lab.Pair, happen func() error) (happened <-chan error) {
	done := make(chan error, 1)
	var once sync.Once
	p.Lab.CA.SetHook(func(_ http.ResponseWriter, r *http.Request) bool {
		if lab.EndpointOf(r) == lab.EndpointFinalize {
			once.Do(func() {
				done <- happen()
				*r = *r.WithContext(context.WithoutCancel(r.Context()))
			})
		}
		return false
	})
	return done
}

// takeUp wants heir to be MASTER soon, and to bring the order of the one before in service without another.
func takeUp(t *testing.T, p *lab.Pair, heir *lab.Host, code int) {
	t.Helper()
	awaitVirtual(t, p, heir)
	orders := p.Lab.CA.Counts().Orders
	onHost(t, heir, []string{"issue", name}, code)
	wantOrders(t, p.Lab, orders)
	wantHostsServe(t, newest(t, p.Lab), heir)
	if a := wantAnswer(t, p, heir); a.Leaf != newest(t, p.Lab) {
		t.Errorf("a client at the virtual address got %s, want %s", a.Leaf.Short(), newest(t, p.Lab).Short())
	}
}

// demotedWhileIssuing takes the address from a MASTER in the middle of an order: it stops, and puts nothing in service.
func demotedWhileIssuing(t *testing.T, p *lab.Pair, master *lab.Host) {
	t.Helper()
	before := newest(t, p.Lab)
	demoted := atFinalize(p, func() error { return master.DropCARP(t.Context()) })
	r, err := master.Certsync(t.Context(), "issue", name)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-demoted; err != nil {
		t.Fatal(err)
	}
	if r.Code == 0 || r.Code == 4 {
		t.Errorf("exit code %d after the role was lost\n%s", r.Code, r.Stderr)
	}
	wantHostsServe(t, before, p.Hosts...)
	takeUp(t, p, other(p, master), 0)
	wantHostsServe(t, newest(t, p.Lab), p.Hosts...)
}

// diesWhileIssuing takes the power from a MASTER in the middle of an order: the certificate is issued, and whoever asked
// for it is dead.
func diesWhileIssuing(t *testing.T, p *lab.Pair, master *lab.Host) {
	t.Helper()
	died := atFinalize(p, func() error { return master.PowerOff(t.Context()) })
	r, err := master.Certsync(t.Context(), "issue", name)
	if err != nil {
		t.Fatal(err)
	}
	if r.Signal == 0 {
		t.Fatalf("certsync ended by itself, with %d: %s", r.Code, r.Stderr)
	}
	if err := <-died; err != nil {
		t.Fatal(err)
	}
	heir := other(p, master)
	takeUp(t, p, heir, 4)
	if err := master.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	orders := p.Lab.CA.Counts().Orders
	onHost(t, heir, []string{"issue"})
	wantOrders(t, p.Lab, orders)
	wantHostsServe(t, newest(t, p.Lab), p.Hosts...)
}
