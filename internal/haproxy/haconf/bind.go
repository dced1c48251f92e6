package haconf

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
)

// arity is how many words follow each option of a bind line (Configuration Manual 5.1, of 2.6 to 3.4).
var arity = func() map[string]int {
	m := map[string]int{}
	for _, word := range strings.Fields(`accept-proxy allow-0rtt defer-accept force-sslv3 force-tlsv10 force-tlsv11 force-tlsv12 force-tlsv13
		generate-certificates no-alpn no-ca-names no-sslv3 no-strict-sni no-tls-tickets no-tlsv10 no-tlsv11 no-tlsv12 no-tlsv13
		prefer-client-ciphers quic-force-retry ssl strict-sni tfo tls-tickets transparent v4v6 v6only`) {
		m[word] = 0
	}
	for _, word := range strings.Fields(`accept-netscaler-cip alpn backlog ca-file ca-ignore-err ca-sign-file ca-sign-pass ca-verify-file cc
		ciphers ciphersuites client-sigalgs crl-file crt crt-ignore-err crt-list curves default-crt ecdhe ech expose-fd gid group
		guid-prefix id idle-ping interface ktls label level maxconn mode mss name namespace nbconn nice npn ocsp-update process proto
		quic-cc-algo quic-socket severity-output shards sigalgs ssl-max-ver ssl-min-ver tcp-md5sig tcp-ss tcp-ut thread
		tls-ticket-keys uid user verify`) {
		m[word] = 1
	}
	return m
}()

// bind reads a bind line.
func (r *reader) bind(words []string) {
	b := &Bind{Section: r.section, File: r.position.file, Line: r.position.line, Maybe: r.active() == maybe}
	if len(words) < 2 {
		r.problem("bind without an address")
		return
	}
	for text := range strings.SplitSeq(words[1], ",") {
		if text == "" {
			continue
		}
		if a, err := r.address(text, r.prefix); err != nil {
			r.problem("bind: %v", err)
		} else {
			b.Addresses = append(b.Addresses, a)
		}
	}
	v := r.versions
	for i := 2; i < len(words) && words[i] != ""; {
		n, known := arity[words[i]]
		value := ""
		switch {
		case !known:
			r.problem("bind: the option %.40q is not known, and is left out", words[i])
		case i+n >= len(words):
			r.problem("bind: %s without its value", words[i])
		case n == 1:
			value = words[i+1]
			fallthrough
		default:
			r.option(b, words[i], value)
			v.option(words[i], value)
		}
		i += 1 + n
	}
	b.NoTLS12 = !v.has12()
	r.c.Binds = append(r.c.Binds, b)
	r.section.binds = append(r.section.binds, b)
	if l := r.lists["@"+r.section.Name]; l != nil && r.section.Kind != "peers" {
		r.attach(b, l)
	}
}

func (r *reader) option(b *Bind, word, value string) {
	switch word {
	case "ssl":
		b.SSL = true
		b.Arguments = append(b.Arguments, "ssl")
	case "crt", "default-crt":
		b.Crts = append(b.Crts, r.crt(value))
		b.Arguments = append(b.Arguments, word, Quote(value))
	case "crt-list":
		b.Lists = append(b.Lists, r.list(value))
		b.Arguments = append(b.Arguments, word, Quote(value))
	case "accept-proxy":
		b.AcceptProxy = true
	case "accept-netscaler-cip":
		b.NetScaler = true
	case "v4v6":
		b.V4V6 = true
	case "v6only":
		b.V4V6 = false
	case "transparent":
		b.Transparent = true
	case "strict-sni", "no-strict-sni":
		b.StrictSNI = word == "strict-sni"
	case "interface":
		b.Interface = value
	case "namespace":
		b.Namespace = value
	case "verify":
		b.ClientCertificate = value
	}
}

// versions are the versions of TLS that are ruled out.
type versions struct {
	// no12 is set by no-tlsv12; low and high are 10 to 13, 0 where not given.
	no12      bool
	low, high int
}

func (v *versions) option(word, value string) {
	number := func(text string) int {
		n, _ := strconv.Atoi(strings.ReplaceAll(strings.TrimPrefix(strings.ToLower(text), "tlsv"), ".", ""))
		return n
	}
	switch {
	case word == "no-tlsv12":
		v.no12 = true
	case word == "ssl-min-ver":
		v.low = number(value)
	case word == "ssl-max-ver":
		v.high = number(value)
	case strings.HasPrefix(word, "force-tlsv"):
		v.low = number(strings.TrimPrefix(word, "force-"))
		v.high = v.low
	}
}

