package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"certsync/internal/cluster"
	"certsync/internal/config"
	"certsync/internal/distribute"
)

// plant is a daemon at work over Sites that the test makes.
type plant struct {
	t       *testing.T
	d       *Daemon
	runDir  string
	file    string
	log     *lockedBuffer
	hangups chan os.Signal
	stop    context.CancelFunc
	ended   chan error

	// passes has one for each that began; each waits for go on, where that is set.
	passes chan pass
	mu     sync.Mutex
	goOn   chan struct{}
	// next is what the next loads give: the Site's change, or an error.
	change  func(*Site)
	loadErr error
	do      func(ctx context.Context, job distribute.Job) (cluster.Report, error)
	tries   int
	loads   int
	open    int
	under   int // passes under way
	most    int
	roles   chan cluster.CARP
	answers map[string]error
}

type pass struct {
	load int // the number of the Site that it was made with
	job  distribute.Job
}

// newPlant starts a daemon and waits for its first pass to begin.
func newPlant(t *testing.T, change func(*plant)) *plant {
	t.Helper()
	runDir, err := os.MkdirTemp("", "cs") // a socket's path is short
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(runDir) })
	p := &plant{t: t, runDir: runDir, file: filepath.Join(t.TempDir(), "certsync.yaml"), log: &lockedBuffer{}, hangups: make(chan os.Signal, 1),
		ended: make(chan error, 1), passes: make(chan pass, 1000), roles: make(chan cluster.CARP), answers: map[string]error{}}
	write(t, p.file, "one")
	p.d = New(Options{ConfigPath: p.file, Load: p.load, Hangups: p.hangups, Log: slog.New(slog.NewTextHandler(p.log, nil)), Version: "test"})
	p.d.peerTime = 20 * time.Millisecond
	p.d.watcher.quiet, p.d.watcher.quietMost = 20*time.Millisecond, 200*time.Millisecond
	if change != nil {
		change(p)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	go func() { p.ended <- p.d.Run(ctx) }()
	t.Cleanup(func() {
		p.hold(false)
		cancel()
		select {
		case err := <-p.ended:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(patience):
			t.Error("the daemon does not end")
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.open != 0 && !t.Failed() {
			t.Errorf("%d of %d sites are open after the end", p.open, p.loads)
		}
		if p.most > 1 {
			t.Errorf("%d passes at a time", p.most)
		}
		if t.Failed() {
			t.Logf("log:\n%s", p.log)
		}
	})
	p.wantsPass()
	p.socketsThere()
	return p
}

func (p *plant) socketsThere() {
	p.t.Helper()
	p.eventually("the sockets are there", func() bool {
		_, err := p.client().Status(context.Background())
		return err == nil
	})
}

func (p *plant) client() *distribute.LocalClient {
	return distribute.NewLocalClient(filepath.Join(p.runDir, config.LocalSocket))
}

func (p *plant) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

// hold keeps passes from ending, or lets them.
func (p *plant) hold(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.goOn != nil {
		close(p.goOn)
		p.goOn = nil
	}
	if on {
		p.goOn = make(chan struct{})
	}
}

func (p *plant) load(progress func(cluster.Progress)) (*Site, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tries++
	if p.loadErr != nil {
		return nil, p.loadErr
	}
	p.loads++
	p.open++
	number := p.loads
	schedule, err := config.ParseSchedule("@every 24h")
	must(p.t, err)
	closed := false
	s := &Site{Node: "proxy1", StateDir: "/state", RunDir: p.runDir, Schedule: schedule, Peers: []string{"proxy2"},
		Lock: func(context.Context) (func(), error) { return func() {}, nil },
		Pass: func(ctx context.Context, job distribute.Job) (cluster.Report, error) {
			p.mu.Lock()
			if closed {
				p.t.Errorf("a pass is made with site %d, which is closed", number)
			}
			p.under++
			p.most = max(p.most, p.under)
			do, goOn := p.do, p.goOn
			p.mu.Unlock()
			defer p.set(func() {
				p.under--
				if closed {
					p.t.Errorf("site %d was closed during its pass", number)
				}
			})
			progress(cluster.Progress{Step: "adopt", Message: "pass"})
			p.passes <- pass{number, job}
			if goOn != nil {
				select {
				case <-goOn:
				case <-ctx.Done():
				}
			}
			if do != nil {
				return do(ctx, job)
			}
			return cluster.Report{Node: "proxy1", Start: time.Now(), End: time.Now(), Outcome: cluster.Unchanged}, nil
		},
		Status: func(context.Context) []cluster.NodeStatus {
			return []cluster.NodeStatus{{Node: "proxy1", Reachable: true}}
		},
		WatchRole: func(ctx context.Context, each func(cluster.CARP)) {
			for {
				select {
				case <-ctx.Done():
					return
				case seen := <-p.roles:
					each(seen)
				}
			}
		},
		WakeRole: func() {},
		Answers: func(_ context.Context, peer string) error {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.answers[peer]
		},
		PeerAPI: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "site %d", number) }),
		Close: func() {
			p.set(func() {
				if closed {
					p.t.Errorf("site %d is closed twice", number)
				}
				closed = true
				p.open--
			})
		},
	}
	if p.change != nil {
		p.change(s)
	}
	return s, nil
}

