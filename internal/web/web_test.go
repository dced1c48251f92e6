package web

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

var update = flag.Bool("update", false, "write the golden files anew")

// now is when everything is looked at.
var now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

const day = 24 * time.Hour

func generation(name string, n byte, notBefore time.Time) cert.Generation {
	return cert.Generation{Slot: cert.Slot{Name: name, Algorithm: cert.ECDSA}, Sequence: uint64(n), NotBefore: notBefore, NotAfter: notBefore.Add(90 * day),
		Fingerprint: cert.Fingerprint{n, 0xab}}
}

func sighting(g cert.Generation) cluster.Sighting {
	return cluster.Sighting{Fingerprint: g.Fingerprint, NotBefore: g.NotBefore, NotAfter: g.NotAfter}
}

// inService is a placement of a generation with which nothing is wrong.
func inService(g cert.Generation) cluster.Placement {
	s := sighting(g)
	return cluster.Placement{Slot: g.Slot, Proxy: "/usr/local/etc/haproxy.conf", Running: true, Pid: 7, File: "/certs/" + g.Name + ".pem", Disk: s, Memory: s, Served: s, Proof: cluster.Proven}
}

// healthy is a BACKUP with one certificate, and a MASTER, where all is well.
func healthy() View {
	g := generation("example.org", 3, now.Add(-10*day))
	return View{Now: now, Node: "proxy2", Role: cluster.Backup, Version: "1.0", Pid: 42, Started: now.Add(-day), Next: now.Add(3 * time.Hour),
		Counts: Counts{Passes: 5, Issued: 2, Resumed: 1, FailedOrders: 1},
		Last: &cluster.Report{Node: "proxy2", Role: cluster.Backup, Start: now.Add(-5*time.Minute - 1500*time.Millisecond), End: now.Add(-5 * time.Minute), Outcome: cluster.Unchanged,
			Certificates: []cluster.CertificateReport{{Slot: g.Slot, Domains: []string{"example.org", "*.example.org"}, Newest: g, Outcome: cluster.Unchanged,
				RenewAt: now.Add(50 * day), Explanation: "https://ca.example/why"}},
			Nodes: []cluster.NodeStatus{
				{Node: "proxy2", Role: cluster.Backup, Reachable: true, Version: "1.0", Digest: "d", Placements: []cluster.Placement{inService(g)}},
				{Node: "proxy1", Role: cluster.Master, Reachable: true, Version: "1.0", Digest: "d", Placements: []cluster.Placement{inService(g)}},
			}}}
}

