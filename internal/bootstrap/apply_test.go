package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"certsync/internal/bootstrap/bootstraptest"
	"certsync/internal/carp"
	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// killed is what a test panics with where kill -9 would end the process: nothing after it runs.
type killed struct{}

// until runs f, and tells whether it was killed at the nth place that it passed.
func (w *world) until(n int, f func()) (dead bool) {
	passed := 0
	w.at = func(string) {
		if passed++; passed == n {
			panic(killed{})
		}
	}
	defer func() {
		w.at = nil
		if r := recover(); r != nil {
			if _, ok := r.(killed); !ok {
				panic(r)
			}
			dead = true
		}
	}()
	f()
	return false
}

// killable are the hosts whose story is tried with a kill: at every place in a full test, else at each fifth, so that
// each of the three places of an action comes.
func killable(t *testing.T, try func(t *testing.T, name string, n int) (dead bool)) {
	names, stride := []string{"half"}, 5
	if os.Getenv("CERTSYNC_TEST_FULL") == "1" {
		names, stride = []string{"fresh-13", "fresh-15", "half", "image"}, 1
	}
	for _, name := range names {
		for n := 1; try(t, name, n); n += stride {
			if t.Failed() {
				t.Fatalf("%s, killed at place %d", name, n)
			}
		}
	}
}

func TestKilledAnywhereThenRevertedLeavesTheHostAsItWas(t *testing.T) {
	killable(t, func(t *testing.T, name string, n int) bool {
		w := hosts[name](t)
		before, kernel := w.tree(), w.kernelText()
		dead := w.until(n, func() { w.apply() })
		w.revertsTo(before, kernel)
		return dead
	})
}

// revertsTo reverts, and fails where the host is not as it was.
func (w *world) revertsTo(before map[string]string, kernel string) {
	w.t.Helper()
	w.revert()
	sameTree(w.t, before, w.tree())
	if w.kernelText() != kernel {
		w.t.Errorf("reverted, the kernel is\n%s\nand not\n%s", w.kernelText(), kernel)
	}
}

func TestKilledAnywhereThenAppliedAgainEndsAsUnkilledAndRevertsWholly(t *testing.T) {
	killable(t, func(t *testing.T, name string, n int) bool {
		want := hosts[name](t)
		want.apply()
		w := hosts[name](t)
		before, kernel := w.tree(), w.kernelText()
		dead := w.until(n, func() { w.apply() })
		w.apply()
		sameTree(t, withoutVolatile(want.tree()), withoutVolatile(w.tree()))
		if w.kernelText() != want.kernelText() {
			t.Errorf("the kernel is\n%s\nand not\n%s", w.kernelText(), want.kernelText())
		}
		if w.kernel != nil && w.kernel.Failovers > 0 {
			t.Errorf("%d failovers: %q", w.kernel.Failovers, w.kernel.Calls)
		}
		w.revertsTo(before, kernel)
		return dead
	})
}

// withoutVolatile leaves out the record, and the content of placeholders, which have new keys.
func withoutVolatile(tree map[string]string) map[string]string {
	out := maps.Clone(tree)
	for name, text := range out {
		if strings.HasSuffix(name, RecordPath) {
			delete(out, name)
		}
		if strings.HasSuffix(name, cert.PlaceholderName) {
			out[name], _, _ = strings.Cut(text, "\n")
		}
	}
	return out
}

func TestKilledInARevertTheNextOneEndsIt(t *testing.T) {
	killable(t, func(t *testing.T, name string, n int) bool {
		w := hosts[name](t)
		before, kernel := w.tree(), w.kernelText()
		w.apply()
		dead := w.until(n, func() { w.revert() })
		w.revertsTo(before, kernel)
		return dead
	})
}

// The record has no entries any more, and is still there.
func TestKilledAtTheLastPlaceOfARevertTheNextOneRemovesTheRecord(t *testing.T) {
	whole := hosts["fresh-13"](t)
	whole.apply()
	places := 0
	whole.at = func(string) { places++ }
	whole.revert()

	w := hosts["fresh-13"](t)
	before, kernel := w.tree(), w.kernelText()
	w.apply()
	if !w.until(places, func() { w.revert() }) {
		t.Fatalf("a revert has no place %d", places)
	}
	if _, err := os.Stat(filepath.Join(w.root, RecordPath)); err != nil {
		t.Fatalf("the record is gone already: %v", err)
	}
	w.revertsTo(before, kernel)
}

