package sysfile

import (
	"regexp"
	"strings"
)

// word is one word of a command.
type word struct {
	start, end int
	// text is the word without its quotes; where it is computed, some of it.
	text string
	// computed: sh would put something in its place, so that text says nothing.
	computed bool
	// glob: it has an unquoted character of a pattern, which some commands take for names of files.
	glob bool
	// style is not 0 where any of it is quoted.
	style byte
}

// word parses the word that begins here, which is empty where none does.
func (p *shell) word() word {
	w := word{start: p.pos}
	var text strings.Builder
	for p.pos < len(p.src) && !strings.ContainsRune(" \t\n;&|<>()", rune(p.src[p.pos])) {
		switch c := p.src[p.pos]; c {
		case '\\':
			p.escaped(&w, &text)
		case '\'':
			p.single(&w, &text)
		case '"':
			p.pos++
			p.double(&w, &text)
		case '$':
			p.dollar(&w, &text, false)
		case '`':
			p.backquoted(&w)
		default:
			if c == '~' && tildeExpands(p.src[w.start:p.pos]) {
				w.computed = true
			}
			w.glob = w.glob || c == '*' || c == '?' || c == '['
			text.WriteByte(c)
			p.pos++
		}
	}
	w.end, w.text = p.pos, text.String()
	return w
}

// tildeExpands tells that a ~ after this beginning of a word stands for a home.
func tildeExpands(before string) bool {
	return before == "" || strings.HasSuffix(before, "=") || strings.HasSuffix(before, ":")
}

// escaped parses a backslash outside quotes.
func (p *shell) escaped(w *word, text *strings.Builder) {
	switch {
	case p.pos+1 >= len(p.src):
		p.fail("the file ends in a backslash")
	case p.src[p.pos+1] == '\n':
		p.join()
	default:
		text.WriteByte(p.src[p.pos+1])
		w.style = 'x'
		p.pos += 2
	}
}

func (p *shell) single(w *word, text *strings.Builder) {
	n := strings.IndexByte(p.src[p.pos+1:], '\'')
	if n < 0 {
		p.fail("a quote is not closed")
		return
	}
	text.WriteString(p.src[p.pos+1 : p.pos+1+n])
	w.style = 'x'
	p.pos += n + 2
}

// double parses what follows a double quote, up to the one that closes it.
func (p *shell) double(w *word, text *strings.Builder) {
	w.style = 'x'
	for p.pos < len(p.src) {
		switch c := p.src[p.pos]; c {
		case '"':
			p.pos++
			return
		case '\\':
			p.escapedInDouble(text)
		case '$':
			p.dollar(w, text, true)
		case '`':
			p.backquoted(w)
		default:
			text.WriteByte(c)
			p.pos++
		}
	}
	p.fail("a quote is not closed")
}

// escapedInDouble parses a backslash in double quotes, where it quotes $ ` " \ and a newline only.
func (p *shell) escapedInDouble(text *strings.Builder) {
	if p.pos+1 >= len(p.src) {
		p.fail("a quote is not closed")
		return
	}
	switch c := p.src[p.pos+1]; c {
	case '\n':
	case '$', '`', '"', '\\':
		text.WriteByte(c)
	default:
		text.WriteByte('\\')
		text.WriteByte(c)
	}
	p.pos += 2
}

// dollar parses what begins with a $.
func (p *shell) dollar(w *word, text *strings.Builder, inDouble bool) {
	if !p.enter() {
		return
	}
	defer p.leave()
	p.pos++
	switch {
	case p.at("(("):
		w.computed = true
		p.arithmetic()
	case p.at("("):
		w.computed = true
		p.pos++
		p.elsewhere(p.list)
		p.closeParenthesis()
	case p.at("{"):
		w.computed = true
		p.braces(inDouble)
	case p.at("'") && !inDouble:
		w.computed = true
		p.cString()
	case p.pos < len(p.src) && strings.IndexByte(nameOrSpecial, p.src[p.pos]) >= 0:
		w.computed = true
		p.pos++ // the rest of a name is taken for text, which does not count any more
	default:
		text.WriteByte('$')
	}
}

const nameOrSpecial = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789@*#?$!-"

// cString passes over $'...', which FreeBSD's sh reads as C would and others do not: one with a backslash is refused.
func (p *shell) cString() {
	n := strings.IndexByte(p.src[p.pos+1:], '\'')
	if n < 0 || strings.Contains(p.src[p.pos+1:p.pos+1+n], `\`) {
		p.fail("$'...' is not understood")
		return
	}
	p.pos += n + 2
}

var assigns = regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_]*):?=`)

// braces passes over ${...}; ${x=...} and ${x:=...} may set x.
func (p *shell) braces(inDouble bool) {
	start := p.pos
	p.pos++
	if m := assigns.FindStringSubmatch(p.src[p.pos:]); m != nil {
		line := p.line(p.pos)
		p.add(event{kind: sets, key: m[1], line: line})
		p.uncertain(len(p.events)-1, "line %d sets it where it is not set", line)
	}
	var ignored word
	var text strings.Builder
	for p.pos < len(p.src) {
		switch c := p.src[p.pos]; {
		case c == '}':
			p.pos++
			return
		case c == '\\' && p.pos+1 < len(p.src):
			p.pos += 2
		case c == '\'' && !inDouble:
			p.single(&ignored, &text)
		case c == '"':
			p.pos++
			p.double(&ignored, &text)
		case c == '$':
			p.dollar(&ignored, &text, inDouble)
		case c == '`':
			p.backquoted(&ignored)
		default:
			p.pos++
		}
	}
	if p.err == nil {
		p.pos = start
	}
	p.fail("${ is not closed")
}

// arithmetic passes over $((...)), which may set anything where it has a =.
func (p *shell) arithmetic() {
	start, open := p.pos, 0
	for p.pos < len(p.src) {
		switch p.src[p.pos] {
		case '(':
			open++
		case ')':
			open--
		}
		p.pos++
		if open == 0 {
			if strings.Contains(p.src[start:p.pos], "=") {
				line := p.line(start)
				p.add(event{kind: anything, line: line, why: "an expression may set it"})
			}
			return
		}
	}
	p.fail("$(( is not closed")
}

// backquoted passes over `...`.
func (p *shell) backquoted(w *word) {
	w.computed = true
	start := p.pos
	for p.pos++; p.pos < len(p.src); p.pos++ {
		switch p.src[p.pos] {
		case '\\':
			p.pos++
		case '`':
			p.pos++
			return
		}
	}
	p.pos = min(start, len(p.src))
	p.fail("a back quote is not closed")
}
