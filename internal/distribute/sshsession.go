package distribute

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"certsync/internal/cluster"
)

// session is one run of serve-peer on the peer, as a net.Conn on its standard input and output.
type session struct {
	*conn
	link *link
	// over is closed when the remote command ended and its last words are in.
	over   chan struct{}
	stderr *tail
	mu     sync.Mutex
	status string // how it ended; under mu
	// begun is what was read of "HTTP/", as long as that is all there is.
	begun []byte
	http  bool
}

// session opens a channel and starts the command. A host that does not answer in time is dropped.
func (l *link) session(ctx context.Context, t Timeouts) (*session, error) {
	type result struct {
		s   *session
		err error
	}
	opened := make(chan result, 1)
	go func() {
		s, err := l.open(t.Stall)
		opened <- result{s, err}
	}()
	timer := time.NewTimer(t.Session)
	defer timer.Stop()
	select {
	case r := <-opened:
		return r.s, r.err
	case <-timer.C:
		l.close()
		return nil, fmt.Errorf("open a session: %w", &waitedError{"no answer", t.Session})
	case <-ctx.Done():
		go func() {
			if r := <-opened; r.err == nil {
				_ = r.s.Close()
			}
		}()
		return nil, context.Cause(ctx)
	}
}

func (l *link) open(stall time.Duration) (*session, error) {
	channel, requests, err := l.client.OpenChannel("session", nil)
	if err != nil {
		if refused, ok := errors.AsType[*ssh.OpenChannelError](err); ok {
			err = cluster.WithHint(fmt.Errorf("sshd refused it: %s", cleanText(refused.Message, 200)), "see MaxSessions in sshd_config of %s", l.peer)
		}
		return nil, fmt.Errorf("open a session: %w", err)
	}
	s := &session{link: l, over: make(chan struct{}), stderr: &tail{}}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(s.stderr, channel.Stderr())
	}()
	go s.watch(requests, copied)
	ok, err := channel.SendRequest("exec", true, ssh.Marshal(struct{ Command string }{serveCommand}))
	if err == nil && !ok {
		err = cluster.WithHint(errors.New("sshd refused to run it"), "see the line of our key in authorized_keys on %s: it wants restrict and command=", l.peer)
	}
	if err != nil {
		_ = channel.Close()
		return nil, fmt.Errorf("start serve-peer: %w", err)
	}
	s.conn = newConn(channel, stall)
	return s, nil
}

// watch notes how the command ends (RFC 4254 section 6.10).
func (s *session) watch(requests <-chan *ssh.Request, copied <-chan struct{}) {
	defer close(s.over)
	for r := range requests {
		switch r.Type {
		case "exit-status":
			var m struct{ Status uint32 }
			if ssh.Unmarshal(r.Payload, &m) == nil {
				s.ended(fmt.Sprintf("exit status %d", m.Status))
			}
		case "exit-signal":
			var m struct {
				Signal     string
				CoreDumped bool
				Error      string
				Lang       string
			}
			if ssh.Unmarshal(r.Payload, &m) == nil {
				s.ended("signal " + cleanText(m.Signal, 20))
			}
		}
		if r.WantReply {
			_ = r.Reply(false, nil)
		}
	}
	<-copied
}

func (s *session) ended(how string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status = how
}

// Read implements net.Conn. The first bytes must be those of an HTTP reply: anything else was written by a login
// shell's files, or by another command, and is shown to the user.
func (s *session) Read(p []byte) (int, error) {
	n, err := s.conn.Read(p)
	if s.http || n == 0 {
		return n, err
	}
	const protocol = "HTTP/"
	s.begun = append(s.begun, p[:n]...)
	if !bytes.HasPrefix(s.begun, []byte(protocol[:min(len(protocol), len(s.begun))])) {
		return 0, s.rubbish()
	}
	if len(s.begun) >= len(protocol) {
		s.http, s.begun = true, nil
	}
	return n, err
}

// rubbishError is output that is not HTTP.
type rubbishError struct{ line string }

func (e *rubbishError) Error() string {
	return fmt.Sprintf("the remote side answered %q instead of HTTP", e.line)
}

func (s *session) rubbish() error {
	line, _, _ := bytes.Cut(bytes.TrimLeft(s.begun, "\r\n"), []byte("\n"))
	return &rubbishError{cleanText(string(line), 200)}
}

// lastWords is how long a failed call waits for the exit status and standard error of the remote command.
const lastWords = 500 * time.Millisecond

// explain adds what the remote command said, if it ended, to the error of a call that was cut.
func (s *session) explain(err error) error {
	if rubbish, ok := errors.AsType[*rubbishError](err); ok {
		return cluster.WithHint(rubbish, "see that the forced command of our key on %s is serve-peer, and that no login file of its user (.profile, .bashrc, .cshrc, .shrc) prints anything", s.link.peer)
	}
	select {
	case <-s.over:
	case <-time.After(lastWords):
		return err
	}
	s.mu.Lock()
	how := s.status
	s.mu.Unlock()
	said := s.stderr.String()
	switch {
	case how == "" && said == "":
		return fmt.Errorf("the connection broke: %w", err)
	case how == "":
		return fmt.Errorf("the connection broke: %w: %s", err, said)
	case said == "":
		said = "it said nothing"
	}
	ended := fmt.Errorf("serve-peer there ended with %s: %s", how, said)
	return cluster.WithHint(ended, "see that certsync runs on %s, and the forced command of our key there", s.link.peer)
}

// tail keeps the first and the last of a remote command's standard error, of which there may be any amount.
type tail struct {
	mu      sync.Mutex
	first   []byte
	last    []byte
	skipped bool
}

// tailSize is how much of each is kept, in bytes.
const tailSize = 1 << 10

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	if room := tailSize - len(t.first); room > 0 {
		t.first = append(t.first, p[:min(room, n)]...)
		p = p[min(room, n):]
	}
	t.last = append(t.last, p...)
	if extra := len(t.last) - tailSize; extra > 0 {
		t.skipped = true
		t.last = append(t.last[:0], t.last[extra:]...)
	}
	return n, nil
}

// String is one line, fit for a terminal.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.skipped {
		return cleanText(string(t.first), tailSize) + " ... " + cleanText(string(t.last), tailSize)
	}
	return cleanText(string(t.first)+string(t.last), 2*tailSize)
}
