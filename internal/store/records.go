package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/fileid"
)

// relists is how often a folder is listed again because a file vanished between the listing and its read.
const relists = 5

// Records reads everything but the bundles.
func (s *Store) Records(ctx context.Context) (cluster.Records, error) {
	if err := s.checkFormat(); err != nil {
		return cluster.Records{}, fmt.Errorf("read records: %w", err)
	}
	h, found, err := s.readRecords(ctx)
	if err != nil {
		return cluster.Records{}, fmt.Errorf("read records: %w", err)
	}
	s.setAside(ctx, found)
	return h.records(), nil
}

// held is what is on disk.
type held struct {
	accounts   []cluster.Account
	orders     []cluster.Order
	ledger     list[cluster.Attempt]
	tombstones list[cluster.Tombstone]
	releases   list[cluster.Release]
	renewals   list[cluster.RenewalInfo]

	revocations list[cluster.Revocation]
}

func (h held) records() cluster.Records {
	return cluster.Records{Accounts: h.accounts, Orders: h.orders, Ledger: h.ledger.items, Tombstones: h.tombstones.items,
		Releases: h.releases.items, Renewals: h.renewals.items, Revocations: h.revocations.items}
}

func (s *Store) readRecords(ctx context.Context) (held, []finding, error) {
	accounts, found, err := readFolder(ctx, s, accountsName, accountFile)
	if err != nil {
		return held{}, found, err
	}
	orders, f, err := readFolder(ctx, s, ordersName, orderFile)
	found = append(found, f...)
	if err != nil {
		return held{}, found, err
	}
	h, f, err := s.readLists(ctx)
	h.accounts, h.orders = accounts, orders
	return h, append(found, f...), err
}

// readLists reads the files that hold a list.
func (s *Store) readLists(ctx context.Context) (h held, found []finding, err error) {
	steps := []func() ([]finding, error){
		func() (f []finding, err error) {
			h.ledger, f, err = readList[cluster.Attempt](s, ledgerName)
			return f, err
		},
		func() (f []finding, err error) {
			h.tombstones, f, err = readList[cluster.Tombstone](s, tombstonesName)
			return f, err
		},
		func() (f []finding, err error) {
			h.releases, f, err = readList[cluster.Release](s, releasesName)
			return f, err
		},
		func() (f []finding, err error) {
			h.renewals, f, err = readList[cluster.RenewalInfo](s, renewalsName)
			return f, err
		},
		func() (f []finding, err error) {
			h.revocations, f, err = readList[cluster.Revocation](s, revocationsName)
			return f, err
		},
	}
	for _, step := range steps {
		f, err := step()
		found = append(found, f...)
		if err != nil {
			return held{}, found, err
		}
		if err := ctx.Err(); err != nil {
			return held{}, found, err
		}
	}
	return h, found, nil
}

// verdicts reads what decides over generations, with store.lock held.
func (s *Store) verdicts() ([]cluster.Tombstone, []cluster.Release, error) {
	tombstones, found, err := readList[cluster.Tombstone](s, tombstonesName)
	if err != nil {
		return nil, nil, err
	}
	s.moveAside(found)
	releases, found, err := readList[cluster.Release](s, releasesName)
	if err != nil {
		return nil, nil, err
	}
	s.moveAside(found)
	return tombstones.items, releases.items, nil
}

// list is a file that holds one, with its bytes as they are on disk (nil where there is no file, or a bad one).
type list[T any] struct {
	items []T
	raw   []byte
	// id is that of the file, where a change of it must show.
	id fileid.ID
}

// readList reads a file that holds a list; none where there is no such file. The ledger of 10,000 certificates takes
// long to decode and is asked for at each step, so that the last one of each name is remembered: the same file that has
// not changed, or the same bytes, are the same list.
func readList[T any](s *Store, rel string) (list[T], []finding, error) {
	s.mu.Lock()
	last, ok := s.decoded[rel].(list[T])
	s.mu.Unlock()
	if ok && !last.id.IsZero() && last.id == s.lstat(rel) {
		return last.own(), nil, nil
	}
	now := time.Now() // of the host: file systems know no other
	data, info, err := s.readFile(rel)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return list[T]{}, nil, nil
	case err != nil && badForGood(err) && info != nil:
		return list[T]{}, []finding{unreadableFile(rel, info, err)}, nil
	case err != nil:
		return list[T]{}, nil, err
	}
	if !ok || !bytes.Equal(last.raw, data) {
		items, f, err := parseRecord[[]T](s, rel, data, info)
		if err != nil {
			return list[T]{}, nil, err
		}
		if f != nil {
			return list[T]{}, []finding{*f}, nil
		}
		last = list[T]{items: items, raw: data}
	}
	if last.id = (fileid.ID{}); fileid.Of(info).Settled(now) {
		last.id = fileid.Of(info)
	}
	s.mu.Lock()
	s.decoded[rel] = last
	s.mu.Unlock()
	return last.own(), nil, nil
}