func TestAStepThatFailsStopsThereAndTheRestCanBeDoneOrUndone(t *testing.T) {
	for fail, at := range map[string]string{
		"kldload":                         "carp.ko now",
		"sysctl net.inet.carp.log":        "net.inet.carp.log now",
		"em0 vhid 1":                      "em0 vhid 1 now",
		"em0 add 192.0.2.10/32":           "em0 vhid 1 now",
		"em0 add 2001:db8::10/128 vhid 2": "em0 vhid 2 now",
	} {
		w := newWorld(t, "fresh-13", em0())
		before, kernel := w.tree(), w.kernelText()
		w.kernel.Fail[fail] = syscall.EIO
		r, err := w.Apply(t.Context(), w.set, w.plan(), true)
		if !errors.Is(err, syscall.EIO) || r.Failed != at || !strings.HasPrefix(err.Error(), at+": ") || cluster.HintOf(err) == "" {
			t.Errorf("%s: %v, %+v", fail, err, r)
		}
		if len(r.Done) == 0 || !strings.Contains(err.Error(), r.Done[0]) || !slices.Contains(r.NotDone, "service") {
			t.Errorf("%s: it does not say how far it came: %v, %+v", fail, err, r)
		}
		w.revert()
		sameTree(t, before, w.tree())
		if w.kernelText() != kernel {
			t.Errorf("%s: the kernel is\n%s", fail, w.kernelText())
		}
	}
}

func TestACommandThatFailsStopsItToo(t *testing.T) {
	w := newWorld(t, "fresh-15", em0())
	before := w.tree()
	for _, fail := range []string{"/usr/sbin/pw useradd", "/usr/sbin/pw groupmod", "/usr/local/sbin/visudo"} {
		w.commands.Fail = map[string]error{fail: errors.New("exit status 1")}
		_, err := w.Apply(t.Context(), w.set, w.plan(), true)
		if err == nil || !strings.Contains(err.Error(), "exit status 1: it failed") {
			t.Errorf("%s: %v", fail, err)
		}
	}
	if _, err := os.Stat(filepath.Join(w.root, sudoers)); err == nil {
		t.Error("visudo refused the rules, and they are in sudoers.d")
	}
	w.commands.Fail = nil
	w.revert()
	sameTree(t, before, w.tree())
}

// lies are kernels that say they did a thing and did not.
func TestAStepIsReadBackAndNotBelieved(t *testing.T) {
	lies := map[string]func(k *carp.Kernel){
		"carp.ko now":              func(k *carp.Kernel) { k.LoadModule = func() error { return nil } },
		"net.inet.carp.log now":    func(k *carp.Kernel) { k.SetSysctl = skipSysctl(k.SetSysctl, "net.inet.carp.log") },
		"em0 vhid 1 now":           func(k *carp.Kernel) { k.AddAddress = func(string, netip.Prefix, int) error { return nil } },
		"em0 vhid 1 now (the key)": func(k *carp.Kernel) { k.SetVHID = withKey(k.SetVHID) },
	}
	for name, lie := range lies {
		w := newWorld(t, "fresh-13", em0())
		p := w.plan()
		lie(w.Kernel)
		r, err := w.Apply(t.Context(), w.set, p, true)
		want, _, _ := strings.Cut(name, " (")
		if err == nil || r.Failed != want || !strings.Contains(err.Error(), "read it back") {
			t.Errorf("%s: %v", name, err)
		}
		w.noSecret(name, fmt.Sprint(err))
	}
}

func skipSysctl(real func(string, int) error, skip string) func(string, int) error {
	return func(name string, value int) error {
		if name == skip {
			return nil
		}
		return real(name, value)
	}
}

func withKey(real func(string, carp.Settings) error) func(string, carp.Settings) error {
	return func(iface string, s carp.Settings) error {
		s.Password = s.Password[:3]
		return real(iface, s)
	}
}

