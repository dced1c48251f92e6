package haproxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"certsync/internal/cluster"
)

// Bounds of replies, in bytes. A list of 100,000 long names is about 10 MiB; everything else is a few KiB.
const (
	maxReply = 1 << 20
	maxList  = 64 << 20
	maxLine  = 64 << 10
)

// The ways in which HAProxy says no that callers tell apart.
var (
	// errUnknownName: HAProxy has no certificate of this name that can be changed at run time.
	errUnknownName = errors.New("not known to HAProxy's runtime API")
	// errForeign: a transaction that is not ours is open; HAProxy has one for the whole process.
	errForeign = errors.New("another transaction is open in HAProxy")
	// errLevel: the socket lets us read at best.
	errLevel = errors.New("HAProxy's runtime socket does not allow this")
	// errUnclear: no answer, half of one, or one that is not known. What was asked may or may not have been done.
	errUnclear = errors.New("outcome unknown")
	// errLocked: HAProxy was busy with another command on certificates and did nothing.
	errLocked = errors.New("operations on certificates are locked in HAProxy")
)

// runtime is a client of HAProxy's runtime API (the "stats socket"). It opens a connection for each command: its end
// then marks the end of the reply, so that no text in a reply can be taken for a prompt; from 3.0 on, HAProxy ignores
// whatever follows the first command, so that no line of a payload can ever be run as one; and it costs 0.1 ms, while
// HAProxy takes 1.5 to 3 ms to commit one certificate.
type runtime struct {
	network, address string
	dial             DialFunc
	// timeout is the longest that one command may take, from dialling to the end of the reply.
	timeout time.Duration
	// wait is how long a command that HAProxy refuses because it is busy is tried again.
	wait time.Duration
	// changes counts the commands that may have changed what HAProxy serves.
	changes atomic.Uint64
}

// connect dials, and says what to do where that fails.
func (r *runtime) connect(ctx context.Context) (net.Conn, error) {
	conn, err := r.dial(ctx, r.network, r.address)
	if err == nil {
		return conn, nil
	}
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return nil, cluster.WithHint(fmt.Errorf("%w: runtime socket: %w", cluster.ErrNotRunning, err),
			"start HAProxy: service haproxy start; where it runs, name its stats socket in haproxy.runtime_socket")
	case errors.Is(err, os.ErrPermission):
		return nil, cluster.WithHint(fmt.Errorf("%w: %w", errLevel, err),
			"let certsync's user write %s: add the user to the group of `stats socket %s group GROUP mode 660 level admin` in HAProxy's configuration (or to that of the folder)",
			r.address, r.address)
	}
	return nil, fmt.Errorf("runtime socket: %w", err)
}

// grace is how long a reply is waited for after the context was cancelled: a command that was sent is going to be done,
// and to leave before its end would be not to know what there is to undo.
const grace = 2 * time.Second

// exchange sends one command and hands the reply's lines to each, at most limit bytes of them. complete tells that the
// reply ended as HAProxy ends one, with an empty line; it may be false only where HAProxy refused the command.
func (r *runtime) exchange(ctx context.Context, command string, limit int64, each func(line string) error) (complete bool, err error) {
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	conn, err := r.connect(ctx)
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close() }()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	// A cancelled context ends a read that waits; never later than the deadline.
	defer context.AfterFunc(ctx, func() {
		if soon := time.Now().Add(grace); soon.Before(deadline) {
			_ = conn.SetDeadline(soon)
		}
	})()
	if _, err := io.WriteString(conn, command); err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		return false, unclear(ctx, begin, "send", err)
	}
	bounded := &io.LimitedReader{R: conn, N: limit + 1}
	lines := bufio.NewScanner(bounded)
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	for lines.Scan() {
		complete = lines.Text() == ""
		if err := each(lines.Text()); err != nil {
			return false, err
		}
	}
	switch err := lines.Err(); {
	case bounded.N <= 0:
		return false, fmt.Errorf("%w: a reply of more than %d bytes", errUnclear, limit)
	case err != nil:
		return false, unclear(ctx, begin, "read the reply", err)
	}
	return complete, nil
}