func (p *plant) wantsPass() pass {
	p.t.Helper()
	select {
	case got := <-p.passes:
		return got
	case err := <-p.ended:
		p.ended <- err
		p.t.Fatalf("the daemon ended: %v", err)
	case <-time.After(patience):
		p.t.Fatalf("no pass\n%s", p.log)
	}
	return pass{}
}

func (p *plant) noPass(why string) {
	p.t.Helper()
	select {
	case got := <-p.passes:
		p.t.Fatalf("a pass (%+v): %s\n%s", got, why, p.log)
	case <-time.After(quiet):
	}
}

func (p *plant) eventually(what string, holds func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("never: %s\n%s", what, p.log)
		}
	}
}

func (p *plant) logs(text string) {
	p.t.Helper()
	p.eventually("log: "+text, func() bool { return strings.Contains(p.log.String(), text) })
}

// idle waits until no pass is under way.
func (p *plant) idle() {
	p.t.Helper()
	p.eventually("no pass is under way", func() bool {
		s, err := p.client().Status(context.Background())
		return err == nil && len(s.Daemon.Passing) == 0
	})
}

func TestWakeUpsDuringAPassLeadToOneMore(t *testing.T) {
	p := newPlant(t, func(p *plant) { p.hold(true) })
	for range 50 {
		p.d.Wake(context.Background())
		p.hangups <- syscall.SIGHUP
		p.d.wake(Bundles)
		p.roles <- cluster.CARP{Role: cluster.Master}
		p.roles <- cluster.CARP{Role: cluster.Backup}
	}
	p.noPass("another one is under way")
	p.hold(false)
	p.wantsPass()
	p.noPass("one pass serves all that came")
}

func TestARoleChangeLeadsToAPassAndTheFirstViewToNone(t *testing.T) {
	p := newPlant(t, nil)
	p.idle()
	p.roles <- cluster.CARP{Role: cluster.Backup} // was UNKNOWN
	p.wantsPass()
	p.roles <- cluster.CARP{Role: cluster.Backup, Preempt: new(bool)}
	p.noPass("another part of the view changed")
	p.roles <- cluster.CARP{Role: cluster.Master}
	p.wantsPass()
	p.logs("role=MASTER before=BACKUP")
}

func TestWhatTheReportSaysIsDueIsDoneThen(t *testing.T) {
	var once sync.Once
	p := newPlant(t, func(p *plant) {
		p.do = func(context.Context, distribute.Job) (cluster.Report, error) {
			r := cluster.Report{Role: cluster.Master, End: time.Now()}
			once.Do(func() {
				r.Next = time.Now().Add(1500 * time.Millisecond)
			})
			return r, nil
		}
	})
	p.wantsPass()
	p.logs("reasons=due")
	p.noPass("nothing is due any more")
}

