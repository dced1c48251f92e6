package carp

import (
	"errors"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sockets and numbers of FreeBSD that golang.org/x/sys/unix does not have.
const (
	afNetlink      = 38         // AF_NETLINK
	netlinkGeneric = 16         // NETLINK_GENERIC
	siocgvh        = 0xc02069f6 // SIOCGVH: _IOWR('i', 246, struct ifreq)
	pfRoute        = 17         // PF_ROUTE
	netRTIfListL   = 5          // NET_RT_IFLISTL
)

// readVHID reads one vhid from the kernel: Kernel.VHID.
func readVHID(iface string, vhid int) (State, error) { return kernelReader.readVHID(iface, vhid) }

// readInterfaces lists the interfaces: Kernel.Interfaces.
func readInterfaces() ([]Interface, error) { return kernelReader.readInterfaces() }

var kernelReader = &reader{openNetlink: openNetlink, getVHID: getVHID, rib: fetchRIB, release: osRelease, now: time.Now}

// openNetlink makes a socket that the runtime's poller knows, so that its deadlines work. It is read and written as a
// file: x/sys's Recvfrom does not know the socket's address family, and loses the datagram.
func openNetlink() (netlinkConn, error) {
	fd, err := unix.Socket(afNetlink, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, netlinkGeneric)
	if err != nil {
		return nil, toErrno(err)
	}
	return netlinkFile{os.NewFile(uintptr(fd), "netlink")}, nil
}

// netlinkFile gives the kernel's errors as errno.
type netlinkFile struct{ *os.File }

func (f netlinkFile) Read(b []byte) (int, error) {
	n, err := f.File.Read(b)
	return n, toErrno(err)
}

func (f netlinkFile) Write(b []byte) (int, error) {
	n, err := f.File.Write(b)
	return n, toErrno(err)
}

// getVHID is SIOCGVH.
func getVHID(family int, iface [ifNameLen]byte, request []byte) error {
	return carpIoctl(siocgvh, family, iface, request)
}

// carpIoctl hands the kernel a struct ifreq whose ifr_data points to the carpreq. The pointer stays an unsafe.Pointer,
// so that the collector sees it.
func carpIoctl(number uintptr, family int, iface [ifNameLen]byte, carpreq []byte) error {
	if len(carpreq) != carpReqLen {
		return einval
	}
	ifreq := &struct {
		name [ifNameLen]byte
		data unsafe.Pointer
		_    [16 - unsafe.Sizeof(uintptr(0))]byte
	}{name: iface, data: unsafe.Pointer(&carpreq[0])}
	err := ioctlSocket(family, func(fd int) error { return ioctlPointer(fd, number, unsafe.Pointer(ifreq)) })
	runtime.KeepAlive(carpreq)
	return err
}

// fetchRIB is sysctl(3) of the routing table's interfaces: {CTL_NET, PF_ROUTE, 0, all families, NET_RT_IFLISTL, all
// interfaces}.
func fetchRIB(b []byte) (int, error) {
	mib := [6]int32{unix.CTL_NET, pfRoute, 0, 0, netRTIfListL, 0}
	length := uintptr(len(b))
	_, _, e := unix.Syscall6(unix.SYS___SYSCTL, uintptr(unsafe.Pointer(&mib[0])), uintptr(len(mib)),
		uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(unsafe.Pointer(&length)), 0, 0)
	runtime.KeepAlive(b)
	return int(length), errnoError(e)
}

func osRelease() (int, error) {
	release, err := unix.SysctlUint32("kern.osreldate")
	return int(release), toErrno(err)
}

// toErrno is the kernel's number where err has one.
func toErrno(err error) error {
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		return errno(e)
	}
	return err
}
