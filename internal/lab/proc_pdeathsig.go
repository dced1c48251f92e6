//go:build linux || freebsd

package lab

import "syscall"

// groupAttr puts a child into a process group of its own and has the kernel kill it when we die without having stopped
// it (PR_SET_PDEATHSIG on Linux, PROC_PDEATHSIG_CTL on FreeBSD).
func groupAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
