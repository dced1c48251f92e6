package distribute

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"certsync/internal/cluster"
)

// hostKeys is what known_hosts pins for one host.
type hostKeys struct {
	file string
	// name is what is looked up, host:port; address what is dialled.
	name, address string
	check         ssh.HostKeyCallback
	// plain are the keys pinned themselves, in the file's order, without those that are revoked too; authority tells
	// that a CA's key is pinned.
	plain, revoked []knownhosts.KnownKey
	authority      bool
}

// readHostKeys reads the known_hosts file. One that does not exist pins nothing. A pattern without a port, such as
// "*", means port 22 only (package knownhosts; ssh's matches every port): a host at another port needs [pattern]:port.
func readHostKeys(file, name, address string) (*hostKeys, error) {
	h := &hostKeys{file: file, name: name, address: address}
	h.check = func(string, net.Addr, ssh.PublicKey) error { return &knownhosts.KeyError{} }
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return h, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read known_hosts: %w", err)
	}
	if h.check, err = knownhosts.New(file); err != nil {
		return nil, cluster.WithHint(fmt.Errorf("read known_hosts: %w", err), "mend or remove that line of %s", file)
	}
	return h, h.list(bytes.Split(data, []byte("\n")))
}

// list finds what is pinned by asking for a key that nobody has: the answer names what was wanted.
func (h *hostKeys) list(lines [][]byte) error {
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	nobody, err := ssh.NewPublicKey(public)
	if err != nil {
		return err
	}
	key, ok := errors.AsType[*knownhosts.KeyError](h.check(h.name, noAddr{}, nobody))
	if !ok {
		return nil
	}
	for _, k := range key.Want {
		if k.Line < 1 || k.Line > len(lines) {
			continue // the file changed between two reads: what is not listed is refused
		}
		if strings.HasPrefix(strings.TrimLeft(string(lines[k.Line-1]), " \t"), "@cert-authority") {
			h.authority = true
			continue
		}
		if _, revoked := errors.AsType[*knownhosts.RevokedError](h.check(h.name, noAddr{}, k.Key)); revoked {
			h.revoked = append(h.revoked, k)
			continue
		}
		h.plain = append(h.plain, k)
	}
	return nil
}

