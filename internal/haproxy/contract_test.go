package haproxy_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
	"certsync/internal/haproxy"
	"certsync/internal/haproxy/haproxytest"
)

// domains is what the certificates of most tests are for.
var domains = []string{"example.test", "*.example.test"}

func generation(t *testing.T) *cert.Bundle {
	t.Helper()
	return issue(t, certtest.Options{Domains: domains})
}

// ways are the ways in which a configuration can name bundles/example.pem.
var ways = []struct {
	name, crt string
	global    []string
	prepare   func(s *site)
}{
	{name: "crt FILE", crt: "crt DIR/bundles/example.pem"},
	{name: "crt DIR", crt: "crt DIR/bundles/"},
	{name: "crt-list", crt: "crt-list DIR/list", prepare: func(s *site) {
		s.put("list", []byte("# ours\n"+s.path("bundles/example.pem")+" [alpn h2] example.test *.example.test\n"))
	}},
	{name: "crt-base", crt: "crt example.pem", global: []string{"stats socket DIR/admin.sock level admin mode 600", "crt-base DIR/bundles"}},
	{name: "relative", crt: "crt bundles/example.pem"},
	{name: "relative with a dot", crt: "crt ./bundles/example.pem"},
	{name: "relative DIR", crt: "crt bundles"},
	{name: "unclean path", crt: "crt DIR/bundles/.././bundles/example.pem"},
	{name: "link to the file", crt: "crt DIR/elsewhere/link.pem", prepare: func(s *site) { s.link("bundles/example.pem", "elsewhere/link.pem") }},
	{name: "link to the folder", crt: "crt DIR/link/", prepare: func(s *site) { s.link("bundles", "link") }},
	{name: "link in the bundle folder", crt: "crt DIR/bundles/", prepare: func(s *site) {
		s.put("elsewhere/real.pem", s.take("bundles/example.pem"))
		if err := os.Remove(s.path("bundles/example.pem")); err != nil {
			s.t.Fatal(err)
		}
		s.link("elsewhere/real.pem", "bundles/example.pem")
	}},
	{name: "two names for one file", crt: "crt DIR/bundles/example.pem crt DIR/elsewhere/link.pem", prepare: func(s *site) { s.link("bundles/example.pem", "elsewhere/link.pem") }},
	{name: "folder with a space", crt: `crt "DIR/el se/link.pem"`, prepare: func(s *site) {
		if err := os.Mkdir(s.path("el se"), 0o700); err != nil {
			s.t.Fatal(err)
		}
		s.link("bundles/example.pem", "el se/link.pem")
	}},
}

func (s *site) link(target, link string) {
	s.t.Helper()
	if err := os.Symlink(s.path(target), s.path(link)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) take(name string) []byte {
	s.t.Helper()
	data, err := os.ReadFile(s.path(name))
	if err != nil {
		s.t.Fatal(err)
	}
	return data
}

// withOld is a site that serves an earlier generation from bundles/example.pem.
func withOld(t *testing.T, b backend, crt string, global ...string) (s *site, old *cert.Bundle) {
	t.Helper()
	s = newSite(t, b, crt, global...)
	old = generation(t)
	s.put("bundles/example.pem", old.PEM())
	return s, old
}

func TestContractReplacesACertificateHoweverItIsConfigured(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		for i, way := range ways {
			t.Run(way.name, func(t *testing.T) {
				t.Parallel()
				s, old := withOld(t, b, way.crt, way.global...)
				if way.prepare != nil {
					way.prepare(s)
				}
				s.start()
				w := &wire{}
				p := s.proxy(w.use)
				next := generation(t)
				tgt := target(next, "example", old)
				if before := s.inspect(p, tgt); before.Disk.Fingerprint != old.Fingerprint() || before.Memory.Fingerprint != old.Fingerprint() ||
					before.Served.Fingerprint != old.Fingerprint() || before.Proof != cluster.Disproven || !before.Running || before.Pid == 0 {
					t.Fatalf("before: %s", describe(before))
				}
				got := s.activate(p, tgt)
				want(t, got, cluster.Done, cluster.Proven)
				s.wantServed(got, next)
				if open := s.command("show ssl cert\n"); strings.Contains(open, "# transaction") {
					t.Errorf("a transaction is open: %s", open)
				}

				changes := len(w.changing())
				again := s.activate(p, tgt)
				want(t, again, cluster.Unchanged, cluster.Proven)
				if more := w.changing()[changes:]; len(more) > 0 {
					t.Errorf("with nothing to do it sent %q", more)
				}

				if i >= 3 { // that it would start, mustCheck has said; three really do
					return
				}
				s.restart()
				if got := s.inspect(p, tgt); got.Proof != cluster.Proven {
					t.Errorf("after a restart: %s", describe(got))
				}
			})
		}
	})
}

