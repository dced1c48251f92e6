package carp

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"certsync/internal/cluster"
)

const (
	// maxPassword is CARP_KEY_LEN (netinet/ip_carp.h) without the final NUL that FreeBSD's tools keep room for.
	maxPassword = 19
	// maxInterfaceName is IFNAMSIZ (net/if.h) without the final NUL.
	maxInterfaceName = 15

	maxVHID    = 255
	maxAdvBase = 255 // seconds
	maxAdvSkew = 254 // 1/256 seconds
)

// CheckPassword tells whether FreeBSD takes the password as it is: 1 to 19 characters of [A-Za-z0-9_]. A longer one is
// cut without a word; rc.d/netif evaluates the line that it stands in by the shell, so that `$(...)` would run as root;
// and a dash, as in `a-b`, reads as a range of interface numbers and makes the boot hang (seen on 15.1). The error
// never shows the password.
func CheckPassword(p cluster.Secret) error {
	const hint = "take 8 to 19 letters and digits, such as those that `openssl rand -hex 9` prints, and the same on all nodes"
	switch {
	case len(p) == 0:
		return cluster.WithHint(errors.New("CARP password: empty"), hint)
	case len(p) > maxPassword:
		return cluster.WithHint(fmt.Errorf("CARP password: longer than %d characters: FreeBSD drops the rest without a word", maxPassword), hint)
	}
	for _, c := range p {
		if !plainCharacter(c) {
			return cluster.WithHint(fmt.Errorf("CARP password: %s", badCharacter(c)), hint)
		}
	}
	return nil
}

func plainCharacter(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}

// badCharacter says what a character outside [A-Za-z0-9_] would do, by its kind and not by itself.
func badCharacter(c byte) string {
	switch {
	case c == '\n' || c == '\r':
		return "has a line break"
	case c == '-':
		return "has a dash: rc.d/netif can take it for a range, and the boot hangs"
	case c <= ' ' || c >= 0x7f:
		return "has a blank, a control character or a letter outside ASCII"
	}
	return "has a character that is not a letter, a digit or an underscore: rc.conf is evaluated by the shell"
}

// check refuses what the kernel would cut, misread or half do: it makes the vhid before it looks at advskew.
func (s Settings) check() error {
	if err := checkVHID(s.VHID); err != nil {
		return err
	}
	if s.AdvBase < 1 || s.AdvBase > maxAdvBase {
		return cluster.Usage(fmt.Errorf("advbase %d: not 1 to %d seconds", s.AdvBase, maxAdvBase))
	}
	if s.AdvSkew < 0 || s.AdvSkew > maxAdvSkew {
		return cluster.Usage(fmt.Errorf("advskew %d: not 0 to %d", s.AdvSkew, maxAdvSkew))
	}
	if err := checkPeer(s.Peer); err != nil {
		return err
	}
	if len(s.Password) == 0 {
		return nil
	}
	return cluster.Usage(CheckPassword(s.Password))
}

func checkVHID(vhid int) error {
	if vhid < 1 || vhid > maxVHID {
		return cluster.Usage(fmt.Errorf("vhid %d: not 1 to %d", vhid, maxVHID))
	}
	return nil
}

// checkPeer takes no peer, or the address of one host.
func checkPeer(peer netip.Addr) error {
	switch {
	case !peer.IsValid():
		return nil
	case peer.IsUnspecified(), peer.IsMulticast(), peer.IsLoopback(), peer.Is4In6(), peer.Zone() != "":
		return cluster.Usage(fmt.Errorf("peer %s: not the address of another host", peer))
	}
	return nil
}

// checkInterface takes a name that fits in a struct ifreq.
func checkInterface(iface string) error {
	if iface == "" || len(iface) > maxInterfaceName || strings.ContainsFunc(iface, oddInName) {
		return cluster.Usage(fmt.Errorf("interface %.40q: not a name of 1 to %d characters", iface, maxInterfaceName))
	}
	return nil
}

func oddInName(r rune) bool { return r <= ' ' || r >= 0x7f || r == '/' }

// checkAddress takes an address that an interface can have.
func checkAddress(address netip.Prefix) error {
	a := address.Addr()
	switch {
	case !address.IsValid(), address.Bits() == 0, a.Is4In6(), a.Zone() != "":
		return cluster.Usage(fmt.Errorf("address %s: not an address with a prefix length", address))
	case a.IsUnspecified(), a.IsMulticast(), a.IsLoopback(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return cluster.Usage(fmt.Errorf("address %s: not the address of a host", address))
	}
	return nil
}

// wrapf puts what was being done before an error; nil stays nil.
func wrapf(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), err)
}