// troubled is a MASTER where much is wrong.
func troubled() View {
	v := healthy()
	old, newest, dying := generation("example.org", 2, now.Add(-80*day)), generation("example.org", 3, now.Add(-day)), generation("internal", 9, now.Add(-88*day))
	rejected := inService(newest)
	rejected.Disk, rejected.Memory, rejected.Served, rejected.Proof = sighting(old), sighting(old), sighting(old), cluster.Disproven
	rejected.Outcome, rejected.Error, rejected.Hint = cluster.RolledBack, "HAProxy refused it: no start line", "see HAProxy's log"
	v.Node, v.Role, v.Passing = "proxy1", cluster.Master, []string{"schedule", "peer"}
	v.Configuration, v.ConfigurationHint = "certsync.yaml:3: nodse: unknown key\ncertsync.yaml:9: dns: missing", "run certsync check"
	v.Overdue = 40 * time.Minute
	v.Alarms = []cluster.Alarm{{Kind: cluster.AlarmOverdue, Severity: cluster.Urgent, Since: now.Add(-3 * day), Text: "internal was to be renewed", Hint: "see the log"},
		{Kind: cluster.AlarmState, Severity: cluster.Warning, Since: now.Add(-time.Hour), Text: "a file was set aside"}}
	v.Last = &cluster.Report{Node: "proxy1", Role: cluster.Master, Start: now.Add(-time.Hour), End: now.Add(-time.Hour), Outcome: cluster.Failure, Interrupted: true,
		Warnings: []string{"the clock of proxy2 is 3 h ahead"},
		Certificates: []cluster.CertificateReport{
			{Slot: newest.Slot, Domains: []string{"example.org"}, Newest: newest, Outcome: cluster.RolledBack, Error: "proxy1: HAProxy refused it: no start line", Hint: "see HAProxy's log", RenewAt: now.Add(60 * day)},
			{Slot: dying.Slot, Domains: []string{"a.example.net", "b.example.net", "c.example.net", "d.example.net", "e.example.net", "f.example.net", "g.example.net"}, Newest: dying, Due: "2 days left", Outcome: cluster.Failure,
				Error: "order: DNS problem: SERVFAIL", Hint: "mend the zone", NextTry: now.Add(90 * time.Minute), RenewAt: now.Add(-28 * day)},
			{Slot: cert.Slot{Name: "new", Algorithm: cert.RSA}, Domains: []string{"new.example.org"}, Outcome: cluster.PutOff, Due: "there is none", Error: "put off"},
		},
		Nodes: []cluster.NodeStatus{
			{Node: "proxy1", Role: cluster.Master, Reachable: true, Version: "1.0", Digest: "d", Placements: []cluster.Placement{rejected, inService(dying)}, Problems: []string{"orders/x: set aside"}},
			{Node: "proxy2", Error: "unreachable: dial 192.0.2.12:22: connection refused", Hint: "start sshd there"},
			{Node: "proxy3", Role: cluster.Backup, Reachable: true, Version: "0.9", Digest: "other", Placements: []cluster.Placement{inService(newest),
				{Slot: dying.Slot, Proxy: "/usr/local/etc/haproxy.conf", Disk: sighting(dying)}}},
		}}
	return v
}

func TestPageAndMetricsAreAsTheyWere(t *testing.T) {
	starting := View{Now: now, Node: "proxy1", Version: "1.0", Pid: 42, Started: now.Add(-time.Second), Next: now, Passing: []string{"start"}}
	for name, v := range map[string]View{"healthy": healthy(), "troubled": troubled(), "starting": starting} {
		var page, metrics bytes.Buffer
		if err := errors.Join(WritePage(&page, v), WriteMetrics(&metrics, v)); err != nil {
			t.Fatal(err)
		}
		golden(t, name+".html", page.Bytes())
		golden(t, name+".prom", metrics.Bytes())
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not as it was; where that is meant: go test ./internal/web -update\n%s", path, got)
	}
}

// hostile is text that a peer, a CA or HAProxy may say.
const hostile = "</style></title><script>alert(1)</script>\" ' onload=x \\ \xff\xfe \u2028 {{.}} javascript:x\nsecond"

// poisoned has it wherever a text can come from elsewhere.
func poisoned() View {
	v := troubled()
	v.Error, v.Hint, v.Configuration, v.ConfigurationHint, v.Version, v.Passing = hostile, hostile, hostile, hostile, hostile, []string{hostile}
	v.Alarms = []cluster.Alarm{{Severity: hostile, Text: hostile, Hint: hostile}}
	v.Last.Warnings, v.Last.Outcome = []string{hostile}, hostile
	for i := range v.Last.Certificates {
		row := &v.Last.Certificates[i]
		row.Error, row.Hint, row.Domains, row.Explanation, row.Slot.Name = hostile, hostile, []string{hostile}, "javascript:alert(1)", fmt.Sprint(hostile, i)
	}
	for i := range v.Last.Nodes {
		n := &v.Last.Nodes[i]
		n.Error, n.Hint, n.Version, n.Digest, n.Problems, n.Node = hostile, hostile, hostile, hostile, []string{hostile}, fmt.Sprint(hostile, i)
		for k := range n.Placements {
			p := &n.Placements[k]
			p.Proxy, p.Error, p.Hint, p.Disk.Note, p.Memory.Note, p.Served.Note, p.Slot.Name = hostile, hostile, hostile, hostile, hostile, hostile, hostile
		}
	}
	return v
}

