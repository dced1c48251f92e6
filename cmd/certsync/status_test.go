package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/distribute"
)

// freePort sets an environment variable to a port that nobody listens on: freeport NAME.
func freePort(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: freeport NAME")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	_, port, err := net.SplitHostPort(l.Addr().String())
	ts.Check(err)
	ts.Check(l.Close())
	ts.Setenv(args[0], port)
}

// getPage asks until the answer has the status, and writes it into the file page: get STATUS URL.
func getPage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: get STATUS URL")
	}
	var last string
	for deadline := time.Now().Add(storyTime); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		r, err := http.Get(args[1])
		if err != nil {
			last = err.Error()
			continue
		}
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		ts.Check(err)
		if last = fmt.Sprintf("%s\n%s", r.Status, body); fmt.Sprint(r.StatusCode) == args[0] {
			ts.Check(os.WriteFile(ts.MkAbs("page"), body, 0o600))
			return
		}
	}
	ts.Fatalf("%s never answers with %s: %s", args[1], args[0], last)
}

// twoNodes has a certificate on two nodes, with which nothing is wrong.
func twoNodes() statusReport {
	slot := cert.Slot{Name: "example.org", Algorithm: cert.ECDSA}
	begin := time.Now().UTC().Add(-10 * 24 * time.Hour).Truncate(time.Second)
	g := cert.Generation{Slot: slot, Sequence: 2, NotBefore: begin, NotAfter: begin.Add(90 * 24 * time.Hour), Fingerprint: cert.Fingerprint{2}}
	seen := cluster.Sighting{Fingerprint: g.Fingerprint, NotBefore: g.NotBefore, NotAfter: g.NotAfter}
	var nodes []cluster.NodeStatus
	for _, name := range []string{"proxy1", "proxy2"} {
		nodes = append(nodes, cluster.NodeStatus{Node: name, Role: cluster.Backup, Reachable: true, Held: []cert.Generation{g}, Placements: []cluster.Placement{{
			Slot: slot, Proxy: "/h.conf", Running: true, Disk: seen, Memory: seen, Served: seen, Proof: cluster.Proven}}})
	}
	return newStatusReport([]cluster.CertificateReport{{Slot: slot, Newest: g, RenewAt: begin.Add(60 * 24 * time.Hour)}}, nodes)
}

func TestStatusJudgesByWhatTheNodesHoldNow(t *testing.T) {
	s := twoNodes()
	if !s.Readiness[0].Ready() || !s.Readiness[1].Ready() || s.Certificates[0].RenewAt.IsZero() {
		t.Fatalf("report: %+v", s)
	}
	newer := s.Certificates[0].Newest
	newer.Sequence, newer.Fingerprint = 3, cert.Fingerprint{3}
	s.Nodes[1].Held = append(s.Nodes[1].Held, newer)
	rows := slices.Clone(s.Certificates)
	again := newStatusReport(rows, s.Nodes)
	if row := again.Certificates[0]; row.Newest != newer || !row.RenewAt.IsZero() {
		t.Errorf("the row of a generation that a node holds since: %+v", row)
	}
	if again.Readiness[0].Ready() || again.Readiness[1].Ready() || rows[0].Newest == newer {
		t.Errorf("readiness: %+v, the last report's row: %+v", again.Readiness, rows[0])
	}
}

func TestTheDaemonsReportIsNotToldTwiceInJSON(t *testing.T) {
	s := twoNodes()
	s.Daemon = newDaemonInfo(distribute.DaemonStatus{Node: "proxy1", Last: &cluster.Report{Outcome: cluster.Done, Certificates: s.Certificates, Nodes: s.Nodes}})
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Daemon struct{ Last map[string]any }
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if got.Daemon.Last["outcome"] != "done" || got.Daemon.Last["nodes"] != nil || got.Daemon.Last["certificates"] != nil {
		t.Errorf("last: %v", got.Daemon.Last)
	}
}

