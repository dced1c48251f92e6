package haproxytest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// StartMaster runs HAProxy as master and worker (`-W -S`), from folder dir, until Stop, and returns when both sockets
// answer.
func (b Binary) StartMaster(ctx context.Context, config, dir, socket, masterSocket string) (Server, error) {
	p := &process{cmd: exec.Command(b.Path, "-W", "-S", masterSocket, "-f", config), done: make(chan struct{}), out: &output{}}
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, p.out, p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// Workers that are left keep its output.
	p.cmd.WaitDelay = time.Second
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start haproxy: %w", err)
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	m := &group{p}
	ready := func() bool {
		return answers(socket) && strings.Contains(MasterCommand(masterSocket, "show proc\n"), "worker")
	}
	if err := p.await(ctx, ready, m.Stop); err != nil {
		return nil, err
	}
	return m, nil
}

// group is a master with its workers.
type group struct{ *process }

// Stop implements Server: also of workers that go on with open connections.
func (g *group) Stop() {
	g.process.Stop()
	_ = syscall.Kill(-g.cmd.Process.Pid, syscall.SIGKILL)
}

// MasterCommand sends one command to a master socket and gives the reply up to its first empty line, "" where there is
// none: the master keeps the connection open.
func MasterCommand(socket, command string) string {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return ""
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(conn, command); err != nil {
		return ""
	}
	var reply strings.Builder
	for lines := bufio.NewScanner(conn); lines.Scan() && lines.Text() != ""; {
		reply.WriteString(lines.Text() + "\n")
	}
	return reply.String()
}

// daemon is a HAProxy that runs in the background, with the file of its process ID.
type daemon struct{ dir string }

// StartDaemon runs HAProxy as FreeBSD's rc script does, in the background with a file of its process ID, until Stop.
// reload is the argument list of that script's reload: the check, then a new process that takes the old one's place
// (`-sf`), and its listeners (`-x`).
func (b Binary) StartDaemon(ctx context.Context, config, dir, socket string) (s Server, reload []string, err error) {
	script := filepath.Join(dir, "reload.sh")
	text := fmt.Sprintf(`#!/bin/sh
cd %[2]s || exit 1
%[1]s -q -c -f %[3]s || exit 1
old=$(cat haproxy.pid)
echo "$old" >> old.pids
exec %[1]s -D -p haproxy.pid -f %[3]s -x %[4]s -sf $old
`, b.Path, dir, config, socket)
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		return nil, nil, err
	}
	start := exec.CommandContext(ctx, b.Path, "-q", "-D", "-p", filepath.Join(dir, "haproxy.pid"), "-f", config)
	start.Dir = dir
	if out, err := start.CombinedOutput(); err != nil {
		return nil, nil, fmt.Errorf("start haproxy: %w: %s", err, out)
	}
	d := &daemon{dir: dir}
	for deadline := time.Now().Add(20 * time.Second); !answers(socket); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			d.Stop()
			return nil, nil, errors.New("start haproxy: its runtime socket does not answer")
		}
	}
	return d, []string{script}, nil
}

// Stop implements Server. The processes are not our children: their end is waited for by looking.
func (d *daemon) Stop() {
	for _, name := range []string{"haproxy.pid", "old.pids"} {
		text, _ := os.ReadFile(filepath.Join(d.dir, name))
		for word := range strings.FieldsSeq(string(text)) {
			pid, err := strconv.Atoi(word)
			if err != nil || pid <= 1 {
				continue
			}
			for deadline := time.Now().Add(time.Second); syscall.Kill(pid, syscall.SIGKILL) == nil && time.Now().Before(deadline); {
				time.Sleep(5 * time.Millisecond)
			}
		}
	}
}

// Reload reads the configuration and its files again, as a new worker does: with another Pid, and without the transaction
// that was open. Where they do not load the old state stays. Addresses that are new are not listened on.
func (f *Fake) Reload() error {
	text, err := os.ReadFile(f.config)
	if err != nil {
		return err
	}
	fresh := &Fake{size: 16384, stores: map[string]*store{}, defaults: map[string]bool{}}
	addresses, err := fresh.load(string(text), f.dir)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range addresses {
		if old := f.binds[a.address]; old != nil && a.bind != nil {
			*old = *a.bind
		}
	}
	f.size, f.stores, f.lists, f.defaults, f.tx = fresh.size, fresh.stores, fresh.lists, fresh.defaults, nil
	f.pid++
	f.reloads++
	f.began = time.Now()
	return nil
}

// ServeMaster gives the fake a master socket that knows `reload` and `show proc`, as 3.0 answers.
func (f *Fake) ServeMaster(socket string) error {
	_ = os.Remove(socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	f.listeners = append(f.listeners, l)
	f.wg.Add(1)
	go f.accept(l, address{network: "unix", address: socket, serve: f.serveMaster})
	return nil
}

func (f *Fake) serveMaster(conn net.Conn) {
	in := bufio.NewReader(conn)
	for {
		command, err := in.ReadString('\n')
		if err != nil {
			return
		}
		switch command {
		case "reload\n":
			answer := "Success=1\n--\n[NOTICE]   (1) : Loading success.\n\n"
			if err := f.Reload(); err != nil {
				answer = "Success=0\n--\n[ALERT]    (1) : config : " + err.Error() + "\n[ALERT]    (1) : config : Fatal errors found in configuration.\n\n"
			}
			_, _ = io.WriteString(conn, answer)
			return
		case "show proc\n":
			f.mu.Lock()
			table := fmt.Sprintf("#<PID>          <type>          <reloads>       <uptime>        <version>      \n"+
				"1               master          %d [failed: 0]   0d00h00m01s     3.0.0-fake\n# workers\n%d               worker          0               0d00h00m01s     3.0.0-fake\n# programs\n\n", f.reloads, f.pid)
			f.mu.Unlock()
			_, _ = io.WriteString(conn, table)
		}
	}
}
