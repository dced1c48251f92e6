package haproxy

import (
	"context"
	"errors"
	"fmt"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

// create makes an empty store for a new certificate.
func (a *activation) create(ctx context.Context, v *view, name string, u *undo) error {
	// A store that could never be filled would stay empty.
	if _, err := a.parts(ctx, name, v.Bundle); err != nil {
		return err
	}
	// Before the command: one whose outcome is unknown must be undone too.
	u.add(func(ctx context.Context) error {
		return a.unload(ctx, v, entry{name: name, loaded: loaded{Status: "Empty"}})
	})
	if err := a.p.runtime.newCert(ctx, name); err != nil {
		return err
	}
	failpoint.Hit("haproxy.new")
	v.entries = []entry{{name: name, loaded: loaded{Status: "Empty"}}}
	return nil
}

// serve loads the bundle under one name and, where no bind uses that yet, adds it to a list.
func (a *activation) serve(ctx context.Context, v *view, e *entry, where place, canAdd bool, u *undo) error {
	before := *e
	if before.Status != "Used" && !canAdd {
		return notAddressable(v.path, where)
	}
	// Before the load, for the same reason as in create.
	u.add(func(ctx context.Context) error { return a.unload(ctx, v, before) })
	err := a.load(ctx, e.name, v.Bundle)
	if errors.Is(err, errReload) && before.Status == "Empty" {
		// The file stays for the reload; the store that cannot be filled does not.
		return errors.Join(err, a.unload(ctx, v, before))
	}
	if err != nil || before.Status == "Used" {
		return err
	}
	u.add(func(ctx context.Context) error { return a.unlist(ctx, where.list, e.name) })
	if err := a.p.runtime.addToList(ctx, where.list, e.name); err != nil {
		return err
	}
	failpoint.Hit("haproxy.added")
	return nil
}

// unload brings back what HAProxy had under a name.
func (a *activation) unload(ctx context.Context, v *view, before entry) error {
	now, err := a.p.runtime.showCert(ctx, before.name, false)
	switch {
	case errors.Is(err, errUnknownName):
		return nil
	case err != nil:
		return err
	case before.Status != "Used" && now.Status == "Used":
		return nil // a reload loaded it from its file since
	case before.Status != "Used":
		return a.p.runtime.delCert(ctx, before.name)
	case now.SHA1 == before.SHA1:
		return nil
	}
	b := v.bySHA1(before.SHA1)
	if b == nil {
		return fmt.Errorf("what HAProxy had as %s (SHA-1 %s) is not at hand", before.name, before.SHA1)
	}
	if err := a.load(ctx, before.name, b); err != nil {
		return fmt.Errorf("put the previous bundle back: %w", err)
	}
	return nil
}

// unlist takes a name out of a list; that it is not in it is as good.
func (a *activation) unlist(ctx context.Context, list, name string) error {
	now, err := a.p.runtime.showCert(ctx, name, false)
	if err != nil || now.Status != "Used" {
		return err
	}
	return a.p.runtime.delFromList(ctx, list, name)
}

// load replaces what HAProxy has under name by b, in one transaction: set, compare, commit, compare.
func (a *activation) load(ctx context.Context, name string, b *cert.Bundle) error {
	parts, err := a.parts(ctx, name, b)
	if err != nil {
		return err
	}
	t := transaction{Pid: a.process.Pid, Name: name, SHA1: b.SHA1(), Time: a.p.config.Now().UTC()}
	if err := a.p.journal.begin(t); err != nil {
		return err
	}
	failpoint.Hit("haproxy.begun")
	if err := a.transact(ctx, name, b, parts); err != nil {
		return errors.Join(err, a.giveUp(ctx, t, errors.Is(err, errUnclear)))
	}
	return a.p.journal.end()
}

// giveUp aborts what load left open. Where the outcome of a command is unknown, HAProxy may yet do it after this: then
// the transaction stays in the journal and in mind.
func (a *activation) giveUp(ctx context.Context, t transaction, unclear bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.p.config.UndoTimeout)
	defer cancel()
	err := a.abortOurs(ctx, t.Name, t.SHA1)
	if err != nil {
		err = fmt.Errorf("the transaction may still be open: %w", err)
	}
	if err != nil || unclear {
		a.pending = append(a.pending, t)
		return err
	}
	return a.p.journal.end()
}

// part is a piece of a bundle that is set by itself.
type part struct{ suffix, payload string }

// parts cuts the bundle so that each command fits in HAProxy's buffer: as one, or leaf and chain first and the key
// after them, as every version takes it.
func (a *activation) parts(ctx context.Context, name string, b *cert.Bundle) ([]part, error) {
	if a.size == 0 {
		size, err := a.p.runtime.bufsize(ctx)
		if err != nil {
			return nil, err
		}
		a.size = size
	}
	for _, parts := range [][]part{{{"", string(b.PEM())}}, {{"", string(b.CertificatesPEM())}, {keyPart, string(b.KeyPEM())}}} {
		fits := true
		for _, p := range parts {
			command, err := setCommand(name, p.suffix, p.payload)
			if err != nil {
				return nil, err
			}
			fits = fits && len(command) <= a.size-bufsizeMargin
		}
		if fits {
			return parts, nil
		}
	}
	return nil, cluster.WithHint(fmt.Errorf("%w: leaf and chain, %d bytes, are more than its tune.bufsize of %d takes", errTooLarge, len(b.CertificatesPEM()), a.size),
		"reload HAProxy; for the next time set `tune.bufsize %d` in its global section", 2*max(a.size, len(b.CertificatesPEM())))
}

// transact is the transaction itself. Whoever calls it sees to its end where it fails.
func (a *activation) transact(ctx context.Context, name string, b *cert.Bundle, parts []part) error {
	r := a.p.runtime
	for i, p := range parts {
		if err := a.set(ctx, name, p, i == 0); err != nil {
			return err
		}
		failpoint.Hit("haproxy.set")
	}
	staged, err := r.showCert(ctx, name, true)
	if err != nil {
		return err
	}
	if staged.SHA1 != b.SHA1() {
		return fmt.Errorf("HAProxy: %s: %w: its transaction holds a certificate with SHA-1 %s, not %s", name, cluster.ErrRejected, staged.SHA1, b.SHA1())
	}
	failpoint.Hit("haproxy.staged")
	committed := r.commit(ctx, name)
	if committed != nil && !errors.Is(committed, errUnclear) {
		return committed
	}
	failpoint.Hit("haproxy.committed")
	// What the answer did not say, memory does.
	now, err := r.showCert(ctx, name, false)
	if err != nil {
		return errors.Join(committed, err)
	}
	if now.SHA1 != b.SHA1() {
		return errors.Join(committed, fmt.Errorf("HAProxy: %s: %w: after the commit it has a certificate with SHA-1 %s, not %s", name, cluster.ErrRejected, now.SHA1, b.SHA1()))
	}
	return nil
}

// set is runtime.set, tried again where somebody else's transaction came in between.
func (a *activation) set(ctx context.Context, name string, p part, first bool) error {
	for try := 1; ; try++ {
		err := a.p.runtime.set(ctx, name, p.suffix, p.payload, first)
		switch {
		case errors.Is(err, errUnknownName):
			return cluster.WithHint(fmt.Errorf("%w: %w", errReload, err),
				"reload HAProxy; for the next time give the file a name that ends in .pem, which every version can change at run time")
		case !errors.Is(err, errForeign) || !first || try == 10:
			return err
		}
		if err := a.wait(ctx); err != nil {
			return err
		}
	}
}
