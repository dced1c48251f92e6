package haproxy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/fileid"
)

// At least minSample targets, and at least one of sampleShare, are looked at in HAProxy's memory and in a handshake at
// each call, where nothing speaks for a change: each target of thousands once in sampleShare passes.
const (
	minSample   = 50
	sampleShare = 20
)

// sideBySide is how many targets are looked at at a time where nothing is to be changed: with 8 handshakes, HAProxy's
// threads and ours are busy, and neither its connection limits nor our descriptors are near.
const sideBySide = 8

// memo is what a Proxy remembers of the slots that it found in service, so that a pass over thousands of certificates
// reads and asks only of what may have changed. It holds no bundle. A proof stands for as long as
//
//   - the slot is to have the same generation, at the same path, and that is valid now;
//   - neither the bundle's file, nor one that could hide it, nor our crt-list file has changed (package fileid says what
//     that sees);
//   - HAProxy's list has the same names for that file.
//
// Where HAProxy has another Pid, another list or another configuration, where this node became MASTER or is no more (as far
// as that decides what may be asked), or where we have changed anything there since, all are looked at again: fingerprint
// and handshake, without reading a file. Else a sample is, the longest not looked at first:
// an old certificate that somebody put back by hand over the runtime socket, which none of the above shows, is found
// within sampleShare passes (within the next one, of up to minSample certificates).
type memo struct {
	mu     sync.Mutex
	proofs map[cert.Slot]proof
	// turns counts the looks, to tell which was the longest ago.
	turns uint64
}

// proof is one slot as it was last found in service.
type proof struct {
	want       cert.Fingerprint
	path, real string
	files      [3]fileid.ID
	// crtList is the file of that name.
	crtList fileid.ID
	// key is where the index of names has the file.
	key string
	// names are HAProxy's for it. They all hold the leaf with this SHA-1.
	names []string
	sha1  string
	// ask are the names of the handshake.
	ask       []string
	under     circumstances
	turn      uint64
	placement cluster.Placement
}

// circumstances are what must be the same for the proofs of all slots to stand without a look.
type circumstances struct {
	pid int
	// names is a digest of HAProxy's list of certificates.
	names [sha256.Size]byte
	// changes counts what we changed in HAProxy's memory.
	changes uint64
	// layout is what was read of HAProxy's configuration, nil where it is not looked into; master tells whether virtual
	// addresses could be asked.
	layout *layout
	master bool
}

func (s *survey) circumstances(ctx context.Context) circumstances {
	c := circumstances{pid: s.process.Pid, names: sha256.Sum256([]byte(strings.Join(s.listing.names, "\n"))),
		changes: s.p.runtime.changes.Load(), master: len(s.p.config.Virtual) > 0 && s.p.isMaster()}
	if len(s.p.verify) == 0 && len(s.p.config.Files) > 0 {
		s.discover(ctx)
		c.layout = s.layout
	}
	return c
}

// glimpse is what stat(2) tells of the files that decide what HAProxy serves for a target.
type glimpse struct {
	// at is the host's clock before.
	at      time.Time
	files   [3]fileid.ID
	crtList fileid.ID
}

// glimpse looks at the bundle's file, at those that could hide it, and at the crt-list. It reads none.
func (p *Proxy) glimpse(t cluster.Target) glimpse {
	g := glimpse{at: time.Now(), crtList: fileid.Stat(p.config.CrtList)} // the host's clock: file systems know no other
	for i, path := range append([]string{p.file(t)}, p.rivalPaths(t)...) {
		g.files[i] = fileid.Stat(path)
	}
	return g
}

// settled tells that any change after the glimpse shows in the next one.
func (g glimpse) settled() bool {
	return !slices.ContainsFunc(append(g.files[:], g.crtList), func(id fileid.ID) bool { return !id.IsZero() && !id.Settled(g.at) })
}

