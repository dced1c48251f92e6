package cert

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"strings"
)

// KeyType is a kind of private key as the configuration names it.
type KeyType string

// The key types that certsync asks a CA for.
const (
	EC256   KeyType = "ec256"
	EC384   KeyType = "ec384"
	RSA2048 KeyType = "rsa2048"
	RSA3072 KeyType = "rsa3072"
	RSA4096 KeyType = "rsa4096"
)

// KeyTypes lists every valid KeyType.
func KeyTypes() []KeyType { return []KeyType{EC256, EC384, RSA2048, RSA3072, RSA4096} }

// Algorithm is the signature family of a key. HAProxy holds one certificate of each family under one name
// (NAME.ecdsa and NAME.rsa), so a certificate has at most one generation in service for each Algorithm.
type Algorithm string

// The families that HAProxy tells apart by the suffix of a bundle's file.
const (
	ECDSA Algorithm = "ecdsa"
	RSA   Algorithm = "rsa"
)

// Algorithm is the family of the key type, or "" where the key type is not one of KeyTypes.
func (k KeyType) Algorithm() Algorithm {
	switch k {
	case EC256, EC384:
		return ECDSA
	case RSA2048, RSA3072, RSA4096:
		return RSA
	}
	return ""
}

// Valid tells whether k is one of KeyTypes.
func (k KeyType) Valid() bool { return k.Algorithm() != "" }

// Generate makes a new private key from the system's random source.
func (k KeyType) Generate() (crypto.Signer, error) {
	switch k {
	case EC256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case EC384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case RSA3072:
		return rsa.GenerateKey(rand.Reader, 3072)
	case RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	}
	return nil, fmt.Errorf("key type %q: not one of %s", string(k), joinKeyTypes())
}

func joinKeyTypes() string {
	var names []string
	for _, k := range KeyTypes() {
		names = append(names, string(k))
	}
	return strings.Join(names, ", ")
}

// KeyTypeOf names the type of a public key. A key that certsync would not ask for (RSA of another size, another
// curve) gets a name that is not Valid, such as "rsa1024" or "P-521", fit for a message.
func KeyTypeOf(pub crypto.PublicKey) KeyType {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return EC256
		case elliptic.P384():
			return EC384
		}
		return KeyType(k.Curve.Params().Name)
	case *rsa.PublicKey:
		return KeyType(fmt.Sprintf("rsa%d", k.N.BitLen()))
	}
	return KeyType(fmt.Sprintf("%T", pub))
}
