package carp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"
)

// notice is what one message of a source says.
type notice int

const (
	// ignored: nothing that CARP could have to do with.
	ignored notice = iota
	// wake: the state may have changed; it is to be read again.
	wake
	// moved: the deciding vhid changed its state, whatever it is by the time it is read.
	moved
)

// source is one that tells of changes: devd, a routing socket. Each message is only a hint.
type source struct {
	name string
	// open connects. errors.ErrUnsupported where this host has no such source: it is not tried again.
	open func(context.Context) (io.ReadCloser, error)
	// says decodes one message, which is one Read.
	says func([]byte) notice
}

const (
	// retryFirst and retryMost bound the pause before a source is opened again.
	retryFirst = 100 * time.Millisecond
	retryMost  = 10 * time.Second
	// messageSize is more than any message has: devd's packets have at most 1023 bytes (devd(8)), a datagram of a
	// routing socket a few thousand.
	messageSize = 64 << 10
)

// listener reads one source until the context ends, and opens it again whenever it ends.
type listener struct {
	source source
	tell   func(notice)
	// state is told the trouble with the source, nil when it works.
	state func(error)
	// tried is called when the first attempt to open was made.
	tried func()
}

func (l listener) run(ctx context.Context) {
	defer l.tried()
	pause := retryFirst
	for ctx.Err() == nil {
		heard, err := l.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errors.ErrUnsupported) {
			l.state(nil)
			return
		}
		l.state(fmt.Errorf("events of %s: %w", l.source.name, err))
		if heard {
			pause = retryFirst
		}
		if !sleep(ctx, pause) {
			return
		}
		pause = min(2*pause, retryMost)
	}
}

// session opens the source and reads it to its end; heard tells that a message came. What came before it was open was
// missed: so the state is to be read again once it is.
func (l listener) session(ctx context.Context) (heard bool, err error) {
	conn, err := l.source.open(ctx)
	if err != nil {
		l.tried()
		return false, err
	}
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { conn.Close(); close(closed) })
	defer func() {
		if stop() {
			conn.Close()
			return
		}
		<-closed
	}()
	l.state(nil)
	l.tried()
	l.tell(wake)
	return l.read(ctx, conn)
}

// read tells what each message says. An end is a wake-up too: what the source had to say last may be lost.
func (l listener) read(ctx context.Context, conn io.Reader) (heard bool, err error) {
	buf := make([]byte, messageSize)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			heard = true
			if said := l.source.says(buf[:n]); said != ignored {
				l.tell(said)
			}
		}
		switch {
		case err == nil && n > 0:
		case errors.Is(err, syscall.ENOBUFS):
			// The socket was full: messages were lost, and it works on.
			l.tell(wake)
			if !sleep(ctx, breather) {
				return heard, context.Cause(ctx)
			}
		default:
			l.tell(wake)
			if err == nil {
				err = io.EOF
			}
			return heard, err
		}
	}
}
