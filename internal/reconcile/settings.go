package reconcile

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// Settings are the parts of the configuration that the flow needs.
type Settings struct {
	// Node is this node's name.
	Node string
	// Place is this node's place among the nodes of the configuration, from 0.
	Place int
	// Version is certsync's, for inventories and status.
	Version string
	// Digest is the configuration's, over what both nodes must agree on.
	Digest       string
	Certificates []Certificate
	// Email is the account's contact; "" for none.
	Email string
	// Concurrency bounds how many certificates are obtained at once.
	Concurrency int
	// Roots are what chains must lead to; nil means the system's.
	Roots *x509.CertPool
}

// Certificate is one entry of the configuration.
type Certificate struct {
	Name string
	// Domains are normal (cert.NormalDomains).
	Domains []string
	// KeyTypes has at most one of each family.
	KeyTypes []cert.KeyType
	// Profile is the ACME profile, "" for the CA's default.
	Profile string
	// Path is the bundle's own path, "" for the bundle folder.
	Path string
}

// Slots are the certificate's, one for each key type.
func (c Certificate) Slots() []cert.Slot {
	var slots []cert.Slot
	for _, k := range c.KeyTypes {
		slots = append(slots, cert.Slot{Name: c.Name, Algorithm: k.Algorithm()})
	}
	return slots
}

func (c Certificate) keyType(a cert.Algorithm) cert.KeyType {
	for _, k := range c.KeyTypes {
		if k.Algorithm() == a {
			return k
		}
	}
	return ""
}

func (s Settings) certificate(name string) (Certificate, bool) {
	i := slices.IndexFunc(s.Certificates, func(c Certificate) bool { return c.Name == name })
	if i < 0 {
		return Certificate{}, false
	}
	return s.Certificates[i], true
}

// errNotConfigured is the error of a slot that a peer offers and this node's configuration does not want.
func errNotConfigured(slot cert.Slot) error {
	return cluster.WithHint(fmt.Errorf("%s: not in this node's configuration", slot), "make the configuration the same on every node")
}

func (s Settings) unknownName(name string) error {
	var names []string
	for _, c := range s.Certificates {
		names = append(names, c.Name)
	}
	return cluster.WithHint(cluster.Usage(fmt.Errorf("certificate %q: not in the configuration", name)),
		"use one of: %s", strings.Join(names, ", "))
}
