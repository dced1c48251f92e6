package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

// Generations lists all that are held, sorted by slot, then from the oldest to the newest. It reads names only.
func (s *Store) Generations(ctx context.Context) ([]cert.Generation, error) {
	if err := s.checkFormat(); err != nil {
		return nil, fmt.Errorf("list generations: %w", err)
	}
	all, found, err := s.listAll(ctx)
	if err != nil {
		return nil, fmt.Errorf("list generations: %w", err)
	}
	s.setAside(ctx, found)
	return all, nil
}

// listAll lists the generations of all slots, and what lies among them that is no generation.
func (s *Store) listAll(ctx context.Context) ([]cert.Generation, []finding, error) {
	l := s.newListing()
	names, err := l.folders(generationsName, safeName)
	if err != nil {
		return nil, nil, err
	}
	var all []cert.Generation
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		algorithms, err := l.folders(filepath.Join(generationsName, name), isAlgorithm)
		if err != nil {
			return nil, nil, err
		}
		for _, a := range algorithms {
			held, err := l.slot(cert.Slot{Name: name, Algorithm: cert.Algorithm(a)})
			if err != nil {
				return nil, nil, err
			}
			all = append(all, held...)
		}
	}
	l.end(all)
	return all, l.found, nil
}

func isAlgorithm(name string) bool { return name == string(cert.ECDSA) || name == string(cert.RSA) }

// listFolders lists the folders under rel whose names are fit, sorted; anything else there is a finding.
func (s *Store) listFolders(rel string, fit func(string) bool) (names []string, found []finding, err error) {
	entries, err := os.ReadDir(s.path(rel))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	for _, e := range entries {
		if e.IsDir() && fit(e.Name()) {
			names = append(names, e.Name())
		} else if f, ok := foreignEntry(rel, e); ok {
			found = append(found, f)
		}
	}
	return names, found, nil
}

// listSlot lists the generations of one slot, from the oldest to the newest.
func (s *Store) listSlot(slot cert.Slot) (held []cert.Generation, found []finding, err error) {
	folder := slotFolder(slot)
	entries, err := os.ReadDir(s.path(folder))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	for _, e := range entries {
		g, ok := parseBundleFile(slot, e.Name())
		if ok && e.Type().IsRegular() {
			held = append(held, g)
		} else if f, ok := foreignEntry(folder, e); ok {
			found = append(found, f)
		}
	}
	slices.SortFunc(held, cert.Generation.Compare)
	return held, found, nil
}

// Bundle reads a generation that is held: fs.ErrNotExist where it is not. A file whose content is not what its name says
// is set aside and is an error; the other generations stay usable.
func (s *Store) Bundle(ctx context.Context, g cert.Generation) (*cert.Bundle, error) {
	if err := checkSlot(g.Slot); err != nil {
		return nil, fmt.Errorf("read a bundle: %w", err)
	}
	b, found, err := s.readBundle(ctx, g)
	s.setAside(ctx, found)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", describe(g), err)
	}
	return b, nil
}

// describe names a generation for a message.
func describe(g cert.Generation) string {
	return fmt.Sprintf("generation %s (%d) of %s", g.Fingerprint.Short(), g.Sequence, g.Slot)
}

// readBundle reads and checks the file of g; where that is bad, it is both the finding and the error.
func (s *Store) readBundle(ctx context.Context, g cert.Generation) (*cert.Bundle, []finding, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if err := s.checkFormat(); err != nil {
		return nil, nil, err
	}
	rel := bundlePath(g)
	data, info, err := s.readFile(rel)
	if err != nil {
		if badForGood(err) && info != nil {
			return nil, []finding{unreadableFile(rel, info, err)}, err
		}
		return nil, nil, err
	}
	b, err := cert.Parse(data)
	if err == nil {
		err = checkIs(b, g)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", s.path(rel), err)
		return nil, []finding{{rel: rel, info: info, kind: torn, err: err}}, err
	}
	return b, nil, nil
}

// checkIs tells whether b is what g says of it.
func checkIs(b *cert.Bundle, g cert.Generation) error {
	is := b.Generation(g.Name, g.Sequence)
	switch {
	case is.Fingerprint != g.Fingerprint:
		return fmt.Errorf("the bundle's fingerprint is %s, not %s", is.Fingerprint, g.Fingerprint)
	case is.Slot != g.Slot:
		return fmt.Errorf("the bundle is %s, not %s", is.Slot, g.Slot)
	case !is.NotBefore.Equal(g.NotBefore) || !is.NotAfter.Equal(g.NotAfter):
		return errors.New("the bundle's dates are others than the generation's")
	}
	return nil
}

