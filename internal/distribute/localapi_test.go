package distribute

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// fakeActor is a daemon whose pass the test writes.
type fakeActor struct {
	do func(ctx context.Context, job Job, progress func(cluster.Progress)) (cluster.Report, error)

	mu    sync.Mutex
	wakes int
}

func (f *fakeActor) Wake(context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wakes++
}

func (f *fakeActor) Do(ctx context.Context, job Job, progress func(cluster.Progress)) (cluster.Report, error) {
	return f.do(ctx, job, progress)
}

func (f *fakeActor) Status(context.Context) LocalStatus {
	return LocalStatus{Daemon: DaemonStatus{Node: "proxy1", Pid: 7, Last: &cluster.Report{Outcome: cluster.Done}}, Nodes: []cluster.NodeStatus{{Node: "proxy1"}}}
}

// serveLocal serves the local API until the test ends.
func serveLocal(t *testing.T, handler http.Handler) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "cs") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "certsync.sock")
	l, err := ListenLocal(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- ServeUntil(ctx, l, handler, 50*time.Millisecond) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return socket
}

func TestALocalJobIsStreamedAndItsReportIsWhole(t *testing.T) {
	slot := cert.Slot{Name: "example.org", Algorithm: cert.ECDSA}
	want := cluster.Report{Node: "proxy1", Role: cluster.Master, Outcome: cluster.Done,
		Certificates: []cluster.CertificateReport{{Slot: slot, Outcome: cluster.Done, Ordered: true, NextTry: time.Unix(1e9, 0).UTC()}}}
	var got Job
	socket := serveLocal(t, NewLocalHandler(&fakeActor{do: func(_ context.Context, job Job, progress func(cluster.Progress)) (cluster.Report, error) {
		got = job
		for i := range 100 {
			progress(cluster.Progress{Step: "obtain", Slot: slot, Message: fmt.Sprint(i)})
		}
		return want, nil
	}}))
	var messages []string
	report, err := NewLocalClient(socket).Do(context.Background(), Job{Kind: Issue, Names: []string{"example.org"}}, func(p cluster.Progress) {
		messages = append(messages, p.Message)
	})
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprintf("%+v", report) != fmt.Sprintf("%+v", want) {
		t.Errorf("report %+v, want %+v", report, want)
	}
	if len(messages) != 100 || messages[0] != "0" || messages[99] != "99" {
		t.Errorf("progress: %q", messages)
	}
	if got.Kind != Issue || !slices.Equal(got.Names, []string{"example.org"}) {
		t.Errorf("job: %+v", got)
	}
}

func TestARollbackAndARevocationReachTheDaemonWhole(t *testing.T) {
	var got Job
	socket := serveLocal(t, NewLocalHandler(&fakeActor{do: func(_ context.Context, job Job, _ func(cluster.Progress)) (cluster.Report, error) {
		got = job
		return cluster.Report{}, nil
	}}))
	for _, job := range []Job{
		{Kind: Rollback, Names: []string{"example.org"}, Algorithm: cert.RSA, Generation: "3f2a"},
		{Kind: Revoke, Names: []string{"example.org"}, All: true, Reason: "keyCompromise", AtOnce: true},
	} {
		if _, err := NewLocalClient(socket).Do(context.Background(), job, nil); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != fmt.Sprint(job) {
			t.Errorf("the daemon is asked for %+v, want %+v", got, job)
		}
	}
}

func TestALocalJobsErrorKeepsItsKindAndHint(t *testing.T) {
	for _, sentinel := range []error{cluster.ErrNotMaster, cluster.ErrUsage, cluster.ErrBusy} {
		socket := serveLocal(t, NewLocalHandler(&fakeActor{do: func(context.Context, Job, func(cluster.Progress)) (cluster.Report, error) {
			return cluster.Report{}, cluster.WithHint(fmt.Errorf("this node is BACKUP: %w", sentinel), "run it on proxy2")
		}}))
		_, err := NewLocalClient(socket).Do(context.Background(), Job{Kind: Issue}, nil)
		if !errors.Is(err, sentinel) || cluster.HintOf(err) != "run it on proxy2" || err.Error() != "this node is BACKUP: "+sentinel.Error() {
			t.Errorf("error %v, hint %q", err, cluster.HintOf(err))
		}
	}
}

func TestNoDaemonIsTold(t *testing.T) {
	dir := t.TempDir()
	for name, prepare := range map[string]func(socket string){
		"nothing there": func(string) {},
		"left by a dead one": func(socket string) {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			l.SetUnlinkOnClose(false)
			l.Close()
		},
	} {
		socket := filepath.Join(dir, "s")
		prepare(socket)
		if _, err := NewLocalClient(socket).Do(context.Background(), Job{Kind: Renew}, nil); !errors.Is(err, ErrNoDaemon) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestADaemonThatDiesOrFallsSilentIsNotWaitedFor(t *testing.T) {
	hang := make(chan struct{})
	for name, handler := range map[string]http.HandlerFunc{
		"dies":        func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"dies midway": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"type":"alive"}`+"\n") },
		"half a line": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"type":"rep`) },
		"no JSON":     func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") },
		"silent": func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, `{"type":"alive"}`+"\n")
			http.NewResponseController(w).Flush()
			<-hang
		},
		"another server": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "who are you?", http.StatusTeapot) },
	} {
		client := NewLocalClient(serveLocal(t, handler))
		client.silence = 100 * time.Millisecond
		_, err := client.Do(context.Background(), Job{Kind: Renew}, nil)
		if err == nil || errors.Is(err, ErrNoDaemon) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	close(hang)
}

