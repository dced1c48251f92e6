package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"certsync/internal/cluster"
	"certsync/internal/distribute"
)

// hosted is a page at work, whose page says "here".
type hosted struct {
	t    *testing.T
	k    *pageHost
	log  *lockedBuffer
	stop func()

	mu      sync.Mutex
	address string
	err     error
}

func host(t *testing.T, address string) *hosted {
	t.Helper()
	p := &hosted{t: t, log: &lockedBuffer{}}
	here := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "here") })
	p.k = newPageHost(here, slog.New(slog.NewTextHandler(p.log, nil)), func(address string, err error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.address, p.err = address, err
	})
	p.k.retry = 10 * time.Millisecond
	p.k.move(address)
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() {
		defer close(over)
		p.k.run(ctx)
	}()
	p.stop = sync.OnceFunc(func() {
		cancel()
		<-over
	})
	t.Cleanup(p.stop)
	return p
}

func (p *hosted) state() (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.address, p.err
}

// reaches waits until the page is somewhere and all is as holds wants it, and gives the address.
func (p *hosted) reaches(what string, holds func(address string, err error) bool) string {
	p.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		address, err := p.state()
		if holds(address, err) {
			return address
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("never: %s; the page is on %q, %v\n%s", what, address, err, p.log)
		}
	}
}

func (p *hosted) isUp(what string) string {
	p.t.Helper()
	address := p.reaches(what, func(address string, err error) bool { return address != "" && err == nil })
	if text := get(address); text != "here" {
		p.t.Fatalf("%s: %s answers %q", what, address, text)
	}
	return address
}

// get is what a page answers, or the error.
func get(address string) string {
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get("http://" + address + "/")
	if err != nil {
		return err.Error()
	}
	defer r.Body.Close()
	body, _ := io.ReadAll(r.Body)
	return string(body)
}

// taken is a port that somebody else has.
func taken(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

func TestAPageThatCannotMoveStaysAndMovesOnceItCan(t *testing.T) {
	p := host(t, "127.0.0.1:0")
	first := p.isUp("the page")
	other := taken(t)
	to := other.Addr().String()
	p.k.move(to)
	p.reaches("the failure is told", func(address string, err error) bool {
		return address == first && errors.Is(err, syscall.EADDRINUSE) && strings.Contains(cluster.HintOf(err), "who has the port")
	})
	if text := get(first); text != "here" {
		t.Errorf("while the new port is taken the old one answers %q", text)
	}
	other.Close()
	if second := p.isUp("the page has moved"); second != to {
		t.Errorf("it is on %s, want %s", second, to)
	}
	if text := get(first); text == "here" {
		t.Error("the old one answers still")
	}
	if n := strings.Count(p.log.String(), "not where it should be"); n != 1 {
		t.Errorf("told %d times", n)
	}
}

func TestAPortThatIsTakenAtTheStartIsTriedAgain(t *testing.T) {
	other := taken(t)
	p := host(t, other.Addr().String())
	p.reaches("the failure is told", func(address string, err error) bool { return address == "" && errors.Is(err, syscall.EADDRINUSE) })
	other.Close()
	p.isUp("the page")
}

func TestAPageThatIsTurnedOffIsGoneAndComesBack(t *testing.T) {
	p := host(t, "127.0.0.1:0")
	first := p.isUp("the page")
	p.k.move("")
	p.reaches("it is gone", func(address string, err error) bool { return address == "" && err == nil })
	if text := get(first); text == "here" {
		t.Error("it answers still")
	}
	p.k.move(first)
	p.isUp("it is back")
	p.stop()
	if text := get(first); text == "here" {
		t.Error("it answers after the end")
	}
}

func TestAMoveBackForgetsTheFailure(t *testing.T) {
	p := host(t, "127.0.0.1:0")
	first := p.isUp("the page")
	p.k.move(taken(t).Addr().String())
	p.reaches("the failure is told", func(_ string, err error) bool { return err != nil })
	p.k.move("127.0.0.1:0")
	if again := p.isUp("the page"); again != first {
		t.Errorf("it is on %s, was on %s", again, first)
	}
}

func TestOnlyALoopbackAddressIsServed(t *testing.T) {
	for address, want := range map[string]bool{"127.0.0.1:1": true, "127.9.9.9:1": true, "[::1]:1": true, "192.0.2.1:1": false, "[::]:1": false, "0.0.0.0:1": false} {
		at, err := net.ResolveTCPAddr("tcp", address)
		must(t, err)
		if onLoopback(at) != want {
			t.Errorf("%s: %v", address, !want)
		}
	}
	p := host(t, "0.0.0.0:0") // which the configuration refuses, and a jail may make of 127.0.0.1
	p.reaches("it is refused", func(address string, err error) bool {
		return address == "" && err != nil && strings.Contains(err.Error(), "other hosts")
	})
}

func TestWhoHoldsConnectionsOpenOrSendsTooMuchIsCutOff(t *testing.T) {
	p := host(t, "127.0.0.1:0")
	address := p.isUp("the page")
	conn, err := net.Dial("tcp", address)
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(patience)))
	go func() { // the server may stop reading before all is written
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: localhost\r\nX: %s\r\n\r\n", strings.Repeat("x", 64<<10))
	}()
	reply := make([]byte, 64)
	n, _ := io.ReadFull(conn, reply)
	if !strings.HasPrefix(string(reply[:n]), "HTTP/1.1 431 ") {
		t.Errorf("a header of 64 KiB: %q", reply[:n])
	}
}

