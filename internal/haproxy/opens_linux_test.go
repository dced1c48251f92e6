package haproxy_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"syscall"
	"testing"
)

// opens counts, by inotify(7), how often a file of dir is opened, by anybody: each call of the function that it gives
// tells how often since the last one.
func opens(t testing.TB, dir string) func() int {
	t.Helper()
	fd, err := syscall.InotifyInit1(syscall.IN_NONBLOCK | syscall.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if _, err := syscall.InotifyAddWatch(fd, dir, syscall.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 64<<10)
	return func() (count int) {
		for {
			n, err := syscall.Read(fd, buffer)
			if errors.Is(err, syscall.EAGAIN) {
				return count
			}
			if err != nil {
				t.Fatal(err)
			}
			count += opened(t, buffer[:n])
		}
	}
}

// opened counts the events of files in what inotify gave; very many where it lost some.
func opened(t testing.TB, events []byte) (count int) {
	t.Helper()
	for r := bytes.NewReader(events); r.Len() > 0; {
		var e struct {
			Wd                int32
			Mask, Cookie, Len uint32
		}
		if err := binary.Read(r, binary.NativeEndian, &e); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Seek(int64(e.Len), 1); err != nil {
			t.Fatal(err)
		}
		switch {
		case e.Mask&syscall.IN_Q_OVERFLOW != 0:
			return math.MaxInt32
		case e.Len > 0 && e.Mask&syscall.IN_ISDIR == 0:
			count++
		}
	}
	return count
}
