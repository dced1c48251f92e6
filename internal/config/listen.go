package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
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

// RunDirOf is the run_dir of the configuration file at path, also where the rest of it is wrong; the default where it
// cannot be told. It is for those who look for a daemon that goes on with an earlier configuration.
func RunDirOf(path string) string {
	def := Default().RunDir
	data, err := readFile(path, MaxSize, nil)
	if err != nil {
		return def
	}
	var only struct {
		RunDir string `yaml:"run_dir"`
	}
	if err := yaml.Unmarshal(data, &only); err == nil && filepath.IsAbs(only.RunDir) {
		return filepath.Clean(only.RunDir)
	}
	if m := runDirLine.FindSubmatch(data); m != nil { // no YAML at all, or a mistake beside it
		return filepath.Clean(string(m[1]))
	}
	return def
}

// runDirLine is how the key is usually written.
var runDirLine = regexp.MustCompile(`(?m)^run_dir:[ \t]*["']?(/[^"'#\s]+)`)