func TestContractReplacesACertificateOfACrtStore(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		if b.version == "" || b.version == "2.6" {
			return // crt-store came with 3.0
		}
		crts := []string{"crt @web/DIR/bundles/example.pem"}
		if b.version != "3.0" { // which does not tell what an alias stands for
			crts = append(crts, "crt @web/alias")
		}
		for _, crt := range crts {
			t.Run(crt, func(t *testing.T) {
				s, old := withOld(t, b, strings.Replace(crt, "@web/DIR", "@webDIR", 1))
				alias := ""
				if strings.Contains(crt, "alias") {
					alias = " alias alias"
				}
				s.put("haproxy.cfg", append([]byte("crt-store web\n  load crt "+s.path("bundles/example.pem")+alias+"\n"), s.take("haproxy.cfg")...))
				s.start()
				tgt := target(generation(t), "example", old)
				got := s.activate(s.proxy(), tgt)
				want(t, got, cluster.Done, cluster.Proven)
				s.wantServed(got, tgt.Bundle)
			})
		}
	})
}

func TestContractKeepsLinks(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, old := withOld(t, b, "crt DIR/elsewhere/link.pem")
		s.link("bundles/example.pem", "elsewhere/link.pem")
		s.start()
		tgt := target(generation(t), "example", old)
		tgt.Path = s.path("elsewhere/link.pem")
		got := s.activate(s.proxy(), tgt)
		want(t, got, cluster.Done, cluster.Proven)
		s.wantServed(got, tgt.Bundle)
		if info, err := os.Lstat(s.path("elsewhere/link.pem")); err != nil || info.Mode().Type() != os.ModeSymlink {
			t.Errorf("the link was replaced (%v, %v)", info, err)
		}
		if !bytes.Equal(s.take("bundles/example.pem"), tgt.Bundle.PEM()) {
			t.Error("the file that the link means was not replaced")
		}
	})
}

func TestContractAddsANewCertificate(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		for _, c := range []struct {
			name, crt, crtList string
		}{
			{"to a folder", "crt DIR/bundles/", ""},
			{"to a folder by another name", "crt DIR/link/", ""},
			{"to a crt-list", "crt-list DIR/list", "list"},
			{"to a crt-list by another name", "crt-list DIR/elsewhere/listlink", "list"},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				s := newSite(t, b, c.crt)
				first := issue(t, certtest.Options{Domains: []string{"first.test"}})
				s.put("bundles/first.pem", first.PEM())
				s.put("list", []byte(s.path("bundles/first.pem")+"\n"))
				s.link("bundles", "link")
				s.link("list", "elsewhere/listlink")
				s.start()
				p := s.proxy(func(cfg *haproxy.Config) {
					if c.crtList != "" {
						cfg.CrtList = s.path(c.crtList)
					}
				})
				tgt := target(generation(t), "example")
				got := s.activate(p, tgt)
				want(t, got, cluster.Done, cluster.Proven)
				s.wantServed(got, tgt.Bundle)
				want(t, s.activate(p, tgt), cluster.Unchanged, cluster.Proven)
				s.restart()
				want(t, s.activate(p, tgt), cluster.Unchanged, cluster.Proven)
				next := target(generation(t), "example", tgt.Bundle)
				got = s.activate(p, next)
				want(t, got, cluster.Done, cluster.Proven)
				s.wantServed(got, next.Bundle)
				if c.crtList != "" && strings.Count(string(s.take("list")), "example.pem") != 1 {
					t.Errorf("the crt-list: %q", s.take("list"))
				}
			})
		}
	})
}

func TestContractTellsWhatNeedsAReload(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		for _, c := range []struct{ name, crt, crtList, hint string }{
			{"no list takes it", "crt DIR/elsewhere/other.pem", "", "reload HAProxy"},
			{"the crt-list is not in use", "crt DIR/elsewhere/other.pem", "list", "crt-list"},
		} {
			t.Run(c.name, func(t *testing.T) {
				s := newSite(t, b, c.crt)
				s.put("list", nil)
				s.start()
				p := s.proxy(func(cfg *haproxy.Config) {
					if c.crtList != "" {
						cfg.CrtList = s.path(c.crtList)
					}
				})
				tgt := target(generation(t), "example")
				got := s.activate(p, tgt)
				if got.Outcome != cluster.DiskOnly || !strings.Contains(got.Error, "reload") || !strings.Contains(got.Hint, c.hint) || got.Disk.Fingerprint != tgt.Bundle.Fingerprint() {
					t.Fatalf("outcome %q: %s", got.Outcome, describe(got))
				}
				if strings.Contains(s.command("show ssl cert\n"), "example") {
					t.Error("HAProxy has an unused certificate now")
				}
			})
		}
	})
}

