package cert

import (
	"bytes"
	"crypto"
	"crypto/sha1" //nolint:gosec // HAProxy's runtime API tells certificates by their SHA-1; nothing trusts it.
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// MaxSize is the largest PEM that Parse reads, in bytes.
const MaxSize = 1 << 20

// The reasons for which a bundle is refused; errors.Is finds them under the detail.
var (
	ErrTooLarge     = errors.New("larger than 1 MiB")
	ErrJunk         = errors.New("not only PEM blocks")
	ErrNoLeaf       = errors.New("no certificate in it")
	ErrNoKey        = errors.New("no private key in it")
	ErrTwoKeys      = errors.New("more than one private key in it")
	ErrEncryptedKey = errors.New("the private key is encrypted")
	ErrKeyMismatch  = errors.New("the private key does not belong to the leaf")
	ErrChainOrder   = errors.New("chain out of order")
	ErrNames        = errors.New("wrong names")
	ErrExpired      = errors.New("expired")
	ErrNotYetValid  = errors.New("not yet valid")
	ErrUntrusted    = errors.New("chain does not lead to a trusted root")
	ErrKeyType      = errors.New("wrong key type")
)

// Bundle is a leaf, its chain and its private key, known to belong together. It is immutable. No way of printing a
// Bundle shows the key; only PEM and KeyPEM hand it out.
type Bundle struct {
	leaf  *x509.Certificate
	chain []*x509.Certificate
	// secret gives the private key, and its PKCS#8. It is a function because package fmt walks through pointers and
	// slices where it passes the methods of Bundle over (a copy, an unexported field, a verb that does not fit), but
	// never into a function.
	secret func() (crypto.Signer, []byte)
}

// New makes a bundle of a key and its certificates in order, the leaf first. It refuses what Parse refuses.
func New(key crypto.Signer, certificates ...*x509.Certificate) (*Bundle, error) {
	if len(certificates) == 0 {
		return nil, ErrNoLeaf
	}
	if key == nil {
		return nil, ErrNoKey
	}
	b := &Bundle{leaf: certificates[0], chain: slices.Clone(certificates[1:])}
	if !samePublicKey(b.leaf.PublicKey, key.Public()) {
		return nil, fmt.Errorf("leaf %s: %w", Describe(b.leaf), ErrKeyMismatch)
	}
	if b.leaf.IsCA {
		return nil, fmt.Errorf("%w: the first certificate, %s, is a CA's; the leaf comes first", ErrChainOrder, Describe(b.leaf))
	}
	if err := checkChain(certificates); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	b.secret = func() (crypto.Signer, []byte) { return key, der }
	return b, nil
}

func samePublicKey(a, b crypto.PublicKey) bool {
	eq, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && eq.Equal(b)
}

// checkChain wants each certificate signed by the next.
func checkChain(certificates []*x509.Certificate) error {
	for i := 0; i+1 < len(certificates); i++ {
		child, parent := certificates[i], certificates[i+1]
		if !bytes.Equal(child.RawIssuer, parent.RawSubject) {
			return fmt.Errorf("%w: %s was issued by %q, but is followed by %s", ErrChainOrder, Describe(child), child.Issuer, Describe(parent))
		}
		if err := child.CheckSignatureFrom(parent); err != nil {
			return fmt.Errorf("%w: %s is not signed by the certificate that follows it, %s: %w", ErrChainOrder, Describe(child), Describe(parent), err)
		}
	}
	return nil
}

// Parse reads a bundle from PEM: certificates in order, the leaf first, and one private key (PKCS#8, PKCS#1 or SEC 1)
// in any place. CRLF, blank lines and the comments that tools write between blocks are taken; DH or EC parameters and
// anything else that is not a certificate or a key is refused. The key must match the leaf and each certificate must be
// signed by the next. Names, dates and the root are Verify's. Errors never hold any of the input's bytes.
func Parse(data []byte) (*Bundle, error) {
	if len(data) > MaxSize {
		return nil, fmt.Errorf("bundle of %d bytes: %w", len(data), ErrTooLarge)
	}
	var certificates []*x509.Certificate
	var key crypto.Signer
	blocks, err := splitPEM(data)
	if err != nil {
		return nil, err
	}
	for i, block := range blocks {
		switch {
		case block.Type == "CERTIFICATE":
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("PEM block %d: certificate: %w", i+1, err)
			}
			certificates = append(certificates, c)
		case strings.HasSuffix(block.Type, "PRIVATE KEY"):
			if key != nil {
				return nil, fmt.Errorf("PEM block %d: %w", i+1, ErrTwoKeys)
			}
			if key, err = parseKeyBlock(block); err != nil {
				return nil, fmt.Errorf("PEM block %d: %w", i+1, err)
			}
		default:
			return nil, fmt.Errorf("PEM block %d: %w: a block of type %.40q", i+1, ErrJunk, block.Type)
		}
	}
	return New(key, certificates...)
}