func TestAWatchTellsOnlyWhatChanged(t *testing.T) {
	var out bytes.Buffer
	a := &app{stdout: unclosed{&out}}
	show := a.lineViewer()
	tell := func(s statusReport) []string {
		t.Helper()
		out.Reset()
		if err := show(s); err != nil {
			t.Fatal(err)
		}
		var lines []string
		for line := range strings.Lines(out.String()) {
			_, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			lines = append(lines, text)
		}
		return lines
	}
	s := twoNodes()
	first := tell(s)
	in := "issued 02000000, on disk 02000000, in memory 02000000, served 02000000"
	if want := []string{"daemon: none runs on this node", "example.org (ecdsa) on proxy1 /h.conf: " + in, "example.org (ecdsa) on proxy2 /h.conf: " + in,
		"node proxy1: BACKUP, ready: it would serve all 1 certificate", "node proxy2: BACKUP, ready: it would serve all 1 certificate"}; !slices.Equal(first, want) {
		t.Errorf("first %q, want %q", first, want)
	}
	s.Time = s.Time.Add(time.Hour) // what only goes by is no change
	if again := tell(s); len(again) != 0 {
		t.Errorf("nothing changed: %q", again)
	}
	s.Nodes[1] = cluster.NodeStatus{Node: "proxy2", Error: "gone"}
	s = newStatusReport(s.Certificates, s.Nodes)
	s.Daemon = newDaemonInfo(distribute.DaemonStatus{Version: "1", Pid: 7, Configuration: "a\nb"})
	if got, want := tell(s), []string{"configuration refused: a; b", "daemon: 1, process 7", "example.org (ecdsa) on proxy2: unreachable",
		"node proxy2: unreachable, not known: it was not asked, or did not answer", "example.org (ecdsa) on proxy2 /h.conf: gone"}; !slices.Equal(got, want) {
		t.Errorf("changed %q, want %q", got, want)
	}
}

func TestAWatchInJSONTellsOnlyWhatChanged(t *testing.T) {
	var out bytes.Buffer
	show := (&app{stdout: unclosed{&out}}).jsonViewer()
	s := twoNodes()
	count := func(want int, what string) {
		t.Helper()
		before := timeless(s)
		if err := show(s); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(out.String(), "\n"); n != want {
			t.Errorf("%s: %d lines, want %d", what, n, want)
		}
		if !reflect.DeepEqual(before, timeless(s)) {
			t.Errorf("%s: showing changed the report", what)
		}
	}
	count(1, "the first")
	s.Time, s.Nodes[0].Time, s.Nodes[0].Placements[0].Served.Seen = s.Time.Add(time.Hour), time.Now(), time.Now()
	count(1, "other times")
	s.Nodes[0].Role = cluster.Master
	count(2, "another role")
}

func TestAScreenKeepsItsVerdict(t *testing.T) {
	lines := strings.Fields("head m1 m2 m3 m4 m5 v1 v2")
	for _, c := range []struct {
		room int
		want string
	}{
		{8, "head m1 m2 m3 m4 m5 v1 v2"},
		{7, "head|m1|m2|m3|... and 2 more lines: certsync status|v1|v2"},
		{4, "head|... and 5 more lines: certsync status|v1|v2"},
		{3, "head|... and 5 more lines: certsync status|v1"},
	} {
		if got := strings.Join(fit(lines, 6, c.room), "|"); got != strings.ReplaceAll(c.want, "head m1 m2 m3 m4 m5 v1 v2", "head|m1|m2|m3|m4|m5|v1|v2") {
			t.Errorf("%d lines: %s, want %s", c.room, got, c.want)
		}
	}
	text := (&app{}).screen(twoNodes(), 5)
	if !strings.HasPrefix(text, "\x1b[H") || strings.Count(text, "\n") != 4 || !strings.HasSuffix(text, "\x1b[J") {
		t.Errorf("screen: %q", text)
	}
}

func TestTimesAreForAPerson(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	for d, want := range map[time.Duration]string{
		0: "2026-03-04T05:06:07Z (0s ago)", -42 * time.Second: "2026-03-04T05:05:25Z (42s ago)", 90 * time.Minute: "2026-03-04T06:36:07Z (in 1h30m)",
		72*time.Hour + time.Minute: "2026-03-07T05:07:07Z (in 3 days)",
	} {
		if got := moment(now.Add(d), now); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
	if got := moment(time.Time{}, now); got != "at no known time" {
		t.Errorf("none: %q", got)
	}
	for at, want := range map[time.Time]string{{}: "-", now: "due", now.Add(-time.Hour): "due", now.Add(50 * time.Hour): "in 2 days"} {
		if got := renewal(at, now); got != want {
			t.Errorf("%s: %q, want %q", at, got, want)
		}
	}
}
