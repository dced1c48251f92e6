package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// HAProxy is an HAProxy program found on this machine.
type HAProxy struct {
	// Path is the program's, or that of a wrapper which runs it with the libraries of its own distribution.
	Path string
	// Version is as told by -v, "2.6.12"; Branch its first two numbers, "2.6".
	Version, Branch string
}

// ErrNoHAProxy means that there is none, or none of the version asked for.
var ErrNoHAProxy = errors.New("HAProxy is not installed")

// haproxyVersion finds the version in the first line of `haproxy -v`.
var haproxyVersion = regexp.MustCompile(`HAProxy version ((\d+\.\d+)[^\s]*)`)

// HAProxies lists the HAProxies of this machine, one for each branch, the earliest branch first: those that
// scripts/deps.sh unpacked into the user's cache folder (certsync/haproxy-*/haproxy), and the system's.
func HAProxies(ctx context.Context) []HAProxy {
	var candidates []string
	if cache, err := os.UserCacheDir(); err == nil {
		unpacked, _ := filepath.Glob(filepath.Join(cache, "certsync", "haproxy-*", "haproxy"))
		candidates = append(candidates, unpacked...)
	}
	for _, name := range []string{"haproxy", "/usr/sbin/haproxy", "/usr/local/sbin/haproxy"} {
		if path, err := exec.LookPath(name); err == nil {
			candidates = append(candidates, path)
		}
	}
	var found []HAProxy
	for _, path := range candidates {
		h, err := askHAProxy(ctx, path)
		if err == nil && !slices.ContainsFunc(found, func(o HAProxy) bool { return o.Branch == h.Branch }) {
			found = append(found, h)
		}
	}
	slices.SortFunc(found, func(a, b HAProxy) int { return compareBranch(a.Branch, b.Branch) })
	return found
}

// FindHAProxy is the HAProxy of a branch such as "3.2"; "" means the earliest there is.
func FindHAProxy(ctx context.Context, branch string) (HAProxy, error) {
	for _, h := range HAProxies(ctx) {
		if branch == "" || h.Branch == branch {
			return h, nil
		}
	}
	return HAProxy{}, fmt.Errorf("HAProxy %s: %w", branch, ErrNoHAProxy)
}

func compareBranch(a, b string) int {
	var amajor, aminor, bmajor, bminor int
	_, _ = fmt.Sscanf(a, "%d.%d", &amajor, &aminor)
	_, _ = fmt.Sscanf(b, "%d.%d", &bmajor, &bminor)
	return slices.Compare([]int{amajor, aminor}, []int{bmajor, bminor})
}

func askHAProxy(ctx context.Context, path string) (HAProxy, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := runCommand(ctx, path, []string{"-v"}, baseEnv(), "")
	if err != nil {
		return HAProxy{}, err
	}
	m := haproxyVersion.FindSubmatch(r.Stdout)
	if m == nil {
		return HAProxy{}, fmt.Errorf("%s -v: no version in its answer", path)
	}
	version, _, _ := strings.Cut(string(m[1]), "-")
	return HAProxy{Path: path, Version: version, Branch: string(m[2])}, nil
}

// haproxyConfig is the node's haproxy.cfg: one TLS bind over the bundle folder, a stats socket by which certificates
// are changed, and an answer of its own, so that no backend is needed.
func (n *Node) haproxyConfig() string {
	var b strings.Builder
	fmt.Fprintf(&b, "global\n    maxconn 4000\n    nbthread 2\n    ssl-default-bind-options ssl-min-ver TLSv1.2\n")
	fmt.Fprintf(&b, "    stats socket %s mode 600 level %s expose-fd listeners\n    stats timeout 1m\n", n.StatsSocket, n.o.StatsLevel)
	fmt.Fprintf(&b, "defaults\n    mode http\n    timeout connect 5s\n    timeout client 1m\n    timeout server 1m\n    timeout http-keep-alive 1m\n")
	hiding := ""
	if n.o.HideBundle {
		hiding = "crt " + n.hidingFile() + " "
	}
	from := "crt " + n.BundleDir + "/"
	if n.lab.o.CrtList {
		from = "crt-list " + n.crtList()
	}
	fmt.Fprintf(&b, "frontend tls\n    bind %s ssl %s%s\n", n.TLSAddress, hiding, from)
	fmt.Fprintf(&b, "    http-request return status 200 content-type text/plain string %s\n", n.Name)
	return b.String()
}

// SetStatsLevel writes haproxy.cfg with another level of the runtime socket; HAProxy takes it at its next start.
func (n *Node) SetStatsLevel(level string) error {
	n.o.StatsLevel = level
	return writeFile(n.HAProxyConfig, []byte(n.haproxyConfig()))
}