func TestAChangeOfAdvskewOrPasswordCausesNoFailover(t *testing.T) {
	w := newWorld(t, "by-hand", running())
	w.set.VHIDs[0].AdvSkew = 0
	w.Host.Password = func(string) (cluster.Secret, error) { return cluster.Secret("other2"), nil }
	p := w.plan()
	if len(p.Warnings()) > 0 {
		t.Errorf("warnings %q", p.Warnings())
	}
	if _, err := w.Apply(t.Context(), w.set, p, false); err != nil {
		t.Fatal(err)
	}
	if w.kernel.Failovers > 0 || w.kernel.Role("em0", 1) != cluster.Master || w.kernel.Password("em0", 1) != "other2" {
		t.Errorf("%d failovers, calls %q", w.kernel.Failovers, w.kernel.Calls)
	}
	// /etc/rc.conf is 0600 here: the lines are changed where they are.
	if rc := w.read("etc/rc.conf"); strings.Contains(rc, thePassword) || !strings.Contains(rc, "vhid 1 advbase 1 advskew 0 pass other2 alias 192.0.2.10/32") {
		t.Errorf("rc.conf is\n%s", rc)
	}
	w.revert()
	if w.kernel.Failovers > 0 || w.kernel.Password("em0", 1) != thePassword {
		t.Errorf("reverted: %d failovers, calls %q", w.kernel.Failovers, w.kernel.Calls)
	}
}

func TestAnotherSetOfAddressesIsAFailoverAndWantsYes(t *testing.T) {
	for name, c := range map[string]struct {
		want      []netip.Prefix
		failovers int
	}{
		"one more":     {prefixes("192.0.2.10/32", "192.0.2.20/32"), 1},
		"another":      {prefixes("192.0.2.20/32"), 1},
		"another mask": {prefixes("192.0.2.10/24"), 1},
	} {
		w := newWorld(t, "by-hand", running())
		before, kernel := w.tree(), w.kernelText()
		w.set.VHIDs[0].Addresses = c.want
		p := w.plan()
		if all := strings.Join(p.Warnings(), "; "); !strings.Contains(all, "causes a failover of vhid 1") {
			t.Fatalf("%s: warnings %q", name, all)
		}
		if _, err := w.Apply(t.Context(), w.set, p, false); !errors.Is(err, cluster.ErrUsage) {
			t.Errorf("%s: without yes: %v", name, err)
		}
		if _, err := w.Apply(t.Context(), w.set, p, true); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if w.kernel.Failovers != c.failovers {
			t.Errorf("%s: %d failovers, want %d: %q", name, w.kernel.Failovers, c.failovers, w.kernel.Calls)
		}
		if again := w.plan(); len(again.Of(Change)) > 0 {
			t.Errorf("%s: again\n%s", name, text(t, again))
		}
		w.revert()
		sameTree(t, before, w.tree())
		if w.kernelText() != kernel {
			t.Errorf("%s: reverted, the kernel is\n%s", name, w.kernelText())
		}
	}
}

func TestAPlainAddressBecomesVirtualAndPlainAgain(t *testing.T) {
	k := bootstraptest.New(map[string][]string{"em0": {"192.0.2.11/24", "192.0.2.10/32", "2001:db8::11/64"}}).Load()
	w := newWorld(t, "fresh-13", k)
	kernel := w.kernelText()
	if all := strings.Join(w.plan().Warnings(), "; "); !strings.Contains(all, "plain address") {
		t.Errorf("warnings %q", all)
	}
	w.apply()
	if !strings.Contains(w.kernelText(), "192.0.2.10/32 vhid 1") {
		t.Errorf("the kernel is\n%s", w.kernelText())
	}
	w.revert()
	if w.kernelText() != kernel {
		t.Errorf("reverted, the kernel is\n%s", w.kernelText())
	}
}

func TestAVHIDThatWasForcedIntoBeingGetsItsAddressAndStaysAfterARevert(t *testing.T) {
	k := em0().Load()
	k.Set("em0", carp.Settings{VHID: 1, AdvBase: 1})
	w := newWorld(t, "fresh-13", k)
	w.apply()
	if k.Role("em0", 1) != cluster.Backup || k.Failovers > 0 {
		t.Errorf("%v, %d failovers", k.Role("em0", 1), k.Failovers)
	}
}

