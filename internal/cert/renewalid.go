package cert

import (
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
)

// RenewalID is the leaf's identifier at its CA (RFC 9773 section 4.1), by which the CA is asked when it should be renewed
// and told what an order replaces: the authority key identifier and the serial number, as base64url without padding.
func (b *Bundle) RenewalID() (string, error) {
	if len(b.leaf.AuthorityKeyId) == 0 {
		return "", errors.New("renewal ID: the certificate has no authority key identifier")
	}
	der, err := asn1.Marshal(b.leaf.SerialNumber) // tag, length (RFC 5280 allows 20 bytes: one byte of length), number
	if err != nil || len(der) < 3 {
		return "", fmt.Errorf("renewal ID: serial number: %w", errors.Join(err, errors.New("it cannot be encoded")))
	}
	encode := base64.RawURLEncoding.EncodeToString
	return encode(b.leaf.AuthorityKeyId) + "." + encode(der[2:]), nil
}