// splitPEM finds the PEM blocks of data. What stands outside a block must look like a comment: a torn block or binary
// junk would otherwise be passed over in silence.
func splitPEM(data []byte) ([]*pem.Block, error) {
	var blocks []*pem.Block
	rest := bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n"))
	for {
		before := rest
		block, after := pem.Decode(rest)
		if block == nil {
			return blocks, checkBetween(before)
		}
		consumed := before[:len(before)-len(after)]
		start := bytes.LastIndex(consumed, []byte("-----BEGIN "))
		if err := checkBetween(consumed[:max(0, start)]); err != nil {
			return nil, err
		}
		blocks = append(blocks, block)
		rest = after
	}
}

func checkBetween(text []byte) error {
	if bytes.Contains(text, []byte("-----")) {
		return fmt.Errorf("%w: a PEM block that is cut or damaged", ErrJunk)
	}
	for _, c := range text {
		if c < ' ' && c != '\n' && c != '\t' || c == 0x7f {
			return fmt.Errorf("%w: binary data between them", ErrJunk)
		}
	}
	return nil
}

// ParseKey reads one unencrypted private key from PEM (PKCS#8, PKCS#1 or SEC 1).
func ParseKey(data []byte) (crypto.Signer, error) {
	if len(data) > MaxSize {
		return nil, fmt.Errorf("key of %d bytes: %w", len(data), ErrTooLarge)
	}
	blocks, err := splitPEM(data)
	if err != nil {
		return nil, err
	}
	switch len(blocks) {
	case 0:
		return nil, ErrNoKey
	case 1:
		return parseKeyBlock(blocks[0])
	}
	return nil, ErrTwoKeys
}

func parseKeyBlock(block *pem.Block) (crypto.Signer, error) {
	if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
		return nil, fmt.Errorf("%w: HAProxy could not read it at a restart; decrypt it first", ErrEncryptedKey)
	}
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("%w: a block of type %.40q", ErrNoKey, block.Type)
	}
	if err != nil {
		// The cause could quote the input; the type of the block says enough.
		return nil, fmt.Errorf("%s block cannot be decoded as such", block.Type)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%w: a %T cannot sign", ErrKeyType, key)
	}
	return signer, nil
}

// EncodeKey is the canonical PEM of a private key: PKCS#8, without headers.
func EncodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// Leaf is the end-entity certificate. Callers must not change it.
func (b *Bundle) Leaf() *x509.Certificate { return b.leaf }

// Chain holds the certificates above the leaf, in order, without the root unless the CA sent it.
func (b *Bundle) Chain() []*x509.Certificate { return slices.Clone(b.chain) }

// Key is the private key.
func (b *Bundle) Key() crypto.Signer {
	key, _ := b.secret()
	return key
}

// PEM is the canonical form, as HAProxy wants it: leaf, chain in order, key (PKCS#8); no blank line (one would end the
// payload of HAProxy's `set ssl cert`, and what follows would be run as commands), no CR, a final newline.
func (b *Bundle) PEM() []byte { return append(b.CertificatesPEM(), b.KeyPEM()...) }