func TestAPassThatPanicsEndsNeitherTheDaemonNorItsReport(t *testing.T) {
	p := newPlant(t, func(p *plant) {
		p.do = func(context.Context, distribute.Job) (cluster.Report, error) {
			var rows []cluster.CertificateReport
			return cluster.Report{Certificates: rows[1:]}, nil
		}
	})
	p.idle()
	status, err := p.client().Status(context.Background())
	must(t, err)
	last := status.Daemon.Last
	if last == nil || last.Outcome != cluster.Failure || len(last.Warnings) != 1 || !strings.Contains(last.Warnings[0], "out of range") {
		t.Errorf("report: %+v", last)
	}
	p.logs("daemon_test.go") // the stack
	_, err = p.client().Do(context.Background(), distribute.Job{Kind: distribute.Renew}, nil)
	if err == nil || !strings.Contains(err.Error(), "out of range") || cluster.HintOf(err) == "" {
		t.Errorf("asked for: %v", err)
	}
	p.set(func() { p.do = nil })
	for len(p.passes) > 0 {
		<-p.passes
	}
	p.d.Wake(context.Background())
	p.wantsPass()
}

func TestAPassThatCannotBeMadeIsTriedAgain(t *testing.T) {
	p := newPlant(t, func(p *plant) {
		p.do = func(context.Context, distribute.Job) (cluster.Report, error) {
			return cluster.Report{}, errors.New("role: no such vhid")
		}
	})
	p.idle()
	status, err := p.client().Status(context.Background())
	must(t, err)
	if status.Daemon.Error != "role: no such vhid" || time.Until(status.Daemon.Next) > retryFirst+time.Second {
		t.Errorf("status: %+v", status.Daemon)
	}
}

func TestWhatIsNotInServiceIsLookedAtAgainWithoutOrders(t *testing.T) {
	t.Parallel() // it waits for the first pause
	p := newPlant(t, func(p *plant) {
		p.do = func(_ context.Context, job distribute.Job) (cluster.Report, error) {
			outcome := cluster.Done
			if job.Kind == "" {
				outcome = cluster.DiskOnly // HAProxy is only starting
			}
			return cluster.Report{Outcome: outcome, Nodes: []cluster.NodeStatus{{Node: "proxy1", Reachable: true,
				Placements: []cluster.Placement{{Outcome: outcome}}}}}, nil
		}
	})
	if pass := p.wantsPass(); pass.job.Kind != distribute.Sync {
		t.Errorf("the second pass is for %+v", pass.job)
	}
	p.logs("reasons=settle")
	p.noPass("all is in service")
}

func TestAPeerThatComesBackLeadsToAPass(t *testing.T) {
	p := newPlant(t, func(p *plant) {
		p.answers["proxy2"] = cluster.ErrUnreachable
		p.do = func(context.Context, distribute.Job) (cluster.Report, error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			return cluster.Report{Nodes: []cluster.NodeStatus{{Node: "proxy1", Reachable: true}, {Node: "proxy2", Reachable: p.answers["proxy2"] == nil}}}, nil
		}
	})
	p.idle()
	p.noPass("the peer is still away")
	p.set(func() { p.answers["proxy2"] = nil })
	p.wantsPass()
	p.logs("reasons=peer")
	p.noPass("it is there, and is not asked any more")
}

// What a rollback or a revocation leaves to be done the daemon's own pass finds out, at once: also where it was cut off.
func TestARollbackAndARevocationAreFollowedByAPass(t *testing.T) {
	for _, kind := range []distribute.JobKind{distribute.Rollback, distribute.Revoke} {
		for _, failed := range []error{nil, cluster.ErrNotMaster} {
			p := newPlant(t, nil)
			p.set(func() {
				p.do = func(_ context.Context, job distribute.Job) (cluster.Report, error) {
					if job.Kind == kind {
						return cluster.Report{Node: "proxy1", Outcome: cluster.Done, End: time.Now()}, failed
					}
					return cluster.Report{Node: "proxy1", Outcome: cluster.Unchanged, End: time.Now()}, nil
				}
			})
			_, err := p.client().Do(context.Background(), distribute.Job{Kind: kind, Names: []string{"example.org"}}, nil)
			if !errors.Is(err, failed) {
				t.Errorf("%s: %v", kind, err)
			}
			if pass := p.wantsPass(); pass.job.Kind != kind {
				t.Errorf("the pass was for %+v", pass.job)
			}
			if pass := p.wantsPass(); pass.job.Kind != "" {
				t.Errorf("the pass after %s was for %+v", kind, pass.job)
			}
		}
	}
}

