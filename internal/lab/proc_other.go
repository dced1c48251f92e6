//go:build unix && !linux && !freebsd

package lab

import "syscall"

// groupAttr puts a child into a process group of its own.
func groupAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
