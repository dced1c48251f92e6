package carp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"certsync/internal/cluster"
)

// host is a fake of what Auto asks and listens to. It keeps the state of the vhids, and tells each change to those who
// listen unless it is mute.
type host struct {
	mu        sync.Mutex
	roles     map[int]cluster.Role
	fault     error
	mute      bool
	listeners []chan []byte
	reads     int
	slow      time.Duration // what one reading takes
}

func newHost(role cluster.Role) *host {
	return &host{roles: map[int]cluster.Role{1: role, 2: cluster.Backup}}
}

func (h *host) readings() readings {
	return readings{
		role: func(ctx context.Context, s Spec) (cluster.Role, error) { return h.role(s.VHID) },
		view: func(ctx context.Context, specs []Spec) cluster.CARP {
			view := cluster.CARP{Source: "fake"}
			for _, s := range specs {
				role, err := h.role(s.VHID)
				v := cluster.VHID{Interface: s.Interface, ID: s.VHID, Role: role}
				v.Error, v.Hint = texts(err)
				view.VHIDs = append(view.VHIDs, v)
			}
			return view
		},
		sources: []source{{name: "the fake", open: h.open, says: func(b []byte) notice { return devdSays(b, testSpecs[0]) }}},
	}
}

var testSpecs = []Spec{
	{Interface: "em0", VHID: 1, Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.10/32")}},
	{Interface: "em0", VHID: 2, Addresses: []netip.Prefix{netip.MustParsePrefix("2001:db8::10/128")}},
}

func (h *host) role(vhid int) (cluster.Role, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.slow > 0 {
		time.Sleep(h.slow)
	}
	if vhid == 1 {
		h.reads++
	}
	if h.fault != nil {
		return cluster.Master, h.fault // what comes with an error does not count
	}
	return h.roles[vhid], nil
}

func (h *host) set(vhid int, role cluster.Role) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.roles[vhid] = role
	if !h.mute {
		h.send(fmt.Sprintf("!system=CARP subsystem=%d@em0 type=%s\n", vhid, role))
	}
}

func (h *host) send(packet string) {
	for _, l := range h.listeners {
		l <- []byte(packet)
	}
}

func (h *host) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fault = err
}

func (h *host) readSoFar() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.reads
}

func (h *host) open(context.Context) (io.ReadCloser, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := make(chan []byte, 1000)
	h.listeners = append(h.listeners, l)
	return &packets{packets: l, closed: make(chan struct{})}, nil
}

// packets is a connection that gives one packet a Read.
type packets struct {
	packets chan []byte
	once    sync.Once
	closed  chan struct{}
}

func (p *packets) Read(b []byte) (int, error) {
	select {
	case packet, ok := <-p.packets:
		if !ok {
			return 0, io.EOF
		}
		return copy(b, packet), nil
	case <-p.closed:
		return 0, io.ErrClosedPipe
	}
}

func (p *packets) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

// auto is of the fake, with a settle time of 3 s, and closed at the end: a goroutine that outlives Close fails the
// test, since a bubble must end without any.
func (h *host) auto(t *testing.T) *Auto {
	a := newAuto(Config{Node: "proxy1", VHIDs: testSpecs, Settle: 3 * time.Second}, h.readings())
	t.Cleanup(a.Close)
	return a
}

func roleNow(t *testing.T, a *Auto) (cluster.Seen, time.Duration) {
	t.Helper()
	start := time.Now()
	seen, err := a.Role(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return seen, time.Since(start)
}

var isMaster = cluster.Seen{Role: cluster.Master, Master: "proxy1"}

func TestAOneShotCommandWaitsUntilMasterHasSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newHost(cluster.Master).auto(t)
		if seen, took := roleNow(t, a); seen != isMaster || took != 3*time.Second {
			t.Errorf("%v after %v, want MASTER of proxy1 after 3 s", seen, took)
		}
		if seen, took := roleNow(t, a); seen != isMaster || took != 0 {
			t.Errorf("once settled: %v after %v, want MASTER at once", seen, took)
		}
		time.Sleep(time.Hour)
		if seen, took := roleNow(t, a); seen != isMaster || took != 0 {
			t.Errorf("settled and watched for an hour: %v after %v, want MASTER at once", seen, took)
		}
	})
}

func TestEveryOtherRoleIsToldAtOnce(t *testing.T) {
	for _, role := range []cluster.Role{cluster.Init, cluster.Backup} {
		synctest.Test(t, func(t *testing.T) {
			if seen, took := roleNow(t, newHost(role).auto(t)); seen != (cluster.Seen{Role: role}) || took != 0 {
				t.Errorf("%v after %v, want %v at once", seen, took, role)
			}
		})
	}
}