// pageOf is a plant whose page is up.
func pageOf(t *testing.T, change func(*plant)) (*plant, string) {
	t.Helper()
	p := newPlant(t, func(p *plant) {
		p.change = func(s *Site) { s.Listen = "127.0.0.1:0" }
		if change != nil {
			change(p)
		}
	})
	page := ""
	p.eventually("the page is up", func() bool {
		status, err := p.client().Status(context.Background())
		page = strings.TrimSuffix(strings.TrimPrefix(status.Daemon.Page, "http://"), "/")
		return err == nil && page != ""
	})
	return p, page
}

func healthOf(t *testing.T, page string) (int, string) {
	t.Helper()
	r, err := http.Get("http://" + page + "/healthz")
	must(t, err)
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	must(t, err)
	return r.StatusCode, string(body)
}

func TestThePageShowsTheLastPassAndAHungOneShowsInHealth(t *testing.T) {
	p, page := pageOf(t, func(p *plant) {
		p.hold(true)
		p.do = func(context.Context, distribute.Job) (cluster.Report, error) {
			return cluster.Report{Node: "proxy1", Start: time.Now(), End: time.Now(), Outcome: cluster.Unchanged, Warnings: []string{"a warning of the pass"},
				Nodes: []cluster.NodeStatus{{Node: "proxy1", Reachable: true}, {Node: "proxy2", Reachable: true}}}, nil
		}
	})
	if code, body := healthOf(t, page); code != http.StatusServiceUnavailable || !strings.Contains(body, "the first pass has not ended") {
		t.Errorf("before a pass: %d %s", code, body)
	}
	p.hold(false)
	p.idle()
	if code, body := healthOf(t, page); code != http.StatusOK {
		t.Errorf("after a pass: %d %s", code, body)
	}
	if text := get(page); !strings.Contains(text, "a warning of the pass") {
		t.Errorf("the page has nothing of the pass:\n%s", text)
	}
	p.d.mu.Lock()
	late := p.d.late
	p.d.late = time.Nanosecond // as if the time for a pass were over
	p.d.mu.Unlock()
	if within := 24*time.Hour + longTime; late < within-time.Minute || late > within+jitterMost+time.Minute {
		t.Errorf("the next full pass should end within %s, want %s", late, within)
	}
	if code, body := healthOf(t, page); code != http.StatusServiceUnavailable || !strings.Contains(body, "a full pass should have ended") {
		t.Errorf("late: %d %s", code, body)
	}
	p.d.Wake(context.Background())
	p.eventually("a pass makes it healthy", func() bool {
		code, _ := healthOf(t, page)
		return code == http.StatusOK
	})
}

func TestAPassThatFailsOrIsNoFullOneDoesNotCountAsDone(t *testing.T) {
	sound := outcome{report: cluster.Report{End: time.Now()}}
	for _, c := range []struct {
		name string
		job  distribute.Job
		o    outcome
		want bool
	}{
		{"the daemon's own", distribute.Job{}, sound, true},
		{"renew", distribute.Job{Kind: distribute.Renew}, sound, true},
		{"issue", distribute.Job{Kind: distribute.Issue}, sound, true},
		{"sync", distribute.Job{Kind: distribute.Sync}, sound, false},
		{"prune", distribute.Job{Kind: distribute.Prune}, sound, false},
		{"failed", distribute.Job{}, outcome{err: errors.New("no role")}, false},
		{"interrupted", distribute.Job{}, outcome{report: cluster.Report{Interrupted: true}}, false},
	} {
		if got := isFull(c.job, c.o); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestAPassThatCannotBeMadeIsNotHealthyAndSaysTheMend(t *testing.T) {
	p, page := pageOf(t, func(p *plant) {
		p.do = func(context.Context, distribute.Job) (cluster.Report, error) {
			return cluster.Report{}, cluster.WithHint(errors.New("role: no such vhid"), "set carp.vhids")
		}
	})
	p.idle()
	if code, body := healthOf(t, page); code != http.StatusServiceUnavailable || !strings.Contains(body, "no such vhid") || !strings.Contains(body, "set carp.vhids") {
		t.Errorf("%d %s", code, body)
	}
}

func TestANewConfigurationMovesThePage(t *testing.T) {
	p, first := pageOf(t, nil)
	other := taken(t)
	p.set(func() { p.change = func(s *Site) { s.Listen = other.Addr().String() } })
	write(t, p.file, "two")
	p.logs("took over")
	p.logs("not where it should be")
	status, err := p.client().Status(context.Background())
	must(t, err)
	if s := status.Daemon; s.Page != "http://"+first+"/" || !strings.Contains(s.PageError, "in use") || s.PageHint == "" || s.Configuration != "" {
		t.Errorf("status: %+v", s)
	}
	p.set(func() { p.change = func(s *Site) { s.Listen = "" } })
	write(t, p.file, "three and off")
	p.eventually("the page is gone", func() bool {
		status, err = p.client().Status(context.Background())
		return err == nil && status.Daemon.Page == "" && status.Daemon.PageError == ""
	})
}