// large makes a certificate whose whole bundle exceeds HAProxy's buffer while leaf and chain fit in it.
func large(t *testing.T) *cert.Bundle {
	t.Helper()
	b := issue(t, certtest.Options{Domains: domains, KeyType: cert.RSA4096, Padding: 9800})
	if all, certs := len(b.PEM()), len(b.CertificatesPEM()); all <= 16384 || certs >= 16000 {
		t.Fatalf("the bundle has %d bytes, %d without the key", all, certs)
	}
	return b
}

func TestContractSplitsWhatExceedsTheBuffer(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		for _, fresh := range []bool{false, true} {
			t.Run(map[bool]string{false: "replaced", true: "new"}[fresh], func(t *testing.T) {
				s := newSite(t, b, "crt DIR/bundles/")
				s.put("bundles/first.pem", issue(t, certtest.Options{Domains: []string{"first.test"}}).PEM())
				old := issue(t, certtest.Options{Domains: domains, KeyType: cert.RSA2048})
				if !fresh {
					s.put("bundles/example.pem", old.PEM())
				}
				s.start()
				w := &wire{}
				tgt := target(large(t), "example", old)
				got := s.activate(s.proxy(w.use), tgt)
				want(t, got, cluster.Done, cluster.Proven)
				s.wantServed(got, tgt.Bundle)
				if !slices.Contains(w.changing(), "set ssl cert "+s.path("bundles/example.pem.key")) {
					t.Errorf("the key was not split off: %q", w.changing())
				}
			})
		}
	})
}

func TestContractNeverSendsWhatCannotFit(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, old := withOld(t, b, "crt DIR/bundles/")
		s.start()
		w := &wire{}
		tgt := target(issue(t, certtest.Options{Domains: domains, Padding: 20000}), "example", old)
		got := s.activate(s.proxy(w.use), tgt)
		if got.Outcome != cluster.DiskOnly || !strings.Contains(got.Hint, "tune.bufsize") {
			t.Fatalf("outcome %q: %s", got.Outcome, describe(got))
		}
		if sent := w.changing(); len(sent) > 0 {
			t.Errorf("it sent %q", sent)
		}
		if s.served("tls.sock", "example.test", cert.ECDSA) != old.Fingerprint() {
			t.Error("HAProxy does not serve the old certificate any more")
		}
		s.restart()
		want(t, s.activate(s.proxy(), tgt), cluster.Unchanged, cluster.Proven)
	})
}

func TestContractKeepsBothFamilies(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		for _, crt := range []string{"crt DIR/bundles/", "crt DIR/bundles/example.pem"} {
			t.Run(crt, func(t *testing.T) {
				s := newSite(t, b, crt)
				old := map[cert.Algorithm]*cert.Bundle{cert.ECDSA: generation(t), cert.RSA: issue(t, certtest.Options{Domains: domains, KeyType: cert.RSA2048})}
				for a, o := range old {
					s.put("bundles/example.pem."+string(a), o.PEM())
				}
				s.start()
				p := s.proxy()
				var targets []cluster.Target
				for _, next := range []*cert.Bundle{generation(t), issue(t, certtest.Options{Domains: domains, KeyType: cert.RSA2048})} {
					tgt := target(next, "example", old[next.Algorithm()])
					tgt.Both = true
					targets = append(targets, tgt)
				}
				out, err := p.Activate(context.Background(), targets)
				if err != nil {
					t.Fatal(err)
				}
				for i, got := range out {
					want(t, got, cluster.Done, cluster.Proven)
					if filepath.Base(got.File) != haproxy.FileName(targets[i]) || filepath.Base(got.File) != "example.pem."+string(targets[i].Slot.Algorithm) {
						t.Errorf("file %s", got.File)
					}
					s.wantServed(got, targets[i].Bundle)
				}
				s.mustCheck()
			})
		}
	})
}

