package cert_test

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
)

func TestParseTakesEveryFormOfKeyAndGivesOneCanonicalPEM(t *testing.T) {
	for _, k := range cert.KeyTypes() {
		want := ca(t).Issue(t, certtest.Options{Key: key(t, k), Chain: true})
		for form, keyPEM := range keyForms(t, key(t, k)) {
			t.Run(string(k)+" "+form, func(t *testing.T) {
				got, err := cert.Parse(concat(want.CertificatesPEM(), keyPEM))
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got.PEM(), want.PEM()) {
					t.Errorf("PEM differs:\n%s\nwant\n%s", got.PEM(), want.PEM())
				}
				if got.KeyType() != k || got.Algorithm() != k.Algorithm() {
					t.Errorf("key type %s of %s, want %s", got.KeyType(), got.Algorithm(), k)
				}
			})
		}
	}
}

func TestCanonicalPEMIsLeafChainKeyWithoutBlankLineOrCR(t *testing.T) {
	b := ca(t).Issue(t, certtest.Options{Chain: true, Root: true, Padding: 3000})
	text := b.PEM()
	if bytes.Contains(text, []byte("\n\n")) || bytes.ContainsRune(text, '\r') || text[0] != '-' || !bytes.HasSuffix(text, []byte("-----\n")) {
		t.Errorf("not canonical: %q", text)
	}
	var types []string
	var blocks [][]byte
	for rest := text; len(rest) > 0; {
		var one *pem.Block
		one, rest = pem.Decode(rest)
		if one == nil {
			t.Fatalf("not PEM: %q", rest)
		}
		if len(one.Headers) > 0 {
			t.Errorf("a block has headers: %v", one.Headers)
		}
		types, blocks = append(types, one.Type), append(blocks, one.Bytes)
	}
	if want := []string{"CERTIFICATE", "CERTIFICATE", "CERTIFICATE", "PRIVATE KEY"}; !slices.Equal(types, want) {
		t.Fatalf("blocks %q, want %q", types, want)
	}
	if !bytes.Equal(blocks[0], b.Leaf().Raw) || !bytes.Equal(blocks[1], ca(t).Intermediate().Raw) || !bytes.Equal(blocks[2], ca(t).Root().Raw) {
		t.Error("the certificates are not leaf, intermediate, root")
	}
	if _, err := x509.ParsePKCS8PrivateKey(blocks[3]); err != nil {
		t.Errorf("the key is not PKCS#8: %v", err)
	}
	if !bytes.Equal(text, concat(b.CertificatesPEM(), b.KeyPEM())) {
		t.Error("PEM is not CertificatesPEM and KeyPEM")
	}
	again, err := cert.Parse(text)
	if err != nil || !bytes.Equal(again.PEM(), text) {
		t.Errorf("reading it again gives another one: %v", err)
	}
}

func TestParseTakesWhatToolsWriteAroundTheBlocks(t *testing.T) {
	p := newParts(t)
	want, err := cert.Parse(p.bundle())
	if err != nil {
		t.Fatal(err)
	}
	crlf := bytes.ReplaceAll(p.bundle(), []byte("\n"), []byte("\r\n"))
	for name, text := range map[string][]byte{
		"CRLF":                crlf,
		"CRLF in part":        concat(bytes.ReplaceAll(p.leaf, []byte("\n"), []byte("\r\n")), p.intermediate, p.key),
		"key first":           concat(p.key, p.leaf, p.intermediate),
		"key in the middle":   concat(p.leaf, p.key, p.intermediate),
		"blank lines":         concat([]byte("\n\n"), p.leaf, []byte("\n"), p.intermediate, []byte("\n\n\n"), p.key, []byte("\n")),
		"comments":            concat([]byte("subject=CN = example.org\nissuer=Müller & Söhne\n"), p.leaf, []byte("# chain\n"), p.intermediate, []byte("Bag Attributes\n\tfriendlyName: x\n"), p.key, []byte("# end\n")),
		"no last newline":     bytes.TrimSuffix(p.bundle(), []byte("\n")),
		"blanks at line ends": concat(bytes.ReplaceAll(p.leaf, []byte("-----\n"), []byte("-----  \n")), p.intermediate, p.key),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := cert.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.PEM(), want.PEM()) {
				t.Errorf("another bundle:\n%s", got.PEM())
			}
		})
	}
}

