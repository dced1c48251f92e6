package cluster

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"certsync/internal/cert"
)

// Step is how far an order got. Steps only advance. A step is recorded before the work that it names is begun, so that
// whoever takes the order up knows what may already have happened at the CA.
type Step int

// The steps of an order (RFC 8555 section 7.1.6 gives the CA's view of the same).
const (
	// StepPlanned: the key exists; newOrder may have been sent, its URL is not known.
	StepPlanned Step = iota + 1
	// StepOrdered: the order's URL is known.
	StepOrdered
	// StepPresenting: TXT values (Records) are being published and challenges answered.
	StepPresenting
	// StepFinalizing: every authorization is valid; the CSR may have been sent.
	StepFinalizing
	// StepDownloading: the CA has issued; the certificate is to be fetched.
	StepDownloading
)

var stepNames = map[Step]string{StepPlanned: "planned", StepOrdered: "ordered", StepPresenting: "presenting",
	StepFinalizing: "finalizing", StepDownloading: "downloading"}

// String is the step's name in logs and JSON.
func (s Step) String() string {
	if n, ok := stepNames[s]; ok {
		return n
	}
	return fmt.Sprintf("step(%d)", int(s))
}

// MarshalText implements encoding.TextMarshaler.
func (s Step) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *Step) UnmarshalText(text []byte) error {
	for step, name := range stepNames {
		if name == string(text) {
			*s = step
			return nil
		}
	}
	return fmt.Errorf("step %.20q is not known", text)
}

// Steps lists all steps in order.
func Steps() []Step {
	return []Step{StepPlanned, StepOrdered, StepPresenting, StepFinalizing, StepDownloading}
}

// Record is one TXT value that an order published, kept so that it can be removed, value by value, by whoever drives
// the order. Domain and Token are what lego's providers take; the key authorization follows from the account's key.
type Record struct {
	// Domain is the authorization's identifier, without "*.".
	Domain string `json:"domain"`
	Token  string `json:"token"`
	// FQDN is the name that holds the value, after CNAMEs; informative.
	FQDN string `json:"fqdn,omitempty"`
	// Value is the TXT value.
	Value string `json:"value"`
	// Round counts how often the value was published again after its removal: an order that was cancelled and taken up
	// again has the same token. Removed speaks of the last round.
	Round int `json:"round,omitempty"`
	// Removed tells that the value was cleaned up.
	Removed bool `json:"removed,omitempty"`
}

// End is how an order or an attempt ended; "" while it is open.
type End string

// The ends.
const (
	Open End = ""
	// Issued: the certificate was downloaded and kept.
	Issued End = "issued"
	// Failed: the CA or the DNS provider refused; the order cannot be taken up again.
	Failed End = "failed"
	// Canceled: given up by us (a demotion, a signal, no longer configured); an order then stays open, an attempt ends.
	Canceled End = "canceled"
)

// Order is an ACME order under way (RFC 8555 section 7.1.3), with all that another node needs to take it up.
type Order struct {
	// ID is random, made when the order is planned.
	ID   string    `json:"id"`
	Slot cert.Slot `json:"slot"`
	// Domains are the identifiers, lower-case and sorted (cert.NormalDomains).
	Domains   []string     `json:"domains"`
	KeyType   cert.KeyType `json:"key_type"`
	Profile   string       `json:"profile,omitempty"`
	Directory string       `json:"directory"`
	// Account is the thumbprint of the account that the order belongs to.
	Account string `json:"account"`
	// Key is the certificate's private key, PEM (PKCS#8). A CSR of this key, and of no other, goes to URL.
	Key Secret `json:"key"`
	// Replaces is the ARI certificate identifier (RFC 9773 section 4.1) sent as "replaces", or "".
	Replaces string `json:"replaces,omitempty"`
	// URL is the order's at the CA; "" before StepOrdered.
	URL     string   `json:"url,omitempty"`
	Step    Step     `json:"step"`
	Records []Record `json:"records,omitempty"`
	// Node drives the order now.
	Node    string    `json:"node"`
	Created time.Time `json:"created"`
	// Expires is the CA's "expires", or Created + 7 days before it is known.
	Expires time.Time `json:"expires"`
	End     End       `json:"end,omitempty"`
	// Problem is why it failed.
	Problem string `json:"problem,omitempty"`
}

// Identifiers is the set of names as one comparable string: one order at a time is open for one set, account and
// directory, because a CA hands the same pending order out again.
func (o Order) Identifiers() string { return identifiers(o.Domains) }

func identifiers(domains []string) string {
	out := ""
	for _, d := range cert.NormalDomains(domains) {
		out += d + " "
	}
	return out
}

// Lapsed tells that the order is over at now: ended, or past its expiry.
func (o Order) Lapsed(now time.Time) bool { return o.End != Open || now.After(o.Expires) }

// KeepOrders is how long an order is remembered past its expiry, so that a node whose clock is behind does not take it
// for a new one.
const KeepOrders = 24 * time.Hour

// MaxOrderLife is the longest that an order counts from its creation, whatever it says of its expiry. (Let's Encrypt
// gives seven days.)
const MaxOrderLife = 90 * 24 * time.Hour

