package carp

import (
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	// bpfPatience is how long a read waits for a packet (BIOCSRTIMEOUT).
	bpfPatience = 200 * time.Millisecond
	// bpfEthernet is DLT_EN10MB (net/dlt.h): no other kind of interface can have CARP.
	bpfEthernet = 1
	// bpfBuffer is the size asked for; the device says what it takes.
	bpfBuffer = 32 << 10
)

// bpfDevice is /dev/bpf, bound to an interface (bpf(4)).
type bpfDevice struct{ fd, size int }

// openBPF opens a device that gives the frames of the interface that the filter takes, in promiscuous mode: network
// cards filter groups that nobody joined. It sees the frames that this host sends, too: on a bridge the kernel cannot
// tell them from those that come in.
func openBPF(iface string, filter []bpf.RawInstruction) (capture, error) {
	fd, err := unix.Open("/dev/bpf", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, toErrno(err)
	}
	d := &bpfDevice{fd: fd}
	if err := d.attach(iface, filter); err != nil {
		_ = d.Close()
		return nil, err
	}
	return d, nil
}

// attach sets the size before the interface: it is fixed from then on. The filter comes before the interface, too, so
// that no other frame is in the buffer.
func (d *bpfDevice) attach(iface string, filter []bpf.RawInstruction) error {
	var (
		size, on, kind = uint32(bpfBuffer), uint32(1), uint32(0)
		ifr            [32]byte // struct ifreq
		patience       = unix.NsecToTimeval(bpfPatience.Nanoseconds())
		// bpf.RawInstruction has the layout of struct bpf_insn: code (2), jt, jf, k (4).
		program = unix.BpfProgram{Len: uint32(len(filter)), Insns: (*unix.BpfInsn)(unsafe.Pointer(&filter[0]))}
	)
	copy(ifr[:maxInterfaceName], iface)
	for _, call := range []struct {
		request uintptr
		arg     unsafe.Pointer
	}{
		{unix.BIOCSBLEN, unsafe.Pointer(&size)},
		{unix.BIOCIMMEDIATE, unsafe.Pointer(&on)},
		{unix.BIOCSRTIMEOUT, unsafe.Pointer(&patience)},
		{unix.BIOCSETF, unsafe.Pointer(&program)},
		{unix.BIOCSETIF, unsafe.Pointer(&ifr)},
		{unix.BIOCGDLT, unsafe.Pointer(&kind)},
		{unix.BIOCPROMISC, nil},
	} {
		if err := ioctlPointer(d.fd, call.request, call.arg); err != nil {
			return err
		}
	}
	d.size = int(size)
	if kind != bpfEthernet {
		return ErrNoCARP
	}
	return nil
}

func (d *bpfDevice) BufferLen() int { return d.size }

func (d *bpfDevice) Read(b []byte) (int, error) {
	n, err := unix.Read(d.fd, b)
	return max(n, 0), toErrno(err)
}

func (d *bpfDevice) Close() error { return toErrno(unix.Close(d.fd)) }