// encryptedPKCS8 is the form of RFC 5958 section 3; what is in it does not matter.
func encryptedPKCS8() []byte { return block("ENCRYPTED PRIVATE KEY", []byte{0x30, 0}) }

func encryptedLegacy(t *testing.T, signer crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(signer.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	//lint:ignore SA1019 the form that is to be refused
	one, err := x509.EncryptPEMBlock(rand.Reader, "EC PRIVATE KEY", der, []byte("hush"), x509.PEMCipherAES256)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(one)
}

func mustSign(t *testing.T, o certtest.Options) []byte {
	t.Helper()
	certificates, err := ca(t).Sign(o.Key.Public(), o)
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for _, c := range certificates {
		out = append(out, certtest.CertificatePEM(c)...)
	}
	return out
}

// impostor has the intermediate's name and another key.
func impostor(t *testing.T) []byte {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: ca(t).Intermediate().Subject, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	signer := key(t, cert.EC384)
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return block("CERTIFICATE", der)
}

func TestParseRefusesWithTheReason(t *testing.T) {
	p, other := newParts(t), key(t, cert.EC384)
	otherKey := keyForms(t, other)["PKCS#8"]
	ecdhKey, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecdhDER, err := x509.MarshalPKCS8PrivateKey(ecdhKey)
	if err != nil {
		t.Fatal(err)
	}
	root := certtest.CertificatePEM(ca(t).Root())
	leafAsCA := mustSign(t, certtest.Options{Key: key(t, cert.EC256), IsCA: true})
	direct := mustSign(t, certtest.Options{Key: key(t, cert.EC256)})
	for name, c := range map[string]struct {
		text []byte
		want error
	}{
		"nothing":                   {nil, cert.ErrNoLeaf},
		"text":                      {[]byte("hello\n"), cert.ErrNoLeaf},
		"no key":                    {concat(p.leaf, p.intermediate), cert.ErrNoKey},
		"no leaf":                   {p.key, cert.ErrNoLeaf},
		"key of another leaf":       {concat(p.leaf, p.intermediate, otherKey), cert.ErrKeyMismatch},
		"key of another family":     {concat(p.leaf, p.intermediate, keyForms(t, key(t, cert.RSA2048))["PKCS#1"]), cert.ErrKeyMismatch},
		"chain before leaf":         {concat(p.intermediate, p.leaf, p.key), cert.ErrKeyMismatch},
		"root before intermediate":  {concat(p.leaf, root, p.intermediate, p.key), cert.ErrChainOrder},
		"intermediate left out":     {concat(p.leaf, root, p.key), cert.ErrChainOrder},
		"intermediate twice":        {concat(p.leaf, p.intermediate, p.intermediate, p.key), cert.ErrChainOrder},
		"leaf twice":                {concat(p.leaf, p.leaf, p.intermediate, p.key), cert.ErrChainOrder},
		"foreign chain":             {concat(direct, p.intermediate, p.key), cert.ErrChainOrder},
		"right name, wrong key":     {concat(p.leaf, impostor(t), p.key), cert.ErrChainOrder},
		"CA as leaf":                {concat(leafAsCA, p.key), cert.ErrChainOrder},
		"two keys":                  {concat(p.bundle(), otherKey), cert.ErrTwoKeys},
		"one key twice":             {concat(p.bundle(), p.key), cert.ErrTwoKeys},
		"encrypted PKCS#8":          {concat(p.leaf, p.intermediate, encryptedPKCS8()), cert.ErrEncryptedKey},
		"encrypted legacy":          {concat(p.leaf, p.intermediate, encryptedLegacy(t, key(t, cert.EC256))), cert.ErrEncryptedKey},
		"a key that cannot sign":    {concat(p.leaf, p.intermediate, block("PRIVATE KEY", ecdhDER)), cert.ErrKeyType},
		"an SSH key":                {concat(p.leaf, block("OPENSSH PRIVATE KEY", []byte{1})), cert.ErrNoKey},
		"EC parameters":             {concat(block("EC PARAMETERS", []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}), p.bundle()), cert.ErrJunk},
		"DH parameters":             {concat(p.bundle(), block("DH PARAMETERS", []byte{0x30, 0})), cert.ErrJunk},
		"a request":                 {concat(p.bundle(), block("CERTIFICATE REQUEST", []byte{0x30, 0})), cert.ErrJunk},
		"a trusted certificate":     {concat(block("TRUSTED CERTIFICATE", ca(t).Root().Raw), p.key), cert.ErrJunk},
		"binary behind":             {concat(p.bundle(), []byte{0, 1, 2}), cert.ErrJunk},
		"binary before":             {concat([]byte("\x1b[31m\n"), p.bundle()), cert.ErrJunk},
		"lone CR":                   {concat(p.leaf, []byte("a\rb\n"), p.intermediate, p.key), cert.ErrJunk},
		"DEL":                       {concat([]byte("a\x7f\n"), p.bundle()), cert.ErrJunk},
		"a torn block first":        {concat(p.leaf[:len(p.leaf)/2], []byte("\n"), p.bundle()), cert.ErrJunk},
		"a torn block between":      {concat(p.leaf, p.intermediate[:60], []byte("\n"), p.intermediate, p.key), cert.ErrJunk},
		"a torn block last":         {concat(p.bundle(), p.intermediate[:len(p.intermediate)-10]), cert.ErrJunk},
		"an END alone":              {concat(p.bundle(), []byte("-----END CERTIFICATE-----\n")), cert.ErrJunk},
		"a zero byte in the base64": {bytes.Replace(p.bundle(), []byte("MII"), []byte("M\x00I"), 1), cert.ErrJunk},
		"over 1 MiB":                {concat(p.bundle(), bytes.Repeat([]byte("#"), cert.MaxSize)), cert.ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := cert.Parse(c.text)
			if !errors.Is(err, c.want) || b != nil {
				t.Errorf("got %v, %v; want %v", b, err, c.want)
			}
			if err != nil {
				noKey(t, "error", err.Error(), c.text)
			}
		})
	}
}

