package haproxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

// errReload: HAProxy cannot take this at run time; the bundle is on disk, and a reload brings it in service.
var errReload = errors.New("HAProxy must be reloaded for it")

// activation is one call of Activate. The lock is held for as long as it lives.
type activation struct {
	*survey
	// mu is held by whoever asks or changes HAProxy's memory, or what the call knows: its transaction is one for the whole
	// process. See aside.
	mu sync.Mutex
	// size is tune.bufsize, 0 until it is asked for.
	size int
	// managed are the names of HAProxy's own ACME client, nil until asked for.
	managed []string
	// pending are the transactions of this call whose end is not known.
	pending []transaction
	// patience ends the waiting for a foreign transaction: once for all targets, since the next would wait in vain too.
	patience time.Time
	// swept are the folders that were cleared of what a killed certsync left.
	swept map[string]bool
	// files are the bundle files of this call's targets: none of them is another one's rival.
	files map[string]bool
	// waiting are the targets that a reload may bring in service, once all others are done.
	waiting []waiting
	// running are HAProxy's names of what it has from the configuration's crt-list, nil until asked for.
	running map[string]bool
	// lists are the crt-lists and folders of HAProxy, each with the lines of its certificates; nil until asked for.
	lists map[string]map[string][]int
	// masterUp tells that the master has a worker; nil until it was asked.
	masterUp *bool
}

// undo is what to do, in reverse order, where a step fails.
type undo []func(ctx context.Context) error

func (u *undo) add(f func(ctx context.Context) error) { *u = append(*u, f) }

// recover aborts the transaction that a killed certsync left open, if it is still that one. Another one is left alone.
func (a *activation) recover(ctx context.Context) error {
	t, ok, err := a.p.journal.begun()
	if err != nil || !ok {
		return err
	}
	if t.Pid == a.process.Pid && a.listing.open == t.Name {
		if err := a.abortOurs(ctx, t.Name, t.SHA1); err != nil {
			return err
		}
	}
	return a.p.journal.end()
}

// abortOurs aborts the open transaction where it is for name and holds the leaf with this SHA-1.
func (a *activation) abortOurs(ctx context.Context, name, sha1 string) error {
	open, err := a.p.runtime.open(ctx)
	if err != nil || open != name {
		return err
	}
	staged, err := a.p.runtime.showCert(ctx, name, true)
	if errors.Is(err, errUnknownName) {
		return nil
	}
	if err != nil || staged.SHA1 != sha1 {
		return err
	}
	return a.p.runtime.abort(ctx, name)
}

// all brings the targets in service, several at a time: what is known to be is not done again. HAProxy is changed for one at
// a time; the others write their files meanwhile, which is waiting for the disk, and make their handshakes. The families
// of a certificate go one after the other, since each may have to make the other's earlier file give way.
func (a *activation) all(ctx context.Context, targets []cluster.Target) []cluster.Placement {
	out := make([]cluster.Placement, len(targets))
	var groups [][]int
	at := map[string]int{}
	for i, pl := range a.recall(ctx, targets) {
		if pl != nil {
			out[i] = *pl
			continue
		}
		name := targets[i].Slot.Name
		if _, ok := at[name]; !ok {
			at[name] = len(groups)
			groups = append(groups, nil)
		}
		groups[at[name]] = append(groups[at[name]], i)
	}
	sideways(groups, func(group []int) {
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, i := range group {
			out[i] = a.target(ctx, targets[i])
		}
	})
	return out
}

// aside does something that neither asks HAProxy's memory nor changes what the call knows, while others may do that.
func (a *activation) aside(do func()) {
	a.mu.Unlock()
	defer a.mu.Lock()
	do()
}

// handshake is survey's, aside.
func (a *activation) handshake(ctx context.Context, v *view) {
	a.aside(func() { a.survey.handshake(ctx, v) })
}

// look is survey's, the disk's part of it aside.
func (a *activation) look(ctx context.Context, t cluster.Target) (v view) {
	a.aside(func() { v = a.open(ctx, t) })
	a.lookInMemory(ctx, &v)
	return v
}

