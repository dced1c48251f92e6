package cluster

import (
	"cmp"
	"fmt"
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

// MergeOrder joins two records of the same ID: an ended one wins, then the later step; records are joined, and one that
// is removed anywhere is removed. It is commutative, associative and idempotent.
func MergeOrder(a, b Order) Order {
	win, lose := a, b
	if compareOrders(b, a) > 0 {
		win, lose = b, a
	}
	win.Records = mergeRecords(win.Records, lose.Records)
	if win.URL == "" {
		win.URL = lose.URL
	}
	if lose.Expires.After(win.Expires) {
		win.Expires = lose.Expires
	}
	return win
}

func compareOrders(a, b Order) int {
	ended := func(o Order) int {
		switch o.End {
		case Issued:
			return 2
		case Open:
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(ended(a), ended(b)), cmp.Compare(a.Step, b.Step), cmp.Compare(a.Node, b.Node),
		cmp.Compare(a.URL, b.URL), cmp.Compare(a.Problem, b.Problem), cmp.Compare(a.End, b.End))
}

func mergeRecords(a, b []Record) []Record {
	type key struct{ domain, token, value string }
	all := map[key]Record{}
	for _, r := range slices.Concat(a, b) {
		k := key{r.Domain, r.Token, r.Value}
		old, ok := all[k]
		if ok {
			r.Removed = r.Removed || old.Removed
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

// MergeOrders joins two sets by ID, sorted by (Created, ID).
func MergeOrders(a, b []Order) []Order {
	all := map[string]Order{}
	for _, o := range slices.Concat(a, b) {
		if old, ok := all[o.ID]; ok {
			o = MergeOrder(old, o)
		}
		all[o.ID] = o
	}
	out := make([]Order, 0, len(all))
	for _, o := range all {
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b Order) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	return out
}
