package carp

import (
	"errors"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// siocsvh is SIOCSVH: _IOWR('i', 245, struct ifreq).
const siocsvh = 0xc02069f5

// SystemKernel is the kernel that this process runs on.
func SystemKernel() (*Kernel, error) {
	c := &calls{
		modfind:          func(name string) error { return nameCall(unix.SYS_MODFIND, name) },
		kldload:          func(name string) error { return nameCall(unix.SYS_KLDLOAD, name) },
		sysctl:           sysctlByName,
		control:          controlIoctl,
		setVHID:          setVHID,
		openBPF:          openBPF,
		dialCARP:         kernelReader.dialCARP,
		tooOldForNetlink: kernelReader.tooOldForNetlink,
		readVHID:         readVHID,
		readInterfaces:   readInterfaces,
	}
	return c.kernel(), nil
}

// nameCall is a system call that takes one name.
func nameCall(number uintptr, name string) error {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	_, _, e := unix.Syscall(number, uintptr(unsafe.Pointer(p)), 0, 0)
	return errnoError(e)
}

// sysctlByName is __sysctlbyname(2), which FreeBSD has since 12.2; the name is passed without a final NUL.
func sysctlByName(name string, old, value []byte) (int, error) {
	if name == "" {
		return 0, enoent
	}
	n := uintptr(len(old))
	_, _, e := unix.Syscall6(unix.SYS___SYSCTLBYNAME,
		uintptr(unsafe.Pointer(unsafe.StringData(name))), uintptr(len(name)),
		uintptr(unsafe.Pointer(unsafe.SliceData(old))), uintptr(unsafe.Pointer(&n)),
		uintptr(unsafe.Pointer(unsafe.SliceData(value))), uintptr(len(value)))
	runtime.KeepAlive(name)
	runtime.KeepAlive(old)
	runtime.KeepAlive(value)
	return int(n), errnoError(e)
}

// ioctlSocket is a datagram socket for one ioctl.
func ioctlSocket(family int, call func(fd int) error) error {
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err = toErrno(err); errors.Is(err, eafnosupport) || errors.Is(err, eprotonosupport) {
		return errNoSocket
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return call(fd)
}

// controlIoctl is an ioctl whose argument is copied in, as long as the request says.
func controlIoctl(family int, request uint32, arg []byte) error {
	if len(arg) != ioctlLen(request) {
		return einval
	}
	return ioctlSocket(family, func(fd int) error {
		return ioctlPointer(fd, uintptr(request), unsafe.Pointer(&arg[0]))
	})
}

// setVHID is SIOCSVH.
func setVHID(family int, iface [ifNameLen]byte, request []byte) error {
	return carpIoctl(siocsvh, family, iface, request)
}

// ioctlPointer is ioctl(2).
func ioctlPointer(fd int, request uintptr, arg unsafe.Pointer) error {
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
	runtime.KeepAlive(arg)
	return errnoError(e)
}

func errnoError(e unix.Errno) error {
	if e == 0 {
		return nil
	}
	return errno(e)
}