func TestParseRefusesBlocksThatCannotBeDecoded(t *testing.T) {
	p := newParts(t)
	for name, text := range map[string][]byte{
		"certificate":      concat(block("CERTIFICATE", []byte("hush")), p.key),
		"chain":            concat(p.leaf, block("CERTIFICATE", []byte{0x30, 3, 1, 2, 3}), p.key),
		"key":              concat(p.leaf, p.intermediate, block("PRIVATE KEY", []byte("hush"))),
		"PKCS#8 as PKCS#1": concat(p.leaf, p.intermediate, bytes.ReplaceAll(p.key, []byte("PRIVATE KEY"), []byte("RSA PRIVATE KEY"))),
		"key cut":          concat(p.leaf, p.intermediate, block("PRIVATE KEY", decode(t, p.key)[:60])),
		"cert with more":   concat(block("CERTIFICATE", append(decode(t, p.leaf), 0)), p.intermediate, p.key),
	} {
		if b, err := cert.Parse(text); err == nil || !strings.HasPrefix(err.Error(), "PEM block ") {
			t.Errorf("%s: %v, %v", name, b, err)
		}
	}
}

func decode(t *testing.T, text []byte) []byte {
	t.Helper()
	one, _ := pem.Decode(text)
	if one == nil {
		t.Fatal("not PEM")
	}
	return one.Bytes
}

func TestABundleCutAnywhereIsNeverTakenForAnother(t *testing.T) {
	whole, err := cert.Parse(newParts(t).bundle())
	if err != nil {
		t.Fatal(err)
	}
	text := whole.PEM()
	for n := range len(text) {
		if _, err := cert.Parse(text[:n]); err == nil && n < len(text)-1 {
			t.Errorf("accepted when cut at %d of %d: ...%q", n, len(text), text[max(0, n-20):n])
		}
	}
	// What comes first may be cut too: the tail of a file whose beginning was lost.
	for n := 1; n < len(text); n++ {
		b, err := cert.Parse(text[n:])
		if err == nil {
			t.Errorf("accepted without its first %d bytes: %v", n, b)
		}
	}
	// With the key first, a cut at the end of a block leaves fewer certificates, all of them whole: the chain is then
	// shorter, and Verify tells. It must still be the same leaf and key.
	text = concat(whole.KeyPEM(), whole.CertificatesPEM())
	for n := range len(text) {
		if b, err := cert.Parse(text[:n]); err == nil && (b.Fingerprint() != whole.Fingerprint() || !bytes.Equal(b.KeyPEM(), whole.KeyPEM())) {
			t.Errorf("another bundle when cut at %d", n)
		}
	}
}

