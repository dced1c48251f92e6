package reconcile

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// pruner is a fakeProxy that lets go of slots, or not, and tells of hazards.
type pruner struct {
	*fakeProxy
	keeps   string // why it cannot let go
	err     error
	kept    []cluster.Target
	known   map[cert.Slot]int
	hazards []cluster.Hazard
}

func (p *pruner) Prune(_ context.Context, gone, kept []cluster.Target, remove bool) ([]cluster.Leftover, error) {
	p.kept, p.known = kept, map[cert.Slot]int{}
	var out []cluster.Leftover
	for _, t := range gone {
		p.known[t.Slot] = len(t.Known)
		if p.files[t.Slot] == nil {
			continue
		}
		l := cluster.Leftover{Slot: t.Slot, Proxy: "haproxy.cfg", File: t.Slot.Name + ".pem", OnDisk: true, Error: p.keeps}
		if remove && p.keeps == "" && p.err == nil {
			delete(p.files, t.Slot)
			delete(p.memory, t.Slot)
			l.Removed = true
		}
		out = append(out, l)
	}
	return out, p.err
}

func (p *pruner) Hazards(context.Context, []cluster.Target) []cluster.Hazard { return p.hazards }

var other = certificate("other.org", []string{"other.org"}, cert.EC256)

var otherSlot = cert.Slot{Name: "other.org", Algorithm: cert.ECDSA}

// withGone is a node that holds other.org, which its configuration no longer has.
func withGone(t *testing.T) (*host, *pruner) {
	t.Helper()
	w := newWorld(t, 1, withCertificates(wildcard, other))
	h := w.hosts[0]
	h.issue()
	h.Settings.Certificates = []Certificate{wildcard}
	p := &pruner{fakeProxy: h.proxy}
	h.Proxies = []Proxy{p}
	return h, p
}

func (h *host) prune(remove bool, names ...string) cluster.Pruning {
	h.w.Helper()
	out, err := h.Prune(context.Background(), names, remove)
	if err != nil {
		h.w.Fatalf("prune: %v", err)
	}
	return out
}

func (h *host) holds(s cert.Slot) bool {
	h.w.Helper()
	held, err := h.disk.Store.Generations(context.Background())
	if err != nil {
		h.w.Fatalf("%v", err)
	}
	return slices.Contains(slotsOf(held), s)
}

func TestPruneShowsFirstAndRemovesThen(t *testing.T) {
	h, p := withGone(t)
	plan := h.prune(false)
	if plan.Done || len(plan.Slots) != 1 || plan.Slots[0].Slot != otherSlot || len(plan.Slots[0].Generations) != 1 || len(plan.Slots[0].Leftovers) != 1 || plan.Slots[0].Removed {
		t.Fatalf("the plan: %+v", plan)
	}
	if !h.holds(otherSlot) || h.proxy.serves(otherSlot).IsZero() {
		t.Fatal("the plan changed something")
	}
	if len(p.kept) != 1 || p.kept[0].Slot != slot || p.known[otherSlot] != 1 {
		t.Errorf("the proxy is told to keep %v, and knows %v", p.kept, p.known)
	}
	done := h.prune(true)
	if !done.Done || len(done.Slots) != 1 || !done.Slots[0].Removed || done.Slots[0].Error != "" {
		t.Fatalf("done: %+v", done)
	}
	if h.holds(otherSlot) || !h.proxy.serves(otherSlot).IsZero() || !h.holds(slot) || h.proxy.serves(slot).IsZero() {
		t.Error("it is not gone, or something else is")
	}
	for _, r := range h.records().Releases {
		if r.Generation.Slot == otherSlot {
			t.Error("its release is left")
		}
	}
	if again := h.prune(true, "other.org"); len(again.Slots) > 0 {
		t.Errorf("the second time: %+v", again)
	}

	// The name may come back: it begins anew.
	h.Settings.Certificates = []Certificate{wildcard, other}
	h.issue()
	if !h.holds(otherSlot) || h.proxy.serves(otherSlot).IsZero() {
		t.Error("it does not come back")
	}
}

