package haproxy_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
	"certsync/internal/haproxy"
	"certsync/internal/haproxy/haproxytest"
)

// gone is a slot that is no longer configured, as the store knows it.
func gone(tgt cluster.Target) cluster.Target {
	return cluster.Target{Slot: tgt.Slot, Known: []*cert.Bundle{tgt.Bundle}}
}

func (s *site) prune(p *haproxy.Proxy, remove bool, kept []cluster.Target, targets ...cluster.Target) []cluster.Leftover {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := p.Prune(ctx, targets, kept, remove)
	if err != nil {
		s.t.Fatalf("Prune: %v", err)
	}
	s.mustCheck()
	return out
}

// wantPruned fails unless one leftover is told, removed or not, and an error with its mend where one is wanted.
func wantPruned(t *testing.T, out []cluster.Leftover, removed bool, problem, hint string) {
	t.Helper()
	if len(out) != 1 || out[0].Removed != removed || (out[0].Error == "") != (problem == "") {
		t.Fatalf("leftovers %+v", out)
	}
	if !strings.Contains(out[0].Error, problem) || !strings.Contains(out[0].Hint, hint) {
		t.Errorf("error %q, hint %q; want %q, %q", out[0].Error, out[0].Hint, problem, hint)
	}
}

// wantCopy fails unless the journal has a copy of a bundle.
func (s *site) wantCopy(b *cert.Bundle) {
	s.t.Helper()
	copies, err := filepath.Glob(s.path("journal/previous/*"))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, c := range copies {
		if data, err := os.ReadFile(c); err == nil && bytes.Equal(data, b.PEM()) {
			return
		}
	}
	s.t.Error("no copy was kept")
}

func TestContractPruneRemovesWhatIsNoLongerConfigured(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, p, tgt := inPlace(t, b)
		stays := target(issue(t, certtest.Options{Domains: []string{"stays.test"}}), "stays")
		want(t, s.activate(p, stays), cluster.Done, cluster.Proven)
		file := s.path("bundles/example.pem")

		plan := s.prune(p, false, []cluster.Target{stays}, gone(tgt))
		wantPruned(t, plan, false, "", "")
		if l := plan[0]; l.File != file || !l.OnDisk || len(l.Memory) != 1 || l.Memory[0] != file || l.Slot != tgt.Slot || l.Proxy != s.config {
			t.Errorf("the plan: %+v", l)
		}
		want(t, s.activate(p, tgt), cluster.Unchanged, cluster.Proven) // a plan changes nothing

		done := s.prune(p, true, []cluster.Target{stays}, gone(tgt))
		wantPruned(t, done, true, "", "")
		s.gone("bundles/example.pem")
		s.wantCopy(tgt.Bundle)
		want(t, s.activate(p, stays), cluster.Unchanged, cluster.Proven)
		if again := s.prune(p, true, []cluster.Target{stays}, gone(tgt)); len(again) > 0 {
			t.Errorf("the second time: %+v", again)
		}
		s.restart()
		want(t, s.activate(p, stays), cluster.Unchanged, cluster.Proven)

		// The name may come back.
		want(t, s.activate(p, tgt), cluster.Done, cluster.Proven)
	})
}

func TestContractPruneTakesTheLinesOutOfTheCrtList(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		for name, lines := range map[string]string{
			"as written": "OURS\n", "doubled": "OURS\nOURS\n", "with options": "OURS [alpn h2] example.test *.example.test\n",
			"commented too": "OURS\n#OURS\n", "tripled": "OURS\nOURS example.test\nOURS\n",
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s := newSite(t, b, "crt-list DIR/list")
				keep := "# by hand\n" + s.path("elsewhere/other.pem") + "\n"
				s.put("bundles/example.pem", generation(t).PEM())
				s.put("list", []byte(keep+strings.ReplaceAll(lines, "OURS", s.path("bundles/example.pem"))))
				s.start()
				p := s.proxy(func(c *haproxy.Config) { c.CrtList = s.path("list") })
				tgt := target(generation(t), "example")
				tgt.Path = s.path("bundles/example.pem")
				want(t, s.activate(p, tgt), cluster.Done, cluster.Proven)
				if plan := s.prune(p, false, nil, gone(tgt)); plan[0].CrtList != s.path("list") {
					t.Errorf("the plan: %+v", plan)
				}
				wantPruned(t, s.prune(p, true, nil, gone(tgt)), true, "", "")
				s.gone("bundles/example.pem")
				if list := string(s.take("list")); strings.ReplaceAll(list, "#"+s.path("bundles/example.pem")+"\n", "") != keep {
					t.Errorf("the list is %q", list)
				}
				if list := s.command("show ssl crt-list -n " + s.path("list") + "\n"); strings.Contains(list, "example") {
					t.Errorf("HAProxy's list: %s", list)
				}
			})
		}
	})
}