func TestADropWhileRoleWaitsIsReturnedAtOnce(t *testing.T) {
	for _, told := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(cluster.Master)
			h.mute = !told
			a := h.auto(t)
			time.AfterFunc(2500*time.Millisecond, func() { h.set(1, cluster.Backup) })
			seen, took := roleNow(t, a)
			latest := 2500*time.Millisecond + 2*breather // told by an event
			if !told {
				latest += time.Second // the poll
			}
			if seen != (cluster.Seen{Role: cluster.Backup}) || took > latest {
				t.Errorf("told %v: %v after %v, want BACKUP by %v", told, seen, took, latest)
			}
		})
	}
}

func TestANodeThatBecomesMasterSettlesFromThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(cluster.Backup)
		a := h.auto(t)
		roleNow(t, a) // watches from here
		time.Sleep(time.Minute)
		h.set(1, cluster.Master)
		time.Sleep(2 * time.Second)
		if seen, took := roleNow(t, a); seen != isMaster || took > time.Second+breather || took < time.Second-breather {
			t.Errorf("%v after %v, want MASTER after the second that was left of three", seen, took)
		}
	})
}

func TestADropAndReturnBetweenTwoCallsSettlesAnew(t *testing.T) {
	for name, flip := range map[string]func(*host){
		"told by events, faster than any reading": func(h *host) { h.set(1, cluster.Backup); h.set(1, cluster.Master) },
		"told by the drop alone":                  func(h *host) { h.mu.Lock(); h.send("!system=CARP subsystem=1@em0 type=BACKUP\n"); h.mu.Unlock() },
		"seen by the poll alone": func(h *host) {
			h.mute = true
			h.set(1, cluster.Init)
			time.Sleep(1500 * time.Millisecond)
			h.set(1, cluster.Master)
			time.Sleep(1500 * time.Millisecond)
		},
		"a reading that failed in between": func(h *host) {
			h.fail(errors.New("device not configured"))
			time.Sleep(1500 * time.Millisecond)
			h.fail(nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(cluster.Master)
				a := h.auto(t)
				roleNow(t, a)
				time.Sleep(time.Minute)
				flip(h)
				synctest.Wait()
				if seen, took := roleNow(t, a); seen != isMaster || took < time.Second {
					t.Errorf("%v after %v, want MASTER after it settled anew", seen, took)
				}
			})
		})
	}
}

func TestAnotherVHIDsMovesDoNotUnsettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(cluster.Master)
		a := h.auto(t)
		roleNow(t, a)
		for range 10 {
			h.set(2, cluster.Master)
			h.set(2, cluster.Backup)
			h.mu.Lock()
			h.send("!system=CARP subsystem=11@em0 type=BACKUP\n")
			h.send("!system=CARP subsystem=1@em01 type=BACKUP\n")
			h.send("!system=CARP subsystem=1@epair0b type=BACKUP\n")
			h.mu.Unlock()
			synctest.Wait()
			if seen, took := roleNow(t, a); seen != isMaster || took != 0 {
				t.Fatalf("%v after %v, want MASTER at once", seen, took)
			}
		}
	})
}

func TestAFailedReadingIsUnknownAndNeverMaster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(cluster.Master)
		a := h.auto(t)
		roleNow(t, a)
		cause := cluster.WithHint(ErrNoModule, "run `kldload carp`")
		h.fail(cause)
		seen, err := a.Role(t.Context())
		if seen != (cluster.Seen{}) || !errors.Is(err, ErrNoModule) || cluster.HintOf(err) != "run `kldload carp`" {
			t.Errorf("%v, %v (%q); want Unknown, the cause and its mend", seen, err, cluster.HintOf(err))
		}
	})
}

func TestAStateThatCARPDoesNotHaveIsUnknown(t *testing.T) {
	for _, role := range []cluster.Role{cluster.Unknown, cluster.Master + 1, -1} {
		synctest.Test(t, func(t *testing.T) {
			if seen, err := newHost(role).auto(t).Role(t.Context()); err == nil || seen != (cluster.Seen{}) {
				t.Errorf("role %d: %v, %v; want Unknown and an error", int(role), seen, err)
			}
		})
	}
}

func TestRoleObeysItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newHost(cluster.Master).auto(t)
		ctx, cancel := context.WithTimeout(t.Context(), 1100*time.Millisecond)
		defer cancel()
		start := time.Now()
		seen, err := a.Role(ctx)
		if seen != (cluster.Seen{}) || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 1100*time.Millisecond {
			t.Errorf("%v, %v after %v; want Unknown and the deadline", seen, err, time.Since(start))
		}
		if seen, err := a.Role(ctx); seen != (cluster.Seen{}) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with a context that ended: %v, %v; want Unknown and the deadline", seen, err)
		}
	})
}