// unclear is a connection that broke or was too slow. The context's own end comes first: it is the reason.
func unclear(ctx context.Context, begin time.Time, what string, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		err = ctx.Err()
	case ctx.Err() != nil, errors.Is(err, os.ErrDeadlineExceeded):
		err = cluster.WithHint(fmt.Errorf("no answer for %s: %w", time.Since(begin).Round(100*time.Millisecond), context.DeadlineExceeded),
			"see whether HAProxy hangs, and restart it then: service haproxy restart; it starts with the bundles on disk")
	}
	return fmt.Errorf("%w: %s: %w", errUnclear, what, err)
}

// ask sends a command (with its payload, if any) and gives the reply, without empty lines. Where HAProxy answers that
// certificates are locked by another command it has done nothing, and is asked again for a while.
func (r *runtime) ask(ctx context.Context, command string) (reply []string, complete bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout+r.wait)
	defer cancel()
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		reply = reply[:0]
		complete, err = r.exchange(ctx, command, maxReply, func(line string) error {
			if line != "" {
				reply = append(reply, line)
			}
			return nil
		})
		if err != nil {
			return nil, false, err
		}
		if !isLocked(reply) {
			return reply, complete, nil
		}
		if err := sleep(ctx, pause); err != nil {
			return nil, false, fmt.Errorf("%w: %w", errLocked, err)
		}
	}
}

// isLocked is true only where nothing in the reply says that the command began.
func isLocked(reply []string) bool {
	return contains(reply, "are currently locked") && !contains(reply, "Success!") && !contains(reply, "Transaction ")
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// read is ask for commands that change nothing: those are asked again where the connection broke.
func (r *runtime) read(ctx context.Context, command string) ([]string, error) {
	for try := 1; ; try++ {
		reply, complete, err := r.ask(ctx, command)
		if err == nil {
			err = refusal(reply)
		}
		if err == nil && !complete {
			err = fmt.Errorf("%w: the reply was cut", errUnclear)
		}
		if err == nil {
			return reply, nil
		}
		if errors.Is(err, cluster.ErrNotRunning) {
			return nil, err // what was to be asked says nothing more
		}
		if try == 3 || !errors.Is(err, errUnclear) || errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			return nil, fmt.Errorf("HAProxy: %s: %w", strings.TrimSuffix(command, "\n"), err)
		}
	}
}

// refusal finds the answers that any command can get. "Can't allocate memory!" is what `show ssl cert` says to a socket
// of level user, in 2.6 to 3.2.
func refusal(reply []string) error {
	if len(reply) == 0 {
		return nil
	}
	if reply[0] == "Permission denied" || reply[0] == "Can't allocate memory!" {
		return cluster.WithHint(fmt.Errorf("%w: %s", errLevel, reply[0]),
			"give the socket the level that changes certificates: `stats socket PATH mode 660 level admin` in HAProxy's global section, then reload HAProxy")
	}
	return nil
}

func contains(reply []string, text string) bool {
	for _, line := range reply {
		if strings.Contains(line, text) {
			return true
		}
	}
	return false
}

// has tells whether one of the lines is exactly text.
func has(reply []string, text string) bool {
	for _, line := range reply {
		if line == text {
			return true
		}
	}
	return false
}

// escape makes one word of a name: HAProxy's command line knows spaces, semicolons and backslashes, and from 2.9 quotes.
// A name with a line break cannot be addressed at all.
func escape(name string) (string, error) {
	if strings.ContainsAny(name, "\n\r\x00") || name == "" {
		return "", fmt.Errorf("%w: the name %q cannot be written in a command", errUnknownName, name)
	}
	return escaper.Replace(name), nil
}

var escaper = strings.NewReplacer(`\`, `\\`, " ", `\ `, ";", `\;`, "\t", "\\\t")

// tell is a reply as it may stand in an error: on one line, printable, cut, and withheld altogether where it quotes any
// part of the payload that was sent, since that may be of a private key.
func tell(reply []string, payload string) string {
	text := strings.Join(reply, "; ")
	if text == "" {
		return "an empty answer"
	}
	if len(text) > 500 {
		text = text[:500] + "..."
	}
	// 11 is the length of "CERTIFICATE", which an honest answer may well hold.
	const window = 12
	for i := 0; payload != "" && i+window <= len(text); i++ {
		if strings.Contains(payload, text[i:i+window]) {
			return "an answer that quotes what was sent (withheld)"
		}
	}
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c == 0xfffd {
			return '?'
		}
		return c
	}, text)
}
