package carp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/net/bpf"

	"certsync/internal/cluster"
)

// bpfPacket is a packet as bpf(4) gives it: the header, whose length makes the IP header aligned, the frame, and the
// padding to the next.
func bpfPacket(frame []byte) []byte {
	const header = 26
	b := make([]byte, header)
	binary.LittleEndian.PutUint64(b, 1700000000)
	binary.LittleEndian.PutUint32(b[16:], uint32(len(frame)))
	binary.LittleEndian.PutUint32(b[20:], uint32(len(frame)+500))
	binary.LittleEndian.PutUint16(b[24:], header)
	b = append(b, frame...)
	return append(b, make([]byte, -len(b)&7)...)
}

func TestABufferOfPacketsIsWalkedFrameByFrame(t *testing.T) {
	var buffer []byte
	var want [][]byte
	for n := range 40 {
		frame := bytes.Repeat([]byte{byte(n)}, n)
		want = append(want, frame)
		buffer = append(buffer, bpfPacket(frame)...)
	}
	collect := func(b []byte) (got [][]byte) {
		for frame := range bpfFrames(b) {
			got = append(got, frame)
		}
		return got
	}
	same := func(a, b [][]byte) bool { return slices.EqualFunc(a, b, bytes.Equal) }
	if got := collect(buffer); !same(got, want) {
		t.Errorf("%d frames, want %d", len(got), len(want))
	}
	// The last packet's padding need not be there, and a cut gives whole frames only.
	for cut := range buffer {
		got := collect(buffer[:cut])
		if len(got) > len(want) || !same(got, want[:len(got)]) {
			t.Fatalf("cut at %d: %d frames", cut, len(got))
		}
	}
	for range bpfFrames(buffer) {
		break // does not panic
	}
	// Lengths that cannot be.
	for _, change := range []func(b []byte){
		func(b []byte) { binary.LittleEndian.PutUint32(b[16:], 1<<32-1) },
		func(b []byte) { binary.LittleEndian.PutUint32(b[16:], uint32(len(b))) },
		func(b []byte) { binary.LittleEndian.PutUint16(b[24:], 0) },
		func(b []byte) { binary.LittleEndian.PutUint16(b[24:], 25) },
		func(b []byte) { binary.LittleEndian.PutUint16(b[24:], 1<<16-1) },
	} {
		b := bpfPacket([]byte("frame"))
		change(b)
		if got := collect(b); got != nil {
			t.Errorf("%x", got)
		}
	}
}

func FuzzBPFFrames(f *testing.F) {
	f.Add(append(bpfPacket([]byte("one")), bpfPacket(nil)...))
	f.Add(bpfPacket(ucarpAdverts(f)[0].frame))
	f.Fuzz(func(t *testing.T, buffer []byte) {
		total := 0
		for frame := range bpfFrames(buffer) {
			total += bpfHeaderLen + len(frame)
			_, _ = decodeAdvert(frame)
		}
		if total > len(buffer) {
			t.Fatalf("%d bytes out of %d", total, len(buffer))
		}
	})
}

func TestTheFilterLetsEveryAdvertPassAndNothingElse(t *testing.T) {
	vm, err := bpf.NewVM(advertFilter)
	if err != nil {
		t.Fatal(err)
	}
	passes := func(frame []byte) bool {
		n, err := vm.Run(frame)
		if err != nil {
			t.Fatal(err)
		}
		if n != 0 && n != bpfSnap {
			t.Errorf("%d bytes are kept", n)
		}
		return n != 0
	}
	for _, u := range ucarpAdverts(t) {
		if !passes(u.frame) {
			t.Errorf("vhid %d does not pass", u.vhid)
		}
	}
	for _, from := range []netip.Addr{sender4, sender6} {
		a := Advert{From: from, VHID: 1, AdvBase: 1}
		for _, tags := range [][]uint16{nil, {0}, {10}} {
			if !passes(advertFrame(a, "secret", nil, tags...)) {
				t.Errorf("%s with tags %v does not pass", from, tags)
			}
			other := etherFrame(ipHeader(from, 255, 17, make([]byte, 36)), tags...)
			if passes(other) {
				t.Errorf("UDP of %s with tags %v passes", from, tags)
			}
		}
	}
	arp := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 8, 6}, bytes.Repeat([]byte{112}, 60)...)
	for _, frame := range [][]byte{arp, {}, arp[:14], {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x81, 0, 0, 0, 8, 6, 112, 112, 112, 112, 112, 112, 112, 112, 112, 112}} {
		if passes(frame) {
			t.Errorf("%x passes", frame)
		}
	}
	longest := etherHeaderLen + 2*vlanTagLen + 60 + carpHeaderLen
	if bpfSnap < longest {
		t.Errorf("%d bytes of %d are kept", bpfSnap, longest)
	}
}