func TestRoleDoesNotWaitBehindAReadingThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(cluster.Backup)
		h.slow = time.Minute
		a := h.auto(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go a.Role(t.Context()) // holds the turn
		time.Sleep(time.Millisecond)
		start := time.Now()
		if _, err := a.Role(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > time.Second {
			t.Errorf("%v after %v, want the deadline", err, time.Since(start))
		}
	})
}

func TestCloseEndsEveryWaitAndRoleIsAnErrorFromThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newHost(cluster.Master).auto(t)
		waiting, watching := make(chan error), make(chan struct{})
		go func() {
			_, err := a.Role(t.Context())
			waiting <- err
		}()
		go func() {
			a.Watch(t.Context(), func(cluster.CARP) {})
			close(watching)
		}()
		time.Sleep(time.Second)
		a.Close()
		if err := <-waiting; !errors.Is(err, ErrClosed) {
			t.Errorf("the Role that waited: %v, want ErrClosed", err)
		}
		<-watching
		if seen, err := a.Role(t.Context()); !errors.Is(err, ErrClosed) || seen != (cluster.Seen{}) {
			t.Errorf("Role after Close: %v, %v; want ErrClosed", seen, err)
		}
		a.Watch(t.Context(), func(cluster.CARP) { t.Error("a view after Close") })
		a.Close()
	})
}

func TestOneThatWasNeverAskedClosesToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newHost(cluster.Master).auto(t)
		a.Close()
		if _, err := a.Role(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("%v, want ErrClosed", err)
		}
	})
}

func TestManyAskAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(cluster.Master)
		a := h.auto(t)
		var asking sync.WaitGroup
		for range 20 {
			asking.Go(func() {
				if seen, took := roleNow(t, a); seen != isMaster || took != 3*time.Second {
					t.Errorf("%v after %v, want MASTER after 3 s", seen, took)
				}
			})
		}
		asking.Wait()
	})
}

func TestTheFirstReadingComesAfterEverySourceWasTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(cluster.Backup)
		r := h.readings()
		open := r.sources[0].open
		r.sources[0].open = func(ctx context.Context) (io.ReadCloser, error) {
			time.Sleep(500 * time.Millisecond)
			if n := h.readSoFar(); n != 0 {
				t.Errorf("%d readings before the source was open", n)
			}
			return open(ctx)
		}
		a := newAuto(Config{Node: "proxy1", VHIDs: testSpecs}, r)
		defer a.Close()
		if seen, took := roleNow(t, a); seen.Role != cluster.Backup || took != 500*time.Millisecond {
			t.Errorf("%v after %v", seen, took)
		}
	})
}

// watched collects views.
type watched struct {
	mu    sync.Mutex
	views []cluster.CARP
}

func (w *watched) add(v cluster.CARP) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.views = append(w.views, v)
}

// roles are the first vhid's in each view.
func (w *watched) roles() []cluster.Role {
	w.mu.Lock()
	defer w.mu.Unlock()
	var roles []cluster.Role
	for _, v := range w.views {
		roles = append(roles, v.VHIDs[0].Role)
	}
	return roles
}

func TestWatchShowsTheFirstViewAndEveryOneThatDiffers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(cluster.Backup)
		a := h.auto(t)
		var w watched
		go a.Watch(t.Context(), w.add)
		time.Sleep(time.Minute)
		for _, role := range []cluster.Role{cluster.Master, cluster.Backup, cluster.Init, cluster.Master} {
			h.set(1, role)
			time.Sleep(3 * time.Second)
			h.mu.Lock()
			h.send("!system=IFNET subsystem=em0 type=LINK_UP\n")
			h.send("!system=CARP subsystem=9@em0 type=MASTER\n") // wakes, and changes nothing
			h.mu.Unlock()
			time.Sleep(3 * time.Second)
		}
		h.fail(errors.New("device not configured"))
		time.Sleep(3 * time.Second)
		want := []cluster.Role{cluster.Backup, cluster.Master, cluster.Backup, cluster.Init, cluster.Master}
		got := w.roles()
		if !slices.Equal(got[:min(len(got), len(want))], want) || len(got) != len(want)+1 {
			t.Errorf("%v, want %v and then the fault", got, want)
		}
		if last := w.views[len(w.views)-1].VHIDs[0]; last.Error != "device not configured" {
			t.Errorf("last: %+v, want the fault", last)
		}
		a.Close()
	})
}

