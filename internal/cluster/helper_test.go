package cluster_test

import (
	"crypto/rsa"
	"encoding/base64"
	"math/big"
	"testing"
)

// rsaKey is the public key of a modulus in base64url, with the exponent 65537.
func rsaKey(t *testing.T, modulus string) *rsa.PublicKey {
	t.Helper()
	n, err := base64.RawURLEncoding.DecodeString(modulus)
	if err != nil {
		t.Fatal(err)
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537}
}