// target brings one target in service and tells how it went.
func (a *activation) target(ctx context.Context, t cluster.Target) cluster.Placement {
	v := a.look(ctx, t)
	v.placement.Error, v.placement.Hint = "", ""
	a.disentangle(&v)
	if err := a.check(ctx, &v); err != nil {
		return failure(v, cluster.Failure, err)
	}
	a.sweep(filepath.Dir(v.real))
	if a.inService(ctx, &v) {
		// What holds our bundle is ours, whoever put it there: where it is spoilt, it is to be mended. That this cannot be
		// recorded is told when it is to be.
		_ = a.p.journal.own(v.real)
		a.retireOthers(ctx, &v)
		return a.remember(&v, a.settled(ctx, v))
	}
	var u undo
	err := a.apply(ctx, &v, &u)
	switch {
	case errors.Is(err, errReload), errors.Is(err, cluster.ErrNotRunning), err != nil && errors.Is(err, v.memoryErr):
		return a.later(ctx, v, u, err)
	case errors.Is(err, errUnclear):
		return a.hold(ctx, v, u, reasonUnclear, err)
	case err != nil:
		return a.undo(ctx, v, u, err)
	}
	a.refresh(ctx, &v)
	switch v.placement.Proof {
	case cluster.Proven:
		v.placement.Outcome = cluster.Done
		a.retireOthers(ctx, &v)
	case cluster.NoProof:
		v.placement.Outcome = cluster.Unproven
	default:
		cause := a.disproven(ctx, v)
		if a.hides(cause) {
			return a.hold(ctx, v, u, reasonHidden, cause)
		}
		return a.undo(ctx, v, u, cause)
	}
	return v.placement
}

// inService tells that there is nothing to do. Where HAProxy's memory is not known there is, whatever a handshake shows:
// to say so, since the next bundle could not be loaded. An earlier file of the certificate that a killed certsync did not
// get to is loaded at the next reload.
func (a *activation) inService(ctx context.Context, v *view) bool {
	if !v.diskRight() || v.exposed || v.memoryErr != nil || !v.memoryRight() || a.unlisted(ctx, v) {
		return false
	}
	a.handshake(ctx, v)
	return !slices.ContainsFunc(a.sameFamily(v), func(r rival) bool {
		return v.placement.Proof == cluster.Disproven || r.disk.Fingerprint() != v.Bundle.Fingerprint()
	})
}

// sweep clears dir of what a killed certsync left, once.
func (a *activation) sweep(dir string) {
	if !a.swept[dir] {
		sweep(dir)
		a.swept[dir] = true
	}
}

// failure is a placement that ends with err.
func failure(v view, o cluster.Outcome, err error) cluster.Placement {
	v.placement.Outcome, v.placement.Error, v.placement.Hint = o, err.Error(), cluster.HintOf(err)
	return v.placement
}

// check refuses what must not be written. HAProxy takes an expired certificate, or one of another family, without a word.
func (a *activation) check(ctx context.Context, v *view) error {
	b := v.Bundle
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("activate %s: %w", v.Slot, ctx.Err())
	case v.loadErr != nil:
		return fmt.Errorf("activate %s: %w", v.Slot, v.loadErr)
	case b == nil:
		return fmt.Errorf("activate %s: no bundle was issued yet", v.Slot)
	case v.Slot.Algorithm != "" && b.Algorithm() != v.Slot.Algorithm:
		return fmt.Errorf("activate %s: %w: %s", v.Slot, cert.ErrKeyType, b.KeyType())
	}
	if err := b.Verify(cert.Want{Now: a.p.config.Now(), NotBeforeSkew: cluster.MaxSkew}); err != nil {
		return fmt.Errorf("activate %s: %w", v.Slot, err)
	}
	return nil
}

// settled is a target that needs nothing done.
func (a *activation) settled(ctx context.Context, v view) cluster.Placement {
	switch v.placement.Proof {
	case cluster.Proven:
		v.placement.Outcome = cluster.Unchanged
	case cluster.NoProof:
		v.placement.Outcome = cluster.Unproven
	default:
		cause := a.disproven(ctx, v)
		if a.hides(cause) {
			return a.hold(ctx, v, nil, reasonHidden, cause)
		}
		return failure(v, cluster.Failure, cause)
	}
	return v.placement
}

// disproven is the error of a handshake that showed something else although disk and memory are right.
func (a *activation) disproven(ctx context.Context, v view) error {
	err := fmt.Errorf("activate %s: handshake: %w: %s", v.Slot, cluster.ErrRejected, v.placement.Served.Note)
	if other := a.shadow(ctx, &v); other != "" {
		return cluster.WithHint(fmt.Errorf("%w, %w %s", err, errHidden, other),
			"%s is loaded too and covers the same names: take it off the bind line (or remove it) and reload HAProxy", other)
	}
	return cluster.WithHint(err,
		"see whether another certificate of that bind covers the same name, and whether haproxy.verify names the bind that serves %s", v.path)
}

