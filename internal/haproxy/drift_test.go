package haproxy_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
	"certsync/internal/haproxy"
)

// hazards are what a proxy tells of a site where these targets are configured.
func (s *site) hazards(p *haproxy.Proxy, targets ...cluster.Target) []cluster.Hazard {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return p.Hazards(ctx, targets)
}

// wantHazard fails unless exactly one hazard is told, of this path and with these words.
func (s *site) wantHazard(found []cluster.Hazard, path string, words ...string) {
	s.t.Helper()
	if len(found) != 1 || found[0].Path != path || found[0].Hint == "" || found[0].Proxy != s.config {
		s.t.Fatalf("hazards %+v; want one of %s, with a hint", found, path)
	}
	for _, w := range words {
		if !strings.Contains(found[0].String(), w) {
			s.t.Errorf("%q does not say %q", found[0], w)
		}
	}
}

func (s *site) wantNoHazard(found []cluster.Hazard) {
	s.t.Helper()
	if len(found) > 0 {
		s.t.Errorf("hazards %+v; want none", found)
	}
}

// leafOnly is a bundle's certificates without the key; encrypted is a key block that a passphrase protects.
func leafOnly(b *cert.Bundle) []byte { return b.CertificatesPEM() }

func encrypted(t *testing.T, b *cert.Bundle) []byte {
	t.Helper()
	block, _ := pem.Decode(b.KeyPEM())
	//lint:ignore SA1019 it is what old tools write
	locked, err := x509.EncryptPEMBlock(strings.NewReader(strings.Repeat("salt", 16)), "PRIVATE KEY", block.Bytes, []byte("x"), x509.PEMCipherAES256)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(locked)
}

