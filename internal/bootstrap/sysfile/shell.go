package sysfile

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"certsync/internal/cluster"
)

// parseShell goes through a file as sh(1) would, without running anything: what assigns plainly, what might change a
// variable and where, and which assignments stand in comments.
func parseShell(text string) (parsed, error) {
	p := &shell{src: text, newlines: newlinesOf(text)}
	p.list()
	if p.err == nil && p.pos < len(p.src) {
		p.fail("%q has nothing that it ends", p.src[p.pos])
	}
	if p.err != nil {
		return parsed{}, cluster.WithHint(p.err, "see what `sh -n` says of the file")
	}
	return p.parsed, nil
}

// deepest is how deep commands and expansions may lie in one another; deeper ones are refused, as they are in no file
// that a person wrote.
const deepest = 100

// shell is a parse under way. Once it failed it stands at the end of the text, which ends every loop.
type shell struct {
	src string
	// newlines are the places of the newlines in src.
	newlines []int
	pos      int
	err      error
	// depth is how deep the commands under way lie in other commands; nest counts everything that recurses.
	depth, nest int
	// joined: the list under way goes on after && or |, so that a line cannot be added here.
	joined int
	// here are the here-documents whose text begins at the next newline.
	here []hereDoc
	parsed
}

type hereDoc struct {
	end  string
	tabs bool // leading tabs go: <<-
}

func (p *shell) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf("%w: line %d: %s", ErrSyntax, p.line(p.pos), fmt.Sprintf(format, args...))
	}
	p.pos = len(p.src)
}

// line is the number of the line that the byte lies in.
func (p *shell) line(at int) int {
	n, _ := slices.BinarySearch(p.newlines, at)
	return n + 1
}

func newlinesOf(text string) []int {
	var out []int
	for i := range len(text) {
		if text[i] == '\n' {
			out = append(out, i)
		}
	}
	return out
}

// at tells whether the text goes on with s.
func (p *shell) at(s string) bool { return strings.HasPrefix(p.src[p.pos:], s) }

func (p *shell) add(e event) { p.events = append(p.events, e) }

// enter and leave bound the recursion.
func (p *shell) enter() bool {
	p.nest++
	if p.nest > deepest {
		p.fail("commands lie more than %d deep in one another", deepest)
		return false
	}
	return true
}

func (p *shell) leave() { p.nest-- }

// blank passes over blanks and joined lines.
func (p *shell) blank() {
	for p.pos < len(p.src) {
		switch {
		case p.src[p.pos] == ' ' || p.src[p.pos] == '\t':
			p.pos++
		case p.at("\\\n"):
			p.join()
		default:
			return
		}
	}
}

// join passes over a backslash and a newline.
func (p *shell) join() {
	p.pos += 2
	p.open = p.pos == len(p.src)
}

// breaks passes over blanks, newlines and comments.
func (p *shell) breaks() {
	for {
		p.blank()
		switch {
		case p.at("#"):
			p.comment()
		case p.at("\n"):
			p.newline()
		default:
			return
		}
	}
}

var inComment = regexp.MustCompile(`^[# \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)=`)

// comment passes over a comment, and notes what it would set if its line were none.
func (p *shell) comment() {
	end := strings.IndexByte(p.src[p.pos:], '\n')
	if end < 0 {
		end = len(p.src) - p.pos
	}
	start := strings.LastIndexByte(p.src[:p.pos], '\n') + 1
	m := inComment.FindStringSubmatch(p.src[p.pos : p.pos+end])
	whole := strings.Trim(p.src[start:p.pos], " \t") == ""
	if m != nil && whole && p.depth == 0 && p.joined == 0 {
		p.commented = append(p.commented, commented{key: m[1], line: p.line(p.pos)})
	}
	p.pos += end
}

// newline passes over one, and over the here-documents that begin after it.
func (p *shell) newline() {
	p.pos++
	for _, doc := range p.here {
		for {
			line, rest, more := strings.Cut(p.src[p.pos:], "\n")
			if p.pos >= len(p.src) || !more && line != doc.end {
				p.fail("a here-document has no end")
				break
			}
			p.pos = len(p.src) - len(rest)
			if doc.tabs {
				line = strings.TrimLeft(line, "\t")
			}
			if line == doc.end {
				break
			}
		}
	}
	p.here = nil
}

