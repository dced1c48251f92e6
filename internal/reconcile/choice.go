package reconcile

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// leastDigits is how many digits of a fingerprint name a generation.
const leastDigits = 4

// Choice names generations that are held of a certificate, as a person does.
type Choice struct {
	// Name is the certificate's.
	Name string
	// Algorithm is that of the one slot that is meant; "" means all of the certificate.
	Algorithm cert.Algorithm
	// Generation is a sequence, or the first digits of a fingerprint, at least four; "" where the command chooses.
	Generation string
}

// matches tells whether c names g.
func (c Choice) matches(g cert.Generation) bool {
	if sequence, err := strconv.ParseUint(c.Generation, 10, 64); err == nil && sequence == g.Sequence {
		return true
	}
	return len(c.Generation) >= leastDigits && strings.HasPrefix(g.Fingerprint.String(), strings.ToLower(c.Generation))
}

// check refuses what can name no generation.
func (c Choice) check() error {
	_, err := strconv.ParseUint(c.Generation, 10, 64)
	hex := strings.Trim(strings.ToLower(c.Generation), "0123456789abcdef") == "" && len(c.Generation) >= leastDigits
	if c.Generation == "" || err == nil || hex {
		return nil
	}
	return cluster.WithHint(cluster.Usage(fmt.Errorf("generation %.80q: neither a sequence nor the first digits of a fingerprint", c.Generation)),
		"give the number, or at least %d digits of the fingerprint, as certsync rollback %s --list shows them", leastDigits, c.Name)
}

// slots are those of a certificate that c means: of the configuration, or, where held has any, of what is only held.
func (s Settings) slots(c Choice, held []cert.Generation) ([]cert.Slot, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	configured, ok := s.certificate(c.Name)
	slots := configured.Slots()
	for _, g := range held {
		if g.Name == c.Name && !slices.Contains(slots, g.Slot) {
			slots = append(slots, g.Slot)
		}
	}
	if !ok && len(slots) == 0 {
		return nil, s.unknownName(c.Name)
	}
	slots = slices.DeleteFunc(slots, func(slot cert.Slot) bool { return c.Algorithm != "" && slot.Algorithm != c.Algorithm })
	if len(slots) == 0 {
		return nil, cluster.WithHint(cluster.Usage(fmt.Errorf("certificate %s: it has no key type of %s", c.Name, c.Algorithm)),
			"leave --key-type away, or see certsync rollback %s --list", c.Name)
	}
	return slots, nil
}

// shelf is what is held of one slot, and what is known of it.
type shelf struct {
	slot cert.Slot
	// held is sorted from the oldest to the newest; newest is the last that has no tombstone.
	held   []cert.Generation
	newest cert.Generation
	// released is what was released last, unless it was revoked since.
	released cert.Generation
	// tombs have a tombstone, condemned are to be revoked.
	tombs, condemned map[cert.Fingerprint]bool
	revocations      []cluster.Revocation
}

func (n *Node) shelf(slot cert.Slot, held []cert.Generation, records cluster.Records) shelf {
	s := shelf{slot: slot, released: releasedBySlot(records)[slot], tombs: revokedSet(records.Tombstones), condemned: map[cert.Fingerprint]bool{}}
	s.held = slices.DeleteFunc(slices.Clone(held), func(g cert.Generation) bool { return g.Slot != slot })
	slices.SortFunc(s.held, cert.Generation.Compare)
	s.newest = cluster.Newest(s.held, records.Tombstones, slot)
	for _, r := range records.Revocations {
		if r.Generation.Slot == slot {
			s.revocations = append(s.revocations, r)
			s.condemned[r.Generation.Fingerprint] = r.Open(n.Now())
		}
	}
	return s
}

// find is the generation that c names, zero where none is held. Of a bundle that is held more than once, as after a
// rollback, it is the latest. More than one bundle is an error of usage.
func (s shelf) find(c Choice) (cert.Generation, error) {
	var found []cert.Generation
	for _, g := range slices.Backward(s.held) {
		if c.matches(g) && !slices.ContainsFunc(found, func(f cert.Generation) bool { return f.Fingerprint == g.Fingerprint }) {
			found = append(found, g)
		}
	}
	switch len(found) {
	case 0:
		return cert.Generation{}, nil
	case 1:
		return found[0], nil
	}
	return cert.Generation{}, cluster.WithHint(cluster.Usage(fmt.Errorf("generation %s of %s: it may be any of %s", c.Generation, s.slot, listed(found))),
		"give more digits of the fingerprint")
}

// unknown is the error of a generation that is not held in any of the slots.
func unknown(c Choice, shelves []shelf) error {
	var held []string
	for _, s := range shelves {
		held = append(held, fmt.Sprintf("%s: %s", s.slot, listed(s.held)))
	}
	return cluster.WithHint(cluster.Usage(fmt.Errorf("generation %s of %s: not held here", c.Generation, c.Name)),
		"held are %s", strings.Join(held, "; "))
}

// listed names generations for a person.
func listed(generations []cert.Generation) string {
	var out []string
	for _, g := range generations {
		out = append(out, fmt.Sprintf("%d (%s)", g.Sequence, g.Fingerprint.Short()))
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}

// Shelved is a generation that this node holds, and what there is to say of it.
type Shelved struct {
	Generation cert.Generation `json:"generation"`
	// Current tells that it is the newest, and so the one that is to be in service; Released that a MASTER let it be
	// activated last.
	Current  bool `json:"current"`
	Released bool `json:"released"`
	// Revoked tells that it has a tombstone, ToBeRevoked that its revocation was asked for and has not come to that.
	Revoked     bool `json:"revoked"`
	ToBeRevoked bool `json:"to_be_revoked"`
	Expired     bool `json:"expired"`
}

// Held tells what this node holds of a certificate, by slot, from the newest to the oldest. It changes nothing, and any node
// may be asked.
func (n *Node) Held(ctx context.Context, c Choice) ([]Shelved, error) {
	held, records, err := n.heldAndRecords(ctx)
	if err != nil {
		return nil, err
	}
	slots, err := n.Settings.slots(c, held)
	if err != nil {
		return nil, err
	}
	var out []Shelved
	for _, slot := range slots {
		s := n.shelf(slot, held, records)
		for _, g := range slices.Backward(s.held) {
			out = append(out, Shelved{Generation: g, Current: same(g, s.newest), Released: same(g, s.released), Revoked: s.tombs[g.Fingerprint],
				ToBeRevoked: s.condemned[g.Fingerprint] && !s.tombs[g.Fingerprint], Expired: !n.Now().Before(g.NotAfter)})
		}
	}
	return out, nil
}
