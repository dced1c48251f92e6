package lab

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// tsigKey is the name of the key that may update the zones.
const tsigKey = "certsync-lab."

// maxCNAMEs bounds how many CNAMEs one answer follows, so that a loop in the options ends.
const maxCNAMEs = 8

// DNSOptions are what a DNS server starts with. The zero value serves example.org.
type DNSOptions struct {
	// Zones are the zones that it is authoritative for; default: example.org. Anything else is REFUSED.
	Zones []string
	// CNAMEs are aliases, such as _acme-challenge.example.org -> example-org.auth.example.net.
	CNAMEs map[string]string
	// Hosts are the names with an A record, and its IPv4 address. ns.ZONE is 127.0.0.1 in every zone.
	Hosts map[string]string
}

// DNSFaults is how the server misbehaves. The zero value is a server that works.
type DNSFaults struct {
	// Delay is waited before each answer.
	Delay time.Duration
	// RefuseUpdates answers every update with REFUSED, whatever its signature.
	RefuseUpdates bool
	// HangUpdates and HangQueries never answer.
	HangUpdates, HangQueries bool
	// KeepOne lets a name have one TXT value: each insert replaces what was there, as some providers' APIs do.
	KeepOne bool
	// HideFor is how long an inserted value is accepted and not shown.
	HideFor time.Duration
}

// DNS is an authoritative name server on loopback, UDP and TCP on one port, whose TXT records are set by RFC 2136
// updates with TSIG (hmac-sha256, a secret made at the start). It answers as the zones' own name server and is good as
// a resolver for them; that is how certsync's `dns.resolvers` and the lab's CA use it.
type DNS struct {
	address string
	secret  string
	options DNSOptions
	servers []*dns.Server
	done    sync.WaitGroup

	mu      sync.Mutex
	faults  DNSFaults
	txt     map[string][]txtValue
	history map[string][]string
	updates int
	queries int
}

type txtValue struct {
	value string
	from  time.Time // when it is shown
}

// NewDNS starts a server on a free port of 127.0.0.1.
func NewDNS(options DNSOptions) (*DNS, error) {
	if len(options.Zones) == 0 {
		options.Zones = []string{"example.org."}
	}
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	d := &DNS{
		secret:  base64.StdEncoding.EncodeToString(secret),
		options: canonicalOptions(options),
		txt:     map[string][]txtValue{},
		history: map[string][]string{},
	}
	listener, packets, err := listenDNS()
	if err != nil {
		return nil, fmt.Errorf("lab DNS: %w", err)
	}
	d.address = listener.Addr().String()
	d.serve(&dns.Server{Listener: listener})
	d.serve(&dns.Server{PacketConn: packets})
	return d, nil
}

// canonicalOptions has every name absolute and in lower case.
func canonicalOptions(o DNSOptions) DNSOptions {
	out := DNSOptions{CNAMEs: map[string]string{}, Hosts: map[string]string{}}
	for _, z := range o.Zones {
		zone := dns.CanonicalName(z)
		out.Zones = append(out.Zones, zone)
		out.Hosts["ns."+zone] = "127.0.0.1" // unless the options have another
	}
	for name, target := range o.CNAMEs {
		out.CNAMEs[dns.CanonicalName(name)] = dns.CanonicalName(target)
	}
	for name, address := range o.Hosts {
		out.Hosts[dns.CanonicalName(name)] = address
	}
	return out
}

// listenDNS takes a port that is free for TCP and for UDP.
func listenDNS() (net.Listener, net.PacketConn, error) {
	var errs []error
	for range 20 {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, nil, err
		}
		packets, err := net.ListenPacket("udp", listener.Addr().String())
		if err == nil {
			return listener, packets, nil
		}
		_ = listener.Close()
		errs = append(errs, err)
	}
	return nil, nil, errors.Join(errs...)
}

func (d *DNS) serve(server *dns.Server) {
	server.Handler = dns.HandlerFunc(d.handle)
	server.TsigSecret = map[string]string{tsigKey: d.secret}
	// The default refuses opcode UPDATE before a handler sees it.
	server.MsgAcceptFunc = func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept }
	started := make(chan struct{})
	server.NotifyStartedFunc = func() { close(started) }
	d.servers = append(d.servers, server)
	d.done.Go(func() { _ = server.ActivateAndServe() })
	<-started
}

// Close stops the server.
func (d *DNS) Close() error {
	var errs []error
	for _, s := range d.servers {
		errs = append(errs, s.Shutdown())
	}
	d.done.Wait()
	return errors.Join(errs...)
}