func TestContractAddsASecondFamily(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s := newSite(t, b, "crt DIR/bundles/")
		s.put("bundles/first.pem", issue(t, certtest.Options{Domains: []string{"first.test"}}).PEM())
		s.start()
		p := s.proxy()
		for _, next := range []*cert.Bundle{generation(t), issue(t, certtest.Options{Domains: domains, KeyType: cert.RSA2048})} {
			tgt := target(next, "example")
			tgt.Both = true
			got := s.activate(p, tgt)
			want(t, got, cluster.Done, cluster.Proven)
			s.wantServed(got, next)
		}
	})
}

func TestContractRollsBackWhatClientsDoNotGet(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		// The address that is asked serves another certificate.
		wrong := func(s *site) func(*haproxy.Config) {
			return func(c *haproxy.Config) { c.Verify = []string{s.path("other.sock")} }
		}
		t.Run("replaced", func(t *testing.T) {
			s, old := withOld(t, b, "crt DIR/bundles/")
			s.start()
			// Promise 3 at every step, there and back.
			w := &wire{before: func(string) bool { s.mustCheck(); return true }}
			// The earlier bundle is not handed in: what was on disk is enough to go back to.
			tgt := target(generation(t), "example")
			tgt.Path = s.path("bundles/example.pem")
			got := s.activate(s.proxy(w.use, wrong(s)), tgt)
			want(t, got, cluster.RolledBack, cluster.Disproven)
			if got.Disk.Fingerprint != old.Fingerprint() || got.Memory.Fingerprint != old.Fingerprint() || got.Served.Fingerprint != s.other.Fingerprint() {
				t.Errorf("after the roll-back: %s", describe(got))
			}
			if s.served("tls.sock", "example.test", cert.ECDSA) != old.Fingerprint() {
				t.Error("clients do not get the old certificate")
			}
			want(t, s.activate(s.proxy(), tgt), cluster.Done, cluster.Proven)
		})
		t.Run("new in a folder", func(t *testing.T) {
			s := newSite(t, b, "crt DIR/bundles/")
			s.put("bundles/first.pem", issue(t, certtest.Options{Domains: []string{"first.test"}}).PEM())
			s.start()
			rolledBackNew(t, s, s.proxy(wrong(s)))
		})
		t.Run("new in a crt-list", func(t *testing.T) {
			s := newSite(t, b, "crt-list DIR/list")
			s.put("bundles/first.pem", issue(t, certtest.Options{Domains: []string{"first.test"}}).PEM())
			list := []byte("# by hand\n" + s.path("bundles/first.pem") + "\n")
			s.put("list", list)
			s.start()
			rolledBackNew(t, s, s.proxy(wrong(s), func(c *haproxy.Config) { c.CrtList = s.path("list") }))
			if got := s.take("list"); !bytes.Equal(got, list) {
				t.Errorf("the crt-list is %q", got)
			}
		})
	})
}

func rolledBackNew(t *testing.T, s *site, p *haproxy.Proxy) {
	t.Helper()
	got := s.activate(p, target(generation(t), "example"))
	want(t, got, cluster.RolledBack, cluster.Disproven)
	if _, err := os.Stat(s.path("bundles/example.pem")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there (%v)", err)
	}
	if list := s.command("show ssl cert\n") + s.command("show ssl crt-list -n "+s.path("list")+"\n"); strings.Contains(list, "example") {
		t.Errorf("HAProxy still has it: %s", list)
	}
}

func TestContractRollsBackWhatHAProxyRefuses(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, old := withOld(t, b, "crt DIR/bundles/")
		s.start()
		stranger := generation(t)
		name := s.path("bundles/example.pem")
		// Before the commit somebody sets another key: HAProxy then refuses the pair and leaves the transaction open.
		w := &wire{before: func(command string) bool {
			if command == "commit ssl cert "+name {
				s.command("set ssl cert " + name + ".key <<\n" + string(stranger.KeyPEM()) + "\n")
			}
			return true
		}}
		tgt := target(generation(t), "example", old)
		got := s.activate(s.proxy(w.use), tgt)
		want(t, got, cluster.RolledBack, cluster.Disproven)
		if !strings.Contains(got.Error, "inconsistencies between private key and certificate") {
			t.Errorf("the error does not say why: %s", got.Error)
		}
		if got.Disk.Fingerprint != old.Fingerprint() || got.Memory.Fingerprint != old.Fingerprint() || got.Served.Fingerprint != old.Fingerprint() {
			t.Errorf("after the roll-back: %s", describe(got))
		}
		if list := s.command("show ssl cert\n"); strings.Contains(list, "# transaction") {
			t.Errorf("the transaction is still open: %s", list)
		}
		want(t, s.activate(s.proxy(), tgt), cluster.Done, cluster.Proven)
	})
}

