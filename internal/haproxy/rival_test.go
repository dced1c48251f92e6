package haproxy_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
	"certsync/internal/haproxy"
)

// families makes a generation of each key type of a certificate that has both.
func families(t *testing.T) []*cert.Bundle {
	t.Helper()
	return []*cert.Bundle{generation(t), issue(t, certtest.Options{Domains: domains, KeyType: cert.RSA2048})}
}

// bring activates bundles as certificate example, all in one call.
func bring(t *testing.T, s *site, p *haproxy.Proxy, path string, both bool, bundles ...*cert.Bundle) {
	t.Helper()
	var targets []cluster.Target
	for _, b := range bundles {
		tgt := target(b, "example")
		tgt.Path, tgt.Both = path, both
		targets = append(targets, tgt)
	}
	out, err := p.Activate(context.Background(), targets)
	if err != nil {
		t.Fatal(err)
	}
	for i, got := range out {
		want(t, got, cluster.Done, cluster.Proven)
		s.wantServed(got, bundles[i])
	}
	s.mustCheck()
	for i, tgt := range targets {
		got := s.activate(p, tgt)
		want(t, got, cluster.Unchanged, cluster.Proven)
		s.wantServed(got, bundles[i])
	}
}

func (s *site) gone(name string) {
	s.t.Helper()
	if _, err := os.Stat(s.path(name)); !errors.Is(err, os.ErrNotExist) {
		s.t.Errorf("%s is still there (%v)", name, err)
	}
	if strings.Contains(s.command("show ssl cert\n"), s.path(name)+"\n") {
		s.t.Errorf("HAProxy still has %s", name)
	}
}

func TestContractKeyTypesMayChange(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		for _, c := range []struct {
			name, crt      string
			own, byDefault bool
		}{
			{name: "in a folder", crt: "crt DIR/bundles/"},
			{name: "the bind's default", crt: "crt DIR/bundles/", byDefault: true},
			{name: "a path of its own", crt: "crt DIR/bundles/", own: true},
			{name: "in a crt-list", crt: "crt-list DIR/list"},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				s := newSite(t, b, c.crt)
				if !c.byDefault {
					s.put("bundles/aaa.pem", issue(t, certtest.Options{Domains: []string{"aaa.test"}}).PEM())
				}
				s.put("list", []byte(s.path("bundles/aaa.pem")+"\n"+s.path("bundles/example.pem")+"\n"))
				path := ""
				if c.own {
					path = s.path("bundles/example.pem")
				}
				p := s.proxy(func(cfg *haproxy.Config) {
					if strings.HasPrefix(c.crt, "crt-list") {
						cfg.CrtList = s.path("list")
					}
				})
				one := target(generation(t), "example")
				one.Path = path
				if got := s.activate(p, one); got.Outcome != cluster.DiskOnly {
					t.Fatalf("before the start: outcome %q: %s", got.Outcome, describe(got))
				}
				s.start()

				// The ECDSA bundle is the same as before at first, as after a change of the configuration.
				bring(t, s, p, path, true, one.Bundle, families(t)[1])
				bring(t, s, p, path, true, families(t)...)
				if !c.byDefault {
					s.gone("bundles/example.pem")
				}
				bring(t, s, p, path, true, families(t)...)
				s.restart()
				bring(t, s, p, path, true, families(t)...)

				bring(t, s, p, path, false, generation(t))
				if !c.byDefault {
					s.gone("bundles/example.pem.ecdsa")
					s.gone("bundles/example.pem.rsa")
				}
				bring(t, s, p, path, false, generation(t))
				s.restart()
				bring(t, s, p, path, false, generation(t))
			})
		}
	})
}

// What was taken away for a new bundle comes back where that is not what clients get.
func TestContractBringsTheEarlierFileBack(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		for _, byDefault := range []bool{false, true} {
			t.Run(map[bool]string{false: "removed", true: "shared"}[byDefault], func(t *testing.T) {
				s := newSite(t, b, "crt DIR/bundles/")
				if !byDefault {
					s.put("bundles/aaa.pem", issue(t, certtest.Options{Domains: []string{"aaa.test"}}).PEM())
				}
				old := generation(t)
				s.put("bundles/example.pem", old.PEM())
				s.start()
				tgt := target(generation(t), "example", old)
				tgt.Path, tgt.Both = s.path("bundles/example.pem"), true
				got := s.activate(s.proxy(func(c *haproxy.Config) { c.Verify = []string{s.path("other.sock")} }), tgt)
				want(t, got, cluster.RolledBack, cluster.Disproven)
				if string(s.take("bundles/example.pem")) != string(old.PEM()) {
					t.Error("the earlier file is not what it was")
				}
				if got := s.served("tls.sock", "example.test", cert.ECDSA); got != old.Fingerprint() {
					t.Errorf("clients get %s, not the earlier certificate", got.Short())
				}
				if strings.Contains(s.command("show ssl cert\n"), "example.pem.ecdsa") {
					t.Error("HAProxy still has the new file")
				}
			})
		}
	})
}

func TestContractDoesNotRetireWhatItDidNotWrite(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s := newSite(t, b, "crt DIR/bundles/")
		s.put("bundles/aaa.pem", issue(t, certtest.Options{Domains: []string{"aaa.test"}}).PEM())
		theirs := generation(t)
		s.put("bundles/example.pem", theirs.PEM())
		s.start()
		tgt := target(generation(t), "example")
		tgt.Both = true
		got := s.activate(s.proxy(), tgt)
		if string(s.take("bundles/example.pem")) != string(theirs.PEM()) || !strings.Contains(s.command("show ssl cert\n"), s.path("bundles/example.pem")+"\n") {
			t.Error("a file of somebody else's was taken away")
		}
		if got.Outcome == cluster.RolledBack && !strings.Contains(got.Hint, s.path("bundles/example.pem")+" is loaded too") {
			t.Errorf("the hint does not name the other file: %s", describe(got))
		}
	})
}

// `crt FILE` cannot gain a certificate, and must not lose its file: HAProxy would not start.
func TestContractTellsThatAFileHidesItsFamilies(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, old := withOld(t, b, "crt DIR/bundles/example.pem")
		s.start()
		tgt := target(families(t)[1], "example", old)
		tgt.Path, tgt.Both = s.path("bundles/example.pem"), true
		got := s.activate(s.proxy(), tgt)
		if got.Outcome != cluster.DiskOnly || !strings.Contains(got.Hint, s.path("bundles/example.pem")+" is loaded too") {
			t.Fatalf("outcome %q: %s", got.Outcome, describe(got))
		}
		if string(s.take("bundles/example.pem")) != string(old.PEM()) {
			t.Error("the operator's file was changed")
		}
	})
}
