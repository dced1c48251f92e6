package carp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"golang.org/x/net/bpf"

	"certsync/internal/cluster"
)

const (
	// bpfHeaderLen is what struct bpf_hdr (net/bpf.h) has before its padding, on a system of 64 bits: a time of 16 bytes,
	// caplen (4), datalen (4), hdrlen (2).
	bpfHeaderLen = 26
	// bpfAlignment is BPF_ALIGNMENT, sizeof(long).
	bpfAlignment = 8
	// bpfSnap is how much of a frame is taken: an advert with two tags and all IPv4 options has 118 bytes.
	bpfSnap = 128
)

// capture is an open bpf(4) device. Read fills its buffer with packets, each after a bpf_hdr; 0 bytes is no packet within
// the device's patience, a fraction of a second: the end of a context is seen that soon.
type capture interface {
	io.ReadCloser
	// BufferLen is the size of a Read: the device takes no other.
	BufferLen() int
}

// adverts hands each the adverts that open's device sees, until the context ends, which is no error, or each returns
// false. Frames with a VLAN tag are left out: they are of another segment than the interface's own.
func adverts(ctx context.Context, iface string, open func(iface string, filter []bpf.RawInstruction) (capture, error), each func(Advert) bool) (err error) {
	if err := checkInterface(iface); err != nil {
		return err
	}
	defer func() { err = wrapf(err, "watch for CARP advertisements on %s", iface) }()
	filter, err := bpf.Assemble(advertFilter)
	if err != nil {
		return err
	}
	device, err := open(iface, filter)
	if err != nil {
		return bpfError(err)
	}
	defer func() { _ = device.Close() }()
	for buffer := make([]byte, device.BufferLen()); ctx.Err() == nil; {
		n, err := device.Read(buffer)
		if errors.Is(err, eintr) {
			continue
		}
		if err != nil {
			return bpfError(err)
		}
		if !eachAdvert(buffer[:n], each) {
			return nil
		}
	}
	return nil
}

// eachAdvert tells whether to go on.
func eachAdvert(buffer []byte, each func(Advert) bool) bool {
	for frame := range bpfFrames(buffer) {
		if a, err := decodeAdvert(frame); err == nil && a.VLAN == 0 && !each(a) {
			return false
		}
	}
	return true
}

// bpfFrames walks what one read of a bpf device gave. A header that cannot be ends the walk.
func bpfFrames(buffer []byte) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(buffer) >= bpfHeaderLen {
			captured, header := uint64(order.Uint32(buffer[16:])), uint64(order.Uint16(buffer[24:]))
			end := header + captured
			if header < bpfHeaderLen || end > uint64(len(buffer)) {
				return
			}
			if !yield(buffer[header:end]) {
				return
			}
			buffer = buffer[min((end+bpfAlignment-1)&^(bpfAlignment-1), uint64(len(buffer))):]
		}
	}
}

// advertFilter takes frames of IP protocol 112, of IPv4 or IPv6, with at most one VLAN tag: what decodeAdvert then looks
// at closely. (A frame with two tags is of another segment anyhow.)
var advertFilter = []bpf.Instruction{
	/*  0 */ bpf.LoadAbsolute{Off: 12, Size: 2},
	/*  1 */ bpf.JumpIf{Val: etherIPv4, SkipTrue: 5}, // 7
	/*  2 */ bpf.JumpIf{Val: etherIPv6, SkipTrue: 6}, // 9
	/*  3 */ bpf.JumpIf{Val: etherVLAN, SkipFalse: 12}, // 16
	/*  4 */ bpf.LoadAbsolute{Off: 12 + vlanTagLen, Size: 2},
	/*  5 */ bpf.JumpIf{Val: etherIPv4, SkipTrue: 5}, // 11
	/*  6 */ bpf.JumpIf{Val: etherIPv6, SkipTrue: 6, SkipFalse: 9}, // 13, 16
	/*  7 */ bpf.LoadAbsolute{Off: etherHeaderLen + 9, Size: 1},
	/*  8 */ bpf.Jump{Skip: 5}, // 14
	/*  9 */ bpf.LoadAbsolute{Off: etherHeaderLen + 6, Size: 1},
	/* 10 */ bpf.Jump{Skip: 3}, // 14
	/* 11 */ bpf.LoadAbsolute{Off: etherHeaderLen + vlanTagLen + 9, Size: 1},
	/* 12 */ bpf.Jump{Skip: 1}, // 14
	/* 13 */ bpf.LoadAbsolute{Off: etherHeaderLen + vlanTagLen + 6, Size: 1},
	/* 14 */ bpf.JumpIf{Val: protocolCARP, SkipFalse: 1}, // 16
	/* 15 */ bpf.RetConstant{Val: bpfSnap},
	/* 16 */ bpf.RetConstant{Val: 0},
}

// bpfError says what an error of the device means.
func bpfError(err error) error {
	switch {
	case errors.Is(err, enoent):
		err = fmt.Errorf("no /dev/bpf here: %w", err)
		return cluster.WithHint(err, "in a jail, unhide it: on the host add `add path 'bpf*' unhide` to the jail's ruleset in /etc/devfs.rules, then `service devfs restart`")
	case errors.Is(err, fs.ErrPermission):
		return cluster.WithHint(fmt.Errorf("open /dev/bpf: %w", err), "run it as root")
	case errors.Is(err, enxio):
		return cluster.WithHint(ErrNoInterface, "look at `ifconfig -l` for the interfaces that are there")
	case errors.Is(err, enetdown):
		return cluster.WithHint(fmt.Errorf("the interface is down: %w", err), "bring it up: `ifconfig INTERFACE up`")
	}
	return err
}