func TestAnEventIsFollowedLongBeforeThePoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(cluster.Backup)
		a := newAuto(Config{Node: "proxy1", VHIDs: testSpecs, Poll: time.Hour}, h.readings())
		defer a.Close()
		var w watched
		go a.Watch(t.Context(), w.add)
		time.Sleep(time.Second)
		h.set(1, cluster.Master)
		time.Sleep(3 * breather)
		if got := w.roles(); !slices.Equal(got, []cluster.Role{cluster.Backup, cluster.Master}) {
			t.Errorf("%v, want BACKUP, MASTER", got)
		}
		// An interface that goes down tells of its addresses before its vhid is in INIT.
		h.mu.Lock()
		h.send("!system=CARP subsystem=1@em0 type=INIT\n")
		h.mu.Unlock()
		time.Sleep(30 * time.Millisecond)
		h.mute = true
		h.set(1, cluster.Init)
		time.Sleep(echo + 3*breather)
		if got := w.roles(); !slices.Equal(got, []cluster.Role{cluster.Backup, cluster.Master, cluster.Init}) {
			t.Errorf("%v, want BACKUP, MASTER, INIT", got)
		}
	})
}

func TestWakeReadsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(cluster.Backup)
		h.mute = true
		a := newAuto(Config{Node: "proxy1", VHIDs: testSpecs, Poll: time.Hour}, h.readings())
		defer a.Close()
		var w watched
		go a.Watch(t.Context(), w.add)
		time.Sleep(time.Second)
		h.set(1, cluster.Master)
		a.Wake()
		time.Sleep(3 * breather)
		if got := w.roles(); !slices.Equal(got, []cluster.Role{cluster.Backup, cluster.Master}) {
			t.Errorf("%v, want BACKUP, MASTER", got)
		}
	})
}

func TestQuickFlipsEndInTheLastState(t *testing.T) {
	for _, last := range []cluster.Role{cluster.Master, cluster.Backup} {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(cluster.Backup)
			a := newAuto(Config{Node: "proxy1", VHIDs: testSpecs, Poll: time.Hour}, h.readings())
			defer a.Close()
			var w watched
			go a.Watch(t.Context(), w.add)
			time.Sleep(time.Second)
			for i := range 200 {
				h.set(1, []cluster.Role{cluster.Master, cluster.Backup}[i%2])
				time.Sleep(time.Duration(i%7) * time.Millisecond)
			}
			h.set(1, last)
			time.Sleep(3 * breather)
			if got := w.roles(); got[len(got)-1] != last {
				t.Errorf("%v at the end, want %v", got[len(got)-1], last)
			}
		})
	}
}

func TestAStormOfEventsCostsFewReadings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(cluster.Backup)
		a := h.auto(t)
		roleNow(t, a)
		before := h.readSoFar()
		for range 10_000 {
			h.mu.Lock()
			h.send("!system=CARP subsystem=9@em0 type=MASTER\n")
			h.mu.Unlock()
			time.Sleep(100 * time.Microsecond)
		}
		if n := h.readSoFar() - before; n > 110 {
			t.Errorf("%d readings in the second of 10,000 events, want 100 or so", n)
		}
	})
}

func TestWatchEndsWithItsContextAndLeavesTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(cluster.Backup)
		a := h.auto(t)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { a.Watch(ctx, func(cluster.CARP) {}); close(done) }()
		time.Sleep(time.Second)
		cancel()
		<-done
		a.Watch(ctx, func(cluster.CARP) { t.Error("a view after its context ended") })
		if seen, _ := roleNow(t, a); seen.Role != cluster.Backup {
			t.Errorf("%v, want BACKUP", seen)
		}
	})
}

func TestAConfigurationThatCannotBeAskedForIsRefused(t *testing.T) {
	for name, specs := range map[string][]Spec{
		"no vhid":      nil,
		"vhid 0":       {{Interface: "em0", VHID: 0}}, // all vhids, to the kernel; it panics some
		"vhid -1":      {{Interface: "em0", VHID: -1}},
		"vhid 256":     {testSpecs[0], {Interface: "em0", VHID: 256}},
		"no interface": {{VHID: 1}},
	} {
		a, err := NewAuto(Config{Node: "proxy1", VHIDs: specs})
		if a != nil || !errors.Is(err, cluster.ErrUsage) || cluster.HintOf(err) == "" {
			t.Errorf("%s: %v, %v; want a mistake of usage with its mend", name, a, err)
		}
	}
}

func TestViewsWithTheSameContentAreEqual(t *testing.T) {
	k := fakeKernel()
	if a, b := kernelView(k)(t.Context(), testSpecs), kernelView(k)(t.Context(), testSpecs); !reflect.DeepEqual(a, b) {
		t.Errorf("%+v\n%+v", a, b)
	}
}