func TestContractPruneTakesBothKeyTypesAndLeavesTheOtherOne(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s := newSite(t, b, "crt DIR/bundles/")
		s.put("bundles/aaa.pem", issue(t, certtest.Options{Domains: []string{"aaa.test"}}).PEM())
		s.start()
		p := s.proxy()
		var both []cluster.Target
		for _, f := range families(t) {
			tgt := target(f, "example")
			tgt.Both = true
			want(t, s.activate(p, tgt), cluster.Done, cluster.Proven)
			both = append(both, tgt)
		}
		// Displaced: the RSA one is no longer wanted, and the ECDSA one's file is still called NAME.pem.ecdsa.
		wantPruned(t, s.prune(p, true, both[:1], gone(both[1])), true, "", "")
		s.gone("bundles/example.pem.rsa")
		want(t, s.activate(p, both[0]), cluster.Unchanged, cluster.Proven)
		wantPruned(t, s.prune(p, true, nil, gone(both[0])), true, "", "")
		s.gone("bundles/example.pem.ecdsa")
	})
}

// The file of a configured slot is never touched, though it holds what is known of one that is gone.
func TestContractPruneNeverTouchesTheFileOfAConfiguredSlot(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, p, tgt := inPlace(t, b)
		if out := s.prune(p, true, []cluster.Target{tgt}, gone(tgt)); len(out) > 0 {
			t.Errorf("leftovers %+v", out)
		}
		// The name has RSA now, at the path that its ECDSA bundle had.
		rsa := target(issue(t, certtest.Options{Domains: domains, KeyType: cert.RSA2048}), "example", tgt.Bundle)
		want(t, s.activate(p, rsa), cluster.Done, cluster.Proven)
		if out := s.prune(p, true, []cluster.Target{rsa}, gone(tgt)); len(out) > 0 {
			t.Errorf("leftovers %+v", out)
		}
		want(t, s.activate(p, rsa), cluster.Unchanged, cluster.Proven)
	})
}

func TestContractPruneLeavesWhatHAProxyNeeds(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		for _, c := range []struct{ name, crt, problem, hint string }{
			{"a bind's default", "crt DIR/bundles/", "ask for no name", "reload HAProxy"},
			{"a bind's own", "crt DIR/elsewhere/other.pem crt DIR/bundles/example.pem", "a bind line names it", "off the bind line"},
			{"in somebody's list", "crt DIR/elsewhere/other.pem crt-list DIR/list", "names it", "take its line out of"},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				s, old := withOld(t, b, c.crt)
				s.put("list", []byte(s.path("bundles/example.pem")+"\n"))
				s.start()
				p, tgt := s.proxy(), target(generation(t), "example", old)
				want(t, s.activate(p, tgt), cluster.Done, cluster.Proven)
				wantPruned(t, s.prune(p, true, nil, gone(tgt)), false, c.problem, c.hint)
				want(t, s.activate(p, tgt), cluster.Unchanged, cluster.Proven)
				if c.name != "a bind's default" {
					return
				}
				// The mend: another certificate is the default then.
				s.put("bundles/aaa.pem", issue(t, certtest.Options{Domains: []string{"aaa.test"}}).PEM())
				s.restart()
				wantPruned(t, s.prune(p, true, nil, gone(tgt)), true, "", "")
				s.gone("bundles/example.pem")
			})
		}
	})
}

func TestContractPruneLeavesWhatIsNotCertsyncs(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		theirs := issue(t, certtest.Options{Domains: domains})
		for _, c := range []struct {
			name, problem string
			harm          func(s *site, p *haproxy.Proxy)
		}{
			{"another certificate in the file", "is not certsync's", func(s *site, _ *haproxy.Proxy) { s.put("bundles/example.pem", theirs.PEM()) }},
			{"another certificate in memory", "is not certsync's", func(s *site, _ *haproxy.Proxy) {
				name := s.path("bundles/example.pem")
				s.command("set ssl cert " + name + " <<\n" + string(theirs.PEM()) + "\n")
				s.command("commit ssl cert " + name + "\n")
			}},
			{"a link that leads to it", "is a link to", func(s *site, _ *haproxy.Proxy) {
				s.put("elsewhere/real.pem", s.take("bundles/example.pem"))
				_ = os.Remove(s.path("bundles/example.pem"))
				s.link("elsewhere/real.pem", "bundles/example.pem")
			}},
		} {
			t.Run(c.name, func(t *testing.T) {
				s, p, tgt := inPlace(t, b)
				c.harm(s, p)
				if c.name == "a link that leads to it" { // which certsync followed once
					own := tgt
					own.Bundle, own.Known = generation(t), []*cert.Bundle{tgt.Bundle}
					want(t, s.activate(p, own), cluster.Done, cluster.Proven)
					tgt = own
				}
				before := s.take("bundles/example.pem")
				out := s.prune(p, true, nil, gone(tgt))
				told := false
				for _, l := range out {
					told = told || strings.Contains(l.Error, c.problem) && l.Hint != ""
					if l.Removed && c.name != "a link that leads to it" {
						t.Errorf("removed: %+v", l)
					}
				}
				if !told {
					t.Errorf("leftovers %+v, want one with %q", out, c.problem)
				}
				if !bytes.Equal(s.take("bundles/example.pem"), before) {
					t.Error("the file was changed")
				}
			})
		}
	})
}