func (v *versions) has12() bool { return !v.no12 && v.low <= 12 && (v.high == 0 || v.high >= 12) }

// families are the prefixes of addresses (Configuration Manual 11) that say more than the address.
var families = []struct {
	prefix string
	kind   Kind
	// ip is 4 or 6 where only that one is meant.
	ip int
}{
	{"unix@", Unix, 0}, {"uxst@", Unix, 0}, {"uxdg@", Datagram, 0}, {"abns@", Abstract, 0}, {"abnsz@", Abstract, 0}, {"fd@", Descriptor, 0},
	{"sockpair@", SocketPair, 0}, {"rhttp@", Reverse, 0}, {"rev@", Reverse, 0}, {"ip@", TCP, 0}, {"tcp@", TCP, 0}, {"mptcp@", TCP, 0},
	{"ipv4@", TCP, 4}, {"tcp4@", TCP, 4}, {"mptcp4@", TCP, 4}, {"ipv6@", TCP, 6}, {"tcp6@", TCP, 6}, {"mptcp6@", TCP, 6},
	{"udp@", Datagram, 0}, {"udp4@", Datagram, 4}, {"udp6@", Datagram, 6}, {"quic4@", QUIC, 4}, {"quic6@", QUIC, 6},
}

// address reads one address. Variables are replaced in it whether they are quoted or not.
func (r *reader) address(text, prefix string) (Address, error) {
	a := Address{Text: expand(text, r.env), Kind: TCP}
	rest := a.Text
	if rest == "" {
		return a, fmt.Errorf("the address %.60q is empty (is its environment variable missing?)", text)
	}
	rest = strings.TrimPrefix(rest, "stream+")
	quic, datagram := strings.HasPrefix(rest, "quic+"), strings.HasPrefix(rest, "dgram+")
	rest = strings.TrimPrefix(strings.TrimPrefix(rest, "quic+"), "dgram+")
	family := 0
	for _, f := range families {
		if after, ok := strings.CutPrefix(rest, f.prefix); ok {
			rest, a.Kind, family = after, f.kind, f.ip
			break
		}
	}
	if strings.HasPrefix(rest, "/") && a.Kind == TCP && family == 0 {
		a.Kind = Unix
	}
	switch {
	case quic:
		a.Kind = QUIC
	case datagram:
		a.Kind = Datagram
	}
	switch a.Kind {
	case Unix:
		a.Path = prefix + rest
		if !filepath.IsAbs(a.Path) {
			a.Path = r.place(a.Path)
		}
		return a, nil
	case TCP, QUIC:
		return a, a.hostPort(rest, family)
	}
	return a, nil
}

// hostPort reads HOST:PORT or HOST:FIRST-LAST.
func (a *Address) hostPort(text string, family int) error {
	i := strings.LastIndexByte(text, ':')
	if i < 0 || strings.HasSuffix(text, "]") {
		return fmt.Errorf("the address %.60q has no port", a.Text)
	}
	first, last, isRange := strings.Cut(text[i+1:], "-")
	if !isRange {
		last = first
	}
	low, err := strconv.ParseUint(first, 10, 16)
	high, err2 := strconv.ParseUint(last, 10, 16)
	if err != nil || err2 != nil || low == 0 || high < low {
		return fmt.Errorf("the address %.60q has no port from 1 to 65535", a.Text)
	}
	a.Port, a.LastPort = int(low), int(high)
	return a.host(text[:i], family)
}

func (a *Address) host(host string, family int) error {
	if len(host) > 3 && host[0] == '[' && host[len(host)-1] == ']' {
		host = host[1 : len(host)-1]
	}
	switch {
	case (host == "" || host == "*") && family == 6:
		a.IP = netip.IPv6Unspecified()
	case host == "" || host == "*":
		a.IP = netip.IPv4Unspecified()
	default:
		ip, err := netip.ParseAddr(host)
		if err != nil {
			if strings.ContainsAny(host, " []*") {
				return fmt.Errorf("the address %.60q cannot be read", a.Text)
			}
			a.Host = host
			return nil
		}
		if family == 4 && !ip.Is4() || family == 6 && !ip.Is6() {
			return errors.New("the address " + strconv.Quote(a.Text) + " is of another family than it says")
		}
		a.IP = ip
	}
	return nil
}
