package sysfile

import (
	"fmt"
	"regexp"
	"strings"
)

// lineParser finds the event of one line; ok is false where the line sets nothing.
type lineParser func(line string) (e event, ok bool)

// parseLines parses a file whose reader takes it line by line, and passes over lines that it does not understand.
func parseLines(text string, parse lineParser) parsed {
	var p parsed
	at := 0
	for i, line := range strings.Split(text, "\n") {
		if e, ok := parse(line); ok {
			e.line, e.start, e.from, e.end = i+1, e.start+at, e.from+at, e.end+at
			if e.kind == maybe {
				e.why = fmt.Sprintf("line %d computes it", e.line)
			}
			p.events = append(p.events, e)
		} else if body, ok := strings.CutPrefix(strings.TrimLeft(line, " \t"), "#"); ok {
			if e, ok := parse(strings.TrimLeft(body, "# \t")); ok {
				p.commented = append(p.commented, commented{key: e.key, line: i + 1})
			}
		}
		at += len(line) + 1
	}
	return p
}

// loaderForm is a line of loader.conf(5) as the loader's config.lua matches it: a value in double quotes, or one word,
// and nothing after it but a comment.
var loaderForm = regexp.MustCompile(`^[\s\v]*([A-Za-z0-9][-A-Za-z0-9_.]*)[\s\v]*=[\s\v]*(?:("([^"]*)")|([-A-Za-z0-9][-A-Za-z0-9_.]*))[\s\v]*(?:#.*)?$`)

// loaderLine parses a line of loader.conf(5). `exec=` runs a command of the loader and sets nothing.
func loaderLine(line string) (event, bool) {
	m := loaderForm.FindStringSubmatchIndex(line)
	if m == nil {
		return event{}, false
	}
	e := event{kind: sets, key: line[m[2]:m[3]], start: m[2]}
	if m[4] >= 0 {
		e.from, e.end, e.value, e.style = m[4], m[5], line[m[6]:m[7]], '"'
	} else {
		e.from, e.end, e.value = m[8], m[9], line[m[8]:m[9]]
	}
	if e.key == "exec" && e.style == '"' {
		return event{}, false
	}
	if strings.ContainsAny(e.value, `$\`) && !ofModule(e.key) {
		e.kind = maybe
	}
	return e, true
}

// ofModule tells that the loader takes the value of key for a module, and then as it is written.
func ofModule(key string) bool {
	for _, suffix := range []string{"_load", "_name", "_type", "_flags", "_before", "_after", "_error"} {
		if len(key) > len(suffix) && strings.HasSuffix(key, suffix) {
			return true
		}
	}
	return false
}

// sysctlLine parses a line of sysctl.conf(5) as sysctl(8) does: a name, = or :, and a value, whose quotes go.
func sysctlLine(line string) (event, bool) {
	end := sysctlEnd(line)
	line = strings.TrimRight(line[:end], " \t\v\f\r")
	name := strings.IndexAny(line, "=:")
	if name < 0 {
		return event{}, false
	}
	e := event{kind: sets, key: strings.Trim(line[:name], " \t\v\f\r"), end: len(line)}
	if !keyForm(Sysctl, e.key) {
		return event{}, false
	}
	e.start = strings.Index(line, e.key)
	e.from = len(line) - len(strings.TrimLeft(line[name+1:], " \t\v\f\r"))
	e.value = line[e.from:]
	if q := e.value; q != "" && (q[0] == '"' || q[0] == '\'') {
		e.style = q[0]
		e.value = q[1:]
		if len(q) > 1 && q[len(q)-1] == q[0] {
			e.value = q[1 : len(q)-1]
		}
	}
	return e, true
}

// sysctlEnd is where the comment of a line begins, or the line's length: the first # that is not behind a backslash;
// behind a quote a comment begins after the quote's end only.
func sysctlEnd(line string) int {
	single, double := strings.IndexByte(line, '\''), strings.IndexByte(line, '"')
	for i := 0; i < len(line); i++ {
		switch {
		case line[i] != '#':
		case single >= 0 && i > single:
			return afterQuote(line, single)
		case double >= 0 && i > double:
			return afterQuote(line, double)
		case i == 0 || line[i-1] != '\\':
			return i
		}
	}
	return len(line)
}

// afterQuote is the end of the quoted text that begins at open, or the line's where it is not closed.
func afterQuote(line string, open int) int {
	if n := strings.IndexByte(line[open+1:], line[open]); n >= 0 {
		return open + 1 + n + 1
	}
	return len(line)
}

// The forms of keys.
var (
	shellKey  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	loaderKey = regexp.MustCompile(`^[A-Za-z0-9][-A-Za-z0-9_.]*$`)
	sysctlKey = regexp.MustCompile(`^[A-Za-z0-9_%][-A-Za-z0-9_.%/]*$`)
)

// keyForm tells whether key can be one in a file of the syntax.
func keyForm(syntax Syntax, key string) bool {
	switch syntax {
	case Shell:
		return shellKey.MatchString(key)
	case Loader:
		return loaderKey.MatchString(key) && key != "exec"
	case Sysctl:
		return sysctlKey.MatchString(key)
	}
	return false
}