// strayCases are files that somebody may leave in the bundle folder. What HAProxy does with each at its next start is
// asked of HAProxy.
func strayCases(t *testing.T) map[string]func(s *site) {
	t.Helper()
	theirs := issue(t, certtest.Options{Domains: []string{"theirs.test"}})
	another := issue(t, certtest.Options{Domains: []string{"another.test"}})
	expired := issue(t, certtest.Options{Domains: []string{"expired.test"}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
	file := func(name string, parts ...[]byte) func(*site) {
		return func(s *site) { s.put("bundles/"+name, slices.Concat(parts...)) }
	}
	return map[string]func(s *site){
		"junk":                      file("x.txt", []byte("not a certificate\n")),
		"empty":                     file("x"),
		"an editor's backup":        file("x~", []byte("half\n")),
		"a temporary file":          file("x.tmp", theirs.PEM()[:300]),
		"a key alone":               file("x.pem", theirs.KeyPEM()),
		"another's key":             file("x.pem", leafOnly(theirs), another.KeyPEM()),
		"no key":                    file("x.pem", leafOnly(theirs)),
		"an encrypted key":          file("x.pem", leafOnly(theirs), encrypted(t, theirs)),
		"a damaged chain":           file("x.pem", theirs.PEM(), []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")),
		"two leaves, the last key":  file("x.pem", leafOnly(another), theirs.PEM()),
		"a link to nothing":         func(s *site) { s.link("nowhere", "bundles/x.pem") },
		"a whole bundle":            file("x.pem", theirs.PEM()),
		"a whole bundle called bak": file("x.bak", theirs.PEM()),
		"the key first":             file("x.pem", theirs.KeyPEM(), leafOnly(theirs)),
		"text before it":            file("x.pem", []byte("subject=theirs\n"), theirs.PEM()),
		"expired":                   file("x.pem", expired.PEM()),
		"hidden":                    file(".x.pem", []byte("junk\n")),
		"an issuer":                 file("x.issuer", []byte("junk\n")),
		"a list of timestamps":      file("x.sctl", []byte("junk\n")),
		"a stray key file":          file("x.key", []byte("junk\n")),
		"a folder": func(s *site) {
			if err := os.Mkdir(s.path("bundles/x"), 0o700); err != nil {
				s.t.Fatal(err)
			}
			s.put("bundles/x/y.pem", []byte("junk\n"))
		},
		"a link to a folder": func(s *site) { s.link("elsewhere", "bundles/x") },
		"a pipe": func(s *site) {
			if err := syscall.Mkfifo(s.path("bundles/x.pem"), 0o600); err != nil {
				s.t.Fatal(err)
			}
		},
		"a socket": func(s *site) {
			l, err := net.Listen("unix", s.path("bundles/x"))
			if err != nil {
				s.t.Fatal(err)
			}
			l.(*net.UnixListener).SetUnlinkOnClose(false)
			_ = l.Close()
		},
		"the key beside it": func(s *site) {
			s.put("bundles/x.pem", leafOnly(theirs))
			s.put("bundles/x.pem.key", theirs.KeyPEM())
		},
		"another's key beside it": func(s *site) {
			s.put("bundles/x.pem", leafOnly(theirs))
			s.put("bundles/x.pem.key", another.KeyPEM())
		},
	}
}

// inPlace is a site that certsync brought a bundle to.
func inPlace(t *testing.T, b backend) (s *site, p *haproxy.Proxy, tgt cluster.Target) {
	t.Helper()
	s = newSite(t, b, "crt DIR/bundles/")
	s.put("bundles/aaa.pem", issue(t, certtest.Options{Domains: []string{"aaa.test"}}).PEM())
	s.start()
	p, tgt = s.proxy(), target(generation(t), "example")
	want(t, s.activate(p, tgt), cluster.Done, cluster.Proven)
	s.wantNoHazard(s.hazards(p, tgt))
	return s, p, tgt
}

func TestContractAStrayFileIsReportedWhereHAProxyWouldNotStart(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, p, tgt := inPlace(t, b)
		for name, leave := range strayCases(t) {
			leave(s)
			found := s.hazards(p, tgt)
			breaks := s.b.check(s.config, s.dir) != nil
			if breaks != (len(found) > 0) {
				t.Errorf("%s: HAProxy would start: %t; hazards: %+v", name, !breaks, found)
			}
			for _, h := range found {
				if filepath.Dir(h.Path) != s.bundles || !strings.Contains(h.Problem, "HAProxy will not start with it: ") || !strings.Contains(h.Hint, "move it out of the folder") {
					t.Errorf("%s: %+v", name, h)
				}
			}
			left, err := filepath.Glob(s.path("bundles/*x*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range left {
				if filepath.Base(path) != "example.pem" {
					if err := os.RemoveAll(path); err != nil {
						t.Fatal(err)
					}
				}
			}
			s.wantNoHazard(s.hazards(p, tgt))
		}
		s.mustCheck()
	})
}

// A bundle with something cut off behind it starts on 2.6 and not on what comes after: it is told on all.
func TestAStrayWithATornEndIsReported(t *testing.T) {
	s, p, tgt := inPlace(t, fakeBackend)
	theirs := issue(t, certtest.Options{Domains: []string{"theirs.test"}}).PEM()
	s.put("bundles/x.pem", append(theirs, theirs[:200]...))
	s.wantHazard(s.hazards(p, tgt), s.path("bundles/x.pem"), "cut off")
}

func TestContractAStrayThatMayHideOursIsReported(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, p, tgt := inPlace(t, b)
		// A copy of ours, a certificate of the same names, and the file of the times when it had one key type.
		for _, c := range []struct {
			name string
			pem  []byte
		}{{"a.bak", tgt.Bundle.PEM()}, {"zz.pem", generation(t).PEM()}, {"wild.pem", issue(t, certtest.Options{Domains: []string{"x.test", "*.EXAMPLE.test"}}).PEM()}} {
			s.put("bundles/"+c.name, c.pem)
			s.wantHazard(s.hazards(p, tgt), s.path("bundles/"+c.name), "example (ecdsa)", "clients one of the two")
			if err := os.Remove(s.path("bundles/" + c.name)); err != nil {
				t.Fatal(err)
			}
		}
		both := tgt
		both.Both = true
		s.put("bundles/example.pem.ecdsa", both.Bundle.PEM()) // by hand: the journal does not know it
		s.wantHazard(s.hazards(p, tgt), s.path("bundles/example.pem.ecdsa"), "example (ecdsa)")
		_ = os.Remove(s.path("bundles/example.pem.ecdsa"))
		// The other key type, and a name below the wildcard, take nothing from it.
		s.put("bundles/rsa.pem", issue(t, certtest.Options{Domains: domains, KeyType: cert.RSA2048}).PEM())
		s.put("bundles/www.pem", issue(t, certtest.Options{Domains: []string{"www.example.test"}}).PEM())
		s.wantNoHazard(s.hazards(p, tgt))
	})
}