// Forgotten tells that the order may be dropped at now. Ended orders stay as long as open ones: dropped earlier, one
// would come to life again by the copy of a peer that never heard of its end.
func (o Order) Forgotten(now time.Time) bool {
	expires := o.Expires
	if latest := o.Created.Add(MaxOrderLife); expires.After(latest) {
		expires = latest
	}
	return now.After(expires.Add(KeepOrders))
}

// NeedsAccount tells that the account's key is needed for the order still: to go on with it, or to remove what it left
// in the DNS.
func (o Order) NeedsAccount() bool {
	return o.End == Open || slices.ContainsFunc(o.Records, func(r Record) bool { return !r.Removed })
}

// MergeOrder joins two records of the same ID. Ended wins over open, and Issued over the other ends; the later step
// wins, with the node, the URL and all the rest of the record that got there; TXT records are joined, and one that is
// removed anywhere is removed; the later expiry stays. Each of these four is a maximum by a total order over its own
// fields, and so the whole is commutative, associative and idempotent.
func MergeOrder(a, b Order) Order {
	win, end := a, a
	if compareProgress(b, a) > 0 {
		win = b
	}
	if compareEnds(b, a) > 0 {
		end = b
	}
	win.End, win.Problem = end.End, end.Problem
	win.Records = mergeRecords(a.Records, b.Records)
	win.Expires = utc(later(a.Expires, b.Expires))
	win.Created = utc(win.Created)
	return win
}

func compareEnds(a, b Order) int {
	rank := func(e End) int {
		switch e {
		case Issued:
			return 2
		case Open:
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(rank(a.End), rank(b.End)), cmp.Compare(a.End, b.End), cmp.Compare(a.Problem, b.Problem))
}

// compareProgress is total over every field that MergeOrder does not join by itself.
func compareProgress(a, b Order) int {
	return cmp.Or(cmp.Compare(a.Step, b.Step), cmp.Compare(a.Node, b.Node), cmp.Compare(a.URL, b.URL),
		a.Created.Compare(b.Created), a.Slot.Compare(b.Slot), slices.Compare(a.Domains, b.Domains),
		cmp.Compare(a.KeyType, b.KeyType), cmp.Compare(a.Profile, b.Profile), cmp.Compare(a.Directory, b.Directory),
		cmp.Compare(a.Account, b.Account), bytes.Compare(a.Key, b.Key), cmp.Compare(a.Replaces, b.Replaces))
}

func mergeRecords(a, b []Record) []Record {
	type key struct{ domain, token, value string }
	all := map[key]Record{}
	for _, r := range slices.Concat(a, b) {
		k := key{r.Domain, r.Token, r.Value}
		old, ok := all[k]
		if ok {
			switch {
			case old.Round > r.Round:
				r.Round, r.Removed = old.Round, old.Removed
			case old.Round == r.Round:
				r.Removed = r.Removed || old.Removed
			}
			r.FQDN = max(r.FQDN, old.FQDN)
		}
		all[k] = r
	}
	out := make([]Record, 0, len(all))
	for _, r := range all {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Record) int {
		return cmp.Or(cmp.Compare(a.Domain, b.Domain), cmp.Compare(a.Token, b.Token), cmp.Compare(a.Value, b.Value))
	})
	if len(out) == 0 {
		return nil
	}
	return out
}

// utc is the same instant in UTC without a monotonic reading, so that two nodes' JSON of it is the same.
func utc(t time.Time) time.Time { return t.Round(0).UTC() }

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// MergeOrders joins two sets by ID, sorted by (Created, ID).
func MergeOrders(a, b []Order) []Order {
	all := map[string]Order{}
	for _, o := range slices.Concat(a, b) {
		old, ok := all[o.ID]
		if !ok {
			old = o
		}
		all[o.ID] = MergeOrder(old, o) // of one with itself: the normal form
	}
	out := make([]Order, 0, len(all))
	for _, o := range all {
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b Order) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	return out
}

// Check tells whether the key is one and of the order's type, the type of its slot's family, and the step known.
func (o Order) Check() error {
	key, err := cert.ParseKey(o.Key)
	if err != nil {
		return fmt.Errorf("order %.40q: key: %w", o.ID, err)
	}
	if have := cert.KeyTypeOf(key.Public()); have != o.KeyType {
		return fmt.Errorf("order %.40q: its key is %s, not %.20q", o.ID, have, string(o.KeyType))
	}
	if family := o.KeyType.Algorithm(); family == "" || family != o.Slot.Algorithm {
		return fmt.Errorf("order %.40q: a key of type %.20q for %.300q", o.ID, string(o.KeyType), o.Slot.String())
	}
	if !slices.Contains(Steps(), o.Step) {
		return fmt.Errorf("order %.40q: %s is not known", o.ID, o.Step)
	}
	return nil
}

// String names the order without its key.
func (o Order) String() string {
	return fmt.Sprintf("order %s for %s (%s)", o.ID, o.Slot, cmp.Or(string(o.End), o.Step.String()))
}

// Format prints String for every verb, see Account.Format.
func (o Order) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, o.String()) }

// LogValue names the order without its key: a log in JSON would otherwise show it as any other bytes.
func (o Order) LogValue() slog.Value {
	return slog.GroupValue(slog.String("id", o.ID), slog.String("slot", o.Slot.String()), slog.String("step", o.Step.String()),
		slog.String("end", string(o.End)), slog.String("node", o.Node), slog.String("url", o.URL))
}
