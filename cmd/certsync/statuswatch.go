package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"

	"certsync/internal/cluster"
)

// statusPoll is how often a watching status asks: each question is one to every node.
const statusPoll = 5 * time.Second

// statusWatch asks until ctx ends, and shows what it learns.
func (a *app) statusWatch(ctx context.Context, source *statusSource, asJSON bool) error {
	show := a.statusViewer(asJSON)
	tick := time.NewTicker(statusPoll)
	defer tick.Stop()
	failed := ""
	for {
		s, err := source.ask(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			if err := show(s); err != nil {
				return fmt.Errorf("watch: %w", err) // nobody reads any more
			}
			failed = ""
		} else if err.Error() != failed {
			failed = err.Error() // it may be over in a moment: a daemon that is started again
			a.printError(err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// statusViewer is how the reports are shown: a terminal is drawn anew, elsewhere what changed is printed.
func (a *app) statusViewer(asJSON bool) func(statusReport) error {
	if asJSON {
		return a.jsonViewer()
	}
	if f, ok := a.stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return func(s statusReport) error {
			_, height, err := term.GetSize(int(f.Fd()))
			if err != nil {
				height = 24
			}
			_, err = io.WriteString(f, a.screen(s, height))
			return err
		}
	}
	return a.lineViewer()
}

// jsonViewer prints a report a line, where anything but the times of asking changed.
func (a *app) jsonViewer() func(statusReport) error {
	var before []statusReport
	return func(s statusReport) error {
		plain := timeless(s)
		if len(before) > 0 && reflect.DeepEqual(before[0], plain) {
			return nil
		}
		before = []statusReport{plain}
		return json.NewEncoder(a.stdout).Encode(s)
	}
}

// timeless is a report without when its parts were told.
func timeless(s statusReport) statusReport {
	s.Time = time.Time{}
	s.Nodes = slices.Clone(s.Nodes)
	for i := range s.Nodes {
		n := &s.Nodes[i]
		n.Time, n.Placements = time.Time{}, slices.Clone(n.Placements)
		for k := range n.Placements {
			n.Placements[k].Served.Seen = time.Time{}
		}
	}
	return s
}

// screen is a report for a terminal of so many lines, from its upper left corner.
func (a *app) screen(s statusReport, height int) string {
	var text bytes.Buffer
	drawing := &app{stdout: unclosed{&text}, stderr: &text, configPath: a.configPath}
	drawing.printStatus(s)
	lines := strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
	lines = fit(lines, 1+len(matrixRows(s.Nodes, s.Time)), max(height-2, 3))
	// Home, then each line with the rest of its old one erased, then all below: nothing flickers.
	return "\x1b[H" + s.Time.Format(time.RFC3339) + "\x1b[K\n" + strings.Join(lines, "\x1b[K\n") + "\x1b[K\n\x1b[J"
}

// fit shortens what begins with a matrix to so many lines. What is said below the matrix is the verdict: it stays.
func fit(lines []string, matrix, room int) []string {
	if len(lines) <= room {
		return lines
	}
	below := lines[matrix:]
	if keep := max(1, room-len(below)-1); keep < matrix {
		lines = slices.Concat(lines[:keep], []string{fmt.Sprintf("... and %d more lines: certsync status", matrix-keep)}, below)
	}
	return lines[:min(len(lines), room)]
}

// unclosed is a writer that closing does not touch.
type unclosed struct{ io.Writer }

func (unclosed) Close() error { return nil }

// lineViewer prints all once, and then each line that is not as it was, with the time.
func (a *app) lineViewer() func(statusReport) error {
	var before map[string]string
	return func(s statusReport) error {
		now := statusLines(s)
		var out strings.Builder
		for _, key := range slices.Sorted(maps.Keys(now)) {
			if text, known := before[key]; !known || text != now[key] {
				fmt.Fprintf(&out, "%s %s: %s\n", s.Time.Format(time.RFC3339), key, now[key])
			}
		}
		for _, key := range slices.Sorted(maps.Keys(before)) {
			if _, there := now[key]; !there {
				fmt.Fprintf(&out, "%s %s: gone\n", s.Time.Format(time.RFC3339), key)
			}
		}
		before = now
		_, err := io.WriteString(a.stdout, out.String())
		return err
	}
}

// statusLines are what a report says, by what it says it of, without what changes as time goes by.
func statusLines(s statusReport) map[string]string {
	lines := map[string]string{"daemon": "none runs on this node"}
	if d := s.Daemon; d != nil {
		lines["daemon"] = fmt.Sprintf("%s, process %d", d.Version, d.Pid)
		if d.Last != nil {
			lines["last pass"] = string(d.Last.Outcome)
		}
		for what, text := range map[string]string{"no pass": d.Error, "configuration refused": d.Configuration, "status page": d.PageError} {
			if text != "" {
				lines[what] = strings.ReplaceAll(text, "\n", "; ")
			}
		}
		for _, alarm := range d.Alarms {
			lines["alarm "+alarm.Text] = string(alarm.Severity)
		}
	}
	for i, n := range s.Nodes {
		lines["node "+n.Node] = fmt.Sprintf("%s, %s", nodeRole(n), s.Readiness[i].Verdict(len(s.Certificates)))
	}
	for _, r := range matrixRows(s.Nodes, s.Time) {
		key := strings.TrimSpace(fmt.Sprintf("%s on %s %s", r.slot, r.node, r.proxy))
		lines[key] = fmt.Sprintf("issued %s, on disk %s, in memory %s, served %s", r.issued, r.disk, r.memory, r.served)
		if r.disk == "" {
			lines[key] = r.issued
		}
	}
	return lines
}

func nodeRole(n cluster.NodeStatus) string {
	if !n.Reachable {
		return "unreachable"
	}
	return n.Role.String()
}
