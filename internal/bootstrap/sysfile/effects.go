package sysfile

import (
	"fmt"
	"regexp"
	"strings"
)

// assignment is the beginning of one; a backslash and a newline count for nothing in it.
var assignment = regexp.MustCompile(`^(?:\\\n)*[A-Za-z_](?:[A-Za-z0-9_]|\\\n)*=`)

// assigned is the event of a word that has the form of an assignment.
func (p *shell) assigned(w word) (event, bool) {
	m := assignment.FindString(p.src[w.start:w.end])
	if m == "" {
		return event{}, false
	}
	key := strings.ReplaceAll(m[:len(m)-1], "\\\n", "")
	e := event{
		kind: sets, key: key, value: w.text[len(key)+1:], line: p.line(w.start),
		start: w.start, from: w.start + len(m), end: w.end, style: styleOf(p.src[w.start+len(m) : w.end]),
	}
	if w.computed {
		e.kind, e.value, e.why = maybe, "", fmt.Sprintf("line %d computes it", e.line)
	}
	return e, true
}

// styleOf is the quote that is around all of raw: 0 where it has none, 'x' where it is a mixture.
func styleOf(raw string) byte {
	if raw == "" || !strings.ContainsAny(raw, "\"'\\") {
		return 0
	}
	q := raw[0]
	if (q == '"' || q == '\'') && len(raw) > 1 && strings.IndexByte(raw[1:], q) == len(raw)-2 {
		return q
	}
	return 'x'
}

// happens notes what a simple command does to variables.
func (p *shell) happens(words []word) {
	var own []event
	for len(words) > 0 {
		e, ok := p.assigned(words[0])
		if !ok {
			break
		}
		own, words = append(own, e), words[1:]
	}
	if len(words) == 0 {
		p.events = append(p.events, own...)
		return
	}
	cmd := words[0]
	line := p.line(cmd.start)
	if cmd.computed {
		p.add(event{kind: anything, line: line, why: fmt.Sprintf("line %d runs a command that is computed", line)})
		return
	}
	if specialBuiltin[cmd.text] {
		for _, e := range own {
			p.add(event{kind: maybe, key: e.key, line: e.line, why: fmt.Sprintf("line %d sets it for a command", e.line)})
		}
	}
	p.runs(cmd.text, words[1:], line)
}

// specialBuiltin are the commands that keep the assignments before them.
var specialBuiltin = map[string]bool{
	".": true, ":": true, "break": true, "continue": true, "eval": true, "exec": true, "exit": true, "export": true,
	"readonly": true, "return": true, "set": true, "shift": true, "times": true, "trap": true, "unset": true,
}

// harmless are the commands that change no variable.
var harmless = map[string]bool{
	":": true, "true": true, "false": true, "echo": true, "printf": true, "test": true, "[": true, "logger": true,
	"umask": true, "break": true, "continue": true, "sleep": true,
}

var commandForm = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,40}$`)

// runs notes what a command does to variables.
func (p *shell) runs(name string, args []word, line int) {
	switch {
	case harmless[name], strings.ContainsAny(name, "/="):
		// A path, and what was meant to be an assignment and has no variable's name, is another program to sh.
	case name == "export":
		p.exports(args)
	case name == "unset":
		p.forgets(args, line)
	case name == "return" || name == "exit":
		p.add(event{kind: stops, line: line, why: fmt.Sprintf("line %d may end the file (%s)", line, name)})
	case name == "." && len(args) > 0 && !args[0].computed:
		p.add(event{kind: anything, line: line, reads: args[0].text, why: fmt.Sprintf("line %d reads another file", line)})
	case commandForm.MatchString(name):
		p.add(event{kind: anything, line: line, why: fmt.Sprintf("line %d runs the command %s", line, name)})
	default:
		p.add(event{kind: anything, line: line, why: fmt.Sprintf("line %d runs a command", line)})
	}
}

func (p *shell) exports(args []word) {
	for _, w := range args {
		w.computed = w.computed || w.glob
		if e, ok := p.assigned(w); ok {
			p.add(e)
		} else if w.computed {
			line := p.line(w.start)
			p.add(event{kind: anything, line: line, why: fmt.Sprintf("line %d exports what is computed", line)})
		}
	}
}

func (p *shell) forgets(args []word, line int) {
	functions := false
	for _, w := range args {
		switch {
		case w.computed:
			p.add(event{kind: anything, line: line, why: fmt.Sprintf("line %d unsets what is computed", line)})
		case w.text == "-f":
			functions = true
		case !functions && shellKey.MatchString(w.text):
			p.add(event{kind: unsets, key: w.text, line: line})
		}
	}
}