// onDisk is a target whose bundle is on disk and that HAProxy cannot take now.
func (a *activation) onDisk(ctx context.Context, v view, cause error) cluster.Placement {
	v.lookOnDisk()
	a.handshake(ctx, &v)
	cause = a.deaf(&v, cause)
	if base := a.hidesFamilies(ctx, &v); base != "" && errors.Is(cause, errReload) {
		cause = cluster.WithHint(cause, "%s is loaded too and covers the same names: take it off the bind line (or remove it) and reload HAProxy; `crt %s` loads %s where there is no such file", base, base, v.path)
	}
	return failure(v, cluster.DiskOnly, fmt.Errorf("activate %s: bundle is on disk only: %w", v.Slot, cause))
}

// refresh looks again, after a change.
func (a *activation) refresh(ctx context.Context, v *view) {
	v.lookOnDisk()
	var entries []entry
	for _, e := range v.entries {
		l, err := a.p.runtime.showCert(ctx, e.name, false)
		if errors.Is(err, errUnknownName) {
			continue
		}
		if err != nil {
			l = loaded{Status: "unknown: " + err.Error()}
		}
		entries = append(entries, entry{e.name, l})
	}
	v.entries = entries
	if len(v.entries) > 0 {
		v.placement.Memory = v.memorySighting()
	} else {
		v.placement.Memory = cluster.Sighting{Note: "not in HAProxy's memory"}
	}
	a.handshake(ctx, v)
}

// apply is the way of a bundle: disk, memory, list.
func (a *activation) apply(ctx context.Context, v *view, u *undo) error {
	where, canAdd, err := a.prepare(ctx, v)
	if err != nil {
		return err
	}
	right := v.diskRight() // then what HAProxy has of this leaf came with this chain
	a.aside(func() { err = a.write(v, u) })
	if err != nil {
		return fmt.Errorf("activate %s: %w", v.Slot, err)
	}
	if where.file == "" && a.unlisted(ctx, v) {
		where.file, where.name = a.p.config.CrtList, v.path
	}
	if where.file != "" {
		if err := a.addLine(where, u); err != nil {
			return fmt.Errorf("activate %s: %w", v.Slot, err)
		}
	}
	if v.memoryErr != nil {
		if err := a.yieldOnDisk(v, u); err != nil {
			return fmt.Errorf("activate %s: %w", v.Slot, err)
		}
		return v.memoryErr
	}
	switch {
	case len(v.entries) == 0 && !canAdd:
		return notAddressable(v.path, where)
	case len(v.entries) == 0:
		if err := a.create(ctx, v, where.name, u); err != nil {
			return fmt.Errorf("activate %s: %w", v.Slot, err)
		}
	}
	for i := range v.entries {
		if right && v.entries[i].serves(v.Bundle) {
			continue
		}
		if err := a.serve(ctx, v, &v.entries[i], where, canAdd, u); err != nil {
			return fmt.Errorf("activate %s: %w", v.Slot, err)
		}
	}
	if err := a.yield(ctx, v, u); err != nil {
		return fmt.Errorf("activate %s: %w", v.Slot, err)
	}
	return nil
}

// prepare looks for obstacles, and may learn there that HAProxy's memory cannot be changed: it does not answer any more, or its
// socket lets us read only. The bundle goes on disk all the same, for its next start.
func (a *activation) prepare(ctx context.Context, v *view) (where place, canAdd bool, err error) {
	if v.memoryErr != nil {
		return place{}, false, nil
	}
	where, canAdd, err = a.obstacles(ctx, v)
	if ctx.Err() == nil && outOfReach(err) {
		v.memoryErr = err
		return place{}, false, nil
	}
	return where, canAdd, err
}

// outOfReach tells that it is the runtime socket itself that stands in the way.
func outOfReach(err error) bool {
	return errors.Is(err, errLevel) || errors.Is(err, errUnclear) || errors.Is(err, cluster.ErrNotRunning)
}