func TestContractLeavesAForeignTransactionAlone(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, old := withOld(t, b, "crt DIR/bundles/")
		neighbour := issue(t, certtest.Options{Domains: []string{"neighbour.test"}})
		s.put("bundles/neighbour.pem", neighbour.PEM())
		s.start()
		theirs := issue(t, certtest.Options{Domains: []string{"neighbour.test"}})
		begin := func(name string) {
			t.Helper()
			if reply := s.command("set ssl cert " + s.path("bundles/"+name) + " <<\n" + string(theirs.PEM()) + "\n"); !strings.Contains(reply, "Transaction created") {
				t.Fatal(reply)
			}
		}
		for _, name := range []string{"neighbour.pem", "example.pem"} {
			begin(name)
			got := s.activate(s.proxy(), target(generation(t), "example", old))
			if got.Outcome != cluster.Failure || !strings.Contains(got.Error, name) || !strings.Contains(got.Hint, "abort ssl cert") {
				t.Fatalf("outcome %q: %s", got.Outcome, describe(got))
			}
			if !bytes.Equal(s.take("bundles/example.pem"), old.PEM()) {
				t.Error("the bundle was replaced")
			}
			if reply := s.command("abort ssl cert " + s.path("bundles/"+name) + "\n"); !strings.Contains(reply, "Transaction aborted") {
				t.Errorf("the foreign transaction was ended by certsync: %s", reply)
			}
		}

		begin("neighbour.pem")
		go func() {
			time.Sleep(100 * time.Millisecond)
			s.command("commit ssl cert " + s.path("bundles/neighbour.pem") + "\n")
		}()
		tgt := target(generation(t), "example", old)
		got := s.activate(s.proxy(func(c *haproxy.Config) { c.Wait = 20 * time.Second }), tgt)
		want(t, got, cluster.Done, cluster.Proven)
		if s.inspect(s.proxy(), target(theirs, "neighbour")).Memory.Fingerprint != theirs.Fingerprint() {
			t.Error("the foreign transaction was lost")
		}
	})
}

// TestContractBesideAReaderOfCertificates: a monitor that lists HAProxy's certificates all the time has them locked every
// now and then. That takes a little longer, and nothing else.
func TestContractBesideAReaderOfCertificates(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s := newSite(t, b, "crt DIR/bundles/")
		s.put("bundles/zz.pem", issue(t, certtest.Options{Domains: []string{"zz.test"}}).PEM())
		s.start()
		p := s.proxy(func(c *haproxy.Config) { c.Wait = 10 * time.Second })
		ctx, cancel := context.WithCancel(t.Context())
		var reading sync.WaitGroup
		var lists, refused atomic.Int64
		for range 3 {
			reading.Go(func() {
				for ctx.Err() == nil {
					reply, err := haproxytest.Command(s.path("admin.sock"), "show ssl cert\n")
					if err != nil {
						t.Errorf("the reader: %v", err)
						return
					}
					lists.Add(1)
					if strings.Contains(reply, "locked") {
						refused.Add(1)
					}
				}
			})
		}
		for range 10 {
			bundle := issue(t, certtest.Options{Domains: []string{"*.one.test", "one.test"}})
			pl := s.activate(p, target(bundle, "one"))
			want(t, pl, cluster.Done, cluster.Proven)
			s.wantServed(pl, bundle)
		}
		cancel()
		reading.Wait()
		t.Logf("%d lists read beside, %d of them refused", lists.Load(), refused.Load())
	})
}

// A transaction that somebody begins between our look and our set: 2.6 puts our bundle into theirs, and says so.
func TestContractNeverServesUnderAnotherName(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, old := withOld(t, b, "crt DIR/bundles/")
		neighbour := issue(t, certtest.Options{Domains: []string{"neighbour.test"}})
		s.put("bundles/neighbour.pem", neighbour.PEM())
		s.start()
		var once sync.Once
		w := &wire{before: func(command string) bool {
			if strings.HasPrefix(command, "set ssl cert") {
				once.Do(func() {
					s.command("set ssl cert " + s.path("bundles/neighbour.pem") + " <<\n" + string(neighbour.PEM()) + "\n")
				})
			}
			return true
		}}
		tgt := target(generation(t), "example", old)
		got := s.activate(s.proxy(w.use), tgt)
		s.command("commit ssl cert " + s.path("bundles/neighbour.pem") + "\n")
		if seen := s.inspect(s.proxy(), target(neighbour, "neighbour")); seen.Memory.Fingerprint != neighbour.Fingerprint() {
			t.Errorf("the neighbour's name now has %+v", seen.Memory)
		}
		if got.Outcome == cluster.Done {
			s.wantServed(got, tgt.Bundle)
		} else if got.Outcome != cluster.Failure || got.Disk.Fingerprint != old.Fingerprint() || got.Memory.Fingerprint != old.Fingerprint() {
			t.Errorf("outcome %q: %s", got.Outcome, describe(got))
		}
	})
}

