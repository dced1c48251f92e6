package carp

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// ear records what a listener told.
type ear struct {
	mu      sync.Mutex
	told    []notice
	trouble error
	states  int
}

func (e *ear) tell(n notice) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.told = append(e.told, n)
}

func (e *ear) state(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.trouble = err
	e.states++
}

// count is how often it was told of n.
func (e *ear) count(n notice) (count int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, told := range e.told {
		if told == n {
			count++
		}
	}
	return count
}

func (e *ear) troubled() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.trouble
}

// listen runs a listener until the test ends, and waits for it.
func (e *ear) listen(t *testing.T, s source) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		listener{source: s, tell: e.tell, state: e.state, tried: func() {}}.run(ctx)
		close(done)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

// eventually polls a condition.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// devd is a fake of devd's socket, with clients that it can drop.
type devd struct {
	path   string
	server *net.UnixListener
	client chan *net.UnixConn
}

func newDevd(t *testing.T) *devd {
	if runtime.GOOS != "linux" && runtime.GOOS != "freebsd" {
		t.Skip("no SOCK_SEQPACKET for unix sockets here")
	}
	d := &devd{path: filepath.Join(t.TempDir(), "devd.pipe"), client: make(chan *net.UnixConn, 10)}
	d.start(t)
	t.Cleanup(d.stop)
	return d
}

func (d *devd) start(t *testing.T) {
	t.Helper()
	server, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: d.path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	server.SetUnlinkOnClose(false) // the socket file stays when devd stops
	d.server = server
	go func() {
		for {
			c, err := server.AcceptUnix()
			if err != nil {
				return
			}
			d.client <- c
		}
	}()
}

func (d *devd) stop() { d.server.Close() }

// next is the next client.
func (d *devd) next(t *testing.T) *net.UnixConn {
	t.Helper()
	select {
	case c := <-d.client:
		t.Cleanup(func() { c.Close() })
		return c
	case <-time.After(20 * time.Second):
		t.Fatal("nobody connected within 20 s")
		return nil
	}
}

func send(t *testing.T, c *net.UnixConn, packet string) {
	t.Helper()
	if _, err := c.Write([]byte(packet)); err != nil {
		t.Fatal(err)
	}
}

func TestDevdIsHeardAndConnectedToAgain(t *testing.T) {
	d := newDevd(t)
	var e ear
	e.listen(t, devdSource(d.path, testSpecs[0]))

	c := d.next(t)
	eventually(t, "the state is read again when it is connected", func() bool { return e.count(wake) == 1 })
	send(t, c, "!system=IFNET subsystem=em0 type=LINK_UP\n")
	send(t, c, "!system=CARP subsystem=2@em0 type=MASTER\n")
	eventually(t, "another vhid's event", func() bool { return e.count(wake) == 2 })
	send(t, c, "!system=CARP subsystem=1@em0 type=BACKUP\n")
	eventually(t, "the deciding vhid's event", func() bool { return e.count(moved) == 1 })

	// A client that was too slow is dropped, its last packet cut.
	send(t, c, "!system=IFNET su")
	eventually(t, "a cut packet", func() bool { return e.count(wake) == 3 })
	c.Close()
	c = d.next(t)
	eventually(t, "the end, and the new connection", func() bool { return e.count(wake) == 5 })
	if e.troubled() != nil {
		t.Errorf("%v, though it is connected", e.troubled())
	}

	// devd is restarted; while it is stopped, the socket's file stays and refuses.
	d.stop()
	c.Close()
	eventually(t, "a refusal", func() bool { return errors.Is(e.troubled(), syscall.ECONNREFUSED) })
	if text := e.troubled().Error(); !strings.HasPrefix(text, "events of devd: ") {
		t.Errorf("%q does not say what is in trouble", text)
	}
	os.Remove(d.path)
	d.start(t)
	c = d.next(t)
	send(t, c, "!system=CARP subsystem=1@em0 type=MASTER\n")
	eventually(t, "an event of the new devd", func() bool { return e.count(moved) == 2 })
}

func TestASocketThatSaysNothingDoesNotHoldUpTheEnd(t *testing.T) {
	d := newDevd(t)
	var e ear
	e.listen(t, devdSource(d.path, testSpecs[0]))
	d.next(t) // the client beyond devd's limit: it is let in, and hears nothing; listen waits for its end
	if n := e.count(moved); n != 0 {
		t.Errorf("told of %d moves", n)
	}
}

// scripted gives one result of Read after another.
type scripted struct {
	results []result
	closed  chan struct{}
	once    sync.Once
}

type result struct {
	packet string
	err    error
}

