package config

import (
	"errors"
	"fmt"
	"net/mail"
	"net/netip"
	"net/url"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"certsync/internal/cert"
)

// maxSocketPath is FreeBSD's sun_path without its final NUL, in bytes (unix(4)); Linux has 4 more.
const maxSocketPath = 103

// The names of the two unix sockets in run_dir: what local commands may do, and what a peer may.
const (
	LocalSocket = "certsync.sock"
	PeerSocket  = "peer.sock"
)

// validate checks the shape of every value and brings it into its normal form.
func (d *decoder) validate(c *Config) {
	d.nodes(c)
	d.acme(&c.ACME)
	d.dns(c)
	d.certificates(c)
	d.proxies(c)
	d.carp(c)
	d.ssh(&c.SSH)
	if _, err := ParseSchedule(c.Renew.Schedule); err != nil {
		d.failf("renew.schedule", "%.80q: %v", c.Renew.Schedule, err)
	}
	if n := c.Renew.Concurrency; n < 1 || n > 1000 {
		d.failf("renew.concurrency", "%d: not between 1 and 1000", n)
	}
	d.listen(c)
	d.required("state_dir", &c.StateDir)
	d.required("run_dir", &c.RunDir)
	d.socketPath("run_dir", filepath.Join(c.RunDir, LocalSocket))
	d.notify(c)
	d.folders(c)
	d.files(c)
}

func (d *decoder) nodes(c *Config) {
	if len(c.Nodes) == 0 {
		d.failf("nodes", "none: name every node of the pair, this one too")
	}
	names, addresses := map[string]int{}, map[string]int{}
	for i := range c.Nodes {
		n, at := &c.Nodes[i], fmt.Sprintf("nodes[%d]", i)
		d.check(at+".name", checkName(n.Name))
		d.unique(at+".name", names, strings.ToLower(n.Name), i, "nodes")
		if n.Port < 1 || n.Port > 65535 {
			d.failf(at+".port", "%d: not between 1 and 65535", n.Port)
		}
		host, err := normalHost(n.Address)
		d.check(at+".address", err)
		n.Address = host
		d.unique(at+".address", addresses, fmt.Sprintf("%s port %d", host, n.Port), i, "nodes")
	}
	if c.Node != "" && d.isNoNode(c, c.Node) {
		d.failf("node", "%.80q: not one of the nodes (%s)", c.Node, c.nodeNames())
	}
}

// isNoNode tells that name is not an entry of nodes; where an entry's name could not be read, it may be that one.
func (d *decoder) isNoNode(c *Config, name string) bool {
	for i, n := range c.Nodes {
		if n.Name == name || n.Name == "" || d.isBad(fmt.Sprintf("nodes[%d]", i)) {
			return false
		}
	}
	return !d.isBad("nodes")
}

// check tells err, where there is one, at path.
func (d *decoder) check(path string, err error) {
	if err != nil {
		d.failf(path, "%v", err)
	}
}

// unique tells an error where another entry of the list has the same value.
func (d *decoder) unique(path string, seen map[string]int, value string, i int, list string) {
	if first, ok := seen[value]; ok {
		d.failf(path, "%.80q: %s[%d] (line %d) has it too", value, list, first, d.lineOf(fmt.Sprintf("%s[%d]", list, first)))
		return
	}
	seen[value] = i
}

func (d *decoder) acme(a *ACME) {
	d.check("acme.directory", checkDirectory(a.Directory))
	directory := DirectoryURL(a.Directory)
	if a.Staging != "" {
		d.check("acme.staging", checkDirectory(a.Staging))
	}
	if staging := DirectoryURL(a.Staging); isProduction(staging) {
		d.failf("acme.staging", "a dry run there would count against the limits of a CA in production")
	}
	if a.Email != "" {
		if m, err := mail.ParseAddress(a.Email); err != nil || m.Address != a.Email {
			d.failf("acme.email", "%.80q: not an address like ops@example.org", a.Email)
		}
	}
	d.keyTypes("acme.key_types", a.KeyTypes)
	if !onlyRunes(a.Profile, letters+digits+"._-") {
		d.failf("acme.profile", "%.80q: a profile's name has letters, digits, dot, dash and underscore", a.Profile)
	}
	d.path("acme.ca_file", &a.CAFile)
	d.path("acme.eab.hmac_key_file", &a.EAB.HMACKeyFile)
	switch {
	case (a.EAB.KeyID == "") != (a.EAB.HMACKeyFile == ""):
		d.failf("acme.eab", "key_id and hmac_key_file belong together: give both or none")
	case a.EAB.KeyID == "" && needsEAB(directory):
		d.failf("acme.eab", "this CA makes accounts only with an external account binding: give key_id and hmac_key_file")
	case !printable(a.EAB.KeyID):
		d.failf("acme.eab.key_id", "has characters that are no text")
	}
}