func TestContractAbortsItsOwnTransactionAfterAKill(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, old := withOld(t, b, "crt DIR/bundles/")
		s.start()
		// From the commit on every connection breaks: as if certsync had been killed there.
		dead := false
		w := &wire{before: func(command string) bool {
			dead = dead || strings.HasPrefix(command, "commit ")
			return !dead
		}}
		killed := s.activate(s.proxy(w.use), target(generation(t), "example", old))
		if killed.Outcome != cluster.Failure {
			t.Fatalf("outcome %q: %s", killed.Outcome, describe(killed))
		}
		if list := s.command("show ssl cert\n"); !strings.Contains(list, "# transaction") {
			t.Fatalf("no transaction is open: %s", list)
		}
		// Wait is short: were the transaction taken for a foreign one, this would fail.
		tgt := target(generation(t), "example", old)
		want(t, s.activate(s.proxy(), tgt), cluster.Done, cluster.Proven)
	})
}

func TestContractDoesNotTakeAForeignTransactionForItsOwn(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, old := withOld(t, b, "crt DIR/bundles/")
		s.start()
		dead := false
		w := &wire{before: func(command string) bool {
			dead = dead || strings.HasPrefix(command, "commit ")
			return !dead
		}}
		s.activate(s.proxy(w.use), target(generation(t), "example", old))
		name := s.path("bundles/example.pem")
		s.command("abort ssl cert " + name + "\n")
		theirs := generation(t)
		s.command("set ssl cert " + name + " <<\n" + string(theirs.PEM()) + "\n")
		got := s.activate(s.proxy(), target(generation(t), "example", old))
		if got.Outcome != cluster.Failure {
			t.Fatalf("outcome %q: %s", got.Outcome, describe(got))
		}
		if reply := s.command("abort ssl cert " + name + "\n"); !strings.Contains(reply, "Transaction aborted") {
			t.Errorf("the foreign transaction was ended by certsync: %s", reply)
		}
	})
}

func TestContractFinishesWhatAKillCutShort(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		for _, at := range []string{"new ", "set ", "show ssl cert *", "commit ", "add "} {
			t.Run(at, func(t *testing.T) {
				s := newSite(t, b, "crt DIR/bundles/")
				s.put("bundles/first.pem", issue(t, certtest.Options{Domains: []string{"first.test"}}).PEM())
				s.start()
				dead := false
				w := &wire{before: func(command string) bool {
					dead = dead || strings.HasPrefix(command, at)
					return !dead
				}}
				tgt := target(generation(t), "example")
				if got := s.activate(s.proxy(w.use), tgt); got.Outcome != cluster.Failure {
					t.Fatalf("outcome %q: %s", got.Outcome, describe(got))
				}
				got := s.activate(s.proxy(), tgt)
				want(t, got, cluster.Done, cluster.Proven)
				s.wantServed(got, tgt.Bundle)
			})
		}
	})
}

func TestContractWithoutAHAProxy(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, old := withOld(t, b, "crt DIR/bundles/")
		p := s.proxy()
		tgt := target(generation(t), "example", old)
		got := s.activate(p, tgt)
		if got.Outcome != cluster.DiskOnly || got.Running || got.Proof != cluster.NoProof || got.Disk.Fingerprint != tgt.Bundle.Fingerprint() || !strings.Contains(got.Hint, "service haproxy start") {
			t.Fatalf("outcome %q: %s", got.Outcome, describe(got))
		}
		if seen := s.inspect(p, tgt); seen.Running || seen.Outcome != "" || seen.Memory.Note == "" {
			t.Errorf("inspect: %s", describe(seen))
		}
		// A socket that nobody listens on any more.
		l, err := net.Listen("unix", s.path("admin.sock"))
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		_ = l.Close()
		if got := s.activate(p, tgt); got.Outcome != cluster.DiskOnly || !strings.Contains(got.Hint, "service haproxy start") {
			t.Errorf("with a dead socket: outcome %q: %s", got.Outcome, describe(got))
		}
		s.start()
		want(t, s.activate(p, tgt), cluster.Unchanged, cluster.Proven)
	})
}