// endings are the words that end a list.
var endings = []string{"then", "elif", "else", "fi", "do", "done", "esac", "}"}

// list parses commands up to the end of the text, a closing parenthesis, ;; or a word that ends a list.
func (p *shell) list() {
	if !p.enter() {
		return
	}
	defer p.leave()
	for {
		p.breaks()
		if p.pos >= len(p.src) || p.at(")") || p.at(";;") || p.at(";&") || slices.Contains(endings, p.peekRaw()) {
			return
		}
		p.andOr()
		p.blank()
		if p.at(";") && !p.at(";;") && !p.at(";&") {
			p.pos++
		}
	}
}

// andOr parses commands joined by && || | and &. What stands in more than one may or may not happen here.
func (p *shell) andOr() {
	first, from := len(p.events), p.pos
	certain := true
	defer func(joined int) {
		p.joined = joined
		if !certain {
			p.uncertain(first, "line %d sets it under a condition or in another shell", p.line(from))
		}
	}(p.joined)
	for {
		if !p.progress(p.command) {
			return
		}
		p.blank()
		switch {
		case p.at("&&"), p.at("||"):
			p.pos += 2
		case p.at("|"):
			p.pos++
		case p.at("&"):
			p.pos++
			certain = false
			return
		default:
			return
		}
		certain = false
		p.joined++
		p.breaks()
	}
}

// uncertain makes what was found since first a matter of doubt.
func (p *shell) uncertain(first int, format string, line int) {
	for i := first; i < len(p.events); i++ {
		if e := &p.events[i]; e.kind == sets || e.kind == unsets {
			e.kind, e.why = maybe, fmt.Sprintf(format, line)
		}
	}
}

// peekRaw is the next word as it stands in the text, or "".
func (p *shell) peekRaw() string {
	end := p.pos
	for end < len(p.src) && !strings.ContainsRune(" \t\n;&|<>()", rune(p.src[end])) {
		end++
	}
	return p.src[p.pos:end]
}

// expect passes over the word, which must come next.
func (p *shell) expect(word string) {
	p.breaks()
	if p.peekRaw() != word {
		p.fail("there is no %q", word)
		return
	}
	p.pos += len(word)
}

// command parses one command, simple or not.
func (p *shell) command() {
	if !p.enter() {
		return
	}
	defer p.leave()
	p.blank()
	if p.at("(") {
		p.pos++
		p.elsewhere(func() { p.list() })
		p.closeParenthesis()
		p.redirects()
		return
	}
	first, from := len(p.events), p.line(p.pos)
	known := true
	p.depth++
	switch word := p.peekRaw(); word {
	case "if":
		p.pos += len(word)
		p.ifCommand()
	case "while", "until":
		p.pos += len(word)
		p.list()
		p.doGroup()
	case "for":
		p.pos += len(word)
		p.forCommand()
	case "case":
		p.pos += len(word)
		p.caseCommand()
	case "!":
		p.pos += len(word)
		p.command()
	case "{":
		p.pos += len(word)
		p.list()
		p.expect("}")
	default:
		known = false
	}
	p.depth--
	if !known {
		p.simple()
		return
	}
	p.uncertain(first, "the command in line %d sets it, under a condition perhaps", from)
	p.redirects()
}

// elsewhere parses what runs in another shell or not now: its assignments count for nothing.
func (p *shell) elsewhere(parse func()) {
	events := len(p.events)
	p.depth++
	parse()
	p.depth--
	p.events = p.events[:events]
}

func (p *shell) closeParenthesis() {
	p.breaks()
	if !p.at(")") {
		p.fail("a parenthesis is not closed")
		return
	}
	p.pos++
}

func (p *shell) ifCommand() {
	p.list()
	p.expect("then")
	p.list()
	for p.peekRaw() == "elif" {
		p.pos += len("elif")
		p.list()
		p.expect("then")
		p.list()
	}
	if p.peekRaw() == "else" {
		p.pos += len("else")
		p.list()
	}
	p.expect("fi")
}