// own is the list for a caller, which may change it.
func (l list[T]) own() list[T] { return list[T]{items: slices.Clone(l.items), raw: l.raw} }

// readRecord reads one file. A bad one is a finding and no error; that of a newer certsync is cluster.ErrNewerFormat.
func readRecord[T any](s *Store, rel string) (v T, f *finding, err error) {
	data, info, err := s.readFile(rel)
	if err != nil {
		if badForGood(err) && info != nil {
			bad := unreadableFile(rel, info, err)
			return v, &bad, nil
		}
		return v, nil, err
	}
	return parseRecord[T](s, rel, data, info)
}

func parseRecord[T any](s *Store, rel string, data []byte, info fs.FileInfo) (v T, f *finding, err error) {
	v, format, err := decodeRecord[T](data)
	switch {
	case err == nil && format > Format:
		return v, nil, newer(s.path(rel), format)
	case errors.Is(err, errNewer):
		return v, nil, fmt.Errorf("read %s: %w: %w", s.path(rel), err, cluster.ErrNewerFormat)
	case err != nil:
		return v, &finding{rel: rel, info: info, kind: torn, err: err}, nil
	}
	return v, nil, nil
}

// readFolder reads a folder of one file an entry, sorted by name: those files that have changed since the last time.
// name is what an entry's file must be called.
func readFolder[T any](ctx context.Context, s *Store, folder string, name func(T) string) (list []T, found []finding, err error) {
	s.mu.Lock()
	old := s.cache.entries[folder]
	s.mu.Unlock()
	for try := 0; ; try++ {
		entries, err := os.ReadDir(s.path(folder))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, err
		}
		list, found = nil, nil
		next := make(map[string]entry, len(entries))
		vanished := false
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				return nil, nil, err
			}
			now := time.Now() // of the host: file systems know no other
			v, id, known := remembered[T](old, e)
			var f *finding
			var err error
			if !known {
				v, f, err = readEntry(s, folder, e, name)
			}
			switch {
			case errors.Is(err, fs.ErrNotExist):
				vanished = true
			case err != nil:
				return nil, nil, err
			case f != nil:
				found = append(found, *f)
			default:
				list = append(list, private(v))
				if known || id.Settled(now) {
					next[e.Name()] = entry{id, v}
				}
			}
		}
		if !vanished || try >= relists {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.cache.entries[folder] = next
			return list, found, nil
		}
	}
}

func readEntry[T any](s *Store, folder string, e fs.DirEntry, name func(T) string) (v T, f *finding, err error) {
	rel := filepath.Join(folder, e.Name())
	if !safeName(e.Name()) || !strings.HasSuffix(e.Name(), jsonSuffix) || !e.Type().IsRegular() {
		bad, ok := foreignEntry(folder, e)
		if !ok {
			return v, nil, fs.ErrNotExist
		}
		return v, &bad, nil
	}
	v, f, err = readRecord[T](s, rel)
	if err != nil || f != nil {
		return v, f, err
	}
	if name(v) != e.Name() {
		info, err := e.Info()
		if err != nil {
			return v, nil, err
		}
		return v, &finding{rel: rel, info: info, kind: foreign, err: errors.New("it holds another record than its name says")}, nil
	}
	return v, nil, nil
}

// Merge joins records into those held, by the rules of package cluster, and writes only what changed. Entries that
// cannot be kept (a name that is no file name, a key that is none, a date after this node's clock, a release that
// jumps) are told in the error; the others are durable even so. Orders are dropped when they are past
// cluster.Order.Forgotten, accounts when they are neither preferred nor needed by an order.
func (s *Store) Merge(ctx context.Context, records cluster.Records) error {
	good, refused := vet(records, s.now())
	err := s.change(ctx, "merge records", func() error {
		jumped, err := s.mergeLocked(ctx, good)
		refused = append(refused, jumped...)
		return err
	})
	if err == nil {
		err = refusal(refused)
	}
	if err != nil {
		return fmt.Errorf("merge records: %w", err)
	}
	return nil
}