func checkDirectory(directory string) error {
	address := DirectoryURL(directory)
	u, err := url.Parse(address)
	switch {
	case directory == "":
		return errors.New("missing")
	case !strings.Contains(address, "://"):
		return fmt.Errorf("%.80q: not letsencrypt, letsencrypt-staging, zerossl, google, or a URL", directory)
	case err != nil || u.Host == "" || !printable(address):
		return errors.New("not a URL") // which is not shown: it may hold a password
	case u.Scheme != "https":
		return errors.New("ACME goes over https only (RFC 8555 section 6.1): for a private CA set ca_file to its root")
	case u.User != nil || u.Fragment != "":
		return errors.New("a directory's URL has no user, password or fragment")
	}
	return nil
}

func (d *decoder) keyTypes(path string, types []cert.KeyType) {
	families := map[cert.Algorithm]cert.KeyType{}
	for i, k := range types {
		at := fmt.Sprintf("%s[%d]", path, i)
		if !k.Valid() {
			d.failf(at, "%.40q: not one of %s", string(k), keyTypeNames())
			continue
		}
		if first, ok := families[k.Algorithm()]; ok {
			d.failf(at, "%s after %s: HAProxy holds one %s certificate under a name", k, first, k.Algorithm())
			continue
		}
		families[k.Algorithm()] = k
	}
}

func keyTypeNames() string {
	names := make([]string, 0, len(cert.KeyTypes()))
	for _, k := range cert.KeyTypes() {
		names = append(names, string(k))
	}
	return strings.Join(names, ", ")
}

// path checks the form of a path that may be left out. It never shows the value: a secret is easily put where the
// name of its file belongs.
func (d *decoder) path(path string, value *string) {
	switch {
	case *value == "":
	case !filepath.IsAbs(*value):
		d.failf(path, "not an absolute path")
	case !printable(*value):
		d.failf(path, "a path with characters that are no text")
	default:
		*value = filepath.Clean(*value)
	}
}

// required is path for one that must be there.
func (d *decoder) required(path string, value *string) {
	if *value == "" {
		d.failf(path, "missing")
	}
	d.path(path, value)
}

func (d *decoder) socketPath(path, socket string) {
	if len(socket) > maxSocketPath {
		d.failf(path, "a unix socket's path has at most %d bytes on FreeBSD, and this one %d", maxSocketPath, len(socket))
	}
}

func (d *decoder) dns(c *Config) {
	d.dnsSection("dns", &c.DNS)
	missing := len(c.Certificates) == 0
	for i := range c.Certificates {
		own, at := &c.Certificates[i].DNS, fmt.Sprintf("certificates[%d].dns", i)
		if own.Provider == "" && c.DNS.Provider != "" {
			d.failf(at+".provider", "missing: leave the key out for the provider of dns")
		}
		missing = missing || own.Provider == ""
		d.inherited(at, *own)
		d.dnsSection(at, own)
	}
	if c.DNS.Provider == "" && missing {
		d.failf("dns.provider", "missing: the name of one of lego's DNS providers")
	}
}

func (d *decoder) dnsSection(at string, s *DNS) {
	if !onlyRunes(s.Provider, letters+digits+"_-") {
		d.failf(at+".provider", "%.80q: a provider's name has letters, digits and dashes", s.Provider)
	}
	d.path(at+".env_file", &s.EnvFile)
	for i, r := range s.Resolvers {
		address, err := normalResolver(r)
		d.check(fmt.Sprintf("%s.resolvers[%d]", at, i), err)
		s.Resolvers[i] = address
	}
	p := s.Propagation
	d.between(at+".propagation.timeout", p.Timeout, time.Second, 24*time.Hour)
	d.between(at+".propagation.interval", p.Interval, 10*time.Millisecond, time.Hour)
	d.between(at+".propagation.sequence", p.Sequence, 0, 24*time.Hour)
}

