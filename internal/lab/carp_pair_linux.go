package lab

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"

	"certsync/internal/cert"
)

// VirtualAddress is the one that a Pair's hosts share.
var VirtualAddress = netip.MustParsePrefix("192.0.2.10/32")

const virtualID = 1

// PairOptions says what a pair is to be. Of Options, SSHD, CrtList and the nodes' HideBundle are not for a pair.
type PairOptions struct {
	Options
	// Settle is carp.settle; 1 s.
	Settle time.Duration
}

// Pair is two hosts, or three, with real CARP between them: each is a station of a segment, with HAProxy, OpenSSH's sshd,
// certsync (carp.role: auto) and ucarp. The first one's advskew is 0, the next ones' are 100 and 200.
type Pair struct {
	Segment *Segment
	Hosts   []*Host
	// Lab has what is around the hosts: the CA, the DNS server, the folders and old bundles. Its SetMaster has no place
	// here: the MASTER is who ucarp says.
	Lab *Lab

	o      PairOptions
	client *Station
}

// NewPair makes and boots a pair, and returns while the hosts still settle who is MASTER. What it started is stopped
// again where it fails. It is an ErrNoSegment where that cannot be had here.
func NewPair(ctx context.Context, o PairOptions) (*Pair, error) {
	if err := CanSegment(); err != nil {
		return nil, fmt.Errorf("pair: %w", err)
	}
	if _, err := systemProgram("sshd"); err != nil {
		return nil, fmt.Errorf("pair: %w: %w", ErrNoSegment, err)
	}
	o.Options = withDefaults(o.Options)
	o.Settle = cmp.Or(o.Settle, time.Second)
	l := &Lab{o: o.Options, Old: map[string]*cert.Bundle{}}
	p := &Pair{o: o, Lab: l}
	for _, step := range []func(context.Context) error{
		l.makeRoot, l.findPrograms, l.startServices, l.makeNodes, l.makeOld, p.makeSegment, p.prepareHosts, p.bootHosts,
	} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("pair: %w", err), p.Close())
		}
	}
	return p, nil
}

// makeSegment attaches the hosts, and one station more that clients are on. The second host's interface has another
// name than the first one's.
func (p *Pair) makeSegment(ctx context.Context) error {
	var err error
	if p.Segment, err = NewSegment(ctx); err != nil {
		return err
	}
	if p.client, err = p.Segment.Attach(ctx, "eth0", stationAddresses(1)...); err != nil {
		return err
	}
	for i, n := range p.Lab.Nodes {
		addresses := stationAddresses(11 + i)
		station, err := p.Segment.Attach(ctx, fmt.Sprintf("eth%d", i), addresses...)
		if err != nil {
			return err
		}
		p.Hosts = append(p.Hosts, &Host{Name: n.Name, Node: n, Station: station, Address: addresses[0].Addr(), pair: p, skew: 100 * i})
	}
	return nil
}

// stationAddresses are of the networks for documentation (RFC 5737, RFC 3849).
func stationAddresses(last int) []netip.Prefix {
	return []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(last)}), 24),
		netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", last)), 64),
	}
}

func (p *Pair) prepareHosts(context.Context) error {
	if err := writeFile(p.passwordFile(), []byte("certsync_lab\n")); err != nil {
		return err
	}
	if err := writeFile(p.envFile(), []byte(p.Lab.DNS.EnvFile())); err != nil {
		return err
	}
	for _, h := range p.Hosts {
		if err := h.Node.makeKeys(); err != nil {
			return fmt.Errorf("host %s: %w", h.Name, err)
		}
	}
	for _, h := range p.Hosts {
		if err := errors.Join(h.prepare(), p.writeConfig(h), h.connect()); err != nil {
			return err
		}
	}
	return nil
}