// Address is the server's host:port, the same for UDP and TCP.
func (d *DNS) Address() string { return d.address }

// Env is what lego's rfc2136 provider needs to update the zones.
func (d *DNS) Env() map[string]string {
	return map[string]string{
		"RFC2136_NAMESERVER":     d.address,
		"RFC2136_TSIG_KEY":       tsigKey,
		"RFC2136_TSIG_ALGORITHM": dns.HmacSHA256,
		"RFC2136_TSIG_SECRET":    d.secret,
		"RFC2136_DNS_TIMEOUT":    "10",
		"RFC2136_TTL":            "1",
	}
}

// EnvFile is Env as the content of a dns.env_file.
func (d *DNS) EnvFile() string {
	var lines []string
	for k, v := range d.Env() {
		lines = append(lines, k+"="+v+"\n")
	}
	sort.Strings(lines)
	return strings.Join(lines, "")
}

// SetFaults changes how the server misbehaves, from the next message on.
func (d *DNS) SetFaults(f DNSFaults) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = f
}

// Records are the TXT values at name that are shown now, sorted. A name with a CNAME has none of its own.
func (d *DNS) Records(name string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.shown(dns.CanonicalName(name))
}

// AllRecords are the TXT values at every name, those not shown yet among them.
func (d *DNS) AllRecords() map[string][]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[string][]string{}
	for name, values := range d.txt {
		for _, v := range values {
			out[name] = append(out[name], v.value)
		}
	}
	return out
}

// History is every TXT value ever inserted at name, in order.
func (d *DNS) History(name string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.history[dns.CanonicalName(name)])
}

// SetTXT sets the values at name by hand, as an operator or another client would have left them.
func (d *DNS) SetTXT(name string, values ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	name = dns.CanonicalName(name)
	delete(d.txt, name)
	for _, v := range values {
		d.txt[name] = append(d.txt[name], txtValue{value: v})
	}
}

// Updates counts the updates that were accepted.
func (d *DNS) Updates() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.updates
}

// Queries counts the queries that came in, answered or not.
func (d *DNS) Queries() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.queries
}

func (d *DNS) shown(name string) []string {
	var out []string
	now := time.Now()
	for _, v := range d.txt[name] {
		if !v.from.After(now) {
			out = append(out, v.value)
		}
	}
	slices.Sort(out)
	return out
}

func (d *DNS) handle(w dns.ResponseWriter, request *dns.Msg) {
	d.mu.Lock()
	faults := d.faults
	if request.Opcode == dns.OpcodeQuery {
		d.queries++
	}
	d.mu.Unlock()
	update := request.Opcode == dns.OpcodeUpdate
	if update && faults.HangUpdates || !update && faults.HangQueries {
		return
	}
	time.Sleep(faults.Delay)
	reply := new(dns.Msg).SetReply(request)
	switch {
	case update:
		reply.Rcode = d.update(request, w.TsigStatus(), faults)
	case request.Opcode == dns.OpcodeQuery && len(request.Question) == 1:
		d.query(request.Question[0], reply)
	default:
		reply.Rcode = dns.RcodeNotImplemented
	}
	d.send(w, request, reply)
}

func (d *DNS) send(w dns.ResponseWriter, request, reply *dns.Msg) {
	if _, udp := w.LocalAddr().(*net.UDPAddr); udp {
		size := dns.MinMsgSize
		if opt := request.IsEdns0(); opt != nil {
			size = int(opt.UDPSize())
		}
		reply.Truncate(size)
	}
	if tsig := request.IsTsig(); tsig != nil && w.TsigStatus() == nil {
		reply.SetTsig(tsig.Hdr.Name, tsig.Algorithm, 300, time.Now().Unix())
	}
	_ = w.WriteMsg(reply)
}

// zone is the longest zone that holds name, or "".
func (d *DNS) zone(name string) string {
	best := ""
	for _, z := range d.options.Zones {
		if dns.IsSubDomain(z, name) && len(z) > len(best) {
			best = z
		}
	}
	return best
}

func (d *DNS) query(q dns.Question, reply *dns.Msg) {
	name := dns.CanonicalName(q.Name)
	if d.zone(name) == "" {
		reply.Rcode = dns.RcodeRefused
		return
	}
	reply.Authoritative = true
	reply.RecursionAvailable = true
	for range maxCNAMEs {
		target, alias := d.options.CNAMEs[name]
		if !alias {
			break
		}
		reply.Answer = append(reply.Answer, &dns.CNAME{Hdr: dnsHeader(name, dns.TypeCNAME), Target: target})
		if q.Qtype == dns.TypeCNAME || d.zone(target) == "" {
			return
		}
		name = target
	}
	records := d.answers(name, q.Qtype)
	reply.Answer = append(reply.Answer, records...)
	if len(records) > 0 {
		return
	}
	reply.Ns = append(reply.Ns, d.soa(d.zone(name)))
	if !d.exists(name) {
		reply.Rcode = dns.RcodeNameError
	}
}