// inherited keeps what a certificate took over from dns from being told as wrong a second time.
func (d *decoder) inherited(at string, s DNS) {
	values := map[string]string{}
	flatten(at, reflect.ValueOf(s), values)
	for path := range values {
		if _, own := d.lines[path]; !own {
			d.bad[path] = true
		}
	}
}

func (d *decoder) between(path string, v, low, high time.Duration) {
	if v < low || v > high {
		d.failf(path, "%s: not between %s and %s", v, low, high)
	}
}

func (d *decoder) certificates(c *Config) {
	if len(c.Certificates) == 0 {
		d.failf("certificates", "none: name at least one")
	}
	names := map[string]int{}
	for i := range c.Certificates {
		one, at := &c.Certificates[i], fmt.Sprintf("certificates[%d]", i)
		d.check(at+".name", checkCertificateName(one.Name))
		// Some file systems fold case.
		d.unique(at+".name", names, strings.ToLower(one.Name), i, "certificates")
		d.domains(at+".domains", one.Domains)
		if _, own := d.lines[at+".key_types"]; own {
			d.keyTypes(at+".key_types", one.KeyTypes)
		}
		d.path(at+".bundle", &one.Bundle)
		if one.Bundle != "" {
			d.check(at+".bundle", checkBundlePath(one.Bundle))
		}
	}
}

func (d *decoder) domains(path string, domains []string) {
	if len(domains) == 0 {
		d.failf(path, "none: name at least one")
	}
	seen := map[string]int{}
	for i, name := range domains {
		at := fmt.Sprintf("%s[%d]", path, i)
		normal, err := normalDomain(name)
		d.check(at, err)
		d.unique(at, seen, normal, i, path)
		domains[i] = normal
	}
}

func (d *decoder) proxies(c *Config) {
	configs, sockets := map[string]int{}, map[string]int{}
	groups := map[string]string{}
	for i := range c.HAProxy {
		h, at := &c.HAProxy[i], fmt.Sprintf("haproxy[%d]", i)
		d.required(at+".config", &h.Config)
		d.required(at+".bundle_dir", &h.BundleDir)
		d.path(at+".crt_list", &h.CrtList)
		d.required(at+".runtime_socket", &h.RuntimeSocket)
		d.socketPath(at+".runtime_socket", h.RuntimeSocket)
		d.unique(at+".config", configs, h.Config, i, "haproxy")
		d.unique(at+".runtime_socket", sockets, h.RuntimeSocket, i, "haproxy")
		d.path(at+".master_socket", &h.MasterSocket)
		if h.MasterSocket != "" {
			d.socketPath(at+".master_socket", h.MasterSocket)
			d.unique(at+".master_socket", sockets, h.MasterSocket, i, "haproxy")
		}
		for k := range h.ConfigMore {
			d.required(fmt.Sprintf("%s.config_more[%d]", at, k), &h.ConfigMore[k])
		}
		d.check(at+".reload", checkCommand(h.Reload))
		d.check(at+".check", checkCommand(h.Check))
		if h.BundleGroup != "" {
			d.check(at+".bundle_group", checkAccount(h.BundleGroup))
		}
		if group, ok := groups[h.BundleDir]; ok && group != h.BundleGroup {
			d.failf(at+".bundle_group", "%q: another entry gives the same bundle_dir to %q", h.BundleGroup, group)
		}
		groups[h.BundleDir] = h.BundleGroup
		for k, address := range h.Verify {
			d.check(fmt.Sprintf("%s.verify[%d]", at, k), checkVerify(address))
		}
	}
}

// maxArgument bounds an argument of a command, in bytes.
const maxArgument = 1024

// checkCommand wants a command that needs no shell and no PATH: the program's path, then its arguments as they are.
func checkCommand(argv []string) error {
	if len(argv) == 0 {
		return nil
	}
	if !filepath.IsAbs(argv[0]) {
		return fmt.Errorf("%.80q: the first is the absolute path of a program, which is run without a shell: [/usr/sbin/service, haproxy, reload]", argv[0])
	}
	for _, a := range argv {
		if len(a) > maxArgument || !printable(a) {
			return errors.New("an argument that is no text, or longer than 1 KiB")
		}
	}
	return nil
}