func TestOneWrongByteIsNeverTakenForAnotherLeafOrKey(t *testing.T) {
	text := newParts(t).bundle()
	whole, err := cert.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	for i := range text {
		damaged := bytes.Clone(text)
		damaged[i] ^= 1
		b, err := cert.Parse(damaged)
		if err == nil && !bytes.Equal(b.KeyPEM(), whole.KeyPEM()) {
			t.Errorf("byte %d (%q): accepted with another key", i, text[i])
		}
	}
}

func TestNewRefusesWhatIsMissing(t *testing.T) {
	signer := key(t, cert.EC256)
	certificates, err := ca(t).Sign(signer.Public(), certtest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cert.New(signer); !errors.Is(err, cert.ErrNoLeaf) {
		t.Errorf("no certificates: %v", err)
	}
	if _, err := cert.New(nil, certificates...); !errors.Is(err, cert.ErrNoKey) {
		t.Errorf("no key: %v", err)
	}
	if _, err := cert.New(key(t, cert.EC384), certificates...); !errors.Is(err, cert.ErrKeyMismatch) {
		t.Errorf("another key: %v", err)
	}
}

func TestABundleCannotBeChangedThroughItsChain(t *testing.T) {
	b := ca(t).Issue(t, certtest.Options{Chain: true})
	before := b.PEM()
	b.Chain()[0] = ca(t).Root()
	if b.Chain()[0] != ca(t).Intermediate() || !bytes.Equal(b.PEM(), before) {
		t.Error("the chain was changed from outside")
	}
	pem1 := b.PEM()
	pem1[0] = 'x'
	if !bytes.Equal(b.PEM(), before) {
		t.Error("the PEM was changed from outside")
	}
}

func TestParseKeyTakesOneKey(t *testing.T) {
	for _, k := range cert.KeyTypes() {
		for form, text := range keyForms(t, key(t, k)) {
			got, err := cert.ParseKey(text)
			if err != nil {
				t.Fatalf("%s %s: %v", k, form, err)
			}
			if again, err := cert.EncodeKey(got); err != nil || !bytes.Equal(again, keyForms(t, key(t, k))["PKCS#8"]) {
				t.Errorf("%s %s: encoded as another key, %v", k, form, err)
			}
		}
	}
	p := newParts(t)
	for name, c := range map[string]struct {
		text []byte
		want error
	}{
		"nothing": {nil, cert.ErrNoKey}, "two": {concat(p.key, p.key), cert.ErrTwoKeys}, "certificate": {p.leaf, cert.ErrNoKey},
		"encrypted": {encryptedPKCS8(), cert.ErrEncryptedKey}, "legacy": {encryptedLegacy(t, key(t, cert.EC256)), cert.ErrEncryptedKey},
		"junk": {concat(p.key, []byte{0}), cert.ErrJunk}, "large": {make([]byte, cert.MaxSize+1), cert.ErrTooLarge}, "cut": {p.key[:len(p.key)-30], cert.ErrJunk},
	} {
		if _, err := cert.ParseKey(c.text); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestGenerateMakesNewKeysOfTheTypeAsked(t *testing.T) {
	for _, k := range []cert.KeyType{cert.EC256, cert.EC384, cert.RSA2048} {
		a, err := k.Generate()
		if err != nil {
			t.Fatal(err)
		}
		if got := cert.KeyTypeOf(a.Public()); got != k {
			t.Errorf("asked for %s, got %s", k, got)
		}
		if a.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(key(t, k).Public()) {
			t.Errorf("%s: the same key twice", k)
		}
	}
	if _, err := cert.KeyType("ec257").Generate(); err == nil || !strings.Contains(err.Error(), "ec256, ec384") {
		t.Errorf("ec257: %v", err)
	}
	if cert.KeyType("ec257").Valid() || !cert.RSA4096.Valid() {
		t.Error("Valid is wrong")
	}
}

func TestKeysThatWouldNotBeAskedForAreNamed(t *testing.T) {
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		key       crypto.Signer
		kind      cert.KeyType
		algorithm cert.Algorithm
	}{{p521, "P-521", cert.ECDSA}, {ed, "ed25519.PublicKey", ""}} {
		b := ca(t).Issue(t, certtest.Options{Key: c.key})
		if b.KeyType() != c.kind || b.KeyType().Valid() || b.Algorithm() != c.algorithm {
			t.Errorf("%T: key type %q of %q", c.key, b.KeyType(), b.Algorithm())
		}
		if again, err := cert.Parse(b.PEM()); err != nil || !bytes.Equal(again.PEM(), b.PEM()) {
			t.Errorf("%T: not read again: %v", c.key, err)
		}
		if err := b.Verify(cert.Want{KeyType: cert.EC256}); !errors.Is(err, cert.ErrKeyType) {
			t.Errorf("%T: %v", c.key, err)
		}
	}
	if got := cert.KeyTypeOf(&rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 1023), E: 3}); got != "rsa1024" {
		t.Errorf("a short RSA key is %q", got)
	}
}

