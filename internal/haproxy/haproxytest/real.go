package haproxytest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Binary is an installed HAProxy.
type Binary struct {
	// Version is the branch, such as "2.6".
	Version string
	Path    string
}

// Versions are the branches that the contract suite runs on.
func Versions() []string { return []string{"2.6", "3.0", "3.2"} }

var branch = regexp.MustCompile(`version (\d+\.\d+)\.`)

// Find looks for a branch: the system's HAProxy, and those that scripts/deps.sh unpacks into the user's cache. ok is
// false where it is not installed.
func Find(version string) (b Binary, ok bool) {
	finding.Lock()
	defer finding.Unlock()
	if b, ok := found[version]; ok {
		return b, true
	}
	for _, path := range candidates(version) {
		out, err := exec.Command(path, "-v").Output()
		if err != nil {
			continue
		}
		if m := branch.FindSubmatch(out); m != nil && string(m[1]) == version {
			found[version] = Binary{Version: version, Path: path}
			return found[version], true
		}
	}
	return Binary{}, false
}

// found are those that were found: each is asked for its version once, not by every test.
var (
	finding sync.Mutex
	found   = map[string]Binary{}
)

func candidates(version string) []string {
	cache := os.Getenv("XDG_CACHE_HOME")
	if cache == "" {
		cache = filepath.Join(os.Getenv("HOME"), ".cache")
	}
	paths := []string{filepath.Join(cache, "certsync", "haproxy-"+version, "haproxy"), "/usr/sbin/haproxy", "/usr/local/sbin/haproxy"}
	if path, err := exec.LookPath("haproxy"); err == nil {
		paths = append(paths, path)
	}
	return paths
}

// Server is a running HAProxy, real or fake.
type Server interface {
	// Stop ends it and waits for its end.
	Stop()
}

// Check is `haproxy -c`: what a start with this configuration, from folder dir, would say.
func (b Binary) Check(config, dir string) error {
	cmd := exec.Command(b.Path, "-c", "-f", config)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("haproxy -c: %w: %s", err, out)
	}
	return nil
}

type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	out  *output
}

// output keeps what HAProxy prints, for the message of a failed start.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// Start runs HAProxy with a configuration, from folder dir, until Stop, and returns when its runtime socket answers.
func (b Binary) Start(ctx context.Context, config, dir, socket string) (Server, error) {
	p := &process{cmd: exec.Command(b.Path, "-db", "-f", config), done: make(chan struct{}), out: &output{}}
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, p.out, p.out
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start haproxy: %w", err)
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	if err := p.await(ctx, func() bool { return answers(socket) }, p.Stop); err != nil {
		return nil, err
	}
	return p, nil
}

// await waits until a HAProxy that was started is ready; where it never is, it is stopped.
func (p *process) await(ctx context.Context, ready func() bool, stop func()) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for !ready() {
		select {
		case <-p.done:
			return fmt.Errorf("start haproxy: it ended: %s", p.out)
		case <-ctx.Done():
			stop()
			return fmt.Errorf("start haproxy: %w: %s", ctx.Err(), p.out)
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// answers tells whether a runtime socket answers `show info`.
func answers(socket string) bool {
	reply, err := Command(socket, "show info\n")
	return err == nil && strings.Contains(reply, "Pid: ")
}

// Command sends one command to a runtime socket, as an operator with socat would.
func Command(socket, command string) (string, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, command); err != nil && !errors.Is(err, syscall.EPIPE) {
		return "", err
	}
	reply, err := io.ReadAll(conn)
	return string(reply), err
}

// Stop implements Server.
func (p *process) Stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}
