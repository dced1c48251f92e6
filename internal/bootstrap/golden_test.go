package bootstrap

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"certsync/internal/bootstrap/bootstraptest"
	"certsync/internal/bootstrap/sysfile"
	"certsync/internal/carp"
	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// hosts are the trees of the golden tests.
var hosts = map[string]func(t *testing.T) *world{
	"fresh-13": func(t *testing.T) *world {
		k := em0()
		k.Release = 1302001
		return newWorld(t, "fresh-13", k)
	},
	"fresh-14": func(t *testing.T) *world { return newWorld(t, "fresh-14", em0()) },
	"fresh-15": func(t *testing.T) *world {
		w := newWorld(t, "fresh-15", em0())
		w.SSHConnection = "198.51.100.7 51022 192.0.2.11 22"
		return w
	},
	"vnet-host": func(t *testing.T) *world {
		w := newWorld(t, "vnet-host", bootstraptest.New(map[string][]string{
			"igb0": nil, "igb0.10": {"192.0.2.11/24", "192.0.2.21/32", "2001:db8::11/64"}, "bridge0": nil, "lo0": {"127.0.0.1/8"},
		}).Load())
		w.set = settings("igb0.10")
		return w
	},
	"vnet-jail": func(t *testing.T) *world {
		k := bootstraptest.New(map[string][]string{"epair0b": {"192.0.2.11/24", "2001:db8::11/64"}, "lo0": {"127.0.0.1/8"}}).Load()
		k.Jail = carp.Jail{Jailed: true, VNET: true}
		w := newWorld(t, "vnet-jail", k)
		w.set = settings("epair0b")
		return w
	},
	"vnet-jail-unloaded": func(t *testing.T) *world {
		k := bootstraptest.New(map[string][]string{"epair0b": {"192.0.2.11/24", "2001:db8::11/64"}, "lo0": {"127.0.0.1/8"}})
		k.Jail = carp.Jail{Jailed: true, VNET: true}
		w := newWorld(t, "vnet-jail", k)
		w.set = settings("epair0b")
		return w
	},
	"jail": func(t *testing.T) *world {
		k := em0().Load()
		k.Jail = carp.Jail{Jailed: true}
		return newWorld(t, "vnet-jail", k)
	},
	"by-hand": func(t *testing.T) *world { return newWorld(t, "by-hand", running()) },
	"half": func(t *testing.T) *world {
		k := em0().Load()
		k.Set("em0", carp.Settings{VHID: 1, AdvBase: 1, Password: cluster.Secret("old")}, "192.0.2.10/32")
		return newWorld(t, "half", k)
	},
	"image": func(t *testing.T) *world {
		w := newWorld(t, "fresh-14", nil)
		w.Image, w.OS = true, "linux"
		w.Run = NewHost(nil, w.root).Run
		return w
	},
}

// TestPlanApplyRevert is the whole story of each host, and what it says on the way.
func TestPlanApplyRevert(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("the owners of files are tried as root only")
		}
		t.Skip("the owners of files are tried as root only")
	}
	for _, name := range slices.Sorted(maps.Keys(hosts)) {
		t.Run(name, func(t *testing.T) { golden(t, name, story(t, hosts[name](t))) })
	}
}

func story(t *testing.T, w *world) string {
	var b strings.Builder
	section := func(title, text string) { fmt.Fprintf(&b, "==== %s\n%s\n", title, w.anonymous(text)) }
	before, kernelBefore := w.tree(), w.kernelText()
	section("plan", text(t, w.plan()))
	sameTree(t, before, w.tree())
	result := w.apply()
	section("applied", resultText(result))
	section("files", w.difference(before))
	section("kernel", w.kernelText())
	if w.kernel != nil {
		section("calls", strings.Join(w.kernel.Calls, "\n")+fmt.Sprintf("\n%d failovers", w.kernel.Failovers))
		w.kernel.Calls = nil
	}
	section("plan again", text(t, w.plan()))
	applied := w.tree()
	if again := w.apply(); len(again.Done) > 0 {
		t.Errorf("applied again, it did %q", again.Done)
	}
	sameTree(t, applied, w.tree())
	if w.kernel != nil && len(w.kernel.Calls) > 0 {
		t.Errorf("applied again, it called %q", w.kernel.Calls)
	}
	section("reverted", resultText(w.revert()))
	sameTree(t, before, w.tree())
	if got := w.kernelText(); got != kernelBefore {
		t.Errorf("the kernel was\n%s\nand is after the revert\n%s", kernelBefore, got)
	}
	return b.String()
}

func (w *world) kernelText() string {
	if w.kernel == nil {
		return "none\n"
	}
	return w.kernel.String()
}

// anonymous takes the folder of the test out of a text.
func (w *world) anonymous(text string) string { return strings.ReplaceAll(text, w.root, "/ROOT") }

func resultText(r *Result) string {
	return fmt.Sprintf("done: %s\nnot done: %s\nleft: %s\n", strings.Join(r.Done, "; "), strings.Join(r.NotDone, "; "), strings.Join(r.Left, "; "))
}

// difference tells what became of a tree: whole lines, the password included, which the files have to have.
func (w *world) difference(before map[string]string) string {
	var b strings.Builder
	after := w.tree()
	for _, name := range slices.Sorted(maps.Keys(after)) {
		was, is := before[name], after[name]
		if was == is || strings.HasSuffix(name, RecordPath) {
			continue
		}
		if strings.HasSuffix(name, cert.PlaceholderName) {
			is, _, _ = strings.Cut(is, "\n")
			is += "\n(a placeholder)"
		}
		b.WriteString(sysfile.Diff([]byte(was), []byte(is), name, func(l string) string { return l }))
	}
	return b.String()
}