// rivalPaths are the files that the certificate of t has, or had, with other key types.
func (p *Proxy) rivalPaths(t cluster.Target) []string {
	base := t.Path
	if base == "" {
		base = filepath.Join(p.config.BundleDir, t.Slot.Name+".pem")
	}
	if t.Both {
		return []string{base}
	}
	return []string{base + "." + string(cert.ECDSA), base + "." + string(cert.RSA)}
}

// remember keeps that v was found in service, and gives its placement on. What was not seen wholly right is not kept; nor
// is a file that was just written: it is read once more, by the next pass.
func (a *activation) remember(v *view, pl cluster.Placement) cluster.Placement {
	if pl.Outcome != cluster.Unchanged && pl.Outcome != cluster.Unproven || pl.Disk.Note != "" || pl.Memory.Note != "" || !v.before.settled() {
		return pl
	}
	pr := proof{want: v.Bundle.Fingerprint(), path: v.path, real: v.real, files: v.before.files, crtList: v.before.crtList, sha1: v.Bundle.SHA1(), ask: append([]string{}, v.probeNames()...), placement: pl}
	pr.key, _ = a.names.real(v.path)
	for _, e := range v.entries {
		pr.names = append(pr.names, e.name)
	}
	// A proof of what was asked before our last change in HAProxy does not stand for what is there after it.
	pr.under, pr.turn = a.now, a.p.memo.nextTurn()
	a.p.memo.keep(v.Slot, pr)
	return pl
}

func (m *memo) keep(slot cert.Slot, pr proof) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.proofs[slot] = pr
}

func (m *memo) nextTurn() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.turns++
	return m.turns
}

func (m *memo) of(slot cert.Slot) (proof, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	pr, ok := m.proofs[slot]
	return pr, ok
}

func (m *memo) forget(slot cert.Slot) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.proofs, slot)
}

// bound drops the slots that are gone: a call for at least half of what is remembered is one for all that there is.
func (m *memo) bound(targets []cluster.Target) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if 2*len(targets) < len(m.proofs) {
		return
	}
	asked := make(map[cert.Slot]bool, len(targets))
	for _, t := range targets {
		asked[t.Slot] = true
	}
	for slot := range m.proofs {
		if !asked[slot] {
			delete(m.proofs, slot)
		}
	}
}

// recalled is a target whose proof stands, before HAProxy is asked.
type recalled struct {
	index int
	t     cluster.Target
	proof
	// look tells that fingerprint and handshake are to be asked for, all that it is for a change that concerns all.
	look, all bool
}

// recall gives the placements of the targets that are known to be in service, nil for the others: those are to be
// looked at as if for the first time. What it looks at again for a sample, or since something changed that concerns all,
// it looks at side by side.
func (s *survey) recall(ctx context.Context, targets []cluster.Target) []*cluster.Placement {
	out := make([]*cluster.Placement, len(targets))
	s.p.memo.bound(targets)
	if s.err != nil {
		return out // HAProxy's memory cannot be asked, and that is to be told of each
	}
	s.now = s.circumstances(ctx)
	var standing []*recalled
	for i, t := range targets {
		if pr, ok := s.p.memo.of(t.Slot); ok && s.stands(t, pr) {
			standing = append(standing, &recalled{index: i, t: t, proof: pr, all: pr.under != s.now})
		}
	}
	s.sample(standing, len(targets))
	sideways(standing, func(r *recalled) { out[r.index] = s.again(ctx, r) })
	return out
}

// stands tells whether nothing but HAProxy's memory can have changed of a target since it was proven.
func (s *survey) stands(t cluster.Target, pr proof) bool {
	want, clock := t.Wanted(), s.p.config.Now()
	switch {
	case want.IsZero(), want.Fingerprint != pr.want, s.p.file(t) != pr.path:
		return false
	case clock.After(want.NotAfter), clock.Add(cluster.MaxSkew).Before(want.NotBefore):
		return false
	case pr.under.names != s.now.names && !slices.Equal(s.names.byPath[pr.key], pr.names):
		return false
	}
	now := s.p.glimpse(t)
	return now.files == pr.files && now.crtList == pr.crtList
}

