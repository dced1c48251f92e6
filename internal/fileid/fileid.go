package fileid

import (
	"io/fs"
	"os"
	"syscall"
	"time"
)

// ID is what stat(2) tells of a file that changes whenever its content, its owner or its mode does. Two that are equal
// (==) are of one unchanged file, where the earlier was Settled. The zero ID is that of no file.
//
// A change of content always sets the ctime, which no call can put back: tools that keep or restore the mtime (cp -p,
// rsync, touch) are seen. Not seen is what goes past the file system: a disk that returns other bytes than were written
// to it, or a write to the raw device; and a change made while the host's clock stands at the very tick of the last one.
type ID struct {
	dev, ino     uint64
	size         int64
	mode         fs.FileMode
	uid, gid     uint32
	mtime, ctime int64 // nanoseconds since 1970
}

// Of is the ID of a file; zero where the system does not tell enough for one.
func Of(info fs.FileInfo) ID {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok || ctime(s) == 0 {
		return ID{}
	}
	return ID{dev: uint64(s.Dev), ino: uint64(s.Ino), size: info.Size(), mode: info.Mode(), uid: s.Uid, gid: s.Gid, //nolint:unconvert // other widths on other systems
		mtime: info.ModTime().UnixNano(), ctime: ctime(s)}
}

// Stat is the ID of the file at path, links followed; zero where there is none, or none that can be asked for.
func Stat(path string) ID {
	info, err := os.Stat(path)
	if err != nil {
		return ID{}
	}
	return Of(info)
}

// IsZero tells that there is no file.
func (id ID) IsZero() bool { return id == ID{} }

// The finest step in which file systems tell times: those that tell parts of a second follow the kernel's clock, which
// ticks every 1 to 10 ms; the others tell whole seconds (two, on FAT).
const (
	fineStep  = 50 * time.Millisecond
	wholeStep = 2 * time.Second
)

// Settled tells that the last change of the file lies so far before now that any change after now has another ctime.
// now is the host's clock before the file was read; a file that was just written settles soon. A ctime in the future is
// never settled: the clock was put back, and may come to that very instant again.
func (id ID) Settled(now time.Time) bool {
	step := fineStep
	if id.ctime%int64(time.Second) == 0 {
		step = wholeStep
	}
	return !id.IsZero() && now.Sub(time.Unix(0, id.ctime)) > step
}
