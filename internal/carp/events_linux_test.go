package carp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"certsync/internal/cluster"
)

// inside is set in the process that a test runs itself in again, with a network stack of its own.
const inside = "CERTSYNC_TEST_NETNS"

// inNamespace runs the test in a network namespace of its own, which goes with its process: true there. It is a
// process, not a thread: the goroutines of what is tested run on all threads.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inside) != "" {
		ip(t, "link set lo up")
		return true
	}
	if _, err := exec.LookPath("ip"); err != nil {
		noRealPart(t, "no ip(8) here")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	runtime.LockOSThread() // Pdeathsig is about the thread that starts it
	defer runtime.UnlockOSThread()
	err := cmd.Start()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EACCES) {
		noRealPart(t, fmt.Sprintf("no network namespace to be had: %v", err))
	}
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil || !strings.Contains(out.String(), "--- PASS: "+t.Name()) {
		t.Errorf("in the namespace: %v\n%s", err, out.String())
	}
	return false
}

// noRealPart skips, and fails where nothing may be skipped.
func noRealPart(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// ip runs ip(8), a command a line.
func ip(t *testing.T, commands ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ip %q: %v: %s", commands, err, out)
	}
}

// onLinux is an Auto of this host whose poll comes too late to explain anything.
func onLinux(t *testing.T, specs ...Spec) *Auto {
	t.Helper()
	a, err := NewAuto(Config{Node: "proxy1", VHIDs: specs, Poll: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

var onLoopback = Spec{Interface: "lo", VHID: 1, Addresses: prefixes("192.0.2.10/32")}

// watching collects what Watch shows, until the test ends.
func watching(t *testing.T, a *Auto) *watched {
	t.Helper()
	w := &watched{}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { a.Watch(ctx, w.add) })
	t.Cleanup(func() {
		cancel()
		done.Wait()
	})
	eventually(t, "the first view", func() bool { return len(w.roles()) > 0 })
	return w
}

func (w *watched) last() cluster.VHID {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.views[len(w.views)-1].VHIDs[0]
}

func follows(t *testing.T, a *Auto, w *watched, what string, want cluster.Role) {
	t.Helper()
	eventually(t, fmt.Sprintf("Watch shows %v after %s", want, what), func() bool { return w.last().Role == want })
	if seen, err := a.Role(t.Context()); err != nil || seen.Role != want {
		t.Errorf("Role after %s: %v, %v; want %v", what, seen, err, want)
	}
}

func TestTheVirtualAddressMakesMasterOnLinux(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	a := onLinux(t, onLoopback)
	w := watching(t, a)
	follows(t, a, w, "nothing", cluster.Backup)
	for range 3 {
		ip(t, "addr add 192.0.2.10/24 dev lo") // as some ucarp scripts do
		follows(t, a, w, "adding", cluster.Master)
		if got := w.last(); !slices.Equal(got.Addresses, prefixes("192.0.2.10/32")) || got.Interface != "lo" || got.ID != 1 {
			t.Errorf("the view: %+v", got)
		}
		ip(t, "addr del 192.0.2.10/24 dev lo")
		follows(t, a, w, "removing", cluster.Backup)
	}
	ip(t, "addr add 192.0.2.11/24 dev lo")
	follows(t, a, w, "adding another", cluster.Backup)
	if source := a.View(t.Context()).Source; source != "addresses" {
		t.Errorf("source %q", source)
	}
	if troubles := a.Troubles(); len(troubles) != 0 {
		t.Error(troubles)
	}
}

func TestQuickFlipsOnLinuxEndInTheLastState(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	a := onLinux(t, onLoopback)
	w := watching(t, a)
	var flips []string
	for range 200 {
		flips = append(flips, "addr add 192.0.2.10/32 dev lo", "addr del 192.0.2.10/32 dev lo")
	}
	ip(t, flips...)
	follows(t, a, w, "200 flips", cluster.Backup)
	ip(t, append(flips, "addr add 192.0.2.10/32 dev lo")...)
	follows(t, a, w, "200 flips and an add", cluster.Master)
	ip(t, "addr del 192.0.2.10/32 dev lo", "addr add 192.0.2.10/32 dev lo")
	follows(t, a, w, "a flip", cluster.Master)
}

func TestADropAndReturnOnLinuxSettlesAnew(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	ip(t, "addr add 192.0.2.10/32 dev lo")
	a, err := NewAuto(Config{Node: "proxy1", VHIDs: []Spec{onLoopback}, Poll: 100 * time.Millisecond, Settle: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if seen, err := a.Role(t.Context()); err != nil || seen != isMaster {
		t.Fatalf("%v, %v; want MASTER", seen, err)
	}
	ip(t, "addr del 192.0.2.10/32 dev lo", "addr add 192.0.2.10/32 dev lo")
	eventually(t, "MASTER no longer counts", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := a.Role(ctx)
		return errors.Is(err, context.DeadlineExceeded)
	})
	if seen, err := a.Role(t.Context()); err != nil || seen != isMaster {
		t.Errorf("%v, %v; want MASTER again once it has settled", seen, err)
	}
}

func TestSomeAddressesAndAnInterfaceThatComesAndGoesOnLinux(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	both := Spec{Interface: "v0", VHID: 1, Addresses: prefixes("192.0.2.10/32", "2001:db8::10/128")}
	a := onLinux(t, both)
	w := watching(t, a)
	if _, err := a.Role(t.Context()); !errors.Is(err, ErrNoInterface) || cluster.HintOf(err) == "" {
		t.Errorf("%v, want ErrNoInterface and what to run", err)
	}
	ip(t, "link add v0 type veth peer name v1", "link set v1 up", "link set v0 up")
	follows(t, a, w, "the interface came", cluster.Backup)
	ip(t, "addr add 192.0.2.10/32 dev v0")
	eventually(t, "an error that names what is missing", func() bool {
		return w.last().Error == "vhid 1 on v0: it has 192.0.2.10 and not 2001:db8::10"
	})
	ip(t, "addr add 2001:db8::10/128 dev v0 nodad")
	follows(t, a, w, "both addresses", cluster.Master)
	ip(t, "link set v1 down")
	follows(t, a, w, "the carrier was lost", cluster.Init)
	ip(t, "link set v1 up")
	follows(t, a, w, "the carrier came back", cluster.Master)
	ip(t, "link set v0 down")
	follows(t, a, w, "the interface went down", cluster.Init)
	ip(t, "link del v0")
	eventually(t, "an error that there is no interface", func() bool { return strings.HasSuffix(w.last().Error, ErrNoInterface.Error()) })
}

func TestAnAddressThatIsStillTentativeDoesNotCount(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	// Duplicates are looked for longer than the test takes.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/dad_transmits", []byte("1000"), 0); err != nil {
		noRealPart(t, err.Error())
	}
	ip(t, "link add v0 type veth peer name v1", "link set v1 up", "link set v0 up", "addr add 2001:db8::10/128 dev v0")
	a := onLinux(t, Spec{Interface: "v0", VHID: 2, Addresses: prefixes("2001:db8::10/128")})
	w := watching(t, a)
	follows(t, a, w, "a tentative address", cluster.Backup)
	ip(t, "addr del 2001:db8::10/128 dev v0", "addr add 2001:db8::10/128 dev v0 nodad")
	follows(t, a, w, "one that is not", cluster.Master)
}

// A socket that is not read overflows; the kernel says so once, and works on.
func TestEventsThatWereLostLeadToTheLastState(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	socket, err := netlinkSocket(rtnlGroups)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1) }); err != nil {
		t.Fatal(err)
	}
	var flips []string
	for range 200 {
		flips = append(flips, "addr add 192.0.2.10/32 dev lo", "addr del 192.0.2.10/32 dev lo")
	}
	ip(t, flips...)
	var e ear
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l := listener{source: source{name: "rtnetlink", says: func(b []byte) notice { return linuxSays(b, onLoopback) }}, tell: e.tell, state: e.state}
	ended := make(chan error, 1)
	go func() { // reads until the socket is closed: an overflow is no end
		_, err := l.read(ctx, socket)
		ended <- err
	}()
	eventually(t, "what was kept is read", func() bool { return e.count(wake)+e.count(moved) > 0 })
	ip(t, "addr add 192.0.2.10/32 dev lo")
	before := e.count(moved)
	ip(t, "addr del 192.0.2.10/32 dev lo")
	eventually(t, "the socket hears on", func() bool { return e.count(moved) > before })
	select {
	case err := <-ended:
		t.Errorf("the reading ended: %v", err)
	default:
	}
	socket.Close()
	<-ended
}