func TestAStrayIsReadAgainOnlyWhereItChanged(t *testing.T) {
	s, p, tgt := inPlace(t, fakeBackend)
	theirs := issue(t, certtest.Options{Domains: []string{"theirs.test"}}).PEM()
	stray := s.path("bundles/x.pem")
	s.put("bundles/x.pem", theirs)
	settle(t, stray, s.bundles, s.path("journal/owned"))
	opened := opens(t, s.bundles)
	s.wantNoHazard(s.hazards(p, tgt))
	_ = opened() // those of the first look
	s.wantNoHazard(s.hazards(p, tgt))
	if n := opened(); n > 0 {
		t.Errorf("%d files are opened where nothing changed", n)
	}
	// Junk of the same size and with the same mtime.
	info, err := os.Stat(stray)
	if err != nil {
		t.Fatal(err)
	}
	junk := bytes.Repeat([]byte("x"), len(theirs))
	s.put("bundles/x.pem", junk)
	if err := os.Chtimes(stray, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	s.wantHazard(s.hazards(p, tgt), stray, "no certificate")
	if err := os.Rename(stray, s.path("bundles/y.pem")); err != nil { // which changes the folder
		t.Fatal(err)
	}
	s.wantHazard(s.hazards(p, tgt), s.path("bundles/y.pem"), "no certificate")
	// What certsync wrote is not read for this: its placement tells.
	s.put("bundles/example.pem", junk)
	if found := s.hazards(p, tgt); len(found) != 1 {
		t.Errorf("hazards %+v", found)
	}
	if found := s.hazards(p); len(found) != 1 {
		t.Errorf("a bundle of what is no longer configured is a stray: %+v", found)
	}
}

func TestContractStraysAreOfNoInterestWhereTheFolderIsNotLoaded(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, _ := withOld(t, b, "crt DIR/bundles/example.pem")
		s.put("bundles/x.txt", []byte("notes\n"))
		p, tgt := s.proxy(), target(generation(t), "example")
		s.wantHazard(s.hazards(p, tgt), s.path("bundles/x.txt"), "if it loads the folder")
		s.start()
		s.wantNoHazard(s.hazards(p, tgt))
		s.mustCheck()
	})
}

func TestContractRelativeFoldersAreWatchedToo(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, old := withOld(t, b, "crt ./bundles")
		s.start()
		s.put("bundles/x.txt", []byte("notes\n"))
		s.wantHazard(s.hazards(s.proxy(), target(old, "example")), s.path("bundles/x.txt"), "will not start with it: ")
	})
}

func TestABundleFolderThatOthersCanWriteIsReported(t *testing.T) {
	s, p, tgt := inPlace(t, fakeBackend)
	for mode, told := range map[os.FileMode]bool{0o777: true, 0o702: true, 0o755: false, 0o770: false} {
		if err := os.Chmod(s.bundles, mode); err != nil {
			t.Fatal(err)
		}
		if found := s.hazards(p, tgt); !told {
			s.wantNoHazard(found)
		} else {
			s.wantHazard(found, s.bundles, "chmod o-w "+s.bundles, "everybody")
		}
	}
}

func TestContractAnOpenTransactionIsReported(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, old := withOld(t, b, "crt DIR/bundles/")
		s.start()
		dead := false
		w := &wire{before: func(command string) bool {
			dead = dead || strings.HasPrefix(command, "commit ")
			return !dead
		}}
		killed := target(generation(t), "example", old)
		s.activate(s.proxy(w.use), killed)
		p, name := s.proxy(), s.path("bundles/example.pem")
		s.wantHazard(s.hazards(p, killed), "", "certsync that was killed", name)

		// While a certsync is at work it is none.
		lock, err := os.Open(s.path("journal/lock"))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		s.wantNoHazard(s.hazards(p, killed))
		_ = lock.Close()

		tgt := target(generation(t), "example", old)
		want(t, s.activate(p, tgt), cluster.Done, cluster.Proven)
		s.wantNoHazard(s.hazards(p, tgt))

		s.command("set ssl cert " + name + " <<\n" + string(old.PEM()) + "\n")
		s.wantHazard(s.hazards(p, tgt), "", "not certsync's", name, "abort ssl cert")
		if reply := s.command("abort ssl cert " + name + "\n"); !strings.Contains(reply, "Transaction aborted") {
			t.Errorf("to look ended it: %s", reply)
		}
	})
}

// wantMended fails unless a pass finds the harm and brings the target in line again.
func (s *site) wantMended(p *haproxy.Proxy, tgt cluster.Target) {
	s.t.Helper()
	got := s.activate(p, tgt)
	want(s.t, got, cluster.Done, cluster.Proven)
	s.wantServed(got, tgt.Bundle)
	want(s.t, s.activate(p, tgt), cluster.Unchanged, cluster.Proven)
}

