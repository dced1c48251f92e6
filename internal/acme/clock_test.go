package acme

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"certsync/internal/cluster"
)

func TestTheCAsClockIsHeardFromTheDateOfItsAnswers(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	at := moment{time.Date(2026, 11, 24, 11, 0, 0, 0, time.UTC), time.Hour}
	date := func(at time.Time, more ...string) http.Header {
		h := http.Header{"Date": {at.Format(http.TimeFormat)}}
		for i := 0; i+1 < len(more); i += 2 {
			h.Set(more[i], more[i+1])
		}
		return h
	}
	for name, x := range map[string]struct {
		header http.Header
		ahead  time.Duration
		known  bool
	}{
		"right":              {date(now), dateSlack, true},
		"two hours ahead":    {date(now.Add(2 * time.Hour)), 2*time.Hour + dateSlack, true},
		"two hours behind":   {date(now.Add(-2 * time.Hour)), -2*time.Hour + dateSlack, true},
		"in another century": {date(now.AddDate(73, 0, 0)), now.AddDate(73, 0, 0).Sub(now) + dateSlack, true},
		"no Date":            {http.Header{}, 0, false},
		"not a Date":         {http.Header{"Date": {"yesterday"}}, 0, false},
		"from a cache":       {date(now, "Age", "3600"), 0, false},
		"fresh from a cache": {date(now, "Age", "0"), dateSlack, true},
	} {
		var c caClock
		c.hear(x.header, now, at)
		if ahead, known := c.told(at); ahead != x.ahead || known != x.known {
			t.Errorf("%s: %s, %t", name, ahead, known)
		}
	}
	var c caClock
	if _, known := c.told(at); known {
		t.Error("known before any answer")
	}
	c.hear(date(now), now, at)
	for name, x := range map[string]struct {
		wall, up time.Duration
		known    bool
	}{
		"at once":            {0, 0, true},
		"a day later":        {24 * time.Hour, 24 * time.Hour, true},
		"ntpd slews":         {time.Hour + 2*time.Second, time.Hour, true},
		"the clock was set":  {3 * time.Hour, time.Hour, false},
		"it was set back":    {-time.Hour, time.Hour, false},
		"the machine slept":  {9 * time.Hour, time.Hour, false},
		"set by six seconds": {6 * time.Second, 0, false},
	} {
		if _, known := c.told(moment{at.wall.Add(x.wall), at.up + x.up}); known != x.known {
			t.Errorf("%s: known %t", name, known)
		}
	}
}

// dated is a CA's directory on a server whose Date is off by some time.
func dated(t *testing.T, off time.Duration, header func(http.Header)) (*Client, *atomic.Int64) {
	var asked atomic.Int64
	var server *httptest.Server
	server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Header().Set("Date", time.Now().Add(off).UTC().Format(http.TimeFormat))
		if header != nil {
			header(w.Header())
		}
		fmt.Fprintf(w, `{"newNonce":"%[1]s/n","newAccount":"%[1]s/a","newOrder":"%[1]s/o"}`, server.URL)
	}))
	t.Cleanup(server.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := New(Config{Directory: server.URL, CAFile: ca, Provider: func(string, map[string]string) (Provider, error) { return nil, nil },
		DNS: func(string) (DNSConfig, error) { return DNSConfig{}, nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client, &asked
}

func TestTheCAIsAskedForItsTimeOnce(t *testing.T) {
	for _, off := range []time.Duration{0, 2 * time.Hour, -2 * time.Hour} {
		c, asked := dated(t, off, nil)
		if _, known := c.Ahead(); known {
			t.Error("known before it was asked")
		}
		for range 3 {
			if err := c.AskTime(t.Context()); err != nil {
				t.Fatal(err)
			}
			if ahead, known := c.Ahead(); !known || (ahead-off).Abs() > time.Minute {
				t.Errorf("%s: %s, %t", off, ahead, known)
			}
		}
		if n := asked.Load(); n != 1 {
			t.Errorf("asked %d times", n)
		}
	}
	c, asked := dated(t, 0, func(h http.Header) { h["Date"] = nil })
	if err := c.AskTime(t.Context()); err == nil || !strings.Contains(err.Error(), "does not tell its time") {
		t.Errorf("no Date: %v", err)
	}
	if n := asked.Load(); n != 2 {
		t.Errorf("no Date: asked %d times", n)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.AskTime(ended); err == nil {
		t.Error("asked when told to end")
	}
}

func TestACertificateThatIsNotValidNowHintsAtTheClock(t *testing.T) {
	err := networkFailure("acme directory", x509.CertificateInvalidError{Reason: x509.Expired})
	if hint := cluster.HintOf(err.Err); !strings.Contains(hint, "clock") {
		t.Errorf("hint %q", hint)
	}
	err = networkFailure("acme directory", x509.CertificateInvalidError{Reason: x509.TooManyIntermediates})
	if hint := cluster.HintOf(err.Err); strings.Contains(hint, "clock") {
		t.Errorf("hint %q", hint)
	}
}