func TestWhatSomebodyElseChangedSinceIsLeftAndSaid(t *testing.T) {
	w := newWorld(t, "fresh-14", em0())
	w.apply()
	k := w.Kernel
	w.write("etc/rc.conf", strings.Replace(w.read("etc/rc.conf"), "sshd_enable", "# a comment\nnew=\"1\"\nsshd_enable", 1), 0o644)
	w.write("etc/sysctl.conf", strings.Replace(w.read("etc/sysctl.conf"), "net.inet.carp.log=2", "net.inet.carp.log=3", 1), 0o644)
	w.write("usr/local/etc/doas.conf", w.read("usr/local/etc/doas.conf")+"permit nopass root\n", 0o644)
	w.write("var/db/certsync/account.json", "{}", 0o600)
	w.must(k.SetSysctl("net.inet.carp.log", 3))
	w.must(k.AddAddress("em0", netip.MustParsePrefix("192.0.2.99/32"), 1))
	w.must(k.SetVHID("em0", carp.Settings{VHID: 2, AdvBase: 1, AdvSkew: 7, Password: cluster.Secret("theirs")}))
	r := w.revert()
	left := strings.Join(r.Left, "\n")
	for _, want := range []string{"net.inet.carp.log is 3", "192.0.2.99/32", "/etc/sysctl.conf", "/var/db/certsync is kept"} {
		if !strings.Contains(left, want) {
			t.Errorf("left is\n%s\nwithout %q", left, want)
		}
	}
	if rc := w.read("etc/rc.conf"); !strings.Contains(rc, "# a comment\nnew=\"1\"\n") || strings.Contains(rc, "certsync_enable") || strings.Contains(rc, "auto_linklocal") {
		t.Errorf("rc.conf is\n%s", rc)
	}
	if s := w.read("etc/sysctl.conf"); !strings.Contains(s, "net.inet.carp.log=3") || strings.Contains(s, "preempt") {
		t.Errorf("sysctl.conf is\n%s", s)
	}
	if d := w.read("usr/local/etc/doas.conf"); d != "permit persist :wheel\npermit nopass root\n" {
		t.Errorf("doas.conf is\n%s", d)
	}
	if _, err := os.Stat(filepath.Join(w.root, "etc/rc.conf.certsync-orig")); err != nil {
		t.Errorf("the backup of a file that was edited since is gone: %v", err)
	}
	w.noSecret("what is left", left)
	if again := w.revert(); len(again.Done)+len(again.Left) > 0 {
		t.Errorf("reverted again: %+v", again)
	}
}

func TestAFileThatChangesAfterThePlanIsNotOverwritten(t *testing.T) {
	w := newWorld(t, "fresh-13", em0())
	p := w.plan()
	w.write("etc/sysctl.conf", "kern.maxfiles=1\n", 0o644)
	_, err := w.Apply(t.Context(), w.set, p, true)
	if err == nil || !strings.Contains(err.Error(), "/etc/sysctl.conf was changed since the plan was made") {
		t.Errorf("%v", err)
	}
	if got := w.read("etc/sysctl.conf"); got != "kern.maxfiles=1\n" {
		t.Errorf("it is\n%s", got)
	}
	w.revert()
}

func TestAnOpenNetifFileIsClosedBeforeThePasswordIsInIt(t *testing.T) {
	w := newWorld(t, "fresh-13", em0())
	w.write("etc/rc.conf.d/netif", "netif_debug=1\n", 0o644)
	before := w.tree()
	w.apply()
	info, err := os.Stat(filepath.Join(w.root, "etc/rc.conf.d/netif"))
	w.must(err)
	if info.Mode().Perm() != 0o600 || !strings.Contains(w.read("etc/rc.conf.d/netif"), "netif_debug=1\nifconfig_em0_alias0=") {
		t.Errorf("%v\n%s", info.Mode(), w.read("etc/rc.conf.d/netif"))
	}
	w.revert()
	sameTree(t, before, w.tree())
}

