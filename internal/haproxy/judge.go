package haproxy

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"os"
	"strings"

	"certsync/internal/cert"
)

// judge finds out whether HAProxy can load a file as a certificate with its key, and for what names it would show it. It
// takes the file for good where in doubt: a kind of certificate or key that Go does not know may be known to OpenSSL.
func (s *stray) judge(path string, data []byte) {
	certificates, keys, torn := pemBlocks(data)
	if len(keys) == 0 && !s.key.IsZero() {
		if beside, err := os.ReadFile(path + keyPart); err == nil {
			_, keys, _ = pemBlocks(beside)
		}
	}
	switch {
	case len(certificates) == 0 && len(data) == 0:
		s.problem = "it is empty"
	case len(certificates) == 0:
		s.problem = "it holds no certificate"
	case torn:
		s.problem = "a part of it is cut off"
	case len(keys) == 0:
		s.problem = "it holds a certificate without its private key, and " + path + keyPart + " has none"
	case keys[0].Type == "ENCRYPTED PRIVATE KEY" || keys[0].Headers["DEK-Info"] != "":
		s.problem = "its private key is encrypted"
	}
	for _, c := range certificates {
		if s.problem == "" && !isSequence(c.Bytes) {
			s.problem = "a certificate in it is damaged"
		}
	}
	if s.problem != "" {
		return
	}
	leaf, err := x509.ParseCertificate(certificates[0].Bytes)
	if err != nil {
		return
	}
	key, err := cert.ParseKey(pem.EncodeToMemory(keys[0]))
	if err == nil && !isKeyOf(leaf, key) {
		s.problem = "its private key is not that of its certificate"
		return
	}
	s.family = familyOf(leaf)
	for _, name := range append(leaf.DNSNames, leaf.Subject.CommonName) {
		if name != "" {
			s.names = append(s.names, strings.ToLower(name))
		}
	}
}

// pemBlocks are the certificates and private keys of a file, in their order; torn tells that one has a beginning and no
// proper end, which HAProxy 3.0 and later refuse even after a whole bundle.
func pemBlocks(data []byte) (certificates, keys []*pem.Block, torn bool) {
	blocks := 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		blocks++
		switch {
		case strings.HasSuffix(block.Type, "CERTIFICATE"):
			certificates = append(certificates, block)
		case strings.HasSuffix(block.Type, "PRIVATE KEY"):
			keys = append(keys, block)
		}
	}
	return certificates, keys, blocks < bytes.Count(data, []byte("-----BEGIN "))
}

// isSequence tells whether der is what a certificate is to a parser that looks no further: one whole SEQUENCE. A trusted
// certificate of OpenSSL's has a second one after it.
func isSequence(der []byte) bool {
	var v asn1.RawValue
	_, err := asn1.Unmarshal(der, &v)
	return err == nil && v.Class == asn1.ClassUniversal && v.Tag == asn1.TagSequence && v.IsCompound
}

func isKeyOf(leaf *x509.Certificate, key crypto.Signer) bool {
	public, ok := leaf.PublicKey.(interface{ Equal(x crypto.PublicKey) bool })
	return !ok || public.Equal(key.Public())
}
