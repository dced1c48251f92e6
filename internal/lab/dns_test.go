package lab_test

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"certsync/internal/lab"
)

const challengeName = "_acme-challenge.example.org."

func newDNS(t *testing.T, options lab.DNSOptions) *lab.DNS {
	t.Helper()
	d, err := lab.NewDNS(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func TestDNSAnswersForItsZones(t *testing.T) {
	d := newDNS(t, lab.DNSOptions{Zones: []string{"example.org", "auth.example.net"}, Hosts: map[string]string{"www.example.org": "192.0.2.1"},
		CNAMEs: map[string]string{"_acme-challenge.example.org": "x.auth.example.net", "a.example.org": "b.example.org", "b.example.org": "a.example.org"}})
	d.SetTXT("x.auth.example.net", "one", "two")
	for question, want := range map[string]string{
		"example.org. SOA": "NOERROR SOA", "example.org. NS": "NOERROR NS", "ns.example.org. A": "NOERROR A",
		"www.EXAMPLE.org. A": "NOERROR A", "www.example.org. TXT": "NOERROR", "nothing.example.org. TXT": "NXDOMAIN",
		"auth.example.net. SOA": "NOERROR SOA", "example.net. SOA": "REFUSED", "example.com. A": "REFUSED",
		"_acme-challenge.example.org. TXT": "NOERROR CNAME TXT TXT", "_acme-challenge.example.org. CNAME": "NOERROR CNAME",
		"_acme-challenge.example.org. SOA": "NOERROR CNAME", "auth.example.net. A": "NOERROR",
	} {
		name, qtype, _ := strings.Cut(question, " ")
		for _, network := range []string{"udp", "tcp"} {
			client := dns.Client{Net: network, Timeout: 5 * time.Second}
			reply, _, err := client.Exchange(new(dns.Msg).SetQuestion(name, dns.StringToType[qtype]), d.Address())
			if err != nil {
				t.Fatalf("%s over %s: %v", question, network, err)
			}
			got := dns.RcodeToString[reply.Rcode]
			for _, rr := range reply.Answer {
				got += " " + dns.TypeToString[rr.Header().Rrtype]
			}
			if got != want {
				t.Errorf("%s over %s: %s, want %s", question, network, got, want)
			}
		}
	}
	client := dns.Client{Timeout: 5 * time.Second}
	if _, _, err := client.Exchange(new(dns.Msg).SetQuestion("a.example.org.", dns.TypeTXT), d.Address()); err != nil {
		t.Errorf("a CNAME loop: %v", err)
	}
}

// update sends an insertion (or what change makes of it), signed with key and secret.
func update(t *testing.T, d *lab.DNS, zone, key, secret string, change func(*dns.Msg)) int {
	t.Helper()
	m := new(dns.Msg).SetUpdate(zone)
	m.Insert([]dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: challengeName, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 1}, Txt: []string{"value"}}})
	if change != nil {
		change(m)
	}
	client := dns.Client{Timeout: 5 * time.Second}
	if key != "" {
		m.SetTsig(key, dns.HmacSHA256, 300, time.Now().Unix())
		client.TsigSecret = map[string]string{key: secret}
	}
	reply, _, err := client.Exchange(m, d.Address())
	if reply == nil {
		t.Fatalf("update: %v", err)
	}
	return reply.Rcode
}