func TestPruneKeepsTheGenerationsOfWhatCannotBeLetGo(t *testing.T) {
	for name, change := range map[string]func(*pruner){
		"refused": func(p *pruner) { p.keeps = "it is a bind's default" },
		"failed":  func(p *pruner) { p.err = errors.New("another transaction is open") },
	} {
		h, p := withGone(t)
		change(p)
		out := h.prune(true)
		if out.Slots[0].Removed || !h.holds(otherSlot) {
			t.Errorf("%s: %+v", name, out)
		}
		if told := out.Slots[0].Error + out.Slots[0].Leftovers[0].Error; told == "" {
			t.Errorf("%s: it is not told", name)
		}
		p.keeps, p.err = "", nil
		if out := h.prune(true); !out.Slots[0].Removed || h.holds(otherSlot) {
			t.Errorf("%s: the next time: %+v", name, out)
		}
	}
}

func TestPruneTakesAKeyTypeThatIsNoLongerWanted(t *testing.T) {
	both := certificate("example.org", []string{"example.org", "*.example.org"}, cert.EC256, cert.RSA2048)
	w := newWorld(t, 1, withCertificates(both))
	h := w.hosts[0]
	h.issue()
	h.Settings.Certificates = []Certificate{wildcard}
	h.Proxies = []Proxy{&pruner{fakeProxy: h.proxy}}
	out := h.prune(true, "example.org")
	rsa := cert.Slot{Name: "example.org", Algorithm: cert.RSA}
	if len(out.Slots) != 1 || out.Slots[0].Slot != rsa || !out.Slots[0].Removed || h.holds(rsa) || !h.holds(slot) {
		t.Errorf("%+v", out)
	}
	if _, err := h.Prune(context.Background(), []string{"example.org"}, true); !errors.Is(err, cluster.ErrUsage) {
		t.Errorf("with nothing of it to prune: %v", err)
	}
}

func TestPruneRefusesANameThatIsConfigured(t *testing.T) {
	h, _ := withGone(t)
	out, err := h.Prune(context.Background(), []string{"other.org", "example.org"}, true)
	if !errors.Is(err, cluster.ErrUsage) || !strings.Contains(cluster.HintOf(err), "other.org") || len(out.Slots) > 0 {
		t.Errorf("%+v, %v, hint %q", out, err, cluster.HintOf(err))
	}
	if !h.holds(otherSlot) {
		t.Error("what was named beside it is gone")
	}
	if out := h.prune(true, "unheard-of.org"); len(out.Slots) > 0 || !h.holds(otherSlot) {
		t.Errorf("%+v", out)
	}
}

func TestPruneOfAFullDiskTellsIt(t *testing.T) {
	h, _ := withGone(t)
	if _, err := h.Prune(context.Background(), nil, false); err != nil {
		t.Fatal(err)
	}
	h.Store = failing{h.Store}
	out := h.prune(true)
	if out.Slots[0].Removed || !strings.Contains(out.Slots[0].Error, "input/output error") {
		t.Errorf("%+v", out)
	}
}

type failing struct{ Store }

func (failing) Forget(context.Context, cert.Slot) error { return errors.New("input/output error") }

// What was pruned is not adopted again from a peer that holds it still.
func TestWhatWasPrunedIsNotAdoptedAgain(t *testing.T) {
	w := newWorld(t, 2, withCertificates(wildcard, other))
	w.hosts[0].issue()
	h := w.hosts[0]
	for _, x := range w.hosts {
		x.Settings.Certificates = []Certificate{wildcard}
	}
	h.Proxies = []Proxy{&pruner{fakeProxy: h.proxy}}
	if out := h.prune(true); !out.Slots[0].Removed {
		t.Fatalf("%+v", out)
	}
	h.issue()
	if h.holds(otherSlot) || !w.hosts[1].holds(otherSlot) {
		t.Error("it came back, or went from the peer too")
	}
}

func TestHazardsAreProblemsOfTheNode(t *testing.T) {
	h, p := withGone(t)
	p.hazards = []cluster.Hazard{{Proxy: "haproxy.cfg", Path: "/certs/x.tmp", Problem: "HAProxy will not start with it: it is empty", Hint: "move it out of the folder"}}
	h.Proxies = []Proxy{p, p} // two that have one folder
	const line = "/certs/x.tmp: HAProxy will not start with it: it is empty: move it out of the folder"
	status, err := h.Status(context.Background())
	if err != nil || !slices.Equal(status.Problems, []string{line}) {
		t.Errorf("status: %q, %v", status.Problems, err)
	}
	if report := h.issue(); !slices.Equal(report.Nodes[0].Problems, []string{line}) || report.Outcome != cluster.Unchanged {
		t.Errorf("report: %q, %s", report.Nodes[0].Problems, report.Outcome)
	}
}