// CertificatesPEM is the leaf and the chain, without the key.
func (b *Bundle) CertificatesPEM() []byte {
	out := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.leaf.Raw})
	for _, c := range b.chain {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// KeyPEM is the private key alone, PKCS#8.
func (b *Bundle) KeyPEM() []byte {
	_, der := b.secret()
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// Fingerprint is the leaf's.
func (b *Bundle) Fingerprint() Fingerprint { return sha256.Sum256(b.leaf.Raw) }

// SHA1 is the leaf's SHA-1 in upper-case hexadecimal, as HAProxy's `show ssl cert` prints it.
func (b *Bundle) SHA1() string {
	return fmt.Sprintf("%X", sha1.Sum(b.leaf.Raw)) //nolint:gosec // see the import
}

// KeyType is that of the key.
func (b *Bundle) KeyType() KeyType { return KeyTypeOf(b.Key().Public()) }

// Algorithm is the signature family of the key.
func (b *Bundle) Algorithm() Algorithm {
	switch k := b.KeyType(); {
	case k.Valid():
		return k.Algorithm()
	case strings.HasPrefix(string(k), "rsa"):
		return RSA
	case strings.HasPrefix(string(k), "P-"):
		return ECDSA
	}
	return ""
}

// Generation is what the bundle is as number sequence of the certificate called name.
func (b *Bundle) Generation(name string, sequence uint64) Generation {
	return Generation{
		Slot:        Slot{Name: name, Algorithm: b.Algorithm()},
		Sequence:    sequence,
		NotBefore:   b.leaf.NotBefore.UTC(),
		NotAfter:    b.leaf.NotAfter.UTC(),
		Fingerprint: b.Fingerprint(),
	}
}

// Domains are the DNS names of the leaf, lower-case, sorted.
func (b *Bundle) Domains() []string { return NormalDomains(b.leaf.DNSNames) }

// NormalDomains is domains in lower case, sorted, each once: the form in which sets of names are compared.
func NormalDomains(domains []string) []string {
	out := make([]string, 0, len(domains))
	for _, d := range domains {
		out = append(out, strings.ToLower(d))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Want is what Verify holds a bundle against. Zero fields are not checked.
type Want struct {
	// Domains is the exact set of names, in any order and case.
	Domains []string
	// KeyType is the type of the key.
	KeyType KeyType
	// Now is the time at which the leaf must be valid.
	Now time.Time
	// NotBeforeSkew is how far ahead of Now the leaf's notBefore may be, for hosts whose clocks differ.
	NotBeforeSkew time.Duration
	// Roots are the certificates that the chain must lead to.
	Roots *x509.CertPool
}

// Verify checks names, key type, dates and chain. The error joins everything that is wrong, so that one look tells all.
func (b *Bundle) Verify(w Want) error {
	var errs []error
	if w.Domains != nil {
		if have, want := b.Domains(), NormalDomains(w.Domains); !slices.Equal(have, want) {
			errs = append(errs, fmt.Errorf("%w: it has [%s], want [%s]", ErrNames, strings.Join(have, " "), strings.Join(want, " ")))
		}
	}
	if w.KeyType != "" && b.KeyType() != w.KeyType {
		errs = append(errs, fmt.Errorf("%w: it has %s, want %s", ErrKeyType, b.KeyType(), w.KeyType))
	}
	if !w.Now.IsZero() {
		if w.Now.After(b.leaf.NotAfter) {
			errs = append(errs, fmt.Errorf("%w at %s", ErrExpired, b.leaf.NotAfter.UTC().Format(time.RFC3339)))
		}
		if w.Now.Add(w.NotBeforeSkew).Before(b.leaf.NotBefore) {
			errs = append(errs, fmt.Errorf("%w before %s", ErrNotYetValid, b.leaf.NotBefore.UTC().Format(time.RFC3339)))
		}
	}
	if w.Roots != nil {
		if err := b.verifyChain(w.Roots); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// verifyChain ignores the dates of the leaf (Verify reports those by themselves) by asking at its notBefore.
func (b *Bundle) verifyChain(roots *x509.CertPool) error {
	intermediates := x509.NewCertPool()
	for _, c := range b.chain {
		intermediates.AddCert(c)
	}
	at := b.leaf.NotBefore
	for _, c := range b.chain {
		// A CA's clock may put an intermediate's notBefore after a back-dated leaf's.
		if c.NotBefore.After(at) {
			at = c.NotBefore
		}
	}
	_, err := b.leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	return nil
}

// Describe names a certificate for a message: by its DNS names, else its subject; never by a CN alone, which profiles
// without one (tlsserver, shortlived) do not have.
func Describe(c *x509.Certificate) string {
	name := c.Subject.String()
	if len(c.DNSNames) > 0 {
		name = c.DNSNames[0]
		if n := len(c.DNSNames) - 1; n > 0 {
			name = fmt.Sprintf("%s and %d more", name, n)
		}
	}
	sum := sha256.Sum256(c.Raw)
	return fmt.Sprintf("%q (%s)", name, Fingerprint(sum).Short())
}

// String names the bundle without its key.
func (b *Bundle) String() string { return "bundle " + Describe(b.leaf) }

// Format prints String for every verb, so that %v, %+v and %#v never walk into the key.
func (b *Bundle) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, b.String()) }

// MarshalJSON refuses: a bundle goes between nodes as a tar of PEM, and never into a report or a log.
func (b *Bundle) MarshalJSON() ([]byte, error) {
	return nil, errors.New("a bundle is not JSON: it holds a private key")
}

// HasKey tells whether public is the public half of the bundle's key.
func (b *Bundle) HasKey(public crypto.PublicKey) bool { return samePublicKey(b.Key().Public(), public) }