func TestACommandsPassIsItsOwnAndIsStreamed(t *testing.T) {
	p := newPlant(t, func(p *plant) { p.hold(true) })
	var mu sync.Mutex
	var steps []string
	got := make(chan cluster.Report, 1)
	go func() {
		r, err := p.client().Do(context.Background(), distribute.Job{Kind: distribute.Issue, Names: []string{"example.org"}}, func(e cluster.Progress) {
			mu.Lock()
			defer mu.Unlock()
			steps = append(steps, e.Step)
		})
		if err != nil {
			t.Errorf("issue: %v", err)
		}
		got <- r
	}()
	p.eventually("the command is told to wait", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.Contains(steps, "wait")
	})
	p.set(func() {
		p.do = func(_ context.Context, job distribute.Job) (cluster.Report, error) {
			return cluster.Report{Node: "proxy1", Outcome: cluster.Done, Warnings: job.Names}, nil
		}
	})
	p.hold(false)
	if pass := p.wantsPass(); pass.job.Kind != distribute.Issue || !slices.Equal(pass.job.Names, []string{"example.org"}) {
		t.Errorf("the pass was for %+v", pass.job)
	}
	if r := <-got; r.Outcome != cluster.Done || !slices.Equal(r.Warnings, []string{"example.org"}) {
		t.Errorf("report: %+v", r)
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(steps, []string{"wait", "adopt"}) {
		t.Errorf("steps: %q", steps)
	}
}

func TestACommandThatGoesAwayBeforeItsTurnIsForgotten(t *testing.T) {
	p := newPlant(t, func(p *plant) { p.hold(true) })
	ctx, cancel := context.WithCancel(context.Background())
	waiting, left := make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := p.d.Do(ctx, distribute.Job{Kind: distribute.Renew}, func(cluster.Progress) { close(waiting) })
		left <- err
	}()
	<-waiting
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("error: %v", err)
	}
	p.hold(false)
	p.noPass("nobody waits for it")
}

func TestABadConfigurationIsToldAndTheOldOneGoesOn(t *testing.T) {
	p := newPlant(t, nil)
	p.set(func() {
		p.loadErr = cluster.WithHint(errors.New("certsync.yaml:3: unknown key \"nodse\"\ncertsync.yaml:9: dns: missing"), "run certsync check")
	})
	write(t, p.file, "broken")
	p.logs(`unknown key`)
	p.logs(`certsync.yaml:9: dns: missing`)
	p.logs("run certsync check")
	status, err := p.client().Status(context.Background())
	must(t, err)
	if !strings.Contains(status.Daemon.Configuration, "unknown key") {
		t.Errorf("status: %+v", status.Daemon)
	}
	p.d.Wake(context.Background())
	if pass := p.wantsPass(); pass.load != 1 {
		t.Errorf("the pass is made with site %d", pass.load)
	}
	p.set(func() { p.loadErr = nil })
	write(t, p.file, "sound again")
	if pass := p.wantsPass(); pass.load != 2 {
		t.Errorf("the pass is made with site %d", pass.load)
	}
	p.idle()
	if status, err = p.client().Status(context.Background()); err != nil || status.Daemon.Configuration != "" {
		t.Errorf("status: %+v, %v", status.Daemon, err)
	}
}

func TestABadConfigurationIsTriedAgainAndToldWhenAsked(t *testing.T) {
	var hours atomic.Int64
	p := newPlant(t, func(p *plant) {
		system := systemClock()
		p.d.clock = func() instant { // which the test sets forward
			now, more := system(), time.Duration(hours.Load())*time.Hour
			return instant{now.wall.Add(more), now.up + more}
		}
		p.hold(true)
	})
	tries := func() (n int) {
		p.set(func() { n = p.tries })
		return n
	}
	p.set(func() { p.loadErr = errors.New("dns.env: no such file") })
	p.hangups <- syscall.SIGHUP
	p.logs("no such file")
	before := tries()
	hours.Add(1)
	p.d.nudge()
	p.eventually("it is tried again", func() bool { return tries() > before })
	p.logs("a pass is under way for long")
	if n := strings.Count(p.log.String(), "no such file"); n != 1 {
		t.Errorf("told %d times, though nobody asked", n)
	}
	p.hangups <- syscall.SIGHUP
	p.eventually("it is told again", func() bool { return strings.Count(p.log.String(), "no such file") == 2 })
	p.set(func() { p.loadErr = nil }) // what it lacked is there
	hours.Add(1)
	p.d.nudge()
	p.logs("took over")
}