// Keep stores a generation: durable when it returns nil, as for one that is held already. It refuses a bundle that is
// not the generation's, a revoked one (cluster.ErrRevoked), one too far ahead of what is held (cluster.ErrJump), and one
// that is older than all that are kept (cluster.ErrStale). An older one than the newest may fill a gap, and is never
// the newest. What is more than Options.Keep is dropped, but not the newest and not what a release names.
func (s *Store) Keep(ctx context.Context, kept cluster.Kept) error {
	g := kept.Generation
	err := checkSlot(g.Slot)
	if err == nil && kept.Bundle == nil {
		err = errors.New("no bundle is given")
	}
	if err == nil {
		err = checkIs(kept.Bundle, g)
	}
	if err == nil {
		canonical := kept.Bundle.Generation(g.Name, g.Sequence) // the times in UTC, so that == holds
		err = s.change(ctx, "keep "+g.Name, func() error { return s.keepLocked(ctx, canonical, kept.Bundle) })
	}
	if err != nil {
		return fmt.Errorf("keep %s: %w", describe(g), err)
	}
	return nil
}

// keepLocked is Keep with store.lock held.
func (s *Store) keepLocked(ctx context.Context, g cert.Generation, b *cert.Bundle) error {
	tombstones, releases, err := s.verdicts()
	if err != nil {
		return err
	}
	if cluster.Revoked(tombstones, g.Fingerprint) {
		return cluster.ErrRevoked
	}
	held, err := s.heldLocked(ctx, g)
	if err != nil {
		return err
	}
	if slices.Contains(held, g) {
		// Whoever wrote it may have been killed before it was durable.
		return s.syncSlot(g.Slot)
	}
	if err := cluster.CheckJump(newestOf(held), g, s.now()); err != nil {
		return err
	}
	survivors := survive(append(slices.Clone(held), g), tombstones, releases, s.keep)
	if !slices.Contains(survivors, g) {
		return fmt.Errorf("%d newer ones are kept: %w", len(survivors), cluster.ErrStale)
	}
	if err := s.writeBundle(g, b); err != nil {
		return err
	}
	s.prune(held, survivors)
	return nil
}

// heldLocked lists the slot of g, with store.lock held. Where the file of g itself is bad it is set aside, so that it
// is written anew.
func (s *Store) heldLocked(ctx context.Context, g cert.Generation) ([]cert.Generation, error) {
	s.clearWay(g.Slot)
	held, found, err := s.listSlot(g.Slot)
	if err != nil {
		return nil, err
	}
	s.moveAside(found)
	i := slices.Index(held, g)
	if i < 0 {
		return held, nil
	}
	_, found, err = s.readBundle(ctx, g)
	if err != nil && len(found) == 0 {
		return nil, err
	}
	s.moveAside(found)
	if len(found) > 0 {
		held = slices.Delete(held, i, i+1)
	}
	return held, nil
}

// clearWay sets aside what lies where the folders of a slot belong and is no folder.
func (s *Store) clearWay(slot cert.Slot) {
	folder := slotFolder(slot)
	for _, rel := range []string{filepath.Dir(folder), folder} {
		if info, err := os.Lstat(s.path(rel)); err == nil && !info.IsDir() {
			s.moveAside([]finding{{rel: rel, info: info, kind: foreign, err: errForeign}})
		}
	}
}

// newestOf is the last of generations sorted by age, or none.
func newestOf(sorted []cert.Generation) cert.Generation {
	if len(sorted) == 0 {
		return cert.Generation{}
	}
	return sorted[len(sorted)-1]
}

// survive picks the generations of a slot that stay: the newest keep, the newest keep that are not revoked, and what a
// release names.
func survive(all []cert.Generation, tombstones []cluster.Tombstone, releases []cluster.Release, keep int) []cert.Generation {
	slices.SortFunc(all, func(a, b cert.Generation) int { return b.Compare(a) })
	var out []cert.Generation
	sound := 0
	for i, g := range all {
		revoked := cluster.Revoked(tombstones, g.Fingerprint)
		released := slices.ContainsFunc(releases, func(r cluster.Release) bool {
			return r.Generation.Slot == g.Slot && r.Generation.Compare(g) == 0
		})
		if i < keep || !revoked && sound < keep || released {
			out = append(out, g)
		}
		if !revoked {
			sound++
		}
	}
	return out
}

// writeBundle makes g durable.
func (s *Store) writeBundle(g cert.Generation, b *cert.Bundle) error {
	folder := slotFolder(g.Slot)
	for _, rel := range []string{filepath.Dir(folder), folder} {
		if err := s.makeFolder(rel); err != nil {
			return fmt.Errorf("make folder %s: %w", s.path(rel), cause(err))
		}
		failpoint.Hit("store.mkdir")
	}
	if err := s.writeFile(bundlePath(g), b.PEM()); err != nil {
		return err
	}
	return s.syncSlot(g.Slot)
}

// syncSlot makes the entries of a slot's folder durable, and the folder's own, which another process may have made and
// died before it synced them.
func (s *Store) syncSlot(slot cert.Slot) error {
	folder := slotFolder(slot)
	for _, rel := range []string{folder, filepath.Dir(folder), generationsName} {
		if err := s.syncFolder(rel); err != nil {
			return err
		}
	}
	return nil
}

// prune drops the generations of held that are not among the survivors. One that cannot be dropped is tried again at
// the next Keep; that is no reason to refuse the new one, which is durable by now.
func (s *Store) prune(held, survivors []cert.Generation) {
	for _, h := range held {
		if !slices.Contains(survivors, h) {
			_ = s.removeFile(bundlePath(h))
		}
	}
}