func TestTheRecordIsRootsAndIsNotBelievedElse(t *testing.T) {
	w := newWorld(t, "fresh-13", em0())
	w.apply()
	p := filepath.Join(w.root, RecordPath)
	info, err := os.Stat(p)
	w.must(err)
	if info.Mode().Perm() != 0o600 || info.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) {
		t.Errorf("the record is %v", info.Mode())
	}
	good := w.read(RecordPath)
	for name, spoil := range map[string]func(){
		"another mode":     func() { w.must(os.Chmod(p, 0o620)) },
		"a link":           func() { w.must(os.Rename(p, p+"2")); w.must(os.Symlink(p+"2", p)) },
		"a dangling link":  func() { w.must(os.Remove(p)); w.must(os.Symlink("/nowhere", p)) },
		"no JSON":          func() { w.must(os.WriteFile(p, []byte("{"), 0o600)) },
		"a later format":   func() { w.must(os.WriteFile(p, []byte(`{"format":2,"node":"","entries":[]}`), 0o600)) },
		"unknown fields":   func() { w.must(os.WriteFile(p, []byte(`{"format":1,"run":"rm"}`), 0o600)) },
		"an unknown entry": func() { w.must(os.WriteFile(p, []byte(`{"format":1,"entries":[{"step":"x"}]}`), 0o600)) },
	} {
		spoil()
		if _, err := w.Revert(t.Context(), true); err == nil || !strings.Contains(err.Error(), "read the record") {
			t.Errorf("%s: revert: %v", name, err)
		}
		_ = os.Remove(p)
		_ = os.Remove(p + "2")
		w.must(os.WriteFile(p, []byte(good), 0o600))
	}
	if os.Geteuid() == 0 {
		w.must(os.Chown(p, 1001, 1001))
		if _, err := w.Revert(t.Context(), true); err == nil || !strings.Contains(err.Error(), "could write") {
			t.Errorf("the service's own record: %v", err)
		}
		w.must(os.Chown(p, 0, 0))
	}
	w.revert()
}

func TestARevertThatTouchesAnInterfaceWantsYes(t *testing.T) {
	w := newWorld(t, "fresh-13", em0())
	w.apply()
	applied := w.tree()
	if _, err := w.Revert(t.Context(), false); !errors.Is(err, cluster.ErrUsage) || !strings.Contains(err.Error(), "em0") {
		t.Errorf("%v", err)
	}
	sameTree(t, applied, w.tree())
	w.Kernel = nil
	if _, err := w.Revert(t.Context(), true); err == nil || !strings.Contains(err.Error(), "none to ask") {
		t.Errorf("without a kernel: %v", err)
	}
}

func TestTwoBootstrapsDoNotRunAtOnce(t *testing.T) {
	w := newWorld(t, "fresh-13", em0())
	p := w.plan()
	unlock, err := w.lock()
	w.must(err)
	if _, err := w.Apply(t.Context(), w.set, p, true); !errors.Is(err, cluster.ErrBusy) {
		t.Errorf("apply: %v", err)
	}
	if _, err := w.Revert(t.Context(), true); !errors.Is(err, cluster.ErrBusy) {
		t.Errorf("revert: %v", err)
	}
	unlock()
	w.apply()
}

func TestACancelledApplyStopsBetweenActions(t *testing.T) {
	w := newWorld(t, "fresh-13", em0())
	before := w.tree()
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	w.at = func(string) {
		if n++; n == 7 {
			cancel()
		}
	}
	r, err := w.Apply(ctx, w.set, w.plan(), true)
	if !errors.Is(err, context.Canceled) || len(r.NotDone) == 0 {
		t.Errorf("%v, %+v", err, r)
	}
	w.at = nil
	w.revert()
	sameTree(t, before, w.tree())
}

func TestCarpStaysLoadedWhereAnotherVHIDNeedsIt(t *testing.T) {
	w := newWorld(t, "fresh-13", em0())
	w.apply()
	w.must(w.Kernel.SetVHID("em0", carp.Settings{VHID: 9, AdvBase: 1}))
	r := w.revert()
	if left := strings.Join(r.Left, "\n"); !w.kernel.Loaded || !strings.Contains(left, "carp stays loaded") {
		t.Errorf("left %q", left)
	}
}

func TestABuiltInCarpNeedsNoLoaderConf(t *testing.T) {
	w := newWorld(t, "fresh-13", em0().Load())
	w.commands.BuiltIn = true
	if s := step(t, w.plan(), "carp.ko at boot"); s.State != OK || !strings.Contains(s.Found, "built into") {
		t.Errorf("%+v", s)
	}
	w.commands.Fail = map[string]error{kldstat: errors.New("no")}
	if s := step(t, w.plan(), "carp.ko at boot"); s.State != Change {
		t.Errorf("kldstat failed: %+v", s)
	}
}

