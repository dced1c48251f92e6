package reconcile

import (
	"reflect"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// What goes through thousands of slots looks each up in one of these, made once, instead of going through all that is
// held for each.

// catalog is the configuration's certificates by name.
type catalog map[string]Certificate

func (s Settings) catalog() catalog {
	out := make(catalog, len(s.Certificates))
	for _, c := range s.Certificates {
		out[c.Name] = c
	}
	return out
}

// configured tells whether the configuration wants a slot.
func (c catalog) configured(slot cert.Slot) bool { return c[slot.Name].keyType(slot.Algorithm) != "" }

// displaced tells that a slot's name is configured, but not its algorithm: the path that its bundle had may be that of
// a slot which is.
func (c catalog) displaced(slot cert.Slot) bool {
	_, ok := c[slot.Name]
	return ok && !c.configured(slot)
}

// unconfigured are those of slots that the configuration does not want.
func (c catalog) unconfigured(slots []cert.Slot) []cert.Slot {
	var out []cert.Slot
	for _, s := range slots {
		if !c.configured(s) {
			out = append(out, s)
		}
	}
	return out
}

// generationKey is the same for two that are one generation of one slot, whatever the form of their times.
type generationKey struct {
	slot         cert.Slot
	sequence     uint64
	seconds      int64
	nanoseconds  int
	fingerprints cert.Fingerprint
}

func keyOf(g cert.Generation) generationKey {
	return generationKey{g.Slot, g.Sequence, g.NotBefore.Unix(), g.NotBefore.Nanosecond(), g.Fingerprint}
}

// generationSet is generations to be found among.
type generationSet map[generationKey]bool

func setOf(generations []cert.Generation) generationSet {
	out := make(generationSet, len(generations))
	for _, g := range generations {
		out[keyOf(g)] = true
	}
	return out
}

func (s generationSet) has(g cert.Generation) bool { return s[keyOf(g)] }

// revokedSet is the fingerprints that have a tombstone.
func revokedSet(tombstones []cluster.Tombstone) map[cert.Fingerprint]bool {
	out := make(map[cert.Fingerprint]bool, len(tombstones))
	for _, t := range tombstones {
		out[t.Fingerprint] = true
	}
	return out
}

// newestBySlot is cluster.Newest of each slot.
func newestBySlot(held []cert.Generation, tombstones []cluster.Tombstone) map[cert.Slot]cert.Generation {
	revoked := revokedSet(tombstones)
	out := make(map[cert.Slot]cert.Generation, len(held))
	for _, g := range held {
		if !revoked[g.Fingerprint] && g.Newer(out[g.Slot]) {
			out[g.Slot] = g
		}
	}
	return out
}

// bySlot is what is held of each slot.
func bySlot(held []cert.Generation) map[cert.Slot][]cert.Generation {
	out := make(map[cert.Slot][]cert.Generation, len(held))
	for _, g := range held {
		out[g.Slot] = append(out[g.Slot], g)
	}
	return out
}

// releasedBySlot is the generation of each slot that was released last, unless it was revoked since.
func releasedBySlot(records cluster.Records) map[cert.Slot]cert.Generation {
	revoked := revokedSet(records.Tombstones)
	out := make(map[cert.Slot]cert.Generation, len(records.Releases))
	for _, r := range records.Releases {
		if _, ok := out[r.Generation.Slot]; !ok && !revoked[r.Generation.Fingerprint] {
			out[r.Generation.Slot] = r.Generation
		}
	}
	return out
}

// within tells that every entry of part is in whole, as it is: a merge of it would change nothing.
func within[T any, K comparable](part, whole []T, key func(T) K) bool {
	if len(part) == 0 {
		return true
	}
	have := make(map[K]int, len(whole))
	for i, v := range whole {
		have[key(v)] = i
	}
	for _, v := range part {
		if i, ok := have[key(v)]; !ok || !reflect.DeepEqual(whole[i], v) {
			return false
		}
	}
	return true
}

// The keys by which the records of each kind are joined.
func accountKey(a cluster.Account) [2]string            { return [2]string{a.Directory, a.Thumbprint} }
func orderKey(o cluster.Order) string                   { return o.ID }
func attemptKey(a cluster.Attempt) [2]string            { return [2]string{a.Node, a.ID} }
func tombstoneKey(t cluster.Tombstone) cert.Fingerprint { return t.Fingerprint }
func releaseKey(r cluster.Release) cert.Slot            { return r.Generation.Slot }

func renewalKey(r cluster.RenewalInfo) generationKey { return keyOf(r.Generation) }

func revocationKey(r cluster.Revocation) cert.Fingerprint { return r.Generation.Fingerprint }

// nothingNew tells that theirs would change nothing of ours.
func nothingNew(theirs, ours cluster.Records) bool {
	return within(theirs.Accounts, ours.Accounts, accountKey) && within(theirs.Orders, ours.Orders, orderKey) &&
		within(theirs.Ledger, ours.Ledger, attemptKey) && within(theirs.Tombstones, ours.Tombstones, tombstoneKey) &&
		within(theirs.Releases, ours.Releases, releaseKey) && within(theirs.Renewals, ours.Renewals, renewalKey) &&
		within(theirs.Revocations, ours.Revocations, revocationKey)
}
