package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// progress shows what a pass is doing: a bar and the step on a terminal, plain lines in a pipe, JSON lines with --json.
type progress struct {
	mu    sync.Mutex
	app   *app
	lines *json.Encoder
	bar   *progressbar.ProgressBar
	// steps is the bar's length, taken how many of them were.
	steps, taken int
}

func newProgress(a *app, asJSON bool) *progress {
	p := &progress{app: a}
	if asJSON {
		p.lines = json.NewEncoder(a.stdout)
		return p
	}
	if f, ok := a.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.bar = progressbar.NewOptions(1, progressbar.OptionSetWriter(a.stderr), progressbar.OptionClearOnFinish(),
			progressbar.OptionSetPredictTime(false), progressbar.OptionSetDescription("certsync"))
	}
	return p
}

// tell is called from several goroutines.
func (p *progress) tell(e cluster.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lines != nil {
		_ = p.lines.Encode(struct {
			Type string `json:"type"`
			cluster.Progress
		}{"progress", e})
		return
	}
	if p.bar != nil {
		_ = p.bar.Clear()
	}
	fmt.Fprintln(p.app.stderr, progressLine(e))
	if p.bar != nil {
		p.step(e)
	}
}

func progressLine(e cluster.Progress) string {
	s := e.Step + ": "
	if e.Slot != (cert.Slot{}) {
		s += e.Slot.String() + ": "
	} else if e.Node != "" {
		s += e.Node + ": "
	}
	return s + e.Message
}

// stepsOfSlot is about how many lines a certificate's way has: due, order, two for each of two names, the request, keep,
// stage, and activate on two nodes. The bar stops short of its end where there are more.
const stepsOfSlot = 11

// step moves the bar: it gets longer by a certificate's steps as each turns out to be due.
func (p *progress) step(e cluster.Progress) {
	if e.Step == "due" {
		p.steps += stepsOfSlot
		p.bar.ChangeMax(p.steps)
	}
	if p.taken < p.steps-1 {
		p.taken++
	}
	_ = p.bar.Set(p.taken)
}

// end takes the bar off the terminal.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}

// json prints a last JSON line.
func (p *progress) json(kind string, v any) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lines.Encode(map[string]any{"type": kind, kind: v})
}