// refusal is one line for the entries that were not taken.
func refusal(refused []error) error {
	switch len(refused) {
	case 0:
		return nil
	case 1:
		return refused[0]
	}
	return fmt.Errorf("%w (and %d more entries are refused)", refused[0], len(refused)-1)
}

func (s *Store) mergeLocked(ctx context.Context, in cluster.Records) (jumped []error, err error) {
	now := s.now()
	narrow := s.narrow(in, now)
	read := s.readRecords
	if narrow {
		read = func(ctx context.Context) (held, []finding, error) { return s.readTouched(ctx, in) }
	}
	have, found, err := read(ctx)
	s.moveAside(found)
	if err != nil {
		return nil, err
	}
	if in.Releases, jumped, err = s.vetReleases(have.releases.items, in.Releases); err != nil {
		return nil, err
	}
	if err := s.writeRecords(have, join(have.records(), in, now), in); err != nil {
		return jumped, err
	}
	if !narrow {
		s.swept = now
	}
	return jumped, nil
}

// narrow tells that of the orders only those in in need to be read: nothing in it can make an account preferred or no
// longer needed, and what is to be forgotten was dropped within the last sweepEvery. Such are the checkpoints of an
// order under way, of which there are many while the orders of 10,000 certificates lie there.
func (s *Store) narrow(in cluster.Records, now time.Time) bool {
	ended := slices.ContainsFunc(in.Orders, func(o cluster.Order) bool { return o.End != cluster.Open || o.Forgotten(now) })
	since := now.Sub(s.swept)
	return !ended && len(in.Accounts) == 0 && since >= 0 && since < sweepEvery
}

// readTouched is readRecords without the accounts, and of the orders with those in in only.
func (s *Store) readTouched(ctx context.Context, in cluster.Records) (h held, found []finding, err error) {
	seen := map[string]bool{}
	for _, o := range in.Orders {
		if seen[o.ID] {
			continue
		}
		seen[o.ID] = true
		have, f, err := readRecord[cluster.Order](s, filepath.Join(ordersName, orderFile(o)))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return held{}, found, err
		case f != nil:
			found = append(found, *f)
		case have.ID != o.ID:
			return s.readRecords(ctx) // which finds out what is wrong with it
		default:
			h.orders = append(h.orders, have)
		}
	}
	lists, f, err := s.readLists(ctx)
	lists.orders = h.orders
	return lists, append(found, f...), err
}

// vetReleases refuses those of generations that are too far ahead of what is held: one such would hold back every
// release to come.
func (s *Store) vetReleases(have, in []cluster.Release) (good []cluster.Release, refused []error, err error) {
	known := make(map[cluster.Release]bool, len(have))
	for _, r := range have {
		known[r] = true
	}
	for _, r := range in {
		if known[r] {
			good = append(good, r)
			continue
		}
		held, _, err := s.listSlot(r.Generation.Slot)
		if err != nil {
			return nil, nil, err
		}
		if err := cluster.CheckJump(newestOf(held), r.Generation, s.now()); err != nil {
			refused = append(refused, fmt.Errorf("release: %w", err))
			continue
		}
		good = append(good, r)
	}
	return good, refused, nil
}

// join is what have and in are together at now.
func join(have, in cluster.Records, now time.Time) cluster.Records {
	orders := slices.DeleteFunc(cluster.MergeOrders(have.Orders, in.Orders), func(o cluster.Order) bool { return o.Forgotten(now) })
	tombstones := cluster.MergeTombstones(have.Tombstones, in.Tombstones)
	return cluster.Records{
		Accounts:   neededAccounts(cluster.MergeAccounts(have.Accounts, in.Accounts), orders),
		Orders:     orders,
		Ledger:     joinLedgers(have.Ledger, in.Ledger, now),
		Tombstones: tombstones,
		Releases:   cluster.MergeReleases(cluster.SoundReleases(have.Releases, tombstones), cluster.SoundReleases(in.Releases, tombstones)),
		Renewals:   joinRenewals(have, in, now),
		Revocations: slices.DeleteFunc(cluster.MergeRevocations(have.Revocations, in.Revocations),
			func(r cluster.Revocation) bool { return r.Forgotten(now) }),
	}
}