// sample marks what is to be looked at: what a change concerns, and of the others those that were not looked at for
// longest. They come first, so that what a deadline leaves out is the first of the next call.
func (s *survey) sample(standing []*recalled, targets int) {
	slices.SortFunc(standing, func(a, b *recalled) int {
		if a.all != b.all {
			return map[bool]int{true: -1, false: 1}[a.all]
		}
		return cmp.Compare(a.turn, b.turn)
	})
	left := max(minSample, (targets+sampleShare-1)/sampleShare)
	if s.p.config.Sample > 0 {
		left = s.p.config.Sample
	}
	for _, r := range standing {
		if r.look = r.all; !r.all && left > 0 {
			r.look = true
			left--
		}
	}
}

// again is the placement of a target whose proof stands, after another look at HAProxy where one is to be taken; nil
// where it shows something else, or something that was to be asked could not be.
func (s *survey) again(ctx context.Context, r *recalled) *cluster.Placement {
	pl := r.placement
	// What is not proven is tried at each call: it costs nothing where there is nothing to try it with.
	if !r.look && pl.Proof == cluster.Proven {
		return &pl
	}
	v := view{Target: r.t, path: r.path, real: r.real, ask: r.ask, placement: pl}
	v.placement.Pid = s.process.Pid
	for _, name := range r.names {
		v.entries = append(v.entries, entry{name, loaded{Status: "Used", SHA1: r.sha1}})
	}
	right := ctx.Err() == nil && (!r.look || s.holds(ctx, r.proof)) && s.proves(ctx, &v)
	switch {
	case ctx.Err() != nil && r.all:
		return nil // it comes first next time
	case ctx.Err() != nil:
		return &pl // which nothing speaks against
	case !right:
		s.p.memo.forget(r.t.Slot)
		return nil
	}
	r.placement = v.placement
	if r.look {
		r.under, r.turn = s.now, s.p.memo.nextTurn()
	}
	s.p.memo.keep(r.t.Slot, r.proof)
	return &v.placement
}

// holds tells whether HAProxy's memory is as it was proven. It asks for one at a time, at 0.1 ms each: two questions at
// once are told that certificates are locked, and would have to be asked again.
func (s *survey) holds(ctx context.Context, pr proof) bool {
	s.asking.Lock()
	defer s.asking.Unlock()
	for _, name := range pr.names {
		l, err := s.p.runtime.showCert(ctx, name, false)
		if err != nil || l.SHA1 != pr.sha1 || l.Status != "Used" {
			return false
		}
	}
	return true
}

// proves makes the handshakes, and tells whether they speak for what the target is to have.
func (s *survey) proves(ctx context.Context, v *view) bool {
	s.handshake(ctx, v)
	switch v.placement.Proof {
	case cluster.Proven:
		v.placement.Outcome = cluster.Unchanged
	case cluster.NoProof:
		v.placement.Outcome = cluster.Unproven
	default:
		return false
	}
	return true
}

// sideways does something with each, sideBySide at a time, in their order.
func sideways[T any](all []T, do func(T)) {
	var wg sync.WaitGroup
	next := make(chan T)
	for range min(sideBySide, len(all)) {
		wg.Go(func() {
			for one := range next {
				do(one)
			}
		})
	}
	for _, one := range all {
		next <- one
	}
	close(next)
	wg.Wait()
}

// slim leaves of a view what a handshake needs: thousands may wait for theirs.
func (v *view) slim() {
	if v.Bundle != nil {
		v.ask, v.named = append([]string{}, v.probeNames()...), v.describe()
	}
	v.Generation = v.Wanted()
	v.Bundle, v.Known, v.disk, v.previous, v.data = nil, nil, nil, nil, nil
}

// describe names what a target is to have, for a message.
func (v *view) describe() string {
	switch {
	case v.named != "":
		return v.named
	case v.Bundle != nil:
		return cert.Describe(v.Bundle.Leaf())
	}
	return fmt.Sprintf("generation %s", v.Wanted().Fingerprint.Short())
}