func TestTextOfOthersStaysText(t *testing.T) {
	var page bytes.Buffer
	if err := WritePage(&page, poisoned()); err != nil {
		t.Fatal(err)
	}
	text := page.String()
	checkElements(t, text)
	if n := strings.Count(text, "&lt;script&gt;"); n < 20 {
		t.Errorf("the page shows only %d of the texts", n)
	}
	if strings.Contains(text, "why then") {
		t.Error("the CA's page is linked though its address is not https")
	}
}

// checkElements wants a page that consists of what the template has, and of nothing that runs or loads anything.
func checkElements(t *testing.T, text string) {
	t.Helper()
	elements := strings.Fields("html head meta title style body h1 h2 h3 span div p b ul li code meter article details summary a")
	attributes := strings.Fields("lang charset name content http-equiv class title min max low high optimum value open rel href")
	once := map[string]int{}
	for z := html.NewTokenizer(strings.NewReader(text)); z.Next() != html.ErrorToken; {
		token := z.Token()
		if token.Type == html.StartTagToken {
			once[token.Data]++
		}
		if token.Type != html.TextToken && token.Type != html.DoctypeToken && !slices.Contains(elements, token.Data) {
			t.Errorf("element %s", token)
		}
		for _, a := range token.Attr {
			if !slices.Contains(attributes, a.Key) || a.Key == "href" && a.Val != "metrics" && a.Val != "healthz" && !strings.HasPrefix(a.Val, "https://") {
				t.Errorf("attribute %s in %s", a.Key, token)
			}
		}
	}
	if once["style"] != 1 || once["title"] != 1 || once["body"] != 1 {
		t.Errorf("elements: %v", once)
	}
}

// sample is a line of the text format. In a label's value only \\, \" and \n are escaped, and nothing else is.
var sample = regexp.MustCompile(`^([a-z_]+)(\{([a-z]+="(?:[^"\\\n]|\\[\\"n])*",?)+\})? -?[0-9.]+$`)

func TestEveryLineOfTheMetricsIsOfTheFormat(t *testing.T) {
	for name, v := range map[string]View{"healthy": healthy(), "troubled": troubled(), "poisoned": poisoned(), "starting": {Now: now}} {
		var out bytes.Buffer
		if err := WriteMetrics(&out, v); err != nil {
			t.Fatal(err)
		}
		checkFormat(t, name, out.String())
	}
}

func checkFormat(t *testing.T, name, text string) {
	t.Helper()
	kinds, current, seen := map[string]string{}, "", map[string]bool{}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, line := range lines {
		if help, ok := strings.CutPrefix(line, "# HELP "); ok {
			family, _, _ := strings.Cut(help, " ")
			kind, ok := strings.CutPrefix(lines[i+1], "# TYPE "+family+" ")
			if _, twice := kinds[family]; twice || !ok {
				t.Errorf("%s: %q is begun twice, or has no type", name, family)
			}
			if strings.HasSuffix(family, "_total") != (kind == counter) || kind != counter && kind != gauge {
				t.Errorf("%s: %s is a %s", name, family, kind)
			}
			kinds[family], current = kind, family
			continue
		}
		if strings.HasPrefix(line, "# TYPE ") {
			continue
		}
		m := sample.FindStringSubmatch(line)
		if m == nil || m[1] != current || seen[line] {
			t.Errorf("%s: line %d is no sample of %s, or is there twice: %q", name, i+1, current, line)
		}
		seen[line] = true
	}
	if !strings.HasSuffix(text, "\n") || len(kinds) < 8 {
		t.Errorf("%s: %d families", name, len(kinds))
	}
}