// What the journal does not know was written by somebody else, though it is one of ours to the byte.
func TestContractPruneLeavesAFileThatItDidNotWrite(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, old := withOld(t, b, "crt DIR/bundles/")
		s.put("bundles/aaa.pem", issue(t, certtest.Options{Domains: []string{"aaa.test"}}).PEM())
		s.start()
		if out := s.prune(s.proxy(), true, nil, gone(target(old, "example"))); len(out) > 0 {
			t.Errorf("leftovers %+v", out)
		}
		if !bytes.Equal(s.take("bundles/example.pem"), old.PEM()) {
			t.Error("the file was changed")
		}
	})
}

func TestPruneLeavesTheCertificatesOfHAProxysOwnACME(t *testing.T) {
	s, p, tgt := inPlace(t, fakeBackend)
	s.server.(*haproxytest.Fake).Answer(func(command string) (string, bool) {
		return "# certificate\tsection\tstate\n" + s.path("bundles/example.pem") + "\tle\tRunning\n\n", command == "acme status"
	})
	wantPruned(t, s.prune(p, true, nil, gone(tgt)), false, "HAProxy's own ACME", "acme")
	if !bytes.Equal(s.take("bundles/example.pem"), tgt.Bundle.PEM()) {
		t.Error("the file was changed")
	}
}

func TestContractPruneAsksHAProxyFirst(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, p, tgt := inPlace(t, b)
		s.stop()
		wantPruned(t, s.prune(p, true, nil, gone(tgt)), false, "cannot be asked", "start HAProxy")
		s.start()
		// A foreign transaction is waited for, then told.
		s.command("set ssl cert " + s.path("bundles/aaa.pem") + " <<\n" + string(issue(t, certtest.Options{Domains: []string{"aaa.test"}}).PEM()) + "\n")
		if out, err := p.Prune(context.Background(), []cluster.Target{gone(tgt)}, nil, true); err == nil || !strings.Contains(err.Error(), "aaa.pem") || cluster.HintOf(err) == "" {
			t.Errorf("%+v, %v", out, err)
		}
		s.command("abort ssl cert " + s.path("bundles/aaa.pem") + "\n")
		wantPruned(t, s.prune(p, true, nil, gone(tgt)), true, "", "")
	})
}

func TestContractPruneRemovesAFileThatIsDamagedOrGone(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		for _, harm := range []string{"removed", "truncated"} {
			s, p, tgt := inPlace(t, b)
			if harm == "removed" {
				_ = os.Remove(s.path("bundles/example.pem"))
			} else {
				s.put("bundles/example.pem", tgt.Bundle.PEM()[:500])
			}
			wantPruned(t, s.prune(p, true, nil, gone(tgt)), true, "", "")
			s.gone("bundles/example.pem")
		}
	})
}

// HAProxy does not start with an empty `crt DIR/`.
func TestContractPruneOfTheLastBundlePutsThePlaceholderBack(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s := newSite(t, b, "crt DIR/bundles/")
		placeholder, err := cert.NewPlaceholder(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		s.put("bundles/"+cert.PlaceholderName, placeholder)
		s.start()
		p, tgt := s.proxy(), target(generation(t), "example")
		want(t, s.activate(p, tgt), cluster.Done, cluster.Proven)
		if _, err := os.Stat(s.path("bundles/" + cert.PlaceholderName)); err == nil {
			t.Fatal("the placeholder is still there")
		}
		wantPruned(t, s.prune(p, true, nil, gone(tgt)), true, "", "")
		s.gone("bundles/example.pem")
		if !cert.IsPlaceholder(s.take("bundles/" + cert.PlaceholderName)) {
			t.Error("no placeholder")
		}
		s.restart()
	})
}