func (p *Pair) bootHosts(ctx context.Context) error {
	for _, h := range p.Hosts {
		if err := h.boot(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (p *Pair) passwordFile() string { return filepath.Join(p.Lab.Root, "carp.pass") }
func (p *Pair) envFile() string      { return filepath.Join(p.Lab.Root, "dns.env") }

// pairFile is certsync.yaml as the lab's own, with what is different where there is CARP.
type pairFile struct {
	Nodes []pairNode `yaml:"nodes"`
	CARP  pairCARP   `yaml:"carp"`
}

type (
	pairNode struct {
		Name       string            `yaml:"name"`
		Address    string            `yaml:"address"`
		AdvSkew    int               `yaml:"advskew"`
		Interfaces map[string]string `yaml:"interfaces,omitempty"`
	}
	pairCARP struct {
		Role   string     `yaml:"role"`
		Settle string     `yaml:"settle"`
		VHIDs  []pairVHID `yaml:"vhids"`
	}
	pairVHID struct {
		Interface    string         `yaml:"interface"`
		VHID         int            `yaml:"vhid"`
		AdvBase      int            `yaml:"advbase"`
		Addresses    []netip.Prefix `yaml:"addresses"`
		PasswordFile string         `yaml:"password_file"`
	}
)

// writeConfig writes the host's certsync.yaml: the lab's, with the sections nodes and carp of pairFile.
func (p *Pair) writeConfig(h *Host) error {
	l := p.Lab
	shared := configFile{
		ACME: configACME{Directory: l.CA.Directory(), Email: "ops@example.org", CAFile: l.CA.CAFile()},
		DNS: configDNS{Provider: "rfc2136", EnvFile: p.envFile(), Resolvers: []string{l.DNS.Address()},
			Propagation: configPropagation{Timeout: "20s", Interval: "20ms"}},
	}
	sections := map[string]any{}
	for _, part := range []any{h.Node.configFile(shared, "root"), p.file()} {
		data, err := yaml.Marshal(part)
		if err == nil {
			err = yaml.Unmarshal(data, sections)
		}
		if err != nil {
			return fmt.Errorf("configuration of %s: %w", h.Name, err)
		}
	}
	data, err := yaml.Marshal(sections)
	if err == nil {
		err = writeFile(h.Node.Config, data)
	}
	if err != nil {
		return fmt.Errorf("configuration of %s: %w", h.Name, err)
	}
	return nil
}

func (p *Pair) file() pairFile {
	common := p.Hosts[0].Station.Interface
	out := pairFile{CARP: pairCARP{Role: "auto", Settle: p.o.Settle.String(), VHIDs: []pairVHID{{Interface: common, VHID: virtualID,
		AdvBase: 1, Addresses: []netip.Prefix{VirtualAddress}, PasswordFile: p.passwordFile()}}}}
	for _, h := range p.Hosts {
		n := pairNode{Name: h.Name, Address: h.Address.String(), AdvSkew: h.skew}
		if h.Station.Interface != common {
			n.Interfaces = map[string]string{common: h.Station.Interface}
		}
		out.Nodes = append(out.Nodes, n)
	}
	return out
}

// Split cuts the hosts off from one another; clients still reach each of them. Segment.Heal ends it.
func (p *Pair) Split(ctx context.Context) error {
	var stations []*Station
	for _, h := range p.Hosts {
		stations = append(stations, h.Station)
	}
	return p.Segment.Split(ctx, stations...)
}

// Answer is what a client got at the virtual address.
type Answer struct {
	// Host is the name of the host that answered.
	Host string
	Leaf cert.Fingerprint
}

// AskVirtual is a client of the segment: it makes a TLS connection to the virtual address and one request.
func (p *Pair) AskVirtual(ctx context.Context, serverName string) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var a Answer
	err := p.client.ns.do(func() (err error) {
		a, err = ask(ctx, netip.AddrPortFrom(VirtualAddress.Addr(), hostTLSPort).String(), serverName)
		return err
	})
	if err != nil {
		return Answer{}, fmt.Errorf("client of %s: %w", VirtualAddress.Addr(), err)
	}
	return a, nil
}

func ask(ctx context.Context, address, serverName string) (Answer, error) {
	conn, leaf, err := dialTLS(ctx, address, serverName)
	if err != nil {
		return Answer{}, err
	}
	defer closeHard(conn)
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", serverName); err != nil {
		return Answer{}, err
	}
	reply, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return Answer{}, err
	}
	defer func() { _ = reply.Body.Close() }()
	name, err := io.ReadAll(io.LimitReader(reply.Body, 1<<10))
	return Answer{Host: string(name), Leaf: leaf}, err
}

// Close ends everything on the hosts, removes the segment, and closes the lab. It may be called twice.
func (p *Pair) Close() error {
	var errs []error
	for _, h := range p.Hosts {
		errs = append(errs, h.close())
	}
	if p.Segment != nil {
		errs = append(errs, p.Segment.Close())
	}
	p.Hosts, p.Segment = nil, nil
	return errors.Join(append(errs, p.Lab.Close())...)
}
