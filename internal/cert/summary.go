package cert

// Summary is what is asked of a bundle again and again, without its certificates and its key: it may be kept for
// thousands.
type Summary struct {
	Domains []string
	KeyType KeyType
	// SHA1 is the leaf's, as Bundle.SHA1 has it.
	SHA1 string
}

// Summary is that of the bundle.
func (b *Bundle) Summary() Summary {
	return Summary{Domains: b.Domains(), KeyType: b.KeyType(), SHA1: b.SHA1()}
}

// IsZero tells that nothing is known.
func (s Summary) IsZero() bool { return s.SHA1 == "" }