func (s *scripted) Read(b []byte) (int, error) {
	if len(s.results) == 0 {
		<-s.closed
		return 0, io.ErrClosedPipe
	}
	r := s.results[0]
	s.results = s.results[1:]
	return copy(b, r.packet), r.err
}

func (s *scripted) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func scriptedSource(results ...result) source {
	return source{
		name: "a script",
		open: func(context.Context) (io.ReadCloser, error) {
			s := &scripted{results: results, closed: make(chan struct{})}
			results = nil
			return s, nil
		},
		says: func(b []byte) notice { return devdSays(b, testSpecs[0]) },
	}
}

func TestALostMessageIsAWakeUpAndTheSocketIsReadOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var e ear
		opened := 0
		s := scriptedSource(result{err: &os.PathError{Op: "read", Path: "rtnetlink", Err: syscall.ENOBUFS}}, result{packet: "!system=CARP subsystem=1@em0 type=INIT\n"})
		open := s.open
		s.open = func(ctx context.Context) (io.ReadCloser, error) { opened++; return open(ctx) }
		e.listen(t, s)
		time.Sleep(time.Second)
		if e.count(wake) != 2 || e.count(moved) != 1 || opened != 1 {
			t.Errorf("%d wake-ups, %d moves, opened %d times; want 2 (open and lost), 1, once", e.count(wake), e.count(moved), opened)
		}
	})
}

func TestASocketThatOnlyFailsIsTriedEverMoreRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var e ear
		opened := 0
		s := source{name: "a wall", says: func([]byte) notice { return ignored }}
		s.open = func(context.Context) (io.ReadCloser, error) { opened++; return nil, syscall.ECONNREFUSED }
		e.listen(t, s)
		time.Sleep(time.Minute)
		synctest.Wait()
		if opened < 10 || opened > 15 {
			t.Errorf("tried %d times in a minute, want 7 with doubled pauses and then one in 10 s", opened)
		}
		if !errors.Is(e.troubled(), syscall.ECONNREFUSED) {
			t.Errorf("trouble: %v", e.troubled())
		}
	})
}

// An end without an error, as an empty packet or a closed seqpacket socket gives, must not spin.
func TestAnEndAtOnceIsNoLoopWithoutAPause(t *testing.T) {
	for name, end := range map[string]error{"end of file": io.EOF, "nothing": nil, "an error": syscall.EIO} {
		synctest.Test(t, func(t *testing.T) {
			var e ear
			opened := 0
			s := source{name: "a short one", says: func([]byte) notice { return wake }}
			s.open = func(context.Context) (io.ReadCloser, error) {
				opened++
				return &scripted{results: []result{{err: end}}, closed: make(chan struct{})}, nil
			}
			e.listen(t, s)
			time.Sleep(time.Minute)
			synctest.Wait()
			if opened < 10 || opened > 15 {
				t.Errorf("%s: opened %d times in a minute", name, opened)
			}
		})
	}
}

func TestAMessageThatCameSetsThePauseBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var e ear
		opened := 0
		s := source{name: "a talker", says: func([]byte) notice { return ignored }}
		s.open = func(context.Context) (io.ReadCloser, error) {
			opened++
			return &scripted{results: []result{{packet: "!\n"}, {err: io.EOF}}, closed: make(chan struct{})}, nil
		}
		e.listen(t, s)
		time.Sleep(time.Second)
		synctest.Wait()
		if opened < 10 {
			t.Errorf("opened %d times in a second, want every 100 ms", opened)
		}
	})
}

func TestAnUnsupportedSourceIsNotTriedAgainAndIsNoTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(0)
		opened := 0
		r := h.readings()
		r.sources = append(r.sources, source{name: "netlink", open: func(context.Context) (io.ReadCloser, error) {
			opened++
			return nil, errors.Join(errors.ErrUnsupported)
		}})
		a := newAuto(Config{VHIDs: testSpecs}, r)
		defer a.Close()
		_, _ = a.Role(t.Context())
		time.Sleep(time.Hour)
		if opened != 1 || len(a.Troubles()) != 0 {
			t.Errorf("opened %d times, troubles %v; want once and none", opened, a.Troubles())
		}
	})
}

func TestTroublesTellWhichSourceDoesNotWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(0)
		r := h.readings()
		r.sources = append(r.sources, source{name: "devd", open: func(context.Context) (io.ReadCloser, error) { return nil, os.ErrNotExist }})
		a := newAuto(Config{VHIDs: testSpecs}, r)
		defer a.Close()
		if got := a.Troubles(); len(got) != 0 {
			t.Errorf("before it began: %v", got)
		}
		_, _ = a.Role(t.Context())
		synctest.Wait()
		got := a.Troubles()
		if len(got) != 1 || got[0].Error() != "events of devd: file does not exist" {
			t.Errorf("%v, want devd's", got)
		}
	})
}