// StartHAProxy starts the node's HAProxy and waits until it answers on its runtime socket and its TLS address.
func (n *Node) StartHAProxy(ctx context.Context) error {
	if n.haproxy != nil && n.haproxy.alive() {
		return fmt.Errorf("start HAProxy on %s: it runs already", n.Name)
	}
	if err := os.Remove(n.StatsSocket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("start HAProxy on %s: %w", n.Name, err)
	}
	p, err := startProcess(n.HAProxy, []string{"-db", "-f", n.HAProxyConfig}, baseEnv(), nil)
	if err != nil {
		return fmt.Errorf("start HAProxy on %s: %w", n.Name, err)
	}
	n.haproxy = p
	if err := n.awaitHAProxy(ctx); err != nil {
		p.kill()
		return fmt.Errorf("start HAProxy on %s: %w\n%s", n.Name, err, p.output)
	}
	return nil
}

func (n *Node) awaitHAProxy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		_, err := n.HAProxyPid(ctx)
		if err == nil {
			var conn net.Conn
			if conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", n.TLSAddress); err == nil {
				return conn.Close()
			}
		}
		select {
		case <-n.haproxy.done:
			return fmt.Errorf("it ended: %w", n.haproxy.err)
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// HAProxyPid asks the runtime socket for the process ID of the HAProxy that answers there.
func (n *Node) HAProxyPid(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", n.StatsSocket)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	if _, err := conn.Write([]byte("show info\n")); err != nil {
		return 0, fmt.Errorf("show info: %w", err)
	}
	var pid int
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		if _, err := fmt.Sscanf(lines.Text(), "Pid: %d", &pid); err == nil {
			return pid, nil
		}
	}
	return 0, errors.New("show info: no Pid in the answer")
}

// StopHAProxy ends the node's HAProxy in an orderly way; none running is no matter.
func (n *Node) StopHAProxy() {
	if n.haproxy != nil {
		n.haproxy.stop()
	}
}

// KillHAProxy ends the node's HAProxy as a crash would.
func (n *Node) KillHAProxy() {
	if n.haproxy != nil {
		n.haproxy.kill()
	}
}

// ReloadHAProxy reloads the node's HAProxy as FreeBSD's rc script does: a new process takes the listeners over from the
// old one, which ends when its connections have ended. It returns when the new one answers.
func (n *Node) ReloadHAProxy(ctx context.Context) error {
	old := n.haproxy
	pid, err := n.HAProxyPid(ctx)
	if err != nil {
		return fmt.Errorf("reload HAProxy on %s: %w", n.Name, err)
	}
	p, err := startProcess(n.HAProxy, []string{"-db", "-f", n.HAProxyConfig, "-x", n.StatsSocket, "-sf", fmt.Sprint(pid)}, baseEnv(), nil)
	if err != nil {
		return fmt.Errorf("reload HAProxy on %s: %w", n.Name, err)
	}
	n.haproxy, n.running = p, append(n.running, old)
	if err := p.awaitPid(ctx, n.HAProxyPid, pid, 30*time.Second); err != nil {
		return fmt.Errorf("reload HAProxy on %s: %w", n.Name, err)
	}
	return nil
}

// awaitPid waits, for limit at most, until a HAProxy answers with another Pid than before.
func (p *process) awaitPid(ctx context.Context, ask func(context.Context) (int, error), before int, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		if pid, err := ask(ctx); err == nil && pid != before {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("it ended: %w\n%s", p.err, p.output)
		case <-ctx.Done():
			return fmt.Errorf("%w\n%s", context.Cause(ctx), p.output)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// CheckHAProxyConfig runs `haproxy -c`, which loads every file of the bundle folder: nil means that HAProxy would start
// now, after a crash or a boot.
func (n *Node) CheckHAProxyConfig(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	r, err := runCommand(ctx, n.HAProxy, []string{"-c", "-f", n.HAProxyConfig}, baseEnv(), "")
	if err != nil {
		return fmt.Errorf("check HAProxy's configuration on %s: %w", n.Name, err)
	}
	if err := r.Err(); err != nil {
		return fmt.Errorf("check HAProxy's configuration on %s: %w", n.Name, err)
	}
	return nil
}

// HAProxyVersion is that of the node's HAProxy, "2.6.12".
func (n *Node) HAProxyVersion(ctx context.Context) (string, error) {
	h, err := askHAProxy(ctx, n.HAProxy)
	return h.Version, err
}
