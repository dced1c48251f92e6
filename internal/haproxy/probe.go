package haproxy

import (
	"context"
	"crypto/sha1" //nolint:gosec // as in package cert: a name for a certificate, which nothing trusts
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// probeLabel is put below a wildcard to have a name to ask for.
const probeLabel = "certsync-probe"

// suites force a signature family, which Go's client can do in TLS 1.2 only (in 1.3 the suites name none).
var suites = map[cert.Algorithm][]uint16{
	cert.ECDSA: {tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA},
	cert.RSA: {tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA},
}

// handshake proves or disproves that v's bundle is served: a fresh handshake with every address, for every name of the
// certificate. All must show the leaf; what cannot be tried proves nothing and disproves nothing.
func (s *survey) handshake(ctx context.Context, v *view) {
	v.placement.Served, v.placement.Proof = cluster.Sighting{}, cluster.NoProof
	if len(s.p.verify) == 0 {
		v.placement.Served.Note = "unproven: set haproxy.verify to the address of an ssl bind"
		return
	}
	names := v.probeNames()
	if len(names) == 0 {
		v.placement.Served.Note = "unproven: the certificate has none of the configured domains to ask for"
		return
	}
	var notes []string
	for _, e := range s.p.verify {
		for _, name := range names {
			seen, proof := s.probe(ctx, e, name, v)
			if !seen.IsZero() || proof == cluster.Disproven {
				v.placement.Served, v.placement.Proof = seen, proof
			} else {
				notes = append(notes, seen.Note)
			}
			if proof == cluster.Disproven {
				return
			}
		}
	}
	if len(notes) > 0 {
		// One address that could not be tried leaves the whole unproven: promise 5 is of every bind that was named.
		v.placement.Proof = cluster.NoProof
		v.placement.Served.Note = "unproven: " + notes[0]
	}
}

// probeNames are the names to ask for: those of the target that its leaf has, else all that the leaf has.
func (v *view) probeNames() []string {
	if v.ask != nil {
		return v.ask
	}
	var names []string
	domains := v.Domains
	if len(domains) == 0 && v.Bundle != nil {
		domains = v.Bundle.Domains()
	}
	for _, d := range domains {
		d = strings.ToLower(d)
		if rest, ok := strings.CutPrefix(d, "*."); ok {
			d = probeLabel + "." + rest
		}
		if v.Bundle == nil || v.Bundle.Leaf().VerifyHostname(d) == nil {
			names = append(names, d)
		}
	}
	return names
}

// probe is one handshake and what it says of v's bundle.
func (s *survey) probe(ctx context.Context, e endpoint, name string, v *view) (cluster.Sighting, cluster.Proof) {
	leaf, err := s.leaf(ctx, e, name, v.Slot.Algorithm)
	var dial *dialError
	switch {
	case errors.As(err, &dial), errors.Is(err, cluster.ErrUnproven), ctx.Err() != nil:
		return cluster.Sighting{Note: fmt.Sprintf("%s for %s: %v", e, name, err)}, cluster.NoProof
	case err != nil:
		return cluster.Sighting{Note: fmt.Sprintf("%s for %s: %v", e, name, err)}, cluster.Disproven
	}
	seen := cluster.Sighting{Fingerprint: sha256.Sum256(leaf.Raw), NotBefore: leaf.NotBefore.UTC(), NotAfter: leaf.NotAfter.UTC(), Seen: s.p.config.Now().UTC(),
		SHA1: fmt.Sprintf("%X", sha1.Sum(leaf.Raw))} //nolint:gosec // see the import
	switch want := v.Wanted(); {
	case want.IsZero():
		return seen, cluster.NoProof
	case seen.Fingerprint == want.Fingerprint:
		return seen, cluster.Proven
	}
	seen.Note = fmt.Sprintf("%s shows %s for %s, not %s", e, cert.Describe(leaf), name, v.describe())
	return seen, cluster.Disproven
}

// dialError is an address that nobody could be asked at.
type dialError struct{ err error }

func (e *dialError) Error() string { return "connect: " + e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// leaf is the certificate that the address shows for name, in a handshake of the wanted family.
func (s *survey) leaf(ctx context.Context, e endpoint, name string, family cert.Algorithm) (*x509.Certificate, error) {
	if err := s.dead.of(e); err != nil {
		return nil, err
	}
	force := &tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12, CipherSuites: suites[family]}
	if suites[family] == nil {
		return s.shake(ctx, e, name, &tls.Config{})
	}
	leaf, err := s.shake(ctx, e, name, force)
	if err == nil || !isAlert(err, "protocol version", "handshake failure") {
		return leaf, err
	}
	// No TLS 1.2 there, or no certificate of this family: ask as any client would, and see what comes.
	plain, plainErr := s.shake(ctx, e, name, &tls.Config{MinVersion: tls.VersionTLS12})
	if plainErr != nil {
		return nil, plainErr
	}
	if got := familyOf(plain); got != family {
		if isAlert(err, "protocol version") {
			return nil, fmt.Errorf("%w: it shows its %s certificate, and without TLS 1.2 the %s one cannot be asked for", cluster.ErrUnproven, got, family)
		}
		return nil, fmt.Errorf("no %s certificate is served there, but %s", family, cert.Describe(plain))
	}
	return plain, nil
}

func familyOf(c *x509.Certificate) cert.Algorithm {
	if k := cert.KeyTypeOf(c.PublicKey); k.Valid() {
		return k.Algorithm()
	}
	if c.PublicKeyAlgorithm == x509.RSA {
		return cert.RSA
	}
	return cert.ECDSA
}

// isAlert tells whether the other side ended the handshake with one of these alerts (RFC 8446 section 6; crypto/tls
// keeps their type to itself).
func isAlert(err error, alerts ...string) bool {
	for _, a := range alerts {
		if strings.Contains(err.Error(), "remote error: tls: ") && strings.Contains(err.Error(), a) {
			return true
		}
	}
	return false
}

// shake makes one handshake. Nothing is trusted and nothing resumed: a resumed session would show the old leaf.
func (s *survey) shake(ctx context.Context, e endpoint, name string, c *tls.Config) (*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, s.p.config.ProbeTimeout)
	defer cancel()
	conn, err := s.p.config.Dial(ctx, e.network, e.address)
	if err != nil {
		if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
			s.dead.add(e, &dialError{err})
		}
		return nil, &dialError{err}
	}
	defer func() { _ = conn.Close() }()
	c.ServerName, c.InsecureSkipVerify, c.SessionTicketsDisabled, c.ClientSessionCache = name, true, true, nil //nolint:gosec // the fingerprint is what is compared
	client := tls.Client(conn, c)
	if err := client.HandshakeContext(ctx); err != nil {
		err = fmt.Errorf("handshake: %w", err)
		if s.brief && ctx.Err() != nil {
			s.dead.add(e, err)
		}
		return nil, err
	}
	peers := client.ConnectionState().PeerCertificates
	if len(peers) == 0 {
		return nil, errors.New("handshake: no certificate was shown")
	}
	return peers[0], nil
}