// algorithms are those that the host may prove itself by, so that one with several keys offers the one that is pinned;
// nil, everything, where nothing is pinned: the host then shows the key that the error names. A revoked key is asked
// for only where there is no other, so that the error says it.
func (h *hostKeys) algorithms() []string {
	var out []string
	if h.authority {
		out = append(out, ssh.CertAlgoED25519v01, ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01, ssh.CertAlgoECDSA521v01,
			ssh.CertAlgoRSASHA512v01, ssh.CertAlgoRSASHA256v01)
	}
	keys := h.plain
	if len(keys) == 0 && !h.authority {
		keys = h.revoked
	}
	for _, k := range keys {
		if k.Key.Type() == ssh.KeyAlgoRSA {
			out = append(out, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
			continue
		}
		out = append(out, k.Key.Type())
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// verify is the client's HostKeyCallback.
func (h *hostKeys) verify(_ string, _ net.Addr, key ssh.PublicKey) error {
	err := h.check(h.name, noAddr{}, key)
	_, isCertificate := key.(*ssh.Certificate)
	if err == nil && (isCertificate || h.pins(key)) {
		return nil
	}
	if err == nil {
		// Package knownhosts takes a CA's own key for a host's.
		err = &knownhosts.KeyError{Want: h.plain}
	}
	if unknown, ok := errors.AsType[*knownhosts.KeyError](err); ok {
		if len(unknown.Want) == 0 {
			return h.unknown(key)
		}
		return h.changed(key)
	}
	if _, ok := errors.AsType[*knownhosts.RevokedError](err); ok {
		err := fmt.Errorf("host key of %s, %s, is revoked in %s", h.name, describeKey(key), h.file)
		return cluster.WithHint(err, "give the host a new key, and pin that one; a revoked key may be in other hands")
	}
	return cluster.WithHint(fmt.Errorf("host certificate of %s, %s: %w", h.name, describeKey(key), err),
		"sign the host's key anew with the CA of the @cert-authority line in %s, for the principal %s", h.file, host(h.name))
}

func (h *hostKeys) pins(key ssh.PublicKey) bool {
	return slices.ContainsFunc(h.plain, func(k knownhosts.KnownKey) bool {
		return bytes.Equal(k.Key.Marshal(), key.Marshal())
	})
}

func (h *hostKeys) unknown(key ssh.PublicKey) error {
	err := fmt.Errorf("host key of %s, %s, is not in %s", h.name, describeKey(key), h.file)
	return cluster.WithHint(err, "compare it on that host with `%s`; where it is the same, %s", h.lookAtKey(key), h.pin(key))
}

func (h *hostKeys) changed(key ssh.PublicKey) error {
	var pinned []string
	for _, k := range h.plain {
		pinned = append(pinned, fmt.Sprintf("line %d: %s", k.Line, describeKey(k.Key)))
	}
	if h.authority {
		pinned = append(pinned, "a certificate authority")
	}
	err := fmt.Errorf("host key of %s has changed: it shows %s, %s has %s: somebody may be between the nodes",
		h.name, describeKey(key), h.file, strings.Join(pinned, ", "))
	return cluster.WithHint(err, "compare it on that host with `%s`; only where it is the same, run `ssh-keygen -R '%s' -f %s` and %s",
		h.lookAtKey(key), knownhosts.Normalize(h.name), h.file, h.pin(key))
}

// noneOffered is for a host that has no key of a kind that is pinned.
func (h *hostKeys) noneOffered(offered []string) error {
	err := fmt.Errorf("host key of %s has changed: it offers %s only, %s has %s: somebody may be between the nodes", h.name,
		cleanText(strings.Join(offered, ", "), 300), h.file, strings.Join(h.algorithms(), ", "))
	return cluster.WithHint(err, "look at the host's keys with `ssh-keygen -lf` in /etc/ssh on that host, and pin one of them in %s", h.file)
}

func (h *hostKeys) lookAtKey(key ssh.PublicKey) string {
	return fmt.Sprintf("ssh-keygen -lf /etc/ssh/ssh_host_%s_key.pub", shortType(key))
}

// pin tells how to add key. ssh-keyscan writes the address, so an alias gets its line in full.
func (h *hostKeys) pin(key ssh.PublicKey) string {
	if h.name != h.address {
		return fmt.Sprintf("add this line to %s: %s", h.file, knownhosts.Line([]string{h.name}, key))
	}
	hostname, port, _ := net.SplitHostPort(h.address)
	return fmt.Sprintf("run `ssh-keyscan -t %s -p %s %s >> %s`", shortType(key), port, hostname, h.file)
}

func describeKey(key ssh.PublicKey) string { return key.Type() + " " + ssh.FingerprintSHA256(key) }

// shortType is the type as ssh-keyscan and the names of host key files have it.
func shortType(key ssh.PublicKey) string {
	if c, ok := key.(*ssh.Certificate); ok {
		key = c.Key
	}
	switch t := key.Type(); {
	case t == ssh.KeyAlgoRSA:
		return "rsa"
	case strings.HasPrefix(t, "ecdsa-"):
		return "ecdsa"
	default:
		return path.Base(strings.TrimPrefix(t, "ssh-"))
	}
}

func host(hostPort string) string {
	h, _, _ := net.SplitHostPort(hostPort)
	return h
}

// hostNames is what to dial, and what to look up in known_hosts, both host:port.
func hostNames(cfg PeerConfig) (address, name string) {
	port := cfg.Port
	if port == 0 {
		port = 22
	}
	address = net.JoinHostPort(strings.ToLower(cfg.Address), strconv.Itoa(port))
	if cfg.HostKeyAlias != "" {
		return address, net.JoinHostPort(cfg.HostKeyAlias, "22")
	}
	return address, address
}

// noAddr is the remote address that package knownhosts wants, and ignores where there is a name.
type noAddr struct{}

func (noAddr) Network() string { return "tcp" }
func (noAddr) String() string  { return "0.0.0.0:0" }
