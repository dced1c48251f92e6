package config

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"certsync/internal/cert"
)

// Digest tells configurations apart in what is to be issued: acme, dns and certificates, and nothing of the node,
// HAProxy or the contents of the secrets. It is the SHA-256 of the values that are not the default, so that the order
// of keys and of certificates does not count, a default that is written out changes nothing, and a later version of
// certsync with more options agrees with this one as long as they are not used.
func (c *Config) Digest() string {
	sum := sha256.Sum256([]byte(strings.Join(c.digestLines(), "\n")))
	return hex.EncodeToString(sum[:])
}

func (c *Config) digestLines() []string {
	base := Default()
	base.fill()
	out := difference("acme", normalACME(c.ACME), normalACME(base.ACME))
	out = append(out, difference("dns", c.DNS, base.DNS)...)
	for _, one := range c.Certificates {
		// Its name is part of the path, and its own default are acme's and dns's.
		own := Certificate{KeyTypes: sorted(c.ACME.KeyTypes), DNS: c.DNS}
		// Where a node's HAProxy reads it is as little a matter of issuing as haproxy.bundle_dir is.
		one.Bundle = ""
		one.Domains, one.KeyTypes = cert.NormalDomains(one.Domains), sorted(one.KeyTypes)
		out = append(out, difference(fmt.Sprintf("certificates[%q]", one.Name), one, own)...)
	}
	slices.Sort(out)
	return out
}

// normalACME gives the directories as URLs, and the key types, whose order means nothing, sorted.
func normalACME(a ACME) ACME {
	a.Directory, a.Staging, a.KeyTypes = DirectoryURL(a.Directory), DirectoryURL(a.Staging), sorted(a.KeyTypes)
	if staging, ok := StagingURL(a.Directory); ok && staging == a.Staging {
		a.Staging = ""
	}
	return a
}

func sorted[E cmp.Ordered](list []E) []E { return slices.Sorted(slices.Values(list)) }

// difference has a line PATH=VALUE for each value of a struct that is not that of base.
func difference(path string, v, base any) []string {
	have, known := map[string]string{}, map[string]string{}
	flatten(path, reflect.ValueOf(v), have)
	flatten(path, reflect.ValueOf(base), known)
	var out []string
	for at, value := range have {
		if value != known[at] {
			out = append(out, at+"="+value)
		}
	}
	return out
}

// flatten gives every value below v by its path; a list of plain values is one value.
func flatten(path string, v reflect.Value, out map[string]string) {
	switch {
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			if key := v.Type().Field(i).Tag.Get("yaml"); key != "" {
				flatten(join(path, key), v.Field(i), out)
			}
		}
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct && !isScalar(v.Type().Elem()):
		for i := range v.Len() {
			flatten(fmt.Sprintf("%s[%d]", path, i), v.Index(i), out)
		}
	case v.Kind() == reflect.Slice:
		out[path] = fmt.Sprintf("%q", v.Interface())
	default:
		out[path] = fmt.Sprintf("%q", fmt.Sprint(v.Interface()))
	}
}