func TestALabelReadsAsItWasWritten(t *testing.T) {
	var out bytes.Buffer
	e := newExposition(&out)
	e.family("x", gauge, "two\nlines \\ here")
	e.sample(1.5, "a", "q\"\\\n\xffz", "b", "")
	if err := e.end(); err != nil {
		t.Fatal(err)
	}
	want := "# HELP x two\\nlines \\\\ here\n# TYPE x gauge\nx{a=\"q\\\"\\\\\\n\uFFFDz\",b=\"\"} 1.5\n"
	if out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

func TestHealth(t *testing.T) {
	g := generation("example.org", 3, now.Add(-10*day))
	for _, c := range []struct {
		name   string
		change func(*View)
		// what, where, mend are what some problem has; what "" means healthy.
		what, where, mend string
	}{
		{"a BACKUP that is ready", func(*View) {}, "", "", ""},
		{"a peer that is away", func(v *View) { v.Last.Nodes[1] = cluster.NodeStatus{Node: "proxy1", Error: "gone"} }, "", "", ""},
		{"a peer that is not ready", func(v *View) { v.Last.Nodes[1].Placements = nil }, "", "", ""},
		{"a configuration that was refused", func(v *View) { v.Configuration = "x" }, "", "", ""},
		{"unproven", func(v *View) {
			v.Last.Nodes[0].Placements[0].Proof, v.Last.Nodes[0].Placements[0].Served = cluster.NoProof, cluster.Sighting{}
		}, "", "", ""},
		{"a tenth left", func(v *View) { v.Now = g.NotAfter.Add(-9 * day) }, "", "", ""},
		{"less than a tenth left", func(v *View) { v.Now = g.NotAfter.Add(-9*day + time.Second) }, "valid for 8 days more, of 90 days", "example.org (ecdsa) in /usr/local", "certsync renew"},
		{"expired", func(v *View) { v.Now = g.NotAfter.Add(3 * time.Hour) }, "what is served expired 3 h ago", "example.org", "certsync"},
		{"in memory and unproven, and near its end", func(v *View) {
			v.Last.Nodes[0].Placements[0].Proof, v.Last.Nodes[0].Placements[0].Served = cluster.NoProof, cluster.Sighting{}
			v.Now = g.NotAfter.Add(-day)
			v.Last.Certificates[0].Error, v.Last.Certificates[0].Hint = "the CA is down", "wait"
		}, "valid for 24 h more, of 90 days: the CA is down", "example.org", "wait"},
		{"HAProxy is down", func(v *View) {
			v.Last.Nodes[0].Placements[0].Running, v.Last.Nodes[0].Placements[0].Hint = false, "start HAProxy"
		}, "HAProxy does not run", "example.org (ecdsa) in /usr/local/etc/haproxy.conf", "start HAProxy"},
		{"no pass yet", func(v *View) { v.Last = nil }, "the first pass has not ended", "daemon", "log"},
		{"no pass can be made", func(v *View) { v.Error, v.Hint = "role: no such vhid", "set carp.vhids" }, "no pass could be made: role: no such vhid", "daemon", "set carp.vhids"},
		{"passes do not end", func(v *View) { v.Overdue = 40 * time.Minute }, "a full pass should have ended 40 min ago", "daemon", "restart"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := healthy()
			c.change(&v)
			h := v.Health()
			if h.Healthy != (c.what == "") || h.Healthy != (len(h.Problems) == 0) || h.Problems == nil {
				t.Fatalf("healthy: %v, problems %+v", h.Healthy, h.Problems)
			}
			if c.what != "" && !slices.ContainsFunc(h.Problems, func(p Problem) bool {
				return strings.Contains(p.What, c.what) && strings.Contains(p.Where, c.where) && strings.Contains(p.Mend, c.mend)
			}) {
				t.Errorf("problems: %+v", h.Problems)
			}
		})
	}
}

func TestWhatIsServedDecidesTheRunway(t *testing.T) {
	v := healthy()
	old := generation("example.org", 2, now.Add(-81*day))
	pl := &v.Last.Nodes[0].Placements[0]
	for _, c := range []struct {
		name   string
		change func()
		want   string
	}{
		{"fresh", func() {}, "0.8888888888888888"},
		{"an older one is served", func() { pl.Served, pl.Proof = sighting(old), cluster.Disproven }, "0.1"},
		{"the older of two HAProxies", func() {
			v.Last.Nodes[0].Placements = append(v.Last.Nodes[0].Placements, inService(v.Last.Certificates[0].Newest))
		}, "0.1"},
		{"an unknown one is in memory", func() {
			v.Last.Nodes[0].Placements = v.Last.Nodes[0].Placements[:1]
			pl = &v.Last.Nodes[0].Placements[0]
			pl.Memory, pl.Served, pl.Proof = cluster.Sighting{SHA1: "ab", NotAfter: now.Add(45 * day)}, cluster.Sighting{}, cluster.NoProof
		}, "0.5"},
		{"HAProxy is down", func() { pl.Running = false }, "0"},
		{"no HAProxy has it", func() { v.Last.Nodes[0].Placements = nil }, "0"},
	} {
		c.change()
		var out bytes.Buffer
		if err := WriteMetrics(&out, v); err != nil {
			t.Fatal(err)
		}
		if want := `certsync_certificate_runway_ratio{certificate="example.org",algorithm="ecdsa"} ` + c.want + "\n"; !strings.Contains(out.String(), want) {
			t.Errorf("%s: want %s in\n%s", c.name, want, out.String())
		}
	}
}