func TestContractWithoutARuntimeSocket(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, old := withOld(t, b, "crt DIR/bundles/")
		s.start()
		p := s.proxy(func(c *haproxy.Config) { c.RuntimeSocket = s.path("nothing.sock") })
		next := target(generation(t), "example", old)
		got := s.activate(p, next)
		if got.Outcome != cluster.DiskOnly || got.Proof != cluster.Disproven || !strings.Contains(got.Hint, "level admin") {
			t.Fatalf("outcome %q: %s", got.Outcome, describe(got))
		}
		s.restart()
		if got := s.activate(p, next); got.Outcome != cluster.DiskOnly || got.Proof != cluster.Proven || !strings.Contains(got.Error, "not on its runtime socket") || !strings.Contains(got.Hint, "level admin") {
			t.Errorf("after a restart: outcome %q: %s", got.Outcome, describe(got))
		}
		if seen := s.inspect(p, next); seen.Outcome != "" || !strings.Contains(seen.Error, "not on its runtime socket") || !strings.Contains(seen.Hint, "level admin") {
			t.Errorf("inspect: %s", describe(seen))
		}
	})
}

func TestContractNeedsTheAdminLevel(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		for _, level := range []string{"operator", "user"} {
			t.Run(level, func(t *testing.T) {
				s, old := withOld(t, b, "crt DIR/bundles/", "stats socket DIR/admin.sock level "+level+" mode 600")
				s.start()
				tgt := target(generation(t), "example", old)
				got := s.activate(s.proxy(), tgt)
				if got.Outcome != cluster.DiskOnly || !got.Running || got.Proof != cluster.Disproven || !strings.Contains(got.Hint, "level admin") {
					t.Fatalf("outcome %q: %s", got.Outcome, describe(got))
				}
				if !bytes.Equal(s.take("bundles/example.pem"), tgt.Bundle.PEM()) {
					t.Error("HAProxy would start with the old bundle")
				}
				if seen := s.inspect(s.proxy(), tgt); !seen.Running || seen.Disk.Fingerprint != tgt.Bundle.Fingerprint() || level == "operator" && seen.Memory.Fingerprint != old.Fingerprint() || seen.Served.Fingerprint != old.Fingerprint() {
					t.Errorf("inspect: %s", describe(seen))
				}
			})
		}
	})
}

func TestContractRepairsDrift(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, old := withOld(t, b, "crt DIR/bundles/")
		s.start()
		p := s.proxy()
		tgt := target(generation(t), "example", old)
		want(t, s.activate(p, tgt), cluster.Done, cluster.Proven)
		for name, harm := range map[string]func(){
			"disk":  func() { s.put("bundles/example.pem", old.PEM()) },
			"torn":  func() { s.put("bundles/example.pem", tgt.Bundle.PEM()[:700]) },
			"empty": func() { s.put("bundles/example.pem", nil) },
			"gone":  func() { _ = os.Remove(s.path("bundles/example.pem")) },
			"memory": func() {
				name := s.path("bundles/example.pem")
				s.command("set ssl cert " + name + " <<\n" + string(old.PEM()) + "\n")
				s.command("commit ssl cert " + name + "\n")
			},
		} {
			harm()
			if seen := s.inspect(p, tgt); seen.Disk.Fingerprint == tgt.Bundle.Fingerprint() && seen.Memory.Fingerprint == tgt.Bundle.Fingerprint() {
				t.Errorf("%s: not seen: %s", name, describe(seen))
			}
			got := s.activate(p, tgt)
			if got.Outcome != cluster.Done {
				t.Errorf("%s: outcome %q: %s", name, got.Outcome, describe(got))
			}
			s.wantServed(got, tgt.Bundle)
		}
	})
}

func TestContractTellsUnprovenFromProven(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, old := withOld(t, b, "crt DIR/bundles/")
		s.start()
		for _, verify := range [][]string{nil, {s.path("nobody.sock")}, {s.path("tls.sock"), s.path("nobody.sock")}} {
			p := s.proxy(func(c *haproxy.Config) { c.Verify = verify })
			tgt := target(generation(t), "example", old)
			got := s.activate(p, tgt)
			want(t, got, cluster.Unproven, cluster.NoProof)
			if !strings.Contains(got.Served.Note, "unproven") {
				t.Errorf("note %q", got.Served.Note)
			}
			want(t, s.activate(p, tgt), cluster.Unproven, cluster.NoProof)
		}
	})
}

