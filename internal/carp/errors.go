package carp

import (
	"errors"
	"fmt"
	"io/fs"

	"certsync/internal/cluster"
)

// What keeps a role from being told. Each comes with a hint that says what to run.
var (
	// ErrNoModule: the kernel has no carp.
	ErrNoModule = errors.New("carp is not loaded")
	// ErrNoInterface: the network stack of this process (the host's, or the VNET jail's) has no such interface.
	ErrNoInterface = errors.New("no such interface")
	// ErrNoCARP: the interface is there and cannot have CARP, as lo0.
	ErrNoCARP = errors.New("this kind of interface cannot have CARP")
)

// errno is an error number of FreeBSD (errno(2)). The portable code has its own, since Linux's differ above 34.
type errno int

const (
	eperm           errno = 1
	enoent          errno = 2
	enxio           errno = 6
	enoexec         errno = 8
	enomem          errno = 12
	eacces          errno = 13
	ebusy           errno = 16
	eexist          errno = 17
	einval          errno = 22
	enotty          errno = 25
	emsgsize        errno = 40
	eprotonosupport errno = 43
	eopnotsupp      errno = 45
	eafnosupport    errno = 47
	eaddrnotavail   errno = 49
	enobufs         errno = 55
)

// errnoTexts are the words of FreeBSD's strerror(3).
var errnoTexts = map[errno]string{
	eperm:           "operation not permitted",
	enoent:          "no such file or directory",
	enxio:           "device not configured",
	enoexec:         "exec format error",
	enomem:          "cannot allocate memory",
	eacces:          "permission denied",
	ebusy:           "device busy",
	eexist:          "file exists",
	einval:          "invalid argument",
	enotty:          "inappropriate ioctl for device",
	emsgsize:        "message too long",
	eprotonosupport: "protocol not supported",
	eopnotsupp:      "operation not supported",
	eafnosupport:    "address family not supported",
	eaddrnotavail:   "can't assign requested address",
	enobufs:         "no buffer space available",
}

func (e errno) Error() string {
	if text, ok := errnoTexts[e]; ok {
		return text
	}
	return fmt.Sprintf("errno %d", int(e))
}

// Is answers errors.Is for the sentinels of io/fs, as syscall.Errno does.
func (e errno) Is(target error) bool {
	switch target {
	case fs.ErrPermission:
		return e == eperm || e == eacces
	case fs.ErrNotExist:
		return e == enoent
	case fs.ErrExist:
		return e == eexist
	}
	return false
}

// noModule is ErrNoModule in an operation, with the mend.
func noModule(operation string) error {
	return cluster.WithHint(fmt.Errorf("%s: %w", operation, ErrNoModule),
		"as root, and outside of any jail: `kldload carp` loads it now, `sysrc -f /boot/loader.conf carp_load=YES` at every boot; `certsync bootstrap --apply` does both")
}
