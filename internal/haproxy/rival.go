package haproxy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

// rival is another file of the same certificate, left from when it had other key types: NAME.pem beside NAME.pem.ecdsa
// and NAME.pem.rsa, or the reverse. HAProxy loads both and shows clients the one that it loaded first or changed last.
type rival struct {
	path, real string
	data       []byte
	info       os.FileInfo
	disk       *cert.Bundle
}

// errStays: HAProxy cannot let go of a certificate at run time (a bind's default one, or that of a `crt FILE`), or would
// not start without its file.
var errStays = errors.New("HAProxy cannot let it go")

// rivals are the files of v's certificate under its other names, as far as they are certsync's: written by it, or named
// by the operator as the certificate's bundle. What covers none of the names is another certificate's, and no rival.
func (a *activation) rivals(v *view) []rival {
	var out []rival
	for _, path := range a.p.rivalPaths(v.Target) {
		real, err := destination(path)
		if err != nil || real == v.real || a.files[path] || path != v.Path && !a.p.journal.owns(real) {
			continue
		}
		data, disk, err := readBundle(real)
		if err != nil {
			continue
		}
		info, err := os.Stat(real)
		if err == nil && slices.ContainsFunc(disk.Domains(), func(d string) bool { return slices.Contains(v.Bundle.Domains(), d) }) {
			out = append(out, rival{path: path, real: real, data: data, info: info, disk: disk})
		}
	}
	return out
}

// sameFamily are the rivals that clients of v's family could get instead of v's bundle.
func (a *activation) sameFamily(v *view) []rival {
	return slices.DeleteFunc(a.rivals(v), func(r rival) bool { return r.disk.Algorithm() != v.Bundle.Algorithm() })
}

// yield makes the rivals of v's family give way before the handshake. One that HAProxy cannot let go gets the same
// bundle, on disk and in memory: then it does not matter which of the two a client gets.
func (a *activation) yield(ctx context.Context, v *view, u *undo) error {
	for _, r := range a.sameFamily(v) {
		err := a.retire(ctx, r, u)
		if errors.Is(err, errStays) {
			err = a.share(ctx, v, r, u)
		}
		if err != nil {
			return fmt.Errorf("%s, an earlier file of this certificate: %w", r.path, err)
		}
	}
	return nil
}

// yieldOnDisk is yield where HAProxy's memory cannot be changed: at its next start every file has the new bundle. No
// file is removed, since the configuration may name it.
func (a *activation) yieldOnDisk(v *view, u *undo) error {
	for _, r := range a.sameFamily(v) {
		if err := a.shareFile(v, r, u); err != nil {
			return fmt.Errorf("%s, an earlier file of this certificate: %w", r.path, err)
		}
	}
	return nil
}

// retireOthers ends the family that a certificate does not have any more, once the one that it has is proven. What
// cannot be ended is served until it expires, and is told.
func (a *activation) retireOthers(ctx context.Context, v *view) {
	if v.Both || v.memoryErr != nil || v.placement.Proof != cluster.Proven {
		return
	}
	for _, r := range a.rivals(v) {
		if r.disk.Algorithm() == v.Bundle.Algorithm() {
			continue
		}
		var u undo
		err := a.retire(ctx, r, &u)
		if err == nil {
			continue
		}
		undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.p.config.UndoTimeout)
		for _, f := range slices.Backward(u) {
			err = errors.Join(err, f(undoCtx))
		}
		cancel()
		v.placement.Memory.Note = strings.ReplaceAll(fmt.Sprintf("%s is loaded still, with a key type that is not wanted any more: remove it and reload HAProxy (%v)", r.path, err), "\n", "; ")
	}
}