func TestANewConfigurationTakesOverDuringAPassAndTheOldOneIsClosedAfterIt(t *testing.T) {
	p := newPlant(t, func(p *plant) { p.hold(true) })
	p.hangups <- syscall.SIGHUP
	p.logs("took over")
	p.eventually("peers are answered by the new one", func() bool { return p.askPeerAPI() == "site 2" })
	p.set(func() {
		if p.open != 2 {
			t.Errorf("%d sites are open during the old one's pass", p.open)
		}
	})
	p.hold(false)
	if pass := p.wantsPass(); pass.load != 2 {
		t.Errorf("the next pass is made with site %d", pass.load)
	}
	p.eventually("the old one is closed", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.open == 1
	})
}

func (p *plant) askPeerAPI() string {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(p.runDir, config.PeerSocket))
	}}}
	r, err := client.Get("http://peer/v1/inventory")
	if err != nil {
		return err.Error()
	}
	defer r.Body.Close()
	body, _ := io.ReadAll(r.Body)
	return string(body)
}

func TestWhatNeedsARestartIsTold(t *testing.T) {
	for name, change := range map[string]func(*Site){
		"state_dir": func(s *Site) { s.StateDir = "/elsewhere" },
		"run_dir":   func(s *Site) { s.RunDir = "/elsewhere" },
		"node":      func(s *Site) { s.Node = "proxy9" },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlant(t, nil)
			p.idle()
			p.set(func() { p.change = change })
			write(t, p.file, "two")
			p.logs(name + " is now")
			p.logs("service certsync restart")
			p.noPass("nothing took over")
			if n := p.openSites(); n != 1 {
				t.Errorf("%d sites are open", n)
			}
		})
	}
}

func (p *plant) openSites() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open
}

func TestAConfigurationThatChangesWhileItIsLoadedIsReadAgain(t *testing.T) {
	p := newPlant(t, func(p *plant) {
		p.change = func(*Site) {
			if p.loads == 1 {
				write(p.t, p.file, "written while the first was read")
			}
		}
	})
	p.logs("took over")
	p.eventually("the second is in use", func() bool { return p.askPeerAPI() == "site 2" })
}

func TestALoadThatPanicsIsABadConfiguration(t *testing.T) {
	p := newPlant(t, nil)
	p.idle()
	p.set(func() { p.change = func(*Site) { p.open--; p.loads--; panic("mistake in a library") } })
	write(t, p.file, "two")
	p.logs("mistake in a library")
	p.d.Wake(context.Background())
	p.wantsPass()
}

func TestAFileOfTheSiteLeadsToAPassOrAnotherSite(t *testing.T) {
	dir := t.TempDir()
	env, certs := filepath.Join(dir, "dns.env"), filepath.Join(dir, "certs")
	write(t, env, "A=1")
	must(t, os.Mkdir(certs, 0o755))
	p := newPlant(t, func(p *plant) {
		p.change = func(s *Site) { s.Watched = []Watched{{Configuration, env, false}, {Bundles, certs, true}} }
	})
	write(t, filepath.Join(certs, "a.pem"), "x")
	if pass := p.wantsPass(); pass.load != 1 {
		t.Errorf("site %d", pass.load)
	}
	p.logs("reasons=bundles")
	write(t, env, "A=2")
	if pass := p.wantsPass(); pass.load != 2 {
		t.Errorf("site %d", pass.load)
	}
}

func TestTheEndIsWithinItsTimeAlsoWithAPassThatHangs(t *testing.T) {
	never := make(chan struct{})
	defer close(never)
	begun := make(chan struct{})
	p := newPlant(t, func(p *plant) {
		p.d.endTime = 100 * time.Millisecond
		p.do = func(context.Context, distribute.Job) (cluster.Report, error) {
			close(begun)
			<-never // a provider that obeys no context
			return cluster.Report{}, nil
		}
	})
	<-begun
	p.stop()
	err := <-p.ended
	p.ended <- err
	if err != nil {
		t.Errorf("run: %v", err)
	}
	p.logs("ended before the pass did")
	p.set(func() { p.open = 0 }) // what hangs is left as it is
}