func TestContractHandsOnTheBundleAreMended(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, p, tgt := inPlace(t, b)
		file := s.path("bundles/example.pem")
		check := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		for name, harm := range map[string]func(){
			"another certificate": func() { s.put("bundles/example.pem", generation(t).PEM()) },
			"junk":                func() { s.put("bundles/example.pem", []byte("junk\n")) },
			"truncated":           func() { check(os.Truncate(file, 900)) },
			"removed":             func() { check(os.Remove(file)) },
			"a pipe":              func() { check(os.Remove(file)); check(syscall.Mkfifo(file, 0o600)) },
			"without its chain": func() {
				s.put("bundles/example.pem", slices.Concat(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tgt.Bundle.Leaf().Raw}), tgt.Bundle.KeyPEM()))
			},
			"group-readable":  func() { check(os.Chmod(file, 0o640)) },
			"world-readable":  func() { check(os.Chmod(file, 0o644)) },
			"for nobody":      func() { check(os.Chmod(file, 0)) },
			"group-writeable": func() { check(os.Chmod(file, 0o660)) },
		} {
			harm()
			if seen := s.inspect(p, tgt); seen.Disk.Fingerprint == tgt.Bundle.Fingerprint() && seen.Disk.Note == "" && name != "without its chain" {
				t.Errorf("%s: not seen: %s", name, describe(seen))
			}
			s.wantMended(p, tgt)
			if info, err := os.Lstat(file); err != nil || info.Mode() != 0o600 {
				t.Errorf("%s: afterwards %v, %v", name, info.Mode(), err)
			}
		}
	})
}

// Nothing of it is HAProxy's business: its memory was right all the time.
func TestContractAModeIsMendedWithoutATransaction(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, _, tgt := inPlace(t, b)
		if err := os.Chmod(s.path("bundles/example.pem"), 0o644); err != nil {
			t.Fatal(err)
		}
		w := &wire{}
		s.wantMended(s.proxy(w.use), tgt)
		if sent := w.changing(); len(sent) > 0 {
			t.Errorf("it sent %q", sent)
		}
	})
}

func TestABundleGroupThatCannotReadIsMended(t *testing.T) {
	s, _, tgt := inPlace(t, fakeBackend)
	group := ownGroup(t)
	p := s.proxy(func(c *haproxy.Config) { c.BundleGroup = group })
	s.wantMended(p, tgt) // which came without the group
	if info, err := os.Stat(s.path("bundles/example.pem")); err != nil || info.Mode() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	s.wantMended(s.proxy(), tgt) // and the group is taken out of the configuration again
	if info, err := os.Stat(s.path("bundles/example.pem")); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestContractWhatIsInTheWayOfABundleIsToldAndLeftAlone(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, p, tgt := inPlace(t, b)
		neighbour := target(issue(t, certtest.Options{Domains: []string{"neighbour.test"}}), "neighbour")
		want(t, s.activate(p, neighbour), cluster.Done, cluster.Proven)
		byHand := issue(t, certtest.Options{Domains: []string{"byhand.test"}})
		s.put("elsewhere/byhand.pem", byHand.PEM())
		file := s.path("bundles/example.pem")
		for name, c := range map[string]struct {
			put  func()
			hint string
		}{
			"a folder": {func() {
				if err := os.Mkdir(file, 0o700); err != nil {
					t.Fatal(err)
				}
			}, "move the folder " + file + " away"},
			"a link to a file by hand":       {func() { s.link("elsewhere/byhand.pem", "bundles/example.pem") }, "move it away"},
			"a link to a neighbour's bundle": {func() { s.link("bundles/neighbour.pem", "bundles/example.pem") }, "remove the link"},
		} {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			c.put()
			got := s.activate(p, tgt)
			if got.Outcome != cluster.Failure || !strings.Contains(got.Hint, c.hint) {
				t.Errorf("%s: outcome %q: %s", name, got.Outcome, describe(got))
			}
			// What HAProxy has under the name is not touched, not by the neighbour's turn either.
			out, err := p.Activate(context.Background(), []cluster.Target{tgt, neighbour})
			if err != nil || out[1].Outcome != cluster.Unchanged {
				t.Errorf("%s: %v: the neighbour: outcome %q: %s", name, err, out[1].Outcome, describe(out[1]))
			}
			if s.served("tls.sock", "example.test", cert.ECDSA) != tgt.Bundle.Fingerprint() {
				t.Errorf("%s: it is not served any more: %s", name, describe(got))
			}
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			s.wantMended(p, tgt)
		}
		if !bytes.Equal(s.take("elsewhere/byhand.pem"), byHand.PEM()) || !bytes.Equal(s.take("bundles/neighbour.pem"), neighbour.Bundle.PEM()) {
			t.Error("what a link means was changed")
		}
	})
}