func TestVerifyTellsWhatIsWrong(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	from, until := now.Add(-time.Hour), now.Add(time.Hour)
	issue := func(o certtest.Options) *cert.Bundle {
		o.Key, o.NotBefore, o.NotAfter, o.Domains = key(t, cert.EC256), from, until, []string{"example.org", "*.Example.org"}
		return ca(t).Issue(t, o)
	}
	direct, chained, whole := issue(certtest.Options{}), issue(certtest.Options{Chain: true}), issue(certtest.Options{Chain: true, Root: true})
	withoutChain, err := cert.New(chained.Key(), chained.Leaf())
	if err != nil {
		t.Fatal(err)
	}
	foreign := certtest.NewCA(t).Roots()
	for name, c := range map[string]struct {
		bundle *cert.Bundle
		want   cert.Want
		errs   []error
	}{
		"nothing asked":        {direct, cert.Want{}, nil},
		"all right":            {chained, cert.Want{Domains: []string{"*.example.org", "EXAMPLE.org"}, KeyType: cert.EC256, Now: now, Roots: ca(t).Roots()}, nil},
		"without a chain":      {direct, cert.Want{Roots: ca(t).Roots()}, nil},
		"with its root":        {whole, cert.Want{Roots: ca(t).Roots()}, nil},
		"a name more":          {direct, cert.Want{Domains: []string{"example.org"}}, []error{cert.ErrNames}},
		"a name less":          {direct, cert.Want{Domains: []string{"example.org", "*.example.org", "a.org"}}, []error{cert.ErrNames}},
		"covered by wildcard":  {direct, cert.Want{Domains: []string{"example.org", "www.example.org"}}, []error{cert.ErrNames}},
		"no names wanted":      {direct, cert.Want{Domains: []string{}}, []error{cert.ErrNames}},
		"key type":             {direct, cert.Want{KeyType: cert.EC384}, []error{cert.ErrKeyType}},
		"first second":         {direct, cert.Want{Now: from}, nil},
		"last second":          {direct, cert.Want{Now: until}, nil},
		"expired":              {direct, cert.Want{Now: until.Add(time.Second)}, []error{cert.ErrExpired}},
		"not yet valid":        {direct, cert.Want{Now: from.Add(-time.Second)}, []error{cert.ErrNotYetValid}},
		"clocks differ":        {direct, cert.Want{Now: from.Add(-24 * time.Hour), NotBeforeSkew: 24 * time.Hour}, nil},
		"clocks differ more":   {direct, cert.Want{Now: from.Add(-24*time.Hour - time.Second), NotBeforeSkew: 24 * time.Hour}, []error{cert.ErrNotYetValid}},
		"skew is no extension": {direct, cert.Want{Now: until.Add(time.Hour), NotBeforeSkew: 24 * time.Hour}, []error{cert.ErrExpired}},
		"other root":           {direct, cert.Want{Roots: foreign}, []error{cert.ErrUntrusted}},
		"intermediate missing": {withoutChain, cert.Want{Roots: ca(t).Roots()}, []error{cert.ErrUntrusted}},
		"expired, but trusted": {direct, cert.Want{Now: until.Add(time.Hour), Roots: ca(t).Roots()}, []error{cert.ErrExpired}},
		"everything":           {direct, cert.Want{Domains: []string{"a.org"}, KeyType: cert.RSA2048, Now: until.Add(time.Hour), Roots: foreign}, []error{cert.ErrNames, cert.ErrKeyType, cert.ErrExpired, cert.ErrUntrusted}},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.bundle.Verify(c.want)
			for _, sentinel := range []error{cert.ErrNames, cert.ErrKeyType, cert.ErrExpired, cert.ErrNotYetValid, cert.ErrUntrusted} {
				if want := slices.Contains(c.errs, sentinel); errors.Is(err, sentinel) != want {
					t.Errorf("%q: %t, want %t, in: %v", sentinel, !want, want, err)
				}
			}
			if (err == nil) != (c.errs == nil) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestVerifyRefusesACertificateThatIsNotForServers(t *testing.T) {
	signer := key(t, cert.EC256)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{"example.org"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	b, err := cert.Parse(concat(block("CERTIFICATE", der), keyForms(t, signer)["PKCS#8"]))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(b.Leaf())
	if err := b.Verify(cert.Want{Roots: roots}); !errors.Is(err, cert.ErrUntrusted) {
		t.Errorf("accepted for a server: %v", err)
	}
}

// selfMade is a CA certificate that certtest would not make; the key is the same for all of them.
func selfMade(t *testing.T, name string, notBefore time.Time, parent *x509.Certificate) *x509.Certificate {
	t.Helper()
	signer := key(t, cert.EC384)
	template := &x509.Certificate{SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: name}, NotBefore: notBefore,
		NotAfter: notBefore.Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, signer.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func leafBelow(t *testing.T, parent *x509.Certificate, notBefore time.Time) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(4), DNSNames: []string{"example.org"}, NotBefore: notBefore, NotAfter: notBefore.Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key(t, cert.EC256).Public(), key(t, cert.EC384))
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAChainIsJoinedByNamesAndNotByKeysAlone(t *testing.T) {
	now := time.Now()
	parent, namesake := selfMade(t, "A", now, nil), selfMade(t, "B", now, nil)
	leaf := leafBelow(t, parent, now)
	if _, err := cert.New(key(t, cert.EC256), leaf, parent); err != nil {
		t.Errorf("the issuer: %v", err)
	}
	if _, err := cert.New(key(t, cert.EC256), leaf, namesake); !errors.Is(err, cert.ErrChainOrder) {
		t.Errorf("the issuer's key under another name: %v", err)
	}
}

func TestALeafThatIsOlderThanItsIntermediateIsTrusted(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	root := selfMade(t, "root", now.Add(-30*time.Minute), nil)
	intermediate := selfMade(t, "intermediate", now.Add(10*time.Minute), root)
	b, err := cert.New(key(t, cert.EC256), leafBelow(t, intermediate, now), intermediate)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	if err := b.Verify(cert.Want{Roots: roots}); err != nil {
		t.Error(err)
	}
}

func TestHasKeyKnowsTheBundlesOwn(t *testing.T) {
	b := ca(t).Issue(t, certtest.Options{Key: key(t, cert.EC256)})
	if !b.HasKey(key(t, cert.EC256).Public()) || b.HasKey(key(t, cert.EC384).Public()) || b.HasKey(key(t, cert.RSA2048).Public()) {
		t.Error("HasKey is wrong")
	}
}

func TestAGenerationIsWhatTheBundleIs(t *testing.T) {
	zone := time.FixedZone("east", 3600)
	from := time.Date(2026, 1, 2, 3, 4, 5, 678, zone)
	b := ca(t).Issue(t, certtest.Options{KeyType: cert.EC384, NotBefore: from, NotAfter: from.Add(time.Hour), Domains: []string{"B.org", "a.org", "b.org"}})
	g := b.Generation("name", 7)
	want := cert.Generation{Slot: cert.Slot{Name: "name", Algorithm: cert.ECDSA}, Sequence: 7, NotBefore: from.UTC().Truncate(time.Second),
		NotAfter: from.Add(time.Hour).UTC().Truncate(time.Second), Fingerprint: sha256.Sum256(b.Leaf().Raw)}
	if g != want {
		t.Errorf("got %+v, want %+v", g, want)
	}
	if sum := sha1.Sum(b.Leaf().Raw); b.SHA1() != strings.ToUpper(hex.EncodeToString(sum[:])) {
		t.Errorf("SHA-1 %s", b.SHA1())
	}
	if got := b.Domains(); !slices.Equal(got, []string{"a.org", "b.org"}) {
		t.Errorf("domains %q", got)
	}
}

func TestDescribeNamesACertificateWithoutItsCN(t *testing.T) {
	short := func(b *cert.Bundle) string { return b.Fingerprint().Short() }
	one := ca(t).Issue(t, certtest.Options{Domains: []string{"a.org"}, CommonName: "cn.org"})
	three := ca(t).Issue(t, certtest.Options{Domains: []string{"a.org", "b.org", "c.org"}})
	for got, want := range map[string]string{
		cert.Describe(one.Leaf()):   `"a.org" (` + short(one) + ")",
		cert.Describe(three.Leaf()): `"a.org and 2 more" (` + short(three) + ")",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if got := cert.Describe(ca(t).Intermediate()); !strings.Contains(got, "CN=Test Intermediate") {
		t.Errorf("a CA is described as %s", got)
	}
}

// noKey fails where text shows one of the private keys in the PEM of secret: its PEM, or its numbers in any form that
// package fmt has for bytes and numbers.
func noKey(t *testing.T, what, text string, secret []byte) {
	t.Helper()
	squeezed := strings.NewReplacer(" ", "", ",", "", ":", "", "0x", "", "\n", "", `\n`, "", `\x`, "").Replace(text)
	for rest := secret; ; {
		var one *pem.Block
		if one, rest = pem.Decode(rest); one == nil {
			return
		}
		if !strings.HasSuffix(one.Type, "PRIVATE KEY") {
			continue
		}
		for line := range strings.Lines(string(pem.EncodeToMemory(one))) {
			line = strings.TrimSpace(line)
			if !strings.HasPrefix(line, "-") && len(line) >= 24 && strings.Contains(squeezed, line[8:24]) {
				t.Errorf("%s shows the key's PEM: %.200q", what, text)
			}
		}
		for _, number := range numbers(one) {
			for _, form := range formsOf(number) {
				if strings.Contains(text, form) || strings.Contains(squeezed, form) {
					t.Errorf("%s shows %q of the key: %.200q", what, form, text)
				}
			}
		}
	}
}

// formsOf are the number and its first 12 bytes as they would be printed.
func formsOf(n *big.Int) []string {
	some := n.Bytes()[:12]
	return []string{n.String(), n.Text(16)[:24], string(some), hex.EncodeToString(some), strings.ToUpper(hex.EncodeToString(some)),
		strings.Trim(fmt.Sprint(some), "[]"), strings.Trim(strings.ReplaceAll(fmt.Sprintf("%#v", some), "[]byte", ""), "{}"), base64.StdEncoding.EncodeToString(some)}
}

// numbers are the secret ones of the key in a block.
func numbers(one *pem.Block) []*big.Int {
	signer, err := cert.ParseKey(pem.EncodeToMemory(one))
	if err != nil {
		return nil
	}
	switch k := signer.(type) {
	case *rsa.PrivateKey:
		return append([]*big.Int{k.D, k.Precomputed.Dp, k.Precomputed.Qinv}, k.Primes...)
	case *ecdsa.PrivateKey:
		if raw, err := k.Bytes(); err == nil {
			return []*big.Int{new(big.Int).SetBytes(raw)}
		}
	}
	return nil
}

// The net of noKey has to hold what it is for.
func TestAKeyThatIsShownIsFound(t *testing.T) {
	for _, k := range []cert.KeyType{cert.EC256, cert.RSA2048} {
		text := keyForms(t, key(t, k))["PKCS#8"]
		one, _ := pem.Decode(text)
		for _, n := range numbers(one) {
			for _, shown := range []string{fmt.Sprint(n), fmt.Sprint(n.Bytes()), fmt.Sprintf("%x", n), fmt.Sprintf("%#v", n.Bytes()), fmt.Sprintf("% X", n.Bytes())} {
				if !slices.ContainsFunc(formsOf(n), func(form string) bool {
					return strings.Contains(strings.ReplaceAll(shown, " ", ""), strings.ReplaceAll(form, " ", ""))
				}) {
					t.Errorf("%s: not found in %.60q", k, shown)
				}
			}
		}
		if len(numbers(one)) == 0 {
			t.Errorf("%s: no numbers", k)
		}
	}
}

func TestNoWayOfPrintingShowsTheKey(t *testing.T) {
	for _, k := range []cert.KeyType{cert.EC256, cert.RSA2048} {
		b := ca(t).Issue(t, certtest.Options{Key: key(t, k), Chain: true})
		seen := map[string]string{}
		holders := map[string]any{
			"pointer": b, "value": *b, "struct": struct{ B *cert.Bundle }{b}, "slice": []*cert.Bundle{b}, "map": map[string]*cert.Bundle{"b": b},
			"any": struct{ B any }{b}, "unexported": struct{ b *cert.Bundle }{b},
		}
		for holder, v := range holders {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%o", "%b", "%c", "%e", "%U", "%p", "%t", "%w", "%T"} {
				seen[holder+" "+verb] = fmt.Sprintf(verb, v)
			}
			data, err := json.Marshal(v)
			seen[holder+" json"] = fmt.Sprint(string(data), err)
			var out bytes.Buffer
			slog.New(slog.NewTextHandler(&out, nil)).Info("x", "bundle", v)
			slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "bundle", v)
			seen[holder+" slog"] = out.String()
		}
		seen["error"] = fmt.Errorf("keep %v: %w", b, b.Verify(cert.Want{KeyType: cert.RSA4096, Domains: []string{"x"}, Now: time.Unix(0, 0), Roots: x509.NewCertPool()})).Error()
		for how, text := range seen {
			noKey(t, how, text, b.KeyPEM())
		}
		if !strings.Contains(seen["pointer %v"], "example.org") {
			t.Errorf("%%v is %q, which does not tell which bundle it is", seen["pointer %v"])
		}
		if _, err := json.Marshal(b); err == nil {
			t.Error("a bundle became JSON")
		}
	}
}

// FuzzParse holds that whatever is accepted is in one canonical form, which is accepted again as the same.
func FuzzParse(f *testing.F) {
	p := newParts(f)
	f.Add(p.bundle())
	f.Add(concat(p.key, []byte("# x\r\n"), p.leaf))
	f.Add(concat(p.leaf, []byte("\n-----BEGIN"), p.key))
	f.Add(bytes.ReplaceAll(p.bundle(), []byte("\n"), []byte("\r\n")))
	for _, form := range keyForms(f, key(f, cert.EC256)) {
		f.Add(concat(p.leaf, form))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := cert.Parse(data)
		if err != nil {
			if b != nil {
				t.Error("a bundle came with the error")
			}
			return
		}
		text := b.PEM()
		if bytes.Contains(text, []byte("\n\n")) || bytes.ContainsRune(text, '\r') {
			t.Errorf("not canonical: %q", text)
		}
		again, err := cert.Parse(text)
		if err != nil {
			t.Fatalf("not accepted again: %v", err)
		}
		if !bytes.Equal(again.PEM(), text) || again.Fingerprint() != b.Fingerprint() || len(again.Chain()) != len(b.Chain()) {
			t.Errorf("not the same again:\n%s", again.PEM())
		}
		if !b.Leaf().PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(b.Key().Public()) {
			t.Error("key and leaf differ")
		}
	})
}