func TestDNSTakesOnlyItsOwnKey(t *testing.T) {
	d := newDNS(t, lab.DNSOptions{})
	key, secret := d.Env()["RFC2136_TSIG_KEY"], d.Env()["RFC2136_TSIG_SECRET"]
	remove := func(rrtype uint16) func(*dns.Msg) {
		return func(m *dns.Msg) {
			m.Ns = []dns.RR{&dns.ANY{Hdr: dns.RR_Header{Name: "www.example.org.", Rrtype: rrtype, Class: dns.ClassANY}}}
		}
	}
	elsewhere := func(m *dns.Msg) { m.Ns[0].Header().Name = "_acme-challenge.example.com." }
	for name, test := range map[string]struct {
		zone, key, secret string
		change            func(*dns.Msg)
		want              int
	}{
		"no TSIG":          {"example.org.", "", "", nil, dns.RcodeRefused},
		"another key":      {"example.org.", "other.", secret, nil, dns.RcodeRefused},
		"another secret":   {"example.org.", key, "b3RoZXI=", nil, dns.RcodeRefused},
		"another zone":     {"example.com.", key, secret, nil, dns.RcodeNotAuth},
		"a name elsewhere": {"example.org.", key, secret, elsewhere, dns.RcodeNotZone},
		"a record not TXT": {"example.org.", key, secret, remove(dns.TypeA), dns.RcodeRefused},
		"prerequisites":    {"example.org.", key, secret, func(m *dns.Msg) { m.NameUsed(m.Ns) }, dns.RcodeNotImplemented},
	} {
		if got := update(t, d, test.zone, test.key, test.secret, test.change); got != test.want {
			t.Errorf("%s: %s, want %s", name, dns.RcodeToString[got], dns.RcodeToString[test.want])
		}
	}
	if d.Updates() != 0 || len(d.AllRecords()) != 0 {
		t.Fatalf("%d updates were taken: %v", d.Updates(), d.AllRecords())
	}
	if got := update(t, d, "example.org.", key, secret, nil); got != dns.RcodeSuccess {
		t.Errorf("its own key: %s", dns.RcodeToString[got])
	}
	if got := d.Records(challengeName); !slices.Equal(got, []string{"value"}) {
		t.Errorf("records %v", got)
	}
}

func TestDNSFaults(t *testing.T) {
	d := newDNS(t, lab.DNSOptions{})
	key, secret := d.Env()["RFC2136_TSIG_KEY"], d.Env()["RFC2136_TSIG_SECRET"]
	set := func(value string) int {
		return update(t, d, "example.org.", key, secret, func(m *dns.Msg) { m.Ns[0].(*dns.TXT).Txt = []string{value} })
	}
	set("a")
	set("b")
	if got := d.Records(challengeName); !slices.Equal(got, []string{"a", "b"}) {
		t.Fatalf("two values: %v", got)
	}
	d.SetFaults(lab.DNSFaults{RefuseUpdates: true})
	if got := set("c"); got != dns.RcodeRefused {
		t.Errorf("refusing: %s", dns.RcodeToString[got])
	}
	d.SetFaults(lab.DNSFaults{KeepOne: true})
	set("d")
	if got := d.Records(challengeName); !slices.Equal(got, []string{"d"}) {
		t.Errorf("keeping one: %v", got)
	}
	d.SetFaults(lab.DNSFaults{HideFor: time.Hour})
	if got := set("e"); got != dns.RcodeSuccess || slices.Contains(d.Records(challengeName), "e") || len(d.AllRecords()[challengeName]) != 2 {
		t.Errorf("hiding: %s, shown %v, held %v", dns.RcodeToString[got], d.Records(challengeName), d.AllRecords())
	}
	d.SetFaults(lab.DNSFaults{HangQueries: true})
	client := dns.Client{Timeout: 50 * time.Millisecond}
	if reply, _, err := client.Exchange(new(dns.Msg).SetQuestion("example.org.", dns.TypeSOA), d.Address()); err == nil {
		t.Errorf("hanging: it answered %v", reply)
	}
}

func TestDNSCloseFreesThePort(t *testing.T) {
	d := newDNS(t, lab.DNSOptions{})
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	var config net.ListenConfig
	for network, listen := range map[string]func() error{
		"tcp": func() error { l, err := config.Listen(context.Background(), "tcp", d.Address()); return closed(l, err) },
		"udp": func() error {
			l, err := config.ListenPacket(context.Background(), "udp", d.Address())
			return closed(l, err)
		},
	} {
		if err := listen(); err != nil {
			t.Errorf("%s: %v", network, err)
		}
	}
}

func closed(l interface{ Close() error }, err error) error {
	if err != nil {
		return err
	}
	return l.Close()
}
