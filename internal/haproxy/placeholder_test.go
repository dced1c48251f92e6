package haproxy_test

import (
	"errors"
	"io/fs"
	"os"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// A fresh host: HAProxy starts on the placeholder alone, and the first certificate takes its place.
func TestContractReplacesThePlaceholder(t *testing.T) {
	each(t, func(t *testing.T, b backend) {
		s := newSite(t, b, "crt DIR/bundles/")
		placeholder, err := cert.NewPlaceholder(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		s.put("bundles/"+cert.PlaceholderName, placeholder)
		if err := b.check(s.config, s.dir); err != nil {
			t.Fatalf("HAProxy refuses the placeholder: %v", err)
		}
		s.start()
		tgt := target(generation(t), "example")
		got := s.activate(s.proxy(), tgt)
		if got.Outcome != cluster.Done {
			t.Fatalf("outcome %q: %s", got.Outcome, describe(got))
		}
		s.wantServed(got, tgt.Bundle)
		if _, err := os.Stat(s.path("bundles/" + cert.PlaceholderName)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the placeholder: %v, want it gone", err)
		}
		if err := b.check(s.config, s.dir); err != nil {
			t.Errorf("HAProxy would not start without it: %v", err)
		}
	})
}

func TestThePlaceholderStaysUntilACertificateIsThere(t *testing.T) {
	s := newSite(t, fakeBackend, "crt DIR/bundles/")
	placeholder, err := cert.NewPlaceholder(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s.put("bundles/"+cert.PlaceholderName, placeholder)
	s.start()
	// A bundle with a path of its own leaves the folder without any.
	own := target(generation(t), "example")
	own.Path = s.path("elsewhere/own.pem")
	s.activate(s.proxy(), own)
	if _, err := os.Stat(s.path("bundles/" + cert.PlaceholderName)); err != nil {
		t.Errorf("the placeholder of an empty folder: %v", err)
	}
}

func TestAFileOfSomebodyElseInThePlaceholdersPlaceStays(t *testing.T) {
	s := newSite(t, fakeBackend, "crt DIR/bundles/")
	theirs := generation(t)
	s.put("bundles/"+cert.PlaceholderName, theirs.PEM())
	s.start()
	s.activate(s.proxy(), target(generation(t), "example"))
	if got, err := os.ReadFile(s.path("bundles/" + cert.PlaceholderName)); err != nil || string(got) != string(theirs.PEM()) {
		t.Errorf("a file that is no placeholder was touched: %v", err)
	}
}
