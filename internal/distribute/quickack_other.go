//go:build !linux

package distribute

import "syscall"

// quickAck does nothing: there is no such option for one connection (FreeBSD: sysctl net.inet.tcp.delayed_ack).
func quickAck(syscall.RawConn) {}