// fakeBPF is a bpf device that plays reads.
type fakeBPF struct {
	reads  []func([]byte) (int, error)
	closed bool
}

func (d *fakeBPF) BufferLen() int { return 4096 }
func (d *fakeBPF) Close() error   { d.closed = true; return nil }

func (d *fakeBPF) Read(b []byte) (int, error) {
	if len(b) != d.BufferLen() {
		return 0, einval
	}
	if len(d.reads) == 0 {
		return 0, nil
	}
	read := d.reads[0]
	d.reads = d.reads[1:]
	return read(b)
}

func (d *fakeBPF) open(string, []bpf.RawInstruction) (capture, error) { return d, nil }

func bpfGives(frames ...[]byte) func([]byte) (int, error) {
	return func(b []byte) (int, error) {
		n := 0
		for _, frame := range frames {
			n += copy(b[n:], bpfPacket(frame))
		}
		return n, nil
	}
}

func bpfFails(err error) func([]byte) (int, error) {
	return func([]byte) (int, error) { return 0, err }
}

func TestAdvertsAreHandedOnUntilTheContextEnds(t *testing.T) {
	one := advertFrame(Advert{From: sender4, VHID: 1, AdvBase: 1}, "secret", nil)
	two := advertFrame(Advert{From: sender6, VHID: 2, AdvBase: 1}, "secret", nil)
	tagged := advertFrame(Advert{From: sender4, VHID: 3, AdvBase: 1}, "secret", nil, 10)
	vrrp := etherFrame(ipHeader(sender4, 255, protocolCARP, vrrp2(5)))
	ctx, cancel := context.WithCancel(t.Context())
	d := &fakeBPF{reads: []func([]byte) (int, error){
		bpfGives(one, vrrp, tagged, two), bpfFails(eintr), bpfGives(), bpfGives(one),
		func([]byte) (int, error) { cancel(); return 0, nil }, bpfGives(two),
	}}
	var vhids []int
	err := adverts(ctx, "em0", d.open, func(a Advert) bool {
		vhids = append(vhids, a.VHID)
		return true
	})
	if err != nil || !slices.Equal(vhids, []int{1, 2, 1}) || !d.closed {
		t.Errorf("%v, %v, closed %v", err, vhids, d.closed)
	}
}

func TestAdvertsEndWhereNoMoreAreWanted(t *testing.T) {
	one := advertFrame(Advert{From: sender4, VHID: 1, AdvBase: 1}, "secret", nil)
	d := &fakeBPF{reads: []func([]byte) (int, error){bpfGives(one, one)}}
	seen := 0
	if err := adverts(t.Context(), "em0", d.open, func(Advert) bool { seen++; return false }); err != nil || seen != 1 || !d.closed {
		t.Errorf("%v, %d, closed %v", err, seen, d.closed)
	}
}

func TestADeviceThatFailsSaysWhatToDo(t *testing.T) {
	for _, c := range []struct {
		err, sentinel error
		words, hint   string
	}{
		{enoent, fs.ErrNotExist, "no /dev/bpf", "devfs"},
		{eacces, fs.ErrPermission, "/dev/bpf", "as root"},
		{eperm, fs.ErrPermission, "/dev/bpf", "as root"},
		{enxio, ErrNoInterface, "no such interface", "ifconfig -l"},
		{enetdown, enetdown, "down", "ifconfig INTERFACE up"},
		{ErrNoCARP, ErrNoCARP, "watch for CARP advertisements on em0", ""},
		{io.ErrUnexpectedEOF, io.ErrUnexpectedEOF, "watch for CARP advertisements on em0", ""},
	} {
		opened := adverts(t.Context(), "em0", func(string, []bpf.RawInstruction) (capture, error) { return nil, c.err }, nil)
		d := &fakeBPF{reads: []func([]byte) (int, error){bpfFails(c.err)}}
		read := adverts(t.Context(), "em0", d.open, nil)
		for _, err := range []error{opened, read} {
			if !failsWith(err, c.sentinel, c.words, c.hint) {
				t.Errorf("%v: %v, hint %q", c.err, err, cluster.HintOf(err))
			}
		}
		if !d.closed {
			t.Error("the device stays open")
		}
	}
}

func TestAnEndedContextIsSeenBeforeTheFirstRead(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("stop"))
	d := &fakeBPF{reads: []func([]byte) (int, error){func([]byte) (int, error) { t.Error("read"); return 0, nil }}}
	if err := adverts(ctx, "em0", d.open, nil); err != nil || !d.closed {
		t.Errorf("%v, closed %v", err, d.closed)
	}
}