func TestTheEndTellsThePassAndThoseWhoWait(t *testing.T) {
	p := newPlant(t, func(p *plant) {
		p.hold(true)
		p.do = func(ctx context.Context, _ distribute.Job) (cluster.Report, error) {
			return cluster.Report{Interrupted: ctx.Err() != nil}, nil
		}
	})
	waiting, got := make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := p.client().Do(context.Background(), distribute.Job{Kind: distribute.Renew}, func(cluster.Progress) { close(waiting) })
		got <- err
	}()
	<-waiting
	p.stop()
	if err := <-got; err == nil || !strings.Contains(err.Error(), "ending") {
		t.Errorf("who waits is told %v", err)
	}
	err := <-p.ended
	p.ended <- err
	for _, name := range []string{config.LocalSocket, config.PeerSocket} {
		if _, err := os.Lstat(filepath.Join(p.runDir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s after the end: %v", name, err)
		}
	}
}

func TestTheSocketsHaveTheirModes(t *testing.T) {
	p := newPlant(t, nil)
	for name, want := range map[string]os.FileMode{config.LocalSocket: 0o660, config.PeerSocket: 0o600} {
		info, err := os.Lstat(filepath.Join(p.runDir, name))
		must(t, err)
		if info.Mode().Perm() != want {
			t.Errorf("%s: mode %04o, want %04o", name, info.Mode().Perm(), want)
		}
	}
}

func TestASocketOfADeadDaemonIsReplacedAndALivingOneIsNotDisplaced(t *testing.T) {
	p := newPlant(t, func(p *plant) {
		for _, name := range []string{config.LocalSocket, config.PeerSocket} {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(p.runDir, name), Net: "unix"})
			must(t, err)
			l.SetUnlinkOnClose(false)
			l.Close()
		}
	})
	closed, released := 0, 0
	second := New(Options{ConfigPath: p.file, Log: slog.New(slog.DiscardHandler), Load: func(func(cluster.Progress)) (*Site, error) {
		return &Site{RunDir: p.runDir, Lock: func(context.Context) (func(), error) { return func() { released++ }, nil }, Close: func() { closed++ }}, nil
	}})
	if err := second.Run(context.Background()); !errors.Is(err, cluster.ErrBusy) {
		t.Errorf("a second daemon: %v", err)
	}
	if closed != 1 || released != 1 {
		t.Errorf("closed %d times, lock released %d times", closed, released)
	}
	p.socketsThere()
}

func TestADaemonThatCannotBeginSaysWhy(t *testing.T) {
	closed := 0
	site := &Site{RunDir: filepath.Join(t.TempDir(), "missing"), Close: func() { closed++ },
		Lock: func(context.Context) (func(), error) {
			return nil, fmt.Errorf("held by process 7 (issue): %w", cluster.ErrBusy)
		}}
	d := New(Options{Log: slog.New(slog.DiscardHandler), Load: func(func(cluster.Progress)) (*Site, error) { return site, nil }})
	if err := d.Run(context.Background()); !errors.Is(err, cluster.ErrBusy) || !strings.Contains(err.Error(), "process 7") {
		t.Errorf("with the lock held: %v", err)
	}
	site.Lock = func(context.Context) (func(), error) { return func() {}, nil }
	if err := d.Run(context.Background()); !errors.Is(err, os.ErrNotExist) || !strings.Contains(cluster.HintOf(err), "install -d") {
		t.Errorf("without run_dir: %v, hint %q", err, cluster.HintOf(err))
	}
	if closed != 2 {
		t.Errorf("closed %d times", closed)
	}
}

func TestWhatIsNotInServiceIsToldFromWhatCannotBeAsked(t *testing.T) {
	for outcome, want := range map[cluster.Outcome]bool{"": true, cluster.Unchanged: true, cluster.Done: true, cluster.Unproven: true, cluster.Skipped: true,
		cluster.PutOff: true, cluster.DiskOnly: false, cluster.Waiting: false, cluster.RolledBack: false, cluster.Failure: false} {
		r := cluster.Report{Nodes: []cluster.NodeStatus{{}, {Placements: []cluster.Placement{{Outcome: cluster.Done}, {Outcome: outcome}}}}}
		if got := allPlaced(r); got != want {
			t.Errorf("%q: %v", outcome, got)
		}
	}
}