// retire takes a rival out of HAProxy's memory, then off disk. A copy is kept.
func (a *activation) retire(ctx context.Context, r rival, u *undo) error {
	lists, err := a.listsOf(ctx, r)
	if err != nil {
		return err
	}
	entries, err := a.entriesOf(ctx, r)
	if err != nil {
		return err
	}
	if err := a.p.journal.keep(r.real, r.data, false); err != nil {
		return fmt.Errorf("keep a copy: %w", err)
	}
	for _, e := range entries {
		if err := a.drop(ctx, e, lists, r.disk, u); err != nil {
			return err
		}
	}
	failpoint.Hit("haproxy.retired")
	return a.removeRival(r, u)
}

// listsOf are HAProxy's names of the lists that a rival may be in. Where there is none, or the file is named in a way
// that cannot be taken back, it stays.
func (a *activation) listsOf(ctx context.Context, r rival) ([]string, error) {
	if r.real != r.path {
		return nil, errStays // a link, whose end would be left
	}
	all, err := a.p.runtime.showLists(ctx)
	if err != nil {
		return nil, err
	}
	file := a.p.config.CrtList
	if file != "" && !removable(file, r.path) {
		return nil, errStays
	}
	folder, _ := a.names.realDir(filepath.Dir(r.path))
	want, _ := a.names.real(file)
	var lists []string
	for _, list := range all {
		path, ok := a.names.real(list)
		dir, isDir := a.names.realDir(list)
		if filepath.IsAbs(list) && (isDir && dir == folder || ok && file != "" && path == want) {
			lists = append(lists, list)
		}
	}
	if len(lists) == 0 {
		return nil, errStays
	}
	return lists, nil
}

// removable tells whether no line of a crt-list file would be left that names path, were removeLine called.
func removable(file, path string) bool {
	content, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	if !listed(content, path) {
		return true
	}
	return writable(file) && !listed(without(content, path), path)
}

// entriesOf are the certificates in HAProxy's memory that were loaded from a rival.
func (a *activation) entriesOf(ctx context.Context, r rival) ([]entry, error) {
	path, ok := a.names.real(r.path)
	if !ok {
		return nil, nil
	}
	var out []entry
	for _, name := range a.names.byPath[path] {
		l, err := a.p.runtime.showCert(ctx, name, false)
		if errors.Is(err, errUnknownName) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, entry{name, l})
	}
	return out, nil
}

// drop takes a certificate out of its lists and deletes it. b is what it has, for the undo.
func (a *activation) drop(ctx context.Context, e entry, lists []string, b *cert.Bundle, u *undo) error {
	if e.SHA1 != b.SHA1() {
		return errStays // what could not be brought back
	}
	var from []string
	u.add(func(ctx context.Context) error { return a.bringBack(ctx, e.name, from, b) })
	for _, list := range lists {
		from = append(from, list)
		err := a.p.runtime.delFromList(ctx, list, e.name)
		if errors.Is(err, cluster.ErrRejected) {
			from = from[:len(from)-1] // not in this one, or a bind's default
		} else if err != nil {
			return err
		}
	}
	err := a.p.runtime.delCert(ctx, e.name)
	if !errors.Is(err, cluster.ErrRejected) {
		return err
	}
	if err := a.bringBack(ctx, e.name, from, b); err != nil {
		return err
	}
	from = nil
	return fmt.Errorf("%w: %w", errStays, err)
}

// bringBack is the undo of drop, from wherever that stopped.
func (a *activation) bringBack(ctx context.Context, name string, lists []string, b *cert.Bundle) error {
	now, err := a.p.runtime.showCert(ctx, name, false)
	if errors.Is(err, errUnknownName) {
		err = a.p.runtime.newCert(ctx, name)
	}
	if err == nil && now.SHA1 != b.SHA1() {
		err = a.load(ctx, name, b)
	}
	for _, list := range lists {
		if err != nil {
			break
		}
		err = a.p.runtime.addToList(ctx, list, name)
		if errors.Is(err, cluster.ErrRejected) && now.Status == "Used" {
			err = nil // it was not taken out
		}
	}
	if err != nil {
		return fmt.Errorf("bring %s back: %w", name, err)
	}
	return nil
}