// joinRenewals drops those of generations that expired or were revoked: a revoked one would hide that of the generation
// which is the newest then.
func joinRenewals(have, in cluster.Records, now time.Time) []cluster.RenewalInfo {
	revoked := map[cert.Fingerprint]bool{}
	for _, t := range slices.Concat(have.Tombstones, in.Tombstones) {
		revoked[t.Fingerprint] = true
	}
	drop := func(r cluster.RenewalInfo) bool { return r.Forgotten(now) || revoked[r.Generation.Fingerprint] }
	mine, theirs := slices.Clone(have.Renewals), slices.Clone(in.Renewals)
	if len(in.Renewals) == 0 && !slices.ContainsFunc(mine, drop) {
		return mine // most changes are an order's
	}
	return cluster.MergeRenewals(slices.DeleteFunc(mine, drop), slices.DeleteFunc(theirs, drop))
}

// joinLedgers spares the work where there is nothing to join and nothing to drop: most changes are an order's.
func joinLedgers(have, in []cluster.Attempt, now time.Time) []cluster.Attempt {
	if len(in) == 0 && (len(have) == 0 || now.Sub(have[0].Time) <= cluster.KeepAttempts) { // sorted by time
		return have
	}
	return cluster.MergeLedger(have, in, now)
}

// neededAccounts are those that are preferred for their directory, and those whose key an order needs.
func neededAccounts(all []cluster.Account, orders []cluster.Order) []cluster.Account {
	type id struct{ directory, thumbprint string }
	needed := map[id]bool{}
	for _, o := range orders {
		if o.NeedsAccount() {
			needed[id{o.Directory, o.Account}] = true
		}
	}
	for _, a := range all {
		if best, ok := cluster.PreferredAccount(all, a.Directory); ok {
			needed[id{best.Directory, best.Thumbprint}] = true
		}
	}
	return slices.DeleteFunc(all, func(a cluster.Account) bool { return !needed[id{a.Directory, a.Thumbprint}] })
}

// writeRecords writes where want differs from have, in the order in which one thing needs the other: revocations at
// once, accounts before the orders that name them. What in touches is synced even where it changes nothing: whoever
// wrote it may have been killed before it was durable.
func (s *Store) writeRecords(have held, want, in cluster.Records) error {
	if err := writeList(s, tombstonesName, have.tombstones, want.Tombstones, len(in.Tombstones) > 0); err != nil {
		return err
	}
	if err := writeList(s, revocationsName, have.revocations, want.Revocations, len(in.Revocations) > 0); err != nil {
		return err
	}
	if err := writeFolder(s, accountsName, have.accounts, want.Accounts, accountFile, len(in.Accounts) > 0); err != nil {
		return err
	}
	if err := writeList(s, ledgerName, have.ledger, want.Ledger, len(in.Ledger) > 0); err != nil {
		return err
	}
	if err := writeFolder(s, ordersName, have.orders, want.Orders, orderFile, len(in.Orders) > 0); err != nil {
		return err
	}
	if err := writeList(s, releasesName, have.releases, want.Releases, len(in.Releases) > 0); err != nil {
		return err
	}
	return writeList(s, renewalsName, have.renewals, want.Renewals, len(in.Renewals) > 0)
}

func writeList[T any](s *Store, rel string, have list[T], want []T, touched bool) error {
	if !touched && len(have.items) == len(want) {
		return nil // without an input a merge only drops
	}
	data, err := encodeRecord(want)
	if err != nil {
		return err
	}
	if !bytes.Equal(have.raw, data) && (have.raw != nil || len(want) > 0) {
		if err := s.writeFile(rel, data); err != nil {
			return err
		}
	}
	return s.syncFolder(".")
}

func writeFolder[T any](s *Store, folder string, have, want []T, name func(T) string, touched bool) error {
	old := map[string][]byte{}
	for _, v := range have {
		data, err := encodeRecord(v)
		if err != nil {
			return err
		}
		old[name(v)] = data
	}
	for _, v := range want {
		data, err := encodeRecord(v)
		if err != nil {
			return err
		}
		if !bytes.Equal(old[name(v)], data) {
			touched = true
			if err := s.writeFile(filepath.Join(folder, name(v)), data); err != nil {
				return err
			}
		}
		delete(old, name(v))
	}
	for file := range old {
		touched = true
		if err := s.removeFile(filepath.Join(folder, file)); err != nil {
			return err
		}
	}
	if touched {
		return s.syncFolder(folder)
	}
	return nil
}