func TestContractOneFailureStopsNoOther(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, old := withOld(t, b, "crt DIR/bundles/")
		s.put("bundles/byhand.pem", issue(t, certtest.Options{Domains: []string{"byhand.test"}}).PEM())
		s.start()
		expired := issue(t, certtest.Options{Domains: []string{"expired.test"}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
		byhand := issue(t, certtest.Options{Domains: []string{"byhand.test"}})
		good := generation(t)
		out, err := s.proxy().Activate(context.Background(), []cluster.Target{
			target(expired, "expired"), {Slot: cert.Slot{Name: "none", Algorithm: cert.ECDSA}}, target(byhand, "byhand"),
			{Slot: cert.Slot{Name: "example", Algorithm: cert.RSA}, Bundle: good}, target(good, "example", old),
		})
		if err != nil {
			t.Fatal(err)
		}
		for i, text := range []string{"expired", "no bundle", "did not write", "wrong key type"} {
			if out[i].Outcome != cluster.Failure || !strings.Contains(out[i].Error, text) {
				t.Errorf("target %d: outcome %q, error %q; want one with %q", i, out[i].Outcome, out[i].Error, text)
			}
		}
		want(t, out[4], cluster.Done, cluster.Proven)
		if _, err := os.Stat(s.path("bundles/expired.pem")); err == nil {
			t.Error("the expired bundle was written")
		}
	})
}

func TestContractOpenConnectionsGoOn(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		if b.version == "" {
			return // the fake serves no HTTP
		}
		s, old := withOld(t, b, "crt DIR/bundles/")
		s.start()
		conn, err := tls.Dial("unix", s.path("tls.sock"), &tls.Config{ServerName: "example.test", InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		ask := func() {
			t.Helper()
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			buf := make([]byte, 4096)
			if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: example.test\r\n\r\n")); err != nil {
				t.Fatal(err)
			}
			if n, err := conn.Read(buf); err != nil || !strings.HasPrefix(string(buf[:n]), "HTTP/1.1 200") {
				t.Fatalf("answer %q, %v", buf[:n], err)
			}
		}
		ask()
		want(t, s.activate(s.proxy(), target(generation(t), "example", old)), cluster.Done, cluster.Proven)
		ask()
	})
}

// A success in every answer, and clients that get something else all the same.
func TestContractSeesThatAnotherCertificateHidesOurs(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, old := withOld(t, b, "crt DIR/bundles/")
		hides := generation(t)
		s.put("bundles/aaa.pem", hides.PEM())
		s.start()
		got := s.activate(s.proxy(), target(generation(t), "example", old))
		want(t, got, cluster.RolledBack, cluster.Disproven)
		if got.Served.Fingerprint != hides.Fingerprint() || got.Memory.Fingerprint != old.Fingerprint() || got.Disk.Fingerprint != old.Fingerprint() || !strings.Contains(got.Hint, "same name") {
			t.Errorf("%s", describe(got))
		}
	})
}

// 2.6 lists a certificate called *.crt and cannot change it.
func TestContractTellsANameThatCannotBeChangedAtRunTime(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s := newSite(t, b, "crt DIR/bundles/example.crt")
		old := generation(t)
		s.put("bundles/example.crt", old.PEM())
		s.start()
		tgt := target(generation(t), "example", old)
		tgt.Path = s.path("bundles/example.crt")
		got := s.activate(s.proxy(), tgt)
		if b.version == "" || b.version == "2.6" {
			if got.Outcome != cluster.DiskOnly || !strings.Contains(got.Error, "reload") || got.Memory.Fingerprint != old.Fingerprint() || got.Disk.Fingerprint != tgt.Bundle.Fingerprint() {
				t.Fatalf("outcome %q: %s", got.Outcome, describe(got))
			}
			s.restart()
			want(t, s.activate(s.proxy(), tgt), cluster.Unchanged, cluster.Proven)
			return
		}
		want(t, got, cluster.Done, cluster.Proven)
		s.wantServed(got, tgt.Bundle)
	})
}

func TestContractLeavesNoEmptyStoreOfAName(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s := newSite(t, b, "crt DIR/bundles/")
		s.put("bundles/first.pem", issue(t, certtest.Options{Domains: []string{"first.test"}}).PEM())
		s.start()
		tgt := target(generation(t), "example")
		tgt.Path = s.path("bundles/example.crt")
		got := s.activate(s.proxy(), tgt)
		if b.version == "" || b.version == "2.6" {
			if got.Outcome != cluster.DiskOnly || strings.Contains(s.command("show ssl cert\n"), "example") {
				t.Errorf("outcome %q: %s", got.Outcome, describe(got))
			}
			return
		}
		want(t, got, cluster.Done, cluster.Proven)
	})
}
