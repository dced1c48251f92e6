package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/net/idna"
)

const (
	letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits  = "0123456789"
)

// maxName bounds the names of nodes and certificates, in bytes: with what is put before and after it in a temporary
// file's name, NAME_MAX (255) is kept.
const maxName = 128

// reservedSuffixes are read by HAProxy as something else than a bundle, or as half of a pair of bundles.
var reservedSuffixes = []string{".key", ".ocsp", ".issuer", ".sctl", ".rsa", ".ecdsa"}

func onlyRunes(s, allowed string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune(allowed, r) })
}

// printable tells that s has no control or other invisible characters.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("missing")
	case len(name) > maxName:
		return fmt.Errorf("longer than %d characters", maxName)
	case !onlyRunes(name, letters+digits+"._-"):
		return fmt.Errorf("%.80q: a name has letters, digits, dot, dash and underscore only", name)
	case name[0] == '.':
		return fmt.Errorf("%q: a name has no leading dot", name)
	case name[0] == '-':
		return fmt.Errorf("%q: a name has no leading dash: it would be taken for an option", name)
	}
	return nil
}

func checkCertificateName(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if strings.HasSuffix(strings.ToLower(name), ".pem") {
		return fmt.Errorf("%q: the file gets its .pem by itself: leave it out", name)
	}
	return checkSuffix(name)
}

func checkSuffix(name string) error {
	for _, suffix := range reservedSuffixes {
		if strings.HasSuffix(strings.ToLower(name), suffix) {
			return fmt.Errorf("%q: HAProxy reads the suffix %s as something else", name, suffix)
		}
	}
	return nil
}

// checkBundlePath wants a file that HAProxy takes for a bundle.
func checkBundlePath(path string) error {
	base := filepath.Base(path)
	if base[0] == '.' || base == "/" {
		return fmt.Errorf("%q: not the name of a file, or one with a leading dot, which HAProxy passes over", base)
	}
	if len(base) > maxName {
		return fmt.Errorf("a file's name longer than %d characters", maxName)
	}
	return checkSuffix(base)
}

// checkAccount checks the name of a user or a group.
func checkAccount(name string) error {
	if name == "" {
		return errors.New("missing")
	}
	if len(name) > 32 || !onlyRunes(name, letters+digits+"._-") || name[0] == '-' {
		return fmt.Errorf("%.80q: not the name of an account", name)
	}
	return nil
}

// checkHostName checks for a host name of letters, digits and hyphens (RFC 1123 section 2.1).
func checkHostName(name string) error {
	if len(name) > 253 {
		return errors.New("longer than 253 characters")
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		switch {
		case label == "":
			return errors.New("an empty label between two dots")
		case len(label) > 63:
			return errors.New("a label longer than 63 characters")
		case !onlyRunes(label, letters+digits+"-"):
			return errors.New("a label has letters, digits and hyphens only")
		case label[0] == '-' || label[len(label)-1] == '-':
			return errors.New("a label that begins or ends with a hyphen")
		}
	}
	if onlyRunes(labels[len(labels)-1], digits) {
		return errors.New("the last label is a number")
	}
	return nil
}

// normalDomain checks a DNS name of a certificate and gives it in lower case, without a final dot. A wildcard is the
// whole first label (RFC 9525 section 6.3).
func normalDomain(name string) (string, error) {
	if name == "" {
		return "", errors.New("missing")
	}
	if strings.ContainsFunc(name, func(r rune) bool { return r > unicode.MaxASCII }) {
		return "", unicodeDomain(name)
	}
	normal := strings.ToLower(strings.TrimSuffix(name, "."))
	if _, err := netip.ParseAddr(strings.Trim(normal, "[]")); err == nil {
		return "", fmt.Errorf("%.80q: an IP address, for which DNS-01 proves nothing", name)
	}
	rest, wildcard := strings.CutPrefix(normal, "*.")
	if strings.Contains(rest, "*") {
		return "", fmt.Errorf("%.80q: a wildcard is the whole first label, as in *.example.org", name)
	}
	if err := checkHostName(rest); err != nil {
		return "", fmt.Errorf("%.80q: %w", name, err)
	}
	if wildcard && len(normal) > 253 {
		return "", fmt.Errorf("%.80q: longer than 253 characters", name)
	}
	return normal, nil
}

// unicodeDomain is the error on an internationalised name, with the form to write where it has one.
func unicodeDomain(name string) error {
	rest, wildcard := strings.CutPrefix(name, "*.")
	ascii, err := idna.Lookup.ToASCII(rest)
	if err != nil {
		return fmt.Errorf("%.80q: not ASCII: write it in its A-label form (xn--...)", name)
	}
	if wildcard {
		ascii = "*." + ascii
	}
	return fmt.Errorf("%.80q: not ASCII: write it in its A-label form, %q", name, ascii)
}

// normalResolver gives a DNS server as host:port; the port is 53 where none is given.
func normalResolver(server string) (string, error) {
	host, port := server, "53"
	if strings.Contains(server, "/") {
		return "", fmt.Errorf("%.80q: not host or host:port", server)
	}
	if h, p, err := net.SplitHostPort(server); err == nil {
		host, port = h, p
	} else if inner, ok := strings.CutPrefix(server, "["); ok {
		host = strings.TrimSuffix(inner, "]")
	}
	host, err := normalHost(host)
	if err != nil {
		return "", err
	}
	if err := checkPort(port); err != nil {
		return "", err
	}
	return net.JoinHostPort(host, port), nil
}

func checkPort(port string) error {
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("port %.20q: not between 1 and 65535", port)
	}
	return nil
}

// checkVerify checks an address to make a handshake with.
func checkVerify(address string) error {
	path, unix := strings.CutPrefix(address, "unix@")
	if unix || strings.HasPrefix(address, "/") {
		switch {
		case !filepath.IsAbs(path) || !printable(path):
			return fmt.Errorf("%.80q: not the absolute path of a unix socket", address)
		case len(path) > maxSocketPath:
			return fmt.Errorf("a unix socket's path has at most %d bytes on FreeBSD, and this one %d", maxSocketPath, len(path))
		}
		return nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%.80q: not host:port, [v6]:port, unix@/path or /path", address)
	}
	if _, err := normalHost(host); err != nil {
		return fmt.Errorf("%.80q: name an address to connect to, such as 127.0.0.1:8443: %w", address, err)
	}
	return checkPort(port)
}