func TestTheLoopbackOfThisHostIsRead(t *testing.T) {
	l, err := readLink(t.Context(), "lo")
	if err != nil {
		t.Fatal(err)
	}
	if !l.up || !slices.Contains(l.addresses, netip.MustParseAddr("127.0.0.1")) {
		t.Errorf("%+v; want it up, with 127.0.0.1", l)
	}
	for _, name := range []string{"nosuch0", "", "a-name-that-is-too-long-for-one"} {
		if l, err := readLink(t.Context(), name); !errors.Is(err, ErrNoInterface) {
			t.Errorf("%q: %+v, %v; want ErrNoInterface", name, l, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := readLink(ctx, "lo"); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that ended: %v", err)
	}
}

func TestReadingLeavesNoDescriptorAndNoGoroutine(t *testing.T) {
	a := onLinux(t, onLoopback)
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	a.View(t.Context())
	descriptors, goroutines := count(), runtime.NumGoroutine()
	for range 50 {
		a.View(t.Context())
		readLink(t.Context(), "nosuch0")
	}
	if _, err := a.Role(t.Context()); err != nil {
		t.Error(err)
	}
	a.Close()
	eventually(t, "its goroutines ended", func() bool { return runtime.NumGoroutine() <= goroutines })
	if n := count(); n > descriptors {
		t.Errorf("%d descriptors, %d before", n, descriptors)
	}
}
