package haproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// survey is what one call learns of HAProxy, once for all its targets.
type survey struct {
	p *Proxy
	// process is zero where no HAProxy answered.
	process process
	// err is why HAProxy's memory cannot be asked, nil where it can.
	err     error
	listing listing
	names   *nameIndex
	// asking is held by whoever asks for a certificate while others may.
	asking sync.Mutex
	// now is what the proofs of this call are made under.
	now circumstances
	// dead are the addresses that could not be connected to: they are not tried again in this call.
	dead dead
	// brief tells that an address whose handshake took too long is dead too: to inspect is not worth the wait for each
	// target of a HAProxy that hangs.
	brief bool
	// finding is held by whoever looks for what to handshake with: names, layout and reach are filled on the way.
	finding sync.Mutex
	// layout and reach say where each file is served; nil until they are asked for.
	layout *layout
	reach  *reach
	// who may read a bundle file.
	who access
}

func (p *Proxy) survey(ctx context.Context) *survey {
	s := &survey{p: p, who: p.access()}
	if s.process, s.err = p.runtime.showInfo(ctx); s.err != nil {
		return s
	}
	if s.listing, s.err = p.runtime.showCerts(ctx); s.err != nil {
		return s
	}
	s.names = indexNames(s.listing.names)
	return s
}

// dead are addresses, with why they are not tried any more. It is safe for concurrent use.
type dead struct {
	mu  sync.Mutex
	why map[endpoint]error
}

func (d *dead) of(e endpoint) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.why[e]
}

func (d *dead) add(e endpoint, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.why == nil {
		d.why = map[endpoint]error{}
	}
	d.why[e] = err
}

// view is one target as it was found.
type view struct {
	cluster.Target
	// before is what its files were before they were read; loadErr is why the bundle that is wanted cannot be had.
	before  glimpse
	loadErr error
	// ask are the names of the handshake, and named is what is wanted in words, where they are known without the bundle.
	ask   []string
	named string
	// path is the bundle's file as configured; real is where it lies, links followed.
	path, real string
	// data is what is in the file, nil where there is none that can be read; disk is the same where it is a bundle.
	data []byte
	disk *cert.Bundle
	// diskErr is why disk is nil.
	diskErr error
	// who may read the file; exposed tells that its mode or group says otherwise.
	who     access
	exposed bool
	// previous is the bundle that the file held before certsync last wrote it.
	previous *cert.Bundle
	// entries are the certificates in HAProxy's memory that were loaded from the file: mostly one.
	entries []entry
	// memoryErr is why they are not known.
	memoryErr error
	placement cluster.Placement
}

// entry is a certificate in HAProxy's memory.
type entry struct {
	name string
	loaded
}

// look finds where t stands on disk and in memory.
func (s *survey) look(ctx context.Context, t cluster.Target) view {
	v := s.open(ctx, t)
	s.lookInMemory(ctx, &v)
	return v
}

// open is look's part on disk.
func (s *survey) open(ctx context.Context, t cluster.Target) view {
	before := s.p.glimpse(t)
	t, err := t.Loaded(ctx)
	v := view{Target: t, before: before, loadErr: err, path: s.p.file(t), who: s.who}
	v.placement = cluster.Placement{Slot: t.Slot, Proxy: s.p.config.Name, Running: !errors.Is(s.err, cluster.ErrNotRunning), Pid: s.process.Pid, File: v.path, Proof: cluster.NoProof}
	v.lookOnDisk()
	v.previous = s.p.journal.previous(v.real)
	return v
}

func (v *view) lookOnDisk() {
	v.real, v.diskErr = destination(v.path)
	if v.diskErr == nil {
		v.data, v.disk, v.diskErr = readBundle(v.real)
	}
	info, err := os.Stat(v.real)
	v.exposed = err == nil && wrongMode(info, v.who) != ""
	switch {
	case v.disk != nil:
		v.placement.Disk = sightingOf(v.disk)
		if v.exposed {
			v.placement.Disk.Note = wrongMode(info, v.who)
		} else if v.Bundle != nil && v.disk.Fingerprint() == v.Bundle.Fingerprint() && !v.diskRight() {
			v.placement.Disk.Note = "its chain is not as issued"
		}
	case errors.Is(v.diskErr, fs.ErrNotExist):
		v.placement.Disk = cluster.Sighting{Note: "no file"}
	default:
		v.placement.Disk = cluster.Sighting{Note: "unreadable: " + v.diskErr.Error()}
	}
}

func (s *survey) lookInMemory(ctx context.Context, v *view) {
	v.entries, v.memoryErr = nil, s.err
	if v.memoryErr == nil {
		v.entries, v.memoryErr = s.find(ctx, v)
	}
	switch {
	case errors.Is(v.memoryErr, cluster.ErrNotRunning):
		v.placement.Memory = cluster.Sighting{Note: "HAProxy is not running"}
	case v.memoryErr != nil:
		v.placement.Memory = cluster.Sighting{Note: v.memoryErr.Error()}
		v.placement.Error, v.placement.Hint = v.memoryErr.Error(), cluster.HintOf(v.memoryErr)
	case len(v.entries) == 0:
		v.placement.Memory = cluster.Sighting{Note: "not in HAProxy's memory"}
	default:
		v.placement.Memory = v.memorySighting()
	}
}

// deaf says more of a HAProxy that seems not to run and yet serves.
func (s *survey) deaf(v *view, cause error) error {
	if !errors.Is(cause, cluster.ErrNotRunning) || v.placement.Served.IsZero() {
		return cause
	}
	return cluster.WithHint(fmt.Errorf("HAProxy serves, but not on its runtime socket: %w", cause),
		"add `stats socket %s mode 660 level admin` to HAProxy's global section, and reload HAProxy", s.p.runtime.address)
}

// memorySighting is that of the first entry that is not as wanted, else of the first.
func (v *view) memorySighting() cluster.Sighting {
	show := v.entries[0]
	for _, e := range v.entries {
		if v.Bundle == nil || !e.serves(v.Bundle) {
			show = e
			break
		}
	}
	out := cluster.Sighting{SHA1: show.SHA1, NotAfter: show.NotAfter}
	if b := v.bySHA1(show.SHA1); b != nil {
		out = sightingOf(b)
	}
	if show.Status != "Used" {
		out.Note = fmt.Sprintf("%s is %s in HAProxy's memory", show.name, show.Status)
	}
	return out
}

// serves tells whether the entry holds b and belongs to a bind.
func (e entry) serves(b *cert.Bundle) bool { return e.SHA1 == b.SHA1() && e.Status == "Used" }

// bySHA1 finds the bundle with this SHA-1 among those that are at hand.
func (v *view) bySHA1(sha1 string) *cert.Bundle {
	for _, b := range append([]*cert.Bundle{v.Bundle, v.disk, v.previous}, v.Known...) {
		if b != nil && b.SHA1() == sha1 {
			return b
		}
	}
	return nil
}

func (v *view) diskRight() bool {
	return v.disk != nil && v.Bundle != nil && bytes.Equal(v.disk.PEM(), v.Bundle.PEM())
}

func (v *view) memoryRight() bool {
	for _, e := range v.entries {
		if !e.serves(v.Bundle) {
			return false
		}
	}
	return len(v.entries) > 0
}

func sightingOf(b *cert.Bundle) cluster.Sighting {
	return cluster.Sighting{Fingerprint: b.Fingerprint(), SHA1: b.SHA1(), NotBefore: b.Leaf().NotBefore.UTC(), NotAfter: b.Leaf().NotAfter.UTC()}
}
