package haproxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// childPath is where a program without a slash in its name is looked for, and the PATH of every child: what certsync was
// started with may be a cron job's.
const childPath = "/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"

// killGrace is how long a killed child is waited for. One that runs as another user (doas, sudo) cannot be killed.
const killGrace = 2 * time.Second

// errNotStarted: a program is not there, or we may not run it.
var errNotStarted = errors.New("cannot be run")

// run runs a program and gives what it printed, on both streams, cut in the middle where it is long. The child is in a
// process group of its own, which is killed when ctx ends; its environment is fixed, since certsync's has the DNS
// provider's credentials; its folder is /, as a service's is, since relative names in HAProxy's configuration begin there.
func run(ctx context.Context, argv []string) (string, error) {
	path, err := lookUp(argv[0])
	if err != nil {
		return "", fmt.Errorf("%s %w: %w", argv[0], errNotStarted, err)
	}
	var out clipped
	cmd := exec.CommandContext(ctx, path, argv[1:]...) //nolint:gosec // the operator's configuration names it
	cmd.Dir, cmd.Env = "/", []string{"PATH=" + childPath, "LANG=C"}
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	// A daemon that the child started may have kept its standard output.
	cmd.WaitDelay = killGrace / 2
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("%s %w: %w", argv[0], errNotStarted, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
	case <-ctx.Done():
		select {
		case err = <-ended:
		case <-time.After(killGrace):
			return out.String(), fmt.Errorf("%s: %w; it could not be killed and goes on", argv[0], ctx.Err())
		}
	}
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return out.String(), nil
	case ctx.Err() != nil:
		return out.String(), fmt.Errorf("%s: %w", argv[0], ctx.Err())
	}
	return out.String(), fmt.Errorf("%s: %w", argv[0], err)
}

// lookUp finds a program in childPath; a name with a slash is its path.
func lookUp(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range filepath.SplitList(childPath) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("not in %s: %w", childPath, fs.ErrNotExist)
}

// maxOutput is how much of a child's output is kept, in bytes: so much of its beginning, and so much of its end.
const maxOutput = 64 << 10

// clipped keeps the beginning and the end of what is written to it. It is safe for concurrent use: a child that could not
// be killed may write on.
type clipped struct {
	mu         sync.Mutex
	head, tail []byte
	cut        bool
}

func (c *clipped) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(p)
	room := min(maxOutput-len(c.head), len(p))
	c.head = append(c.head, p[:room]...)
	p = p[room:]
	if len(p) > maxOutput {
		p, c.cut = p[len(p)-maxOutput:], true
	}
	c.tail = append(c.tail, p...)
	if over := len(c.tail) - maxOutput; over > 0 {
		c.tail, c.cut = append(c.tail[:0], c.tail[over:]...), true
	}
	return n, nil
}

func (c *clipped) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	between := ""
	if c.cut {
		between = "\n...\n"
	}
	return string(c.head) + between + string(c.tail)
}

// quote is what a person needs of HAProxy's output, on one line and cut: its [ALERT] lines without their prefix; else its
// last lines.
func quote(output string) string {
	lines, general := alerts(output)
	if len(lines) == 0 {
		lines = general
	}
	if len(lines) == 0 {
		for line := range strings.Lines(output) {
			if line = strings.TrimSpace(line); line != "" {
				lines = append(lines, line)
			}
		}
		lines = lines[max(0, len(lines)-3):]
	}
	if len(lines) == 0 {
		return "it printed nothing"
	}
	lines = lines[:min(3, len(lines))]
	for i, line := range lines {
		// The reason stands at a line's end.
		if most := 450 / len(lines); len(line) > most {
			lines[i] = line[:most/3] + "..." + line[len(line)-most*2/3+3:]
		}
	}
	return tell(lines, "")
}

// alerts are the [ALERT] lines of HAProxy's output, `[ALERT]    (PID) : text`, apart from those that end every failed
// start.
func alerts(output string) (telling, general []string) {
	for line := range strings.Lines(output) {
		_, text, ok := strings.Cut(line, "[ALERT]")
		if !ok {
			continue
		}
		text = strings.TrimSpace(text)
		if pid, rest, ok := strings.Cut(text, ") : "); ok && strings.HasPrefix(pid, "(") {
			text = strings.TrimSpace(rest)
		}
		if strings.Contains(text, "found in configuration") || strings.Contains(text, "Some protocols failed to start") {
			general = append(general, text)
		} else {
			telling = append(telling, text)
		}
	}
	return telling, general
}
