package web

import (
	"bufio"
	"io"
	"strconv"
	"strings"
	"time"
)

// exposition writes Prometheus' text format, version 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats): a
// family at a time, each with its HELP and TYPE, then its samples. What was begun and has no sample is left out.
type exposition struct {
	out  *bufio.Writer
	name string
	head string
}

func newExposition(w io.Writer) *exposition { return &exposition{out: bufio.NewWriter(w)} }

// expositionType is the Content-Type of the format.
const expositionType = "text/plain; version=0.0.4; charset=utf-8"

// The types of families that are used.
const (
	gauge   = "gauge"
	counter = "counter"
)

// family begins the samples of one name.
func (e *exposition) family(name, kind, help string) {
	e.name = name
	e.head = "# HELP " + name + " " + helpText.Replace(help) + "\n# TYPE " + name + " " + kind + "\n"
}

// sample writes one of the family, with its labels as names and values in turn.
func (e *exposition) sample(value float64, labels ...string) {
	e.text(e.head)
	e.head = ""
	e.text(e.name)
	open := "{"
	for i := 0; i+1 < len(labels); i += 2 {
		e.text(open)
		open = ","
		e.text(labels[i])
		e.text(`="`)
		e.text(labelText.Replace(strings.ToValidUTF8(labels[i+1], "\uFFFD")))
		e.text(`"`)
	}
	if len(labels) > 0 {
		e.text("}")
	}
	e.text(" ")
	e.text(strconv.FormatFloat(value, 'f', -1, 64))
	e.text("\n")
}

// text keeps the first error for end: those of a bufio.Writer stick.
func (e *exposition) text(s string) { _, _ = e.out.WriteString(s) }

func (e *exposition) end() error { return e.out.Flush() }

// What must be escaped in a label's value, and in a help text.
var (
	labelText = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)
	helpText  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
)

// one is a family of a single sample.
func (e *exposition) one(name, kind, help string, value float64, labels ...string) {
	e.family(name, kind, help)
	e.sample(value, labels...)
}

// instant is a gauge of seconds since 1970; nothing where there is no such instant.
func (e *exposition) instant(name, help string, t time.Time) {
	if !t.IsZero() {
		e.one(name, gauge, help, seconds(t))
	}
}

// seconds are those since 1970, to the millisecond.
func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
