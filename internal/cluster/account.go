package cluster

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"slices"
	"time"

	"certsync/internal/cert"
)

// Account is an ACME account (RFC 8555 section 7.1.2), one for each directory, the same on every node.
type Account struct {
	// Directory is the CA's directory URL.
	Directory string `json:"directory"`
	// URL is the account's URL, the "kid" of its requests.
	URL   string `json:"url"`
	Email string `json:"email,omitempty"`
	// Created is when the account was made here, UTC.
	Created time.Time `json:"created"`
	// Thumbprint is the RFC 7638 SHA-256 thumbprint of the key, base64url.
	Thumbprint string `json:"thumbprint"`
	// Key is the account's private key, PEM (PKCS#8).
	Key Secret `json:"key"`
}

// Compare orders the accounts of one directory by preference: the earliest creation, then the thumbprint, then one
// that the CA knows. It is total over every field.
func (a Account) Compare(o Account) int {
	return cmp.Or(a.Created.Compare(o.Created), cmp.Compare(a.Thumbprint, o.Thumbprint), -cmp.Compare(a.URL, o.URL),
		-cmp.Compare(a.Email, o.Email), -bytes.Compare(a.Key, o.Key), cmp.Compare(a.Directory, o.Directory))
}

// PreferredAccount is the account of directory that all nodes agree on. Others stay stored while open orders need
// their key.
func PreferredAccount(accounts []Account, directory string) (Account, bool) {
	var best Account
	found := false
	for _, a := range accounts {
		if a.Directory == directory && (!found || a.Compare(best) < 0) {
			best, found = a, true
		}
	}
	return best, found
}

// NewAccount makes an account that no CA knows yet: a fresh ec256 key and its thumbprint.
func NewAccount(directory, email string, now time.Time) (Account, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Account{}, fmt.Errorf("account key: %w", err)
	}
	keyPEM, err := cert.EncodeKey(key)
	if err != nil {
		return Account{}, fmt.Errorf("account key: %w", err)
	}
	thumbprint, err := Thumbprint(key.Public())
	if err != nil {
		return Account{}, fmt.Errorf("account key: %w", err)
	}
	return Account{Directory: directory, Email: email, Created: now.UTC(), Thumbprint: thumbprint, Key: keyPEM}, nil
}

// MergeAccounts is the union by (directory, thumbprint), sorted by these. Of one account the earliest creation stays,
// and of each other field the one that is filled in (where both are and differ, the greater).
func MergeAccounts(a, b []Account) []Account {
	type key struct{ directory, thumbprint string }
	all := map[key]Account{}
	for _, x := range slices.Concat(a, b) {
		x.Created = utc(x.Created)
		k := key{x.Directory, x.Thumbprint}
		if old, ok := all[k]; ok {
			x.URL, x.Email = max(x.URL, old.URL), max(x.Email, old.Email)
			if old.Created.Before(x.Created) {
				x.Created = old.Created
			}
			if bytes.Compare(old.Key, x.Key) > 0 {
				x.Key = old.Key
			}
		}
		all[k] = x
	}
	out := make([]Account, 0, len(all))
	for _, x := range all {
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b Account) int {
		return cmp.Or(cmp.Compare(a.Directory, b.Directory), cmp.Compare(a.Thumbprint, b.Thumbprint))
	})
	return out
}

// Thumbprint is the RFC 7638 SHA-256 thumbprint of a public key as base64url without padding. ECDSA (P-256, P-384,
// P-521) and RSA only, which are what ACME accounts have.
func Thumbprint(pub crypto.PublicKey) (string, error) {
	encode := base64.RawURLEncoding.EncodeToString
	var canonical string
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		point, err := k.Bytes()
		if err != nil {
			return "", fmt.Errorf("public key: %w", err)
		}
		n := (len(point) - 1) / 2 // 0x04, then the two coordinates (SEC 1 section 2.3.3)
		canonical = fmt.Sprintf(`{"crv":%q,"kty":"EC","x":%q,"y":%q}`, k.Curve.Params().Name, encode(point[1:1+n]), encode(point[1+n:]))
	case *rsa.PublicKey:
		canonical = fmt.Sprintf(`{"e":%q,"kty":"RSA","n":%q}`, encode(big.NewInt(int64(k.E)).Bytes()), encode(k.N.Bytes()))
	default:
		return "", fmt.Errorf("public key: a %T has no thumbprint here", pub)
	}
	sum := sha256.Sum256([]byte(canonical))
	return encode(sum[:]), nil
}

// Check tells whether the key is one, and the thumbprint's. A peer's account that fails it would make the cluster's
// own useless.
func (a Account) Check() error {
	key, err := cert.ParseKey(a.Key)
	if err != nil {
		return fmt.Errorf("account %.60q: key: %w", a.Thumbprint, err)
	}
	thumbprint, err := Thumbprint(key.Public())
	if err != nil {
		return fmt.Errorf("account %.60q: %w", a.Thumbprint, err)
	}
	if thumbprint != a.Thumbprint {
		return fmt.Errorf("account %.60q: its key's thumbprint is %s", a.Thumbprint, thumbprint)
	}
	return nil
}

// String names the account without its key.
func (a Account) String() string { return fmt.Sprintf("account %s at %s", a.Thumbprint, a.Directory) }

// Format prints String for every verb: a verb that is wrong for a struct in a slice would otherwise make fmt print the
// fields without asking them.
func (a Account) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, a.String()) }

// LogValue names the account without its key: a log in JSON would otherwise show it as any other bytes.
func (a Account) LogValue() slog.Value {
	return slog.GroupValue(slog.String("directory", a.Directory), slog.String("thumbprint", a.Thumbprint), slog.String("url", a.URL))
}
