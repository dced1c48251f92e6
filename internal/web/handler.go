package web

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// NewHandler answers
//
//	GET /         the status page
//	GET /metrics  Prometheus' text format
//	GET /healthz  200 where this node is healthy, 503 where it is not, and why (JSON)
//
// from the view that view gives at that moment. Each may be asked with HEAD too. There is nothing that changes anything.
func NewHandler(view func() View) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		answer(WritePage(w, view()))
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", expositionType)
		answer(WriteMetrics(w, view()))
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writeHealth(w, view().Health()) })
	return guard(mux)
}

// answer breaks an answer off that could not be written whole, so that nobody takes a part of it for all.
func answer(err error) {
	if err != nil {
		panic(http.ErrAbortHandler)
	}
}

func writeHealth(w http.ResponseWriter, h Health) {
	w.Header().Set("Content-Type", "application/json")
	if !h.Healthy {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	answer(enc.Encode(h))
}

// guard sets what every answer has, and refuses whoever names this host by a name that somebody else may have made point
// here (DNS rebinding): a browser would let that page of elsewhere read the answer.
func guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		if err := checkHost(r.Host); err != nil {
			http.Error(w, err.Error(), http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

var errHost = errors.New("this page is answered under an IP address or localhost only: a proxy in front sets `Host: localhost`")

// checkHost takes an IP address or localhost, with or without a port. HTTP/1.0, as HAProxy's checks speak it, has none at
// all; no browser speaks that.
func checkHost(host string) error {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if host == "" || strings.EqualFold(host, "localhost") {
		return nil
	}
	if _, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")); err != nil {
		return errHost
	}
	return nil
}