func TestWhatAPassDidIsCounted(t *testing.T) {
	var c Counts
	c.Count(cluster.Report{Certificates: []cluster.CertificateReport{
		{Outcome: cluster.Unchanged}, {Due: "old", Ordered: true, Outcome: cluster.Done}, {Due: "old", Ordered: true, Resumed: true, Outcome: cluster.Failure},
		{Due: "old", Outcome: cluster.Failure}, {Due: "old", Outcome: cluster.PutOff}, {Outcome: cluster.Failure}}}, nil)
	c.Count(cluster.Report{}, errors.New("no role"))
	if want := (Counts{Passes: 2, FailedPasses: 1, Issued: 2, Resumed: 1, FailedOrders: 1}); c != want {
		t.Errorf("counted %+v, want %+v", c, want)
	}
}

func ask(t *testing.T, v View, method, target, host string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(method, target, nil)
	r.Host = host
	w := httptest.NewRecorder()
	NewHandler(func() View { return v }).ServeHTTP(w, r)
	return w
}

func TestTheHandlerAnswersWhatItShould(t *testing.T) {
	for _, c := range []struct {
		view                 View
		method, target, host string
		code                 int
		contentType          string
	}{
		{healthy(), "GET", "/", "127.0.0.1:9180", 200, "text/html; charset=utf-8"},
		{healthy(), "HEAD", "/", "[::1]:9180", 200, "text/html; charset=utf-8"},
		{healthy(), "GET", "/metrics", "localhost", 200, "text/plain; version=0.0.4; charset=utf-8"},
		{healthy(), "GET", "/healthz", "LOCALHOST:9180", 200, "application/json"},
		{troubled(), "GET", "/healthz", "::1", 503, "application/json"},
		{troubled(), "HEAD", "/healthz", "", 503, "application/json"},
		{healthy(), "POST", "/", "127.0.0.1", 405, "text/plain; charset=utf-8"},
		{healthy(), "DELETE", "/healthz", "127.0.0.1", 405, "text/plain; charset=utf-8"},
		{healthy(), "GET", "/v1/status", "127.0.0.1", 404, "text/plain; charset=utf-8"},
		{healthy(), "GET", "/", "attacker.example", 421, "text/plain; charset=utf-8"},
		{healthy(), "GET", "/metrics", "attacker.example:9180", 421, "text/plain; charset=utf-8"},
		{healthy(), "GET", "/healthz", "localhost.attacker.example", 421, "text/plain; charset=utf-8"},
		{healthy(), "GET", "/healthz", "127.0.0.1.attacker.example", 421, "text/plain; charset=utf-8"},
	} {
		name := fmt.Sprintf("%s %s at %q", c.method, c.target, c.host)
		w := ask(t, c.view, c.method, c.target, c.host)
		if w.Code != c.code || w.Header().Get("Content-Type") != c.contentType {
			t.Errorf("%s: %d, %q, want %d, %q", name, w.Code, w.Header().Get("Content-Type"), c.code, c.contentType)
		}
		for header, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Content-Security-Policy": policy} {
			if got := w.Header().Get(header); got != want {
				t.Errorf("%s: %s: %q", name, header, got)
			}
		}
		if w.Code == 421 && strings.Contains(w.Body.String(), "example.org") {
			t.Errorf("%s: tells of certificates", name)
		}
	}
}