// removeRival removes the file, and the line of the crt-list that would name nothing then.
func (a *activation) removeRival(r rival, u *undo) error {
	if file := a.p.config.CrtList; file != "" {
		real, err := destination(file)
		if err != nil {
			return fmt.Errorf("crt_list: %w", err)
		}
		if content, err := os.ReadFile(real); err == nil && listed(content, r.path) {
			u.add(func(context.Context) error { _, err := addLine(file, r.path); return err })
			if err := removeLine(real, r.path); err != nil {
				return err
			}
		}
	}
	owned := a.p.journal.owns(r.real)
	u.add(func(context.Context) error {
		if err := writeFile(r.real, r.data, access{mode: r.info.Mode().Perm(), gid: -1}, "haproxy.undo"); err != nil {
			return fmt.Errorf("put %s back: %w", r.path, err)
		}
		keepOwner(r.real, r.info)
		if owned {
			return a.p.journal.own(r.real)
		}
		return nil
	})
	if err := removeFile(r.real); err != nil {
		return folderHint(err, r.real)
	}
	return a.p.journal.disown(r.real)
}

// share gives a rival v's bundle, on disk and in memory.
func (a *activation) share(ctx context.Context, v *view, r rival, u *undo) error {
	entries, err := a.entriesOf(ctx, r)
	if err != nil {
		return err
	}
	if err := a.shareFile(v, r, u); err != nil {
		return err
	}
	for _, e := range entries {
		if e.SHA1 == v.Bundle.SHA1() {
			continue
		}
		before := v.bySHA1(e.SHA1)
		if e.SHA1 == r.disk.SHA1() {
			before = r.disk
		}
		if before == nil {
			return fmt.Errorf("HAProxy has a certificate as %s (SHA-1 %s) that is not at hand", e.name, e.SHA1)
		}
		u.add(func(ctx context.Context) error { return a.bringBack(ctx, e.name, nil, before) })
		if err := a.load(ctx, e.name, v.Bundle); err != nil {
			return err
		}
	}
	return nil
}

// shareFile writes v's bundle to a rival's file. It keeps its mode: HAProxy could read it.
func (a *activation) shareFile(v *view, r rival, u *undo) error {
	if r.disk.Fingerprint() == v.Bundle.Fingerprint() {
		return nil
	}
	if err := a.p.journal.keep(r.real, r.data, a.p.journal.owns(r.real)); err != nil {
		return fmt.Errorf("keep a copy: %w", err)
	}
	u.add(func(context.Context) error { return replaceFile(r.real, r.data, "haproxy.undo") })
	if err := replaceFile(r.real, v.Bundle.PEM(), "haproxy"); err != nil {
		return folderHint(err, r.real)
	}
	return nil
}

// hidesFamilies is the file BASE that HAProxy loaded where v is BASE.ecdsa or BASE.rsa, "" where it has none: `crt BASE`
// means those two only where there is no BASE.
func (a *activation) hidesFamilies(ctx context.Context, v *view) string {
	if !v.Both || v.memoryErr != nil {
		return ""
	}
	for _, r := range a.rivals(v) {
		if entries, err := a.entriesOf(ctx, r); err == nil && len(entries) > 0 {
			return r.path
		}
	}
	return ""
}

// maxSearch is how many certificates are looked through for the one that clients get: 0.1 ms each.
const maxSearch = 2000

// shadow is HAProxy's name of the certificate that the handshake showed instead of v's, "" where it cannot be told.
func (a *activation) shadow(ctx context.Context, v *view) string {
	sha1 := v.placement.Served.SHA1
	if v.memoryErr != nil || sha1 == "" {
		return ""
	}
	for i, name := range a.listing.names {
		if i == maxSearch || ctx.Err() != nil {
			return ""
		}
		if slices.ContainsFunc(v.entries, func(e entry) bool { return e.name == name }) {
			continue
		}
		switch l, err := a.p.runtime.showCert(ctx, name, false); {
		case err != nil && !errors.Is(err, errUnknownName):
			return ""
		case l.SHA1 == sha1 && l.Status == "Used":
			return name
		}
	}
	return ""
}
