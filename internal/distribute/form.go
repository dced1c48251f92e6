package distribute

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"unicode"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// nameForm is that of names that may become file names: certificates, nodes, IDs, thumbprints.
var nameForm = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,252}$`)

// Lengths in bytes of single fields.
const (
	maxURL    = 2 << 10
	maxDomain = 253
	maxSecret = 64 << 10
)

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrForm}, args...)...)
}

func checkName(what, name string) error {
	if !nameForm.MatchString(name) {
		return malformed("%s %.40q: want letters, digits, dot, hyphen, underscore, no leading dot", what, name)
	}
	return nil
}

func checkSlot(s cert.Slot) error {
	if err := checkName("certificate", s.Name); err != nil {
		return err
	}
	if s.Algorithm != cert.ECDSA && s.Algorithm != cert.RSA {
		return malformed("certificate %s: algorithm %.20q", s.Name, string(s.Algorithm))
	}
	return nil
}

func checkGeneration(g cert.Generation) error {
	if err := checkSlot(g.Slot); err != nil {
		return err
	}
	switch {
	case g.Fingerprint.IsZero():
		return malformed("generation of %s: no fingerprint", g.Slot)
	case !g.NotBefore.Before(g.NotAfter):
		return malformed("generation %s of %s: it ends before it begins", g.Fingerprint.Short(), g.Slot)
	}
	return nil
}

// checkKept holds a bundle against what it is said to be.
func checkKept(k cluster.Kept) error {
	if k.Bundle == nil {
		return malformed("generation %s of %s: no bundle", k.Generation.Fingerprint.Short(), k.Generation.Slot)
	}
	if err := checkGeneration(k.Generation); err != nil {
		return err
	}
	have, said := k.Bundle.Generation(k.Generation.Name, k.Generation.Sequence), k.Generation
	switch {
	case have.Fingerprint != said.Fingerprint:
		return malformed("generation %s of %s: its bundle has fingerprint %s", said.Fingerprint.Short(), said.Slot, have.Fingerprint.Short())
	case have.Algorithm != said.Algorithm:
		return malformed("generation %s of %s: its bundle's key is %s", said.Fingerprint.Short(), said.Slot, k.Bundle.KeyType())
	case !have.NotBefore.Equal(said.NotBefore) || !have.NotAfter.Equal(said.NotAfter):
		return malformed("generation %s of %s: its bundle has other dates", said.Fingerprint.Short(), said.Slot)
	}
	return nil
}

// checkText refuses what could not stand on one line of a report.
func checkText(what, text string, limit int) error {
	if len(text) > limit {
		return malformed("%s: %d bytes, at most %d", what, len(text), limit)
	}
	for _, r := range text {
		if unicode.IsControl(r) {
			return malformed("%s %.40q: control characters", what, text)
		}
	}
	return nil
}

func checkURL(what, text string, optional bool) error {
	if text == "" && optional {
		return nil
	}
	if err := checkText(what, text, maxURL); err != nil {
		return err
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return malformed("%s %.80q: not an http or https URL", what, text)
	}
	return nil
}

func checkDomains(domains []string) error {
	for _, d := range domains {
		if d == "" {
			return malformed("domain: empty")
		}
		if err := checkText("domain", d, maxDomain); err != nil {
			return err
		}
	}
	return nil
}

// checkSecret wants one private key. Its errors never quote it.
func checkSecret(what string, s cluster.Secret) error {
	if len(s) > maxSecret {
		return malformed("key of %s: %d bytes, at most %d", what, len(s), maxSecret)
	}
	if _, err := cert.ParseKey(s); err != nil {
		return malformed("key of %s: %w", what, err)
	}
	return nil
}

func checkAccount(a cluster.Account) error {
	if err := checkName("account", a.Thumbprint); err != nil {
		return err
	}
	return firstError(
		checkURL("directory", a.Directory, false),
		checkURL("account URL", a.URL, true),
		checkText("account email", a.Email, maxURL),
		checkSecret("account "+a.Thumbprint, a.Key),
	)
}

func checkOrder(o cluster.Order) error {
	if err := checkName("order", o.ID); err != nil {
		return err
	}
	err := firstError(
		checkSlot(o.Slot), checkName("node of the order", o.Node), checkName("account of the order", o.Account),
		checkURL("directory", o.Directory, false), checkURL("order URL", o.URL, true), checkDomains(o.Domains),
		checkText("profile", o.Profile, maxText), checkText("replaces", o.Replaces, maxText), checkText("problem", o.Problem, maxText),
		checkEnd(o.End),
	)
	if err == nil && (len(o.Domains) == 0 || o.KeyType.Algorithm() != o.Slot.Algorithm) {
		err = malformed("no domains, or key type %.20q for %s", string(o.KeyType), o.Slot)
	}
	for _, r := range o.Records {
		err = firstError(err, checkText("TXT domain", r.Domain, maxDomain), checkText("TXT token", r.Token, maxText),
			checkText("TXT name", r.FQDN, maxDomain+1), checkText("TXT value", r.Value, maxText))
	}
	// An order that ended needs no key any more.
	if err == nil && (o.End == cluster.Open || len(o.Key) > 0) {
		err = checkSecret("the order", o.Key)
	}
	if err != nil {
		return fmt.Errorf("order %s: %w", o.ID, err)
	}
	return nil
}

func checkAttempt(a cluster.Attempt) error {
	if err := firstError(checkName("attempt", a.ID), checkName("node of the attempt", a.Node)); err != nil {
		return err
	}
	err := firstError(
		checkSlot(a.Slot), checkURL("directory", a.Directory, false), checkDomains(a.Domains),
		checkText("order", a.Order, maxDomain), checkText("profile", a.Profile, maxText), checkText("problem", a.Problem, maxText), checkEnd(a.End),
		checkText("renews", string(a.Renews), maxDomain),
	)
	if err != nil {
		return fmt.Errorf("attempt %s: %w", a.ID, err)
	}
	return nil
}

func checkEnd(e cluster.End) error {
	switch e {
	case cluster.Open, cluster.Issued, cluster.Failed, cluster.Canceled:
		return nil
	}
	return malformed("end %.20q", string(e))
}

func checkTombstone(t cluster.Tombstone) error {
	if t.Fingerprint.IsZero() {
		return malformed("tombstone: no fingerprint")
	}
	return firstError(checkName("name of the tombstone", t.Name), checkText("reason of the tombstone", t.Reason, maxText))
}

func checkRelease(r cluster.Release) error {
	return firstError(checkGeneration(r.Generation), checkName("node of the release", r.Node))
}

func checkRenewal(r cluster.RenewalInfo) error {
	err := firstError(
		checkGeneration(r.Generation), checkName("node of the renewal information", r.Node), checkText("certificate ID", r.CertID, maxText),
		checkURL("directory", r.Directory, false), checkURL("explanation URL", r.Explanation, true), checkText("problem", r.Problem, maxText),
	)
	if err != nil {
		return fmt.Errorf("renewal information of %.300q: %w", r.Generation.Slot.String(), err)
	}
	return nil
}

func checkRevocation(r cluster.Revocation) error {
	err := firstError(
		checkGeneration(r.Generation), checkName("node of the revocation", r.Node), checkName("reason of the revocation", string(r.Reason)),
		checkURL("directory", r.Directory, false), checkText("end of the revocation", string(r.End), maxDomain),
		checkText("problem", r.Problem, maxText),
	)
	if err == nil && r.Tries < 0 {
		err = malformed("%d tries", r.Tries)
	}
	if err != nil {
		return fmt.Errorf("revocation in %.300q: %w", r.Generation.Slot.String(), err)
	}
	return nil
}

// maxAddresses is how many addresses one vhid may have here; more do not fit in an advertisement that anybody sends.
const maxAddresses = 1000

func checkVHID(v cluster.VHID) error {
	switch {
	case v.ID < 1 || v.ID > 255:
		return malformed("vhid %d", v.ID)
	case v.AdvBase < 0 || v.AdvBase > 255 || v.AdvSkew != nil && (*v.AdvSkew < 0 || *v.AdvSkew > 255):
		return malformed("vhid %d: advbase or advskew", v.ID)
	case len(v.Addresses) > maxAddresses:
		return malformed("vhid %d: %d addresses, at most %d", v.ID, len(v.Addresses), maxAddresses)
	case slices.ContainsFunc(v.Addresses, func(p netip.Prefix) bool { return !p.IsValid() || p.Addr().Zone() != "" }):
		return malformed("vhid %d: an address that is none", v.ID)
	}
	return nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
