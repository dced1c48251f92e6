package cluster

import (
	"cmp"
	"time"
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

// Compare orders the accounts of one directory by preference: the earliest creation, then the thumbprint.
func (a Account) Compare(o Account) int {
	return cmp.Or(a.Created.Compare(o.Created), cmp.Compare(a.Thumbprint, o.Thumbprint))
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
