package distribute

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// quickAck asks Linux to acknowledge at once. sshd leaves Nagle's algorithm on for sessions without a terminal: each
// small reply of its waits for the acknowledgement of the one before, which Linux delays by 40 ms. The option lasts for
// a few segments only (tcp(7)), so it is set again after each read. Where it cannot be set, things are only slower.
func quickAck(c syscall.RawConn) {
	_ = c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) })
}