func (d *DNS) answers(name string, qtype uint16) []dns.RR {
	var out []dns.RR
	zone := d.zone(name)
	switch qtype {
	case dns.TypeSOA:
		if name == zone {
			out = append(out, d.soa(zone))
		}
	case dns.TypeNS:
		if name == zone {
			out = append(out, &dns.NS{Hdr: dnsHeader(name, dns.TypeNS), Ns: "ns." + zone})
		}
	case dns.TypeA:
		if address, ok := d.options.Hosts[name]; ok {
			out = append(out, &dns.A{Hdr: dnsHeader(name, dns.TypeA), A: net.ParseIP(address)})
		}
	case dns.TypeTXT:
		for _, value := range d.Records(name) {
			out = append(out, &dns.TXT{Hdr: dnsHeader(name, dns.TypeTXT), Txt: []string{value}})
		}
	}
	return out
}

// exists tells NODATA from NXDOMAIN: a name exists when it or one below it has a record.
func (d *DNS) exists(name string) bool {
	names := slices.Clone(d.options.Zones)
	for n := range d.options.Hosts {
		names = append(names, n)
	}
	for n := range d.options.CNAMEs {
		names = append(names, n)
	}
	d.mu.Lock()
	for n := range d.txt {
		if len(d.shown(n)) > 0 {
			names = append(names, n)
		}
	}
	d.mu.Unlock()
	return slices.ContainsFunc(names, func(n string) bool { return dns.IsSubDomain(name, n) })
}

func dnsHeader(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: 1}
}

// soa has refresh 0: lego keeps zone cuts for that long in a cache that the whole process shares, and the labs of one
// process cut their zones differently.
func (d *DNS) soa(zone string) *dns.SOA {
	return &dns.SOA{Hdr: dnsHeader(zone, dns.TypeSOA), Ns: "ns." + zone, Mbox: "hostmaster." + zone,
		Serial: 1, Refresh: 0, Retry: 60, Expire: 3600, Minttl: 1}
}

// update applies an RFC 2136 update of TXT records, all of it or nothing, and gives the response code (section 2.2).
func (d *DNS) update(request *dns.Msg, tsig error, faults DNSFaults) int {
	if request.IsTsig() == nil || tsig != nil || faults.RefuseUpdates {
		return dns.RcodeRefused
	}
	if len(request.Question) != 1 || !slices.Contains(d.options.Zones, dns.CanonicalName(request.Question[0].Name)) {
		return dns.RcodeNotAuth
	}
	if len(request.Answer) > 0 {
		return dns.RcodeNotImplemented // prerequisites (section 2.4): nothing here sends any
	}
	for _, rr := range request.Ns {
		name := dns.CanonicalName(rr.Header().Name)
		if d.zone(name) != dns.CanonicalName(request.Question[0].Name) {
			return dns.RcodeNotZone
		}
		if rr.Header().Rrtype != dns.TypeTXT || d.options.CNAMEs[name] != "" {
			return dns.RcodeRefused
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, rr := range request.Ns {
		d.change(rr, faults)
	}
	d.updates++
	return dns.RcodeSuccess
}

// change applies one record of an update's update section (RFC 2136 section 2.5): class IN adds, class NONE deletes a
// value, class ANY deletes the RRset.
func (d *DNS) change(rr dns.RR, faults DNSFaults) {
	name := dns.CanonicalName(rr.Header().Name)
	value := ""
	if txt, ok := rr.(*dns.TXT); ok {
		value = strings.Join(txt.Txt, "")
	}
	same := func(v txtValue) bool { return v.value == value }
	switch rr.Header().Class {
	case dns.ClassANY:
		delete(d.txt, name)
	case dns.ClassNONE:
		d.txt[name] = slices.DeleteFunc(d.txt[name], same)
	case dns.ClassINET:
		if faults.KeepOne {
			delete(d.txt, name)
		}
		if !slices.ContainsFunc(d.txt[name], same) {
			d.txt[name] = append(d.txt[name], txtValue{value: value, from: time.Now().Add(faults.HideFor)})
		}
		d.history[name] = append(d.history[name], value)
	}
	if len(d.txt[name]) == 0 {
		delete(d.txt, name)
	}
}