// obstacles finds what could stand in the way before anything is written: a foreign transaction, HAProxy's own ACME, and
// where a new certificate would go.
func (a *activation) obstacles(ctx context.Context, v *view) (where place, canAdd bool, err error) {
	if a.managed == nil {
		names, err := a.p.runtime.managed(ctx)
		if err != nil {
			return place{}, false, err
		}
		a.managed = append([]string{}, names...)
	}
	fresh := len(v.entries) == 0
	for _, e := range v.entries {
		if slices.Contains(a.managed, e.name) {
			return place{}, false, cluster.WithHint(fmt.Errorf("activate %s: %s is looked after by HAProxy's own ACME client", v.Slot, e.name),
				"take the certificate out of HAProxy's `acme` section, or out of certsync's configuration")
		}
		fresh = fresh || e.Status != "Used"
	}
	if err := a.wait(ctx); err != nil {
		return place{}, false, fmt.Errorf("activate %s: %w", v.Slot, err)
	}
	if !fresh {
		return place{}, false, nil
	}
	if where, canAdd, err = a.placeFor(ctx, v); err != nil {
		return place{}, false, fmt.Errorf("activate %s: %w", v.Slot, err)
	}
	return where, canAdd, nil
}

// wait waits until no transaction is open. One that stays is somebody else's: it is told, not aborted.
func (a *activation) wait(ctx context.Context) error {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		open, err := a.p.runtime.open(ctx)
		if err != nil || open == "" {
			return err
		}
		if i := slices.IndexFunc(a.pending, func(t transaction) bool { return t.Name == open }); i >= 0 {
			t := a.pending[i]
			a.pending = slices.Delete(a.pending, i, i+1)
			if err := a.abortOurs(ctx, t.Name, t.SHA1); err != nil {
				return err
			}
			continue
		}
		now := time.Now()
		if a.patience.IsZero() {
			a.patience = now.Add(a.p.config.Wait)
		}
		if now.After(a.patience) {
			return foreign(open)
		}
		if err := sleep(ctx, pause); err != nil {
			return fmt.Errorf("%w: %w", foreign(open), err)
		}
	}
}

func foreign(open string) error {
	return cluster.WithHint(fmt.Errorf("%w, on %s, and is not certsync's", errForeign, open),
		"commit or abort it where it was begun: `abort ssl cert %s` on HAProxy's runtime socket", open)
}

// notAddressable is a file that no certificate or list of the running HAProxy stands for.
func notAddressable(path string, where place) error {
	if where.file != "" {
		return cluster.WithHint(fmt.Errorf("%w: it does not use the crt-list %s yet", errNoList, where.file),
			"have a bind line say `crt-list %s`, and reload HAProxy", where.file)
	}
	if where.readOnly != "" {
		return cluster.WithHint(fmt.Errorf("%w: the crt-list %s cannot be written", errNoList, where.readOnly),
			"let certsync's user write %s and its folder", where.readOnly)
	}
	return cluster.WithHint(fmt.Errorf("%w: no bind line's `crt DIR` or crt-list can take %s at run time", errNoList, path),
		"name it on a bind line (`crt %s`, or its folder), and reload HAProxy", path)
}

// write puts the bundle on disk; nothing is touched where it is there already.
func (a *activation) write(v *view, u *undo) error {
	if v.diskRight() && !v.exposed {
		a.undoEarlierWrite(v, u)
		return nil
	}
	ours, err := a.mayWrite(v)
	if err != nil {
		return err
	}
	who, err := groupAccess(a.p.config.BundleGroup)
	if err != nil {
		return err
	}
	if v.data != nil {
		if err := a.p.journal.keep(v.real, v.data, ours); err != nil {
			return fmt.Errorf("keep the previous bundle: %w", err)
		}
	}
	if err := a.p.journal.own(v.real); err != nil {
		return fmt.Errorf("record the bundle as certsync's: %w", err)
	}
	info, _ := os.Stat(v.real)
	if err := writeFile(v.real, v.Bundle.PEM(), who, "haproxy"); err != nil {
		return folderHint(err, v.real)
	}
	failpoint.Hit("haproxy.written")
	before := v.data
	u.add(func(context.Context) error { return a.restoreFile(v.real, before, info) })
	if v.disk != nil {
		v.previous = v.disk
	}
	return nil
}

