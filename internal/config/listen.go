package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// listen checks the address of the status page and brings it into its normal form.
func (d *decoder) listen(c *Config) {
	address, err := normalListen(c.Listen)
	d.check("listen", err)
	c.Listen = address
}

// normalListen gives a loopback address with its port, as net.Listen takes it; "" stays, and turns the page off.
func normalListen(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return "", fmt.Errorf("%.80q: not HOST:PORT, such as 127.0.0.1:9180 or [::1]:9180", text)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", fmt.Errorf("%.80q: the port is not between 1 and 65535", text)
	}
	ip, err := loopback(host)
	if err != nil {
		return "", fmt.Errorf("%.80q: %w", text, err)
	}
	return net.JoinHostPort(ip.String(), strconv.FormatUint(n, 10)), nil
}

// loopback wants an address that no other host can reach: the page has no password.
func loopback(host string) (netip.Addr, error) {
	if strings.EqualFold(host, "localhost") {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), nil
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return ip, errors.New("the host is not a loopback address: use 127.0.0.1 or [::1]")
	case !ip.Unmap().IsLoopback() || ip.Zone() != "":
		return ip, errors.New("not a loopback address: the page has no password. Use 127.0.0.1 or [::1], and " +
			"reach it from elsewhere by ssh -L or through a proxy that asks who is there")
	}
	return ip.Unmap(), nil
}