func TestASecurelevelIsNoMatterWhereCarpIsLoaded(t *testing.T) {
	w := newWorld(t, "fresh-13", em0().Load())
	w.kernel.SecureLevel = 2
	w.apply()
	if w.kernel.Failovers > 0 || w.kernel.Role("em0", 1) != cluster.Backup {
		t.Errorf("%v", w.kernel.Role("em0", 1))
	}
}

func TestAPasswordThatEverybodyReadsIsSaid(t *testing.T) {
	w := newWorld(t, "by-hand", running())
	w.must(os.Chmod(filepath.Join(w.root, "etc/rc.conf"), 0o644))
	if s := step(t, w.plan(), "em0 vhid 1 password"); s.State != Note || !strings.Contains(s.Found, "everybody") {
		t.Errorf("%+v", s)
	}
}

func TestUnicastIsSetAndCompared(t *testing.T) {
	w := newWorld(t, "fresh-13", em0())
	w.set.VHIDs[0].Peer = netip.MustParseAddr("192.0.2.12")
	w.set.VHIDs[1].Peer = netip.MustParseAddr("2001:db8::12")
	w.apply()
	if rc := w.read("etc/rc.conf.d/netif"); !strings.Contains(rc, "vhid 1 peer 192.0.2.12 advbase") || !strings.Contains(rc, "vhid 2 peer6 2001:db8::12 advbase") {
		t.Errorf("%s", rc)
	}
	if p := w.plan(); len(p.Of(Change)) > 0 {
		t.Errorf("again\n%s", text(t, p))
	}
}

func TestWithoutVHIDsNothingOfCARPIsDone(t *testing.T) {
	w := newWorld(t, "fresh-13", em0())
	w.set.VHIDs = nil
	for _, s := range w.plan().Steps {
		if strings.Contains(strings.ToLower(s.Name), "carp") || strings.Contains(s.Name, "vhid") {
			t.Errorf("%+v", s)
		}
	}
	w.apply()
	if len(w.kernel.Calls) > 0 {
		t.Errorf("calls %q", w.kernel.Calls)
	}
}

func TestAFolderWithACertificateGetsNoPlaceholder(t *testing.T) {
	for name, want := range map[string]State{"example.org.pem": OK, ".certsync-1-x": Change} {
		w := newWorld(t, "fresh-13", em0())
		w.write("usr/local/etc/haproxy/certs/"+name, "x", 0o600)
		if s := step(t, w.plan(), "placeholder in /usr/local/etc/haproxy/certs"); s.State != want {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

func TestHAProxyStartsWithThePlaceholder(t *testing.T) {
	haproxy, err := exec.LookPath("haproxy")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	certs := filepath.Join(dir, "certs")
	if err := os.Mkdir(certs, 0o700); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "haproxy.cfg")
	text := "defaults\n mode http\n timeout client 1s\n timeout server 1s\n timeout connect 1s\nfrontend f\n bind 127.0.0.1:1 ssl crt " + certs + "/\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	check := func() ([]byte, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		return exec.CommandContext(ctx, haproxy, "-c", "-f", config).CombinedOutput()
	}
	if out, err := check(); err == nil {
		t.Errorf("an empty folder is taken: there is no need of a placeholder\n%s", out)
	}
	pem, err := cert.NewPlaceholder(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(certs, cert.PlaceholderName), pem, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := check(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestAPathThatDoasOrSudoWouldActOnGetsNoRule(t *testing.T) {
	for _, bad := range []string{"/usr/local/etc/my haproxy.conf", "/usr/local/etc/*.conf", "/x\npermit nopass certsync as root", "/a,b", `/a\b`, "/a#b"} {
		for _, tree := range []string{"fresh-14", "fresh-15"} {
			w := newWorld(t, tree, em0())
			w.set.HAProxy[0].Config = bad
			p := w.plan()
			if s := step(t, p, "rule for "+bad); s.State != Note {
				t.Errorf("%q: %+v", bad, s)
			}
			for _, s := range p.Steps {
				if strings.Contains(s.Diff, bad) {
					t.Errorf("%q is in\n%s", bad, s.Diff)
				}
			}
		}
	}
}
