package main

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"certsync/internal/config"
	"certsync/internal/notify"
)

// startWebhook starts a webhook for the story; $HOOK is then its address: webhook.
func startWebhook(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: webhook")
	}
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	ts.Defer(s.Close)
	ts.Setenv("HOOK", strings.TrimPrefix(s.URL, "http://"))
}

func TestTheConfigurationKnowsTheServicesOfTheLibrary(t *testing.T) {
	if have, want := config.NotifyServices(), notify.Services(); !slices.Equal(have, want) {
		t.Errorf("internal/config takes %q, the library has %q", have, want)
	}
}