func (d *decoder) ssh(s *SSH) {
	d.check("ssh.user", checkAccount(s.User))
	d.required("ssh.key_file", &s.KeyFile)
	d.required("ssh.known_hosts", &s.KnownHosts)
}

// folders wants those that certsync fills to be different ones: HAProxy would load the state as certificates.
func (d *decoder) folders(c *Config) {
	d.apart("run_dir", c.RunDir, "state_dir", c.StateDir)
	for i, h := range c.HAProxy {
		at := fmt.Sprintf("haproxy[%d].bundle_dir", i)
		d.apart(at, h.BundleDir, "state_dir", c.StateDir)
		d.apart(at, h.BundleDir, "run_dir", c.RunDir)
	}
}

func (d *decoder) apart(path, folder, otherPath, other string) {
	if folder == other && folder != "" {
		d.failf(path, "the same folder as %s: each needs one of its own", otherPath)
	}
}

// files wants every file that certsync writes to be written for one certificate only, and to be no other file that
// the configuration names.
func (d *decoder) files(c *Config) {
	owner := map[string]string{}
	for i, h := range c.HAProxy {
		at := fmt.Sprintf("haproxy[%d]", i)
		owner[fold(h.Config)], owner[fold(h.CrtList)], owner[fold(h.RuntimeSocket)] = at+".config", at+".crt_list", at+".runtime_socket"
		owner[fold(h.MasterSocket)] = at + ".master_socket"
		for k, more := range h.ConfigMore {
			owner[fold(more)] = fmt.Sprintf("%s.config_more[%d]", at, k)
		}
	}
	for _, s := range c.secrets() {
		owner[fold(s.file)] = s.path
	}
	for i, v := range c.CARP.VHIDs {
		owner[fold(v.PasswordFile)] = fmt.Sprintf("carp.vhids[%d].password_file", i)
	}
	owner[fold(c.SSH.KnownHosts)], owner[fold(c.ACME.CAFile)] = "ssh.known_hosts", "acme.ca_file"
	owner[fold(c.file)] = "this configuration"
	for i, one := range c.Certificates {
		at := fmt.Sprintf("certificates[%d]", i)
		if d.isBad(at + ".name") {
			continue
		}
		mine := map[string]bool{}
		for _, file := range one.files(c.HAProxy) {
			if other := owner[fold(file)]; other != "" && !mine[fold(file)] {
				d.failf(at+".bundle", "writes the file of %s, %s", other, file)
			}
			mine[fold(file)] = true
			owner[fold(file)] = at
		}
	}
}

// fold is a path as a file system that ignores case sees it.
func fold(path string) string { return strings.ToLower(path) }

// files are those that a certificate's bundles are written to, and their common stem, which HAProxy may have in its
// configuration and which therefore is the certificate's alone.
func (c Certificate) files(proxies []HAProxy) []string {
	var stems, out []string
	if c.Bundle != "" {
		stems = append(stems, c.Bundle)
	} else {
		for _, h := range proxies {
			stems = append(stems, filepath.Join(h.BundleDir, c.Name+".pem"))
		}
	}
	for _, stem := range stems {
		out = append(out, stem)
		for _, k := range c.KeyTypes {
			if c.Both() {
				out = append(out, stem+"."+string(k.Algorithm()))
			}
		}
	}
	return out
}

func (c *Config) nodeNames() string {
	names := make([]string, 0, len(c.Nodes))
	for _, n := range c.Nodes {
		names = append(names, n.Name)
	}
	return strings.Join(names, ", ")
}

// normalHost checks a node's address: an IP address or a host name.
func normalHost(host string) (string, error) {
	if host == "" {
		return "", errors.New("missing: an IP address or a host name")
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.IsUnspecified() || ip.IsMulticast() {
			return "", fmt.Errorf("%s: not the address of a host", ip)
		}
		return ip.String(), nil
	}
	if strings.ContainsAny(host, ":[]") {
		return "", fmt.Errorf("%.80q: not an IP address or a host name; IPv6 without brackets, and the port under its own key", host)
	}
	if err := checkHostName(host); err != nil {
		return "", fmt.Errorf("%.80q: not an IP address or a host name: %w", host, err)
	}
	return strings.ToLower(host), nil
}