func TestContractTheBundleFolderMayMoveBehindALinkAndMayBeLost(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, p, tgt := inPlace(t, b)
		if err := os.Rename(s.bundles, s.path("elsewhere/bundles")); err != nil {
			t.Fatal(err)
		}
		if got := s.inspect(p, tgt); got.Disk.Note != "no file" || got.Proof != cluster.Proven {
			t.Errorf("the folder is gone: %s", describe(got))
		}
		out, err := p.Activate(context.Background(), []cluster.Target{tgt})
		if err != nil || out[0].Outcome != cluster.Failure || !strings.Contains(out[0].Hint, "make the folder "+s.bundles) || out[0].Served.Fingerprint != tgt.Bundle.Fingerprint() {
			t.Errorf("%v: %s", err, describe(out[0]))
		}
		s.link("elsewhere/bundles", "bundles")
		want(t, s.activate(p, tgt), cluster.Unchanged, cluster.Proven)
		next := target(generation(t), "example", tgt.Bundle)
		got := s.activate(p, next)
		want(t, got, cluster.Done, cluster.Proven)
		s.wantServed(got, next.Bundle)
	})
}

func TestContractARestartWithOlderFilesIsMended(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, old := withOld(t, b, "crt DIR/bundles/")
		s.start()
		p, tgt := s.proxy(), target(generation(t), "example", old)
		want(t, s.activate(p, tgt), cluster.Done, cluster.Proven)
		before := s.inspect(p, tgt)
		s.put("bundles/example.pem", old.PEM())
		s.restart()
		seen := s.inspect(p, tgt)
		if seen.Proof != cluster.Disproven || seen.Memory.Fingerprint != old.Fingerprint() || b.version != "" && seen.Pid == before.Pid {
			t.Errorf("not seen: %s", describe(seen))
		}
		s.wantMended(p, tgt)
	})
}

func TestContractASocketThatGoesAndComesBack(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, p, tgt := inPlace(t, b)
		if err := os.Rename(s.path("admin.sock"), s.path("away.sock")); err != nil {
			t.Fatal(err)
		}
		got := s.activate(p, tgt)
		if got.Outcome != cluster.DiskOnly || got.Proof != cluster.Proven || !strings.Contains(got.Hint, "stats socket") {
			t.Errorf("without its socket: outcome %q: %s", got.Outcome, describe(got))
		}
		next := target(generation(t), "example", tgt.Bundle)
		if got := s.activate(p, next); got.Outcome != cluster.DiskOnly || got.Proof != cluster.Disproven {
			t.Errorf("without its socket: outcome %q: %s", got.Outcome, describe(got))
		}
		if err := os.Rename(s.path("away.sock"), s.path("admin.sock")); err != nil {
			t.Fatal(err)
		}
		s.wantMended(p, next)
	})
}