func TestADaemonThatWorksForLongSaysThatItLives(t *testing.T) {
	begun := make(chan struct{})
	actor := &fakeActor{do: func(ctx context.Context, _ Job, _ func(cluster.Progress)) (cluster.Report, error) {
		<-begun
		return cluster.Report{Node: "proxy1"}, nil
	}}
	l := localServer{actor, 10 * time.Millisecond}
	lines := make(chan string, 1000)
	socket := serveLocal(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.job(&spy{w, lines}, r, Renew)
	}))
	time.AfterFunc(0, func() {
		for range 20 { // 200 ms of nothing else
			<-lines
		}
		close(begun)
	})
	client := NewLocalClient(socket)
	client.silence = 5 * time.Second
	if report, err := client.Do(context.Background(), Job{Kind: Renew}, nil); err != nil || report.Node != "proxy1" {
		t.Errorf("report %+v, error %v", report, err)
	}
}

// spy tells of each line.
type spy struct {
	http.ResponseWriter
	lines chan string
}

func (s *spy) Write(p []byte) (int, error) {
	s.lines <- string(p)
	return s.ResponseWriter.Write(p)
}

func (s *spy) Unwrap() http.ResponseWriter { return s.ResponseWriter }

func TestAClientThatLeavesEndsItsJobsContext(t *testing.T) {
	ended := make(chan struct{})
	socket := serveLocal(t, NewLocalHandler(&fakeActor{do: func(ctx context.Context, _ Job, progress func(cluster.Progress)) (cluster.Report, error) {
		progress(cluster.Progress{Step: "adopt"})
		<-ctx.Done()
		close(ended)
		return cluster.Report{}, ctx.Err()
	}}))
	ctx, cancel := context.WithCancel(context.Background())
	_, err := NewLocalClient(socket).Do(ctx, Job{Kind: Renew}, func(cluster.Progress) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error: %v", err)
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the daemon never hears that nobody waits any more")
	}
}

// A client that is stopped (SIGSTOP, a pager) reads nothing: the pass goes on all the same.
func TestAReaderThatStandsStillHoldsNoPassUp(t *testing.T) {
	passed := make(chan struct{})
	socket := serveLocal(t, NewLocalHandler(&fakeActor{do: func(_ context.Context, _ Job, progress func(cluster.Progress)) (cluster.Report, error) {
		for range 20_000 {
			progress(cluster.Progress{Step: "obtain", Message: strings.Repeat("x", 1000)})
		}
		close(passed)
		return cluster.Report{}, nil
	}}))
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "POST /v1/renew HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-passed:
	case <-time.After(20 * time.Second):
		t.Error("the pass waits for a reader")
	}
}

func TestTheLocalAPIAnswersWhatItHasAndNothingElse(t *testing.T) {
	actor := &fakeActor{do: func(context.Context, Job, func(cluster.Progress)) (cluster.Report, error) {
		return cluster.Report{}, nil
	}}
	socket := serveLocal(t, NewLocalHandler(actor))
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	for _, c := range []struct {
		method, path, body string
		want               int
	}{
		{"POST", "/v1/event", "", 204}, {"GET", "/v1/event", "", 405}, {"GET", "/v1/status", "", 200}, {"POST", "/v1/sync", "{}", 200},
		{"POST", "/v1/sync", "", 200}, {"POST", "/v1/issue", "nonsense", 400}, {"POST", "/v1/issue", `{"names":["` + strings.Repeat("x", maxJob) + `"]}`, 400},
		{"GET", "/v1/issue", "", 405}, {"GET", "/v1/revoke", "", 405}, {"POST", "/v1/configure", "", 404}, {"GET", "/v1/inventory", "", 404}, {"GET", "/", "", 404},
	} {
		request, err := http.NewRequest(c.method, "http://certsync"+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		reply, err := client.Do(request)
		if err != nil {
			t.Errorf("%s %s: %v", c.method, c.path, err)
			continue
		}
		_, _ = io.Copy(io.Discard, reply.Body)
		reply.Body.Close()
		if reply.StatusCode != c.want {
			t.Errorf("%s %s: HTTP status %d, want %d", c.method, c.path, reply.StatusCode, c.want)
		}
	}
	if actor.wakes != 1 {
		t.Errorf("%d wake-ups", actor.wakes)
	}
	status, err := NewLocalClient(socket).Status(context.Background())
	if err != nil || status.Daemon.Pid != 7 || status.Daemon.Last.Outcome != cluster.Done || len(status.Nodes) != 1 {
		t.Errorf("status %+v, error %v", status, err)
	}
}

func TestTheLocalSocketIsForItsGroup(t *testing.T) {
	socket := serveLocal(t, http.NotFoundHandler())
	info, err := os.Lstat(socket)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, error %v", info.Mode(), err)
	}
}