func TestThePolicyAllowsThePagesStyleAndNothingElse(t *testing.T) {
	body := ask(t, troubled(), "GET", "/", "localhost").Body.String()
	_, after, _ := strings.Cut(body, "<style>")
	css, _, found := strings.Cut(after, "</style>")
	if !found || !strings.Contains(policy, "style-src 'sha256-"+digest(css)+"'") {
		t.Errorf("the style is not the one of the policy %q", policy)
	}
	for _, needs := range []string{"<script", "<img", "<link", "<iframe", "<form", " style=", " src=", "@import", "url("} {
		if strings.Contains(body, needs) {
			t.Errorf("the page has %q, which its policy forbids", needs)
		}
	}
	if !strings.HasPrefix(policy, "default-src 'none'; ") || strings.Contains(policy, "unsafe") {
		t.Errorf("policy %q", policy)
	}
}

func TestHealthOfManyTroublesIsShort(t *testing.T) {
	v := fleet(3000)
	for i := range v.Last.Nodes[0].Placements {
		v.Last.Nodes[0].Placements[i].Running = false
	}
	w := ask(t, v, "GET", "/healthz", "")
	var h Health
	if err := json.Unmarshal(w.Body.Bytes(), &h); err != nil {
		t.Fatal(err)
	}
	if w.Code != 503 || h.Healthy || len(h.Problems) != mostProblems || h.More != 3000-mostProblems || w.Body.Len() > 16<<10 {
		t.Errorf("%d: %d problems and %d more in %d bytes", w.Code, len(h.Problems), h.More, w.Body.Len())
	}
}

func fleet(n int) View {
	v := healthy()
	v.Last.Certificates = nil
	var placements []cluster.Placement
	for i := range n {
		g := generation(fmt.Sprintf("c%05d.example.org", i), byte(i), now.Add(-10*day))
		v.Last.Certificates = append(v.Last.Certificates, cluster.CertificateReport{Slot: g.Slot, Domains: []string{g.Name}, Newest: g, RenewAt: now.Add(50 * day)})
		placements = append(placements, inService(g))
	}
	v.Last.Nodes[0].Placements, v.Last.Nodes[1].Placements = placements, slices.Clone(placements)
	return v
}

// meter is a writer that knows how much came at once, and what was on the heap then.
type meter struct{ most, total, peak, writes int }

func (m *meter) Write(p []byte) (int, error) {
	m.most, m.total = max(m.most, len(p)), m.total+len(p)
	if m.writes%200 == 0 {
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		m.peak = max(m.peak, int(s.HeapAlloc))
	}
	m.writes++
	return len(p), nil
}

func TestTenThousandCertificatesAreWrittenAsTheyCome(t *testing.T) {
	many, some := fleet(10_000), fleet(2_000) // a page takes a tenth of a millisecond for each
	for name, write := range map[string]func(*meter) error{
		"metrics": func(m *meter) error { return WriteMetrics(m, many) },
		"page":    func(m *meter) error { return WritePage(m, some) },
	} {
		runtime.GC()
		var before runtime.MemStats
		runtime.ReadMemStats(&before)
		var m meter
		if err := write(&m); err != nil {
			t.Fatal(err)
		}
		if m.most > 16<<10 || m.total < 1<<20 {
			t.Errorf("%s: %d bytes, as many as %d at once", name, m.total, m.most)
		}
		if grew := m.peak - int(before.HeapAlloc); grew > 96<<20 {
			t.Errorf("%s: the heap grew by %d MiB", name, grew>>20)
		}
	}
}

// broken is a connection that somebody closed.
type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("gone") }

func TestAnAnswerThatCannotBeWrittenIsAnErrorAndBreaksTheConnection(t *testing.T) {
	if WritePage(broken{}, healthy()) == nil || WriteMetrics(broken{}, healthy()) == nil {
		t.Error("no error")
	}
	defer func() {
		if v := recover(); v != http.ErrAbortHandler { //nolint:errorlint // it is that very value
			t.Errorf("panic: %v", v)
		}
	}()
	answer(errors.New("gone"))
}
