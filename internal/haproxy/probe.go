package haproxy

import (
	"context"
	"crypto/sha1" //nolint:gosec // as in package cert: a name for a certificate, which nothing trusts
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
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

// handshake proves or disproves that v's bundle is served: a fresh handshake with every spot, for every name of the
// certificate that it has. All must show the leaf; what cannot be tried proves nothing and disproves nothing.
func (s *survey) handshake(ctx context.Context, v *view) {
	v.placement.Served, v.placement.Proof = cluster.Sighting{}, cluster.NoProof
	spots, why, mend := s.spots(ctx, v)
	if v.placement.Error == "" {
		v.placement.Hint = "" // that of an earlier handshake
	}
	if len(spots) == 0 {
		v.unproven(why, mend)
		return
	}
	names := v.probeNames()
	if len(names) == 0 {
		v.unproven("the certificate has none of the configured domains to ask for", "")
		return
	}
	var notes []string
	asked := false
	for _, at := range spots {
		for _, name := range at.names(names) {
			asked = true
			seen, proof, err := s.probe(ctx, at.endpoint, name, v)
			if at.maybe && proof != cluster.Proven {
				if !isDial(err) {
					notes = append(notes, fmt.Sprintf("%s, which may be another bind (it stands in a conditional block)", seen.Note))
				}
				continue
			}
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
	switch {
	case len(notes) > 0:
		// One address that could not be tried leaves the whole unproven: promise 5 is of every bind that was named.
		v.unproven(notes[0], "")
	case !asked:
		v.unproven("the crt-list's filters leave none of its names to ask for", "")
	case v.placement.Proof != cluster.Proven && !v.Wanted().IsZero():
		v.unproven("no bind that may serve it answers", "")
	}
}

// unproven says why nothing is proven; what was seen stays.
func (v *view) unproven(why, mend string) {
	v.placement.Proof, v.placement.Served.Note = cluster.NoProof, "unproven: "+why
	if v.placement.Error == "" {
		v.placement.Hint = mend
	}
}

// names are those to ask a spot for: of a line with filters in a crt-list, the names that it has the certificate for.
func (at *spot) names(all []string) []string {
	excluded := func(name string) bool {
		return slices.ContainsFunc(at.filters, func(f string) bool { return strings.EqualFold(f, "!"+name) })
	}
	if at.all {
		return slices.DeleteFunc(slices.Clone(all), excluded)
	}
	var names []string
	for _, f := range at.filters {
		name := probeName(f)
		if !strings.HasPrefix(f, "!") && !excluded(name) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// probeName is the name to ask for a domain: one below it where it is a wildcard.
func probeName(domain string) string {
	domain = strings.ToLower(domain)
	if rest, ok := strings.CutPrefix(domain, "*."); ok {
		return probeLabel + "." + rest
	}
	return domain
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
		d = probeName(d)
		if v.Bundle == nil || v.Bundle.Leaf().VerifyHostname(d) == nil {
			names = append(names, d)
		}
	}
	return names
}

// probe is one handshake and what it says of v's bundle; err is why none took place.
func (s *survey) probe(ctx context.Context, e endpoint, name string, v *view) (cluster.Sighting, cluster.Proof, error) {
	leaf, err := s.leaf(ctx, e, name, v.Slot.Algorithm)
	switch {
	case isDial(err), errors.Is(err, cluster.ErrUnproven), err != nil && ctx.Err() != nil:
		return cluster.Sighting{Note: fmt.Sprintf("%s for %s: %v", e, name, err)}, cluster.NoProof, err
	case err != nil && e.guarded && !isAlert(err, ""):
		// Closed without a word of TLS: by a rule, for all that is known.
		return cluster.Sighting{Note: fmt.Sprintf("%s for %s: %v (the section's tcp-request rules may refuse this node)", e, name, err)}, cluster.NoProof, err
	case err != nil:
		return cluster.Sighting{Note: fmt.Sprintf("%s for %s: %v", e, name, err)}, cluster.Disproven, err
	}
	seen := cluster.Sighting{Fingerprint: sha256.Sum256(leaf.Raw), NotBefore: leaf.NotBefore.UTC(), NotAfter: leaf.NotAfter.UTC(), Seen: s.p.config.Now().UTC(),
		SHA1: fmt.Sprintf("%X", sha1.Sum(leaf.Raw))} //nolint:gosec // see the import
	switch want := v.Wanted(); {
	case want.IsZero():
		return seen, cluster.NoProof, nil
	case seen.Fingerprint == want.Fingerprint:
		return seen, cluster.Proven, nil
	}
	seen.Note = fmt.Sprintf("%s shows %s for %s, not %s", e, cert.Describe(leaf), name, v.describe())
	return seen, cluster.Disproven, nil
}

// isDial tells whether nobody could be asked.
func isDial(err error) bool {
	var dial *dialError
	return errors.As(err, &dial)
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

// proxyHeader is a PROXY header of version 2 with the command LOCAL (proxy-protocol.txt section 2.2): the connection is
// its maker's own, as a health check is, and has no other addresses than its own. PROXY would need addresses to claim, and
// rules on the source would believe them.
var proxyHeader = []byte("\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00")

// shake makes one handshake. Nothing is trusted and nothing resumed: a resumed session would show the old leaf.
func (s *survey) shake(ctx context.Context, e endpoint, name string, c *tls.Config) (*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, s.p.config.ProbeTimeout)
	defer cancel()
	conn, err := s.connect(ctx, e)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	// A bind that wants a client's certificate (verify required) shows its own and then ends the handshake: in TLS 1.2
	// what it signed has been checked by the time that a certificate is asked for.
	var shown []*x509.Certificate
	wanted := false
	c.VerifyConnection = func(state tls.ConnectionState) error {
		shown = state.PeerCertificates
		return nil
	}
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		wanted = true
		return &tls.Certificate{}, nil
	}
	c.ServerName, c.InsecureSkipVerify, c.SessionTicketsDisabled, c.ClientSessionCache = name, true, true, nil //nolint:gosec // the fingerprint is what is compared
	err = tls.Client(conn, c).HandshakeContext(ctx)
	switch {
	case err != nil && wanted && ctx.Err() == nil && len(shown) > 0:
		return shown[0], nil
	case err != nil && isAlert(err, "unrecognized name"):
		return nil, fmt.Errorf("handshake: the bind has no certificate for this name: %w", err)
	case err != nil:
		err = fmt.Errorf("handshake: %w", err)
		if s.brief && ctx.Err() != nil {
			s.dead.add(e, err)
		}
		return nil, err
	case len(shown) == 0:
		return nil, errors.New("handshake: no certificate was shown")
	}
	return shown[0], nil
}

// connect dials, and sends the PROXY header where one is expected.
func (s *survey) connect(ctx context.Context, e endpoint) (net.Conn, error) {
	if e.virtual && !s.p.isMaster() {
		return nil, &dialError{errors.New("a virtual address proves nothing here: this node is not MASTER any more")}
	}
	conn, err := s.p.config.Dial(ctx, e.network, e.address)
	if err != nil {
		if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
			s.dead.add(e, &dialError{err})
		}
		return nil, &dialError{err}
	}
	if !e.proxy {
		return conn, nil
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if _, err := conn.Write(proxyHeader); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("send the PROXY header: %w", err)
	}
	return conn, nil
}