func (p *shell) doGroup() {
	p.expect("do")
	p.list()
	p.expect("done")
}

func (p *shell) forCommand() {
	p.blank()
	name := p.word()
	if !shellKey.MatchString(name.text) {
		p.fail("for has no variable")
		return
	}
	p.add(event{kind: sets, key: name.text, line: p.line(name.start)})
	p.breaks()
	if p.peekRaw() == "in" {
		p.pos += len("in")
		for p.blank(); p.pos < len(p.src) && !p.at(";") && !p.at("\n"); p.blank() {
			if !p.progress(func() { p.word() }) {
				return
			}
		}
	}
	if p.at(";") {
		p.pos++
	}
	p.doGroup()
}

// progress runs a step, and fails where it did not move on.
func (p *shell) progress(step func()) bool {
	before := p.pos
	step()
	switch {
	case p.err != nil:
	case p.pos >= len(p.src) && p.pos == before:
		p.fail("the file ends in the middle of a command")
	case p.pos == before:
		p.fail("%q is not understood here", p.src[p.pos])
	}
	return p.err == nil
}

func (p *shell) caseCommand() {
	p.blank()
	p.word()
	p.breaks()
	p.expect("in")
	for {
		p.breaks()
		if p.pos >= len(p.src) {
			p.fail("case has no esac")
			return
		}
		if p.peekRaw() == "esac" {
			p.pos += len("esac")
			return
		}
		if !p.progress(p.caseArm) {
			return
		}
	}
}

func (p *shell) caseArm() {
	if p.at("(") {
		p.pos++
	}
	for p.blank(); p.pos < len(p.src) && !p.at(")"); p.blank() {
		if p.at("|") {
			p.pos++
			continue
		}
		if !p.progress(func() { p.word() }) {
			return
		}
	}
	p.closeParenthesis()
	p.list()
	if p.at(";;") || p.at(";&") {
		p.pos += 2
	}
}

// redirects passes over redirections and tells whether there were any.
func (p *shell) redirects() {
	for p.blank(); p.atRedirect(); p.blank() {
		p.redirect()
	}
}

// atRedirect tells that a redirection comes next, with or without its number.
func (p *shell) atRedirect() bool {
	i := p.pos
	for i < len(p.src) && p.src[i] >= '0' && p.src[i] <= '9' {
		i++
	}
	return i < len(p.src) && (p.src[i] == '<' || p.src[i] == '>')
}

func (p *shell) redirect() {
	for !p.at("<") && !p.at(">") {
		p.pos++
	}
	for _, op := range []string{"<<-", "<<", "<&", "<>", ">>", ">&", ">|", "<", ">"} {
		if !p.at(op) {
			continue
		}
		p.pos += len(op)
		p.blank()
		if !p.progress(func() { p.target(op) }) {
			return
		}
		return
	}
}

func (p *shell) target(op string) {
	w := p.word()
	if op == "<<" || op == "<<-" {
		p.here = append(p.here, hereDoc{end: w.text, tabs: op == "<<-"})
	}
}

// simple parses a simple command, or the definition of a function.
func (p *shell) simple() {
	var words []word
	first := len(p.events)
	for {
		p.blank()
		switch {
		case p.pos >= len(p.src), strings.ContainsRune("\n;&|)#", rune(p.src[p.pos])):
			// What the words set by being expanded may come after what they assign.
			expanded := slices.Clone(p.events[first:])
			p.happens(words)
			p.events = append(p.events, expanded...)
			return
		case p.atRedirect():
			p.redirect()
		case p.at("("):
			p.function(words)
			return
		default:
			words = append(words, p.word())
		}
	}
}

// function passes over the definition of one: its body runs when it is called.
func (p *shell) function(words []word) {
	p.pos++
	p.blank()
	if len(words) != 1 || words[0].computed || words[0].style != 0 || !p.at(")") {
		p.fail("a parenthesis is not understood")
		return
	}
	p.pos++
	p.breaks()
	p.elsewhere(p.command)
}