func TestContractHandsOnTheCrtListAreMended(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s := newSite(t, b, "crt-list DIR/list")
		first := s.path("bundles/first.pem")
		s.put("bundles/first.pem", issue(t, certtest.Options{Domains: []string{"first.test"}}).PEM())
		s.put("list", []byte(first+"\n"))
		s.start()
		w := &wire{}
		p := s.proxy(w.use, func(c *haproxy.Config) { c.CrtList = s.path("list") })
		tgt := target(generation(t), "example")
		want(t, s.activate(p, tgt), cluster.Done, cluster.Proven)
		ours := s.path("bundles/example.pem")
		for name, c := range map[string]struct {
			list  string
			lines int // that name ours afterwards
		}{
			"taken out":              {first + "\n", 1},
			"commented out":          {first + "\n#" + ours + "\n", 1},
			"commented out, spaced":  {first + "\n# " + ours + "\n", 1},
			"without a line's end":   {first, 1},
			"doubled":                {first + "\n" + ours + "\n" + ours + "\n", 2},
			"with options":           {first + "\n" + ours + " [alpn h2] example.test *.example.test\n", 1},
			"relative to a crt-base": {first + "\nbundles/example.pem\n", 0},
		} {
			changes := len(w.changing())
			s.put("list", []byte(c.list))
			out, err := p.Activate(context.Background(), []cluster.Target{tgt})
			if err != nil || out[0].Proof != cluster.Proven || out[0].Error != "" {
				t.Fatalf("%s: %v: %s", name, err, describe(out[0]))
			}
			n := 0
			for line := range strings.Lines(string(s.take("list"))) {
				if strings.HasPrefix(line, ours) {
					n++
				}
			}
			if n != c.lines || !strings.HasPrefix(string(s.take("list")), first) {
				t.Errorf("%s: the list is %q", name, s.take("list"))
			}
			if more := w.changing()[changes:]; len(more) > 0 {
				t.Errorf("%s: it sent %q", name, more)
			}
			want(t, s.activate(p, tgt), cluster.Unchanged, cluster.Proven)
		}
		s.restart()
		want(t, s.activate(p, tgt), cluster.Unchanged, cluster.Proven)

		if err := os.Remove(s.path("list")); err != nil {
			t.Fatal(err)
		}
		out, err := p.Activate(context.Background(), []cluster.Target{tgt})
		if err != nil || out[0].Outcome != cluster.Failure || !strings.Contains(out[0].Hint, "show ssl crt-list") || out[0].Served.Fingerprint != tgt.Bundle.Fingerprint() {
			t.Errorf("the list is gone: %v: %s", err, describe(out[0]))
		}
		s.wantHazard(s.hazards(p, tgt), s.path("list"), "gone", "show ssl crt-list")
	})
}

// A certificate that a bind names itself needs no line.
func TestContractACertificateOfABindLineGetsNoLine(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s, old := withOld(t, b, "crt DIR/bundles/example.pem crt-list DIR/list")
		s.put("list", []byte(s.path("elsewhere/other.pem")+"\n"))
		s.start()
		p := s.proxy(func(c *haproxy.Config) { c.CrtList = s.path("list") })
		tgt := target(generation(t), "example", old)
		want(t, s.activate(p, tgt), cluster.Done, cluster.Proven)
		want(t, s.activate(p, tgt), cluster.Unchanged, cluster.Proven)
		if list := string(s.take("list")); list != s.path("elsewhere/other.pem")+"\n" {
			t.Errorf("the list is %q", list)
		}
	})
}

func TestContractALineThatNamesNothingIsReported(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s := newSite(t, b, "crt-list DIR/list")
		list := s.path("elsewhere/other.pem") + "\n"
		s.put("list", []byte(list))
		s.start()
		p := s.proxy(func(c *haproxy.Config) { c.CrtList = s.path("list") })
		tgt := target(generation(t), "example")
		for line, breaks := range map[string]bool{
			s.path("bundles/gone.pem") + " [alpn h2]\n": true,
			"#" + s.path("bundles/gone.pem") + "\n":     false,
			s.path("elsewhere/both.pem") + "\n":         false,
		} {
			s.put("elsewhere/both.pem.rsa", issue(t, certtest.Options{Domains: []string{"both.test"}, KeyType: cert.RSA2048}).PEM())
			s.put("list", []byte(list+line))
			if b.version != "" && (b.check(s.config, s.dir) != nil) != breaks {
				t.Errorf("%q: HAProxy would start: %t", line, breaks)
			}
			if found := s.hazards(p, tgt); !breaks {
				s.wantNoHazard(found)
			} else {
				s.wantHazard(found, s.path("list"), "gone.pem", "take the line out")
			}
		}
		// Ours is written by the next pass.
		s.put("list", []byte(list+s.path("bundles/example.pem")+"\n"))
		s.wantNoHazard(s.hazards(p, tgt))
	})
}

func TestAHAProxyThatHangsDelaysTheHazardsForAShortTimeOnly(t *testing.T) {
	s := newSite(t, fakeBackend, "crt DIR/bundles/")
	l, err := net.Listen("unix", s.path("admin.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	s.put("bundles/x.txt", []byte("notes\n"))
	p := s.proxy(func(c *haproxy.Config) { c.InspectTimeout = 100 * time.Millisecond })
	done := make(chan []cluster.Hazard, 1)
	go func() { done <- p.Hazards(context.Background(), nil) }()
	select {
	case found := <-done:
		s.wantHazard(found, s.path("bundles/x.txt"), "if it loads the folder")
	case <-time.After(20 * time.Second):
		t.Fatal("it waits for HAProxy")
	}
}