// folderHint says what to do about a bundle folder that is not there or not ours.
func folderHint(err error, path string) error {
	dir := filepath.Dir(path)
	switch {
	case isMissing(err):
		return cluster.WithHint(err, "make the folder %s, writable for certsync's user", dir)
	case errors.Is(err, fs.ErrPermission):
		return cluster.WithHint(err, "let certsync's user write in %s", dir)
	case errors.Is(err, syscall.ENOSPC):
		return cluster.WithHint(err, "make room on the file system of %s", dir)
	case errors.Is(err, syscall.EROFS):
		return cluster.WithHint(err, "mount the file system of %s writable", dir)
	case errors.Is(err, fs.ErrExist), errors.Is(err, syscall.EISDIR):
		return cluster.WithHint(err, "move the folder %s away", path)
	}
	return err
}

// mayWrite tells whether the file is ours, and refuses where it is neither ours nor given to us: what certsync did not
// write is replaced only where the certificate names it under `bundle`, or where it holds a bundle of this very slot.
func (a *activation) mayWrite(v *view) (ours bool, err error) {
	if a.isAnothers(v) {
		return false, cluster.WithHint(fmt.Errorf("replace %s: it is a link to %s, the bundle of another certificate", v.path, v.real), "remove the link %s", v.path)
	}
	if _, err := os.Lstat(v.real); isMissing(err) || a.p.journal.owns(v.real) {
		return true, nil
	}
	if v.data == nil {
		// Something is there that cannot be read: a folder, a device, or another user's file.
		return false, cluster.WithHint(fmt.Errorf("replace %s: %w", v.real, v.diskErr), "move %s away: certsync did not write it, and cannot keep a copy of it", v.real)
	}
	if v.disk != nil && (v.disk.Fingerprint() == v.Bundle.Fingerprint() || slices.ContainsFunc(v.Known, func(b *cert.Bundle) bool {
		return b != nil && b.Fingerprint() == v.disk.Fingerprint()
	})) {
		return false, nil
	}
	if v.Path != "" {
		return false, nil
	}
	return false, cluster.WithHint(fmt.Errorf("replace %s: certsync did not write it", v.path),
		"name it in the configuration, `bundle: %s` at the certificate %s (the file is then kept aside), or move it away", v.path, v.Slot.Name)
}

// restoreFile puts back what was there before write; nil data means nothing.
func (a *activation) restoreFile(path string, data []byte, before os.FileInfo) error {
	if data == nil || before == nil {
		if err := removeFile(path); err != nil {
			return fmt.Errorf("remove the bundle again: %w", err)
		}
		return a.p.journal.disown(path)
	}
	if err := writeFile(path, data, access{mode: before.Mode().Perm(), gid: -1}, "haproxy.undo"); err != nil {
		return fmt.Errorf("put the previous bundle back: %w", err)
	}
	keepOwner(path, before)
	return nil
}

// undoEarlierWrite is for a bundle that an earlier run wrote before it was killed: where HAProxy refuses it now, the
// file goes back to what HAProxy has in memory, if that is at hand.
func (a *activation) undoEarlierWrite(v *view, u *undo) {
	for _, e := range v.entries {
		if b := v.bySHA1(e.SHA1); b != nil && e.SHA1 != v.Bundle.SHA1() {
			u.add(func(context.Context) error { return replaceFile(v.real, b.PEM(), "haproxy.undo") })
			return
		}
	}
}

func (a *activation) addLine(where place, u *undo) error {
	if real, err := destination(where.file); err == nil {
		a.sweep(filepath.Dir(real))
	}
	remove, err := addLine(where.file, where.name)
	if err == nil && remove != nil {
		u.add(func(context.Context) error { return remove() })
	}
	return err
}

// undo takes back what was done and tells where that left the target.
func (a *activation) undo(ctx context.Context, v view, u undo, cause error) cluster.Placement {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.p.config.UndoTimeout)
	defer cancel()
	var errs []error
	for _, f := range slices.Backward(u) {
		if err := f(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	a.refresh(ctx, &v)
	outcome := cluster.Failure
	if errors.Is(cause, cluster.ErrRejected) && len(u) > 0 {
		outcome = cluster.RolledBack
	}
	if len(errs) > 0 {
		outcome = cluster.Failure
		cause = cluster.WithHint(fmt.Errorf("%w; undo: %w", cause, errors.Join(errs...)),
			"reload HAProxy after looking at %s: disk and memory may differ", v.path)
	}
	return failure(v, outcome, cause)
}
