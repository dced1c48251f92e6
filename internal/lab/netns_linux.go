package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// namespace is a network namespace without a name (network_namespaces(7)): the kernel removes it, with its interfaces,
// when no process is in it and no descriptor refers to it. So a test that is killed leaves nothing behind, there is
// nothing to sweep, and runs beside each other cannot collide.
type namespace struct {
	file *os.File // /proc/PID/task/TID/ns/net of keep's thread
	work chan func()
	done chan struct{}
}

// newNamespace makes one, with its loopback up. Only root may.
func newNamespace(ctx context.Context) (*namespace, error) {
	n := &namespace{work: make(chan func()), done: make(chan struct{})}
	made := make(chan error)
	onThread(func() { n.keep(made) })
	if err := <-made; err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	if err := n.ip(ctx, "link", "set", "lo", "up"); err != nil {
		return nil, errors.Join(fmt.Errorf("make a network namespace: %w", err), n.close())
	}
	return n, nil
}

// keep makes the namespace and runs in it what start hands over, until close.
func (n *namespace) keep(made chan<- error) {
	defer close(n.done)
	err := os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWNET))
	if err == nil {
		n.file, err = os.Open("/proc/thread-self/ns/net")
	}
	made <- err
	if err != nil {
		return
	}
	for f := range n.work {
		f()
	}
}

// onThread runs f on a thread that nothing else runs on and that ends with f, so that whatever f did to the thread ends
// too. The main thread would not end: it keeps out of it.
func onThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != os.Getpid() {
			f()
			return
		}
		defer runtime.UnlockOSThread()
		taken := make(chan struct{})
		go func() {
			runtime.LockOSThread() // another one: the main thread is ours until this is done
			close(taken)
			f()
		}()
		<-taken
	}()
}

// do runs f in the namespace and waits for its end: the sockets that f makes, the names under /proc/sys/net and the
// children that f starts are the namespace's. f must return (no t.Fatal), and must wait for the children that it starts:
// they are killed when its thread ends.
func (n *namespace) do(f func() error) error {
	ended := make(chan error)
	onThread(func() {
		err := os.NewSyscallError("setns", unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET))
		if err == nil {
			err = f()
		}
		ended <- err
	})
	return <-ended
}

// start is do for children that outlive f. The kernel kills a child when the thread that forked it ends
// (PR_SET_PDEATHSIG), so that f runs on the one thread that lives as long as the namespace; it should be short.
func (n *namespace) start(f func() error) error {
	ended := make(chan error)
	n.work <- func() { ended <- f() }
	return <-ended
}

// path names the namespace to ip(8), as long as we live.
func (n *namespace) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// run runs a program in the namespace to its end.
func (n *namespace) run(ctx context.Context, program string, args, env []string) (r Result, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err = n.do(func() (err error) {
		r, err = runCommand(ctx, program, args, env, "")
		return err
	})
	return r, err
}

// ip runs ip(8) in the namespace.
func (n *namespace) ip(ctx context.Context, args ...string) error {
	program, err := systemProgram("ip")
	if err != nil {
		return err
	}
	r, err := n.run(ctx, program, args, baseEnv())
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		return fmt.Errorf("ip: %w", err)
	}
	return nil
}

// setSysctl writes a name of the namespace's own /proc/sys/net.
func (n *namespace) setSysctl(name, value string) error {
	return n.do(func() error { return os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0o600) })
}

// pids are the processes in the namespace. A zombie is in none.
func (n *namespace) pids() ([]int, error) {
	want, err := os.Readlink(n.path())
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// One that ended meanwhile has no link any more.
		if have, err := os.Readlink(filepath.Join("/proc", e.Name(), "ns/net")); err == nil && have == want {
			out = append(out, pid)
		}
	}
	return out, nil
}

// kill ends every process in the namespace with SIGKILL, those too that left their parent's group, as the sessions of
// an sshd do.
func (n *namespace) kill() error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		pids, err := n.pids()
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("processes %v do not end", pids)
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// close kills what runs in the namespace and lets go of it.
func (n *namespace) close() error {
	err := n.kill()
	close(n.work)
	<-n.done
	return errors.Join(err, n.file.Close())
}
