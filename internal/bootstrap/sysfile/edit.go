package sysfile

import (
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"unicode/utf8"
)

// Edit is one change of a file's lines, enough to undo it. Its text may hold a password: it prints without, and only its
// JSON has it.
type Edit struct {
	Key string `json:"key"`
	// Line is the number, from 1, of the first line changed.
	Line int `json:"line"`
	// Before and After are the lines that gave way and those that took their place.
	Before []string `json:"before,omitempty"`
	After  []string `json:"after,omitempty"`
	// NewlineAdded: the file's last line had no newline before.
	NewlineAdded bool `json:"newline_added,omitempty"`
}

// Changed tells whether the edit changes anything.
func (e Edit) Changed() bool { return len(e.Before)+len(e.After) > 0 }

// String names the key and the line only.
func (e Edit) String() string {
	if !e.Changed() {
		return e.Key + ": unchanged"
	}
	return fmt.Sprintf("%s: line %d, %d lines for %d", e.Key, e.Line, len(e.After), len(e.Before))
}

// Format prints String by any verb.
func (e Edit) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, e.String()) }

// LogValue is String.
func (e Edit) LogValue() slog.Value { return slog.StringValue(e.String()) }

// Set makes value what the file sets key to, and tells what it changed; nothing where that is so already. The last line
// that sets the key is changed in place and keeps what else is on it. Where there is none, or where its value cannot be
// told, a line is added: after the last one that sets the key in a comment, else at the end. It fails with ErrValue for
// what the file cannot hold, and with ErrUncertain where the end of the file may not be reached; the file is then as it
// was.
func (f *File) Set(key, value string) (Edit, error) {
	if err := f.allowed(key, value); err != nil {
		return Edit{}, fmt.Errorf("set %s: %w", printable(key), err)
	}
	var w fold
	w.key = key
	w.file("", "", f)
	if w.Is(value) {
		return Edit{Key: key}, nil
	}
	text, err := f.withValue(&w, value)
	if err != nil {
		return Edit{}, fmt.Errorf("set %s: %w", key, err)
	}
	before := *f
	edit, err := f.become(key, text)
	if err == nil && !f.Get(key).Is(value) {
		*f = before
		err = fmt.Errorf("%w: the change would not set it", ErrUncertain)
	}
	if err != nil {
		return Edit{}, fmt.Errorf("set %s: %w", key, err)
	}
	return edit, nil
}

// withValue is the text of the file with the key of w set to value.
func (f *File) withValue(w *fold, value string) (string, error) {
	if w.Set && w.Doubt == "" {
		e := w.last
		return f.text[:e.from] + f.quoted(value, e.style) + f.text[e.end:], nil
	}
	line := w.key + "=" + f.quoted(value, f.ownStyle())
	if w.Doubt == "" && !w.unset && len(w.Commented) > 0 {
		return f.withLine(w.Commented[len(w.Commented)-1]+1, line), nil
	}
	if w.stopped != "" {
		return "", fmt.Errorf("%w: %s, so that a line at the end may not be reached", ErrUncertain, w.stopped)
	}
	if f.open {
		return "", fmt.Errorf("%w: the last line goes on after its backslash", ErrUncertain)
	}
	return f.withLine(len(linesOf(f.text).all)+1, line), nil
}

// withLine is the text with one more line, the nth.
func (f *File) withLine(n int, line string) string {
	l := linesOf(f.text)
	l.newline = l.newline || n > len(l.all)
	l.all = slices.Insert(l.all, n-1, line)
	return l.text()
}

// become replaces the text by one that sets key as it should, and by nothing else: a slip of the parser must not reach
// a file that the host boots from.
func (f *File) become(key, text string) (Edit, error) {
	next, err := Parse(f.syntax, []byte(text))
	if err != nil {
		return Edit{}, fmt.Errorf("the changed file %w", err)
	}
	if !slices.EqualFunc(others(f.events, key), others(next.events, key), sameEffect) {
		return Edit{}, fmt.Errorf("%w: the change would touch other keys", ErrUncertain)
	}
	edit := hunk(key, linesOf(f.text), linesOf(text))
	*f = *next
	return edit, nil
}

// others are the events that are not of key alone.
func others(events []event, key string) []event {
	var out []event
	for _, e := range events {
		if e.key != key {
			out = append(out, e)
		}
	}
	return out
}

func sameEffect(a, b event) bool { return a.kind == b.kind && a.key == b.key && a.value == b.value }

// Unset takes every line away that sets key, those in comments excepted. It fails with ErrUncertain where a line sets
// something else too, or where the key is set under a condition.
func (f *File) Unset(key string) (Edit, error) {
	l := linesOf(f.text)
	var kept []string
	done := 0 // lines
	for _, e := range f.events {
		if e.key != key || e.kind == unsets {
			continue
		}
		end := e.line + strings.Count(f.text[e.start:e.end], "\n")
		if e.kind != sets || !aloneInLine(f.syntax, strings.Join(l.all[e.line-1:end], "\n")) {
			return Edit{}, fmt.Errorf("unset %s: line %d: %w: it is not set alone there", printable(key), e.line, ErrUncertain)
		}
		kept = append(kept, l.all[done:e.line-1]...)
		done = end
	}
	if done == 0 {
		return Edit{Key: key}, nil
	}
	l.all = append(kept, l.all[done:]...)
	edit, err := f.become(key, l.text())
	if err != nil {
		return Edit{}, fmt.Errorf("unset %s: %w", key, err)
	}
	return edit, nil
}

// aloneInLine tells that the lines do nothing but set one key.
func aloneInLine(syntax Syntax, lines string) bool {
	f, err := Parse(syntax, []byte(lines))
	return err == nil && len(f.events) == 1 && f.events[0].kind == sets
}

// Undo puts the lines back that an Edit of this file changed, wherever they are now; what else was changed since stays.
// It fails with ErrChanged where they are no more.
func (f *File) Undo(e Edit) error {
	if !e.Changed() {
		return nil
	}
	l := linesOf(f.text)
	at := l.find(e.After, e.Line-1)
	if at < 0 || len(e.After) == 0 && f.Get(e.Key).Set {
		return fmt.Errorf("undo %s: %w", printable(e.Key), ErrChanged)
	}
	l.all = slices.Replace(l.all, at, at+len(e.After), e.Before...)
	if e.NewlineAdded && at+len(e.Before) == len(l.all) {
		l.newline = false
	}
	next, err := Parse(f.syntax, []byte(l.text()))
	if err != nil {
		return fmt.Errorf("undo %s: the file %w", printable(e.Key), err)
	}
	*f = *next
	return nil
}

// AddWord makes word one of the words in the value of key, as in kld_list="if_bridge carp"; nothing where it is one.
func (f *File) AddWord(key, word string) (Edit, error) {
	return f.editWords(key, func(value string) string { return AddWord(value, word) })
}

// RemoveWord takes word out of the value of key; nothing where it is not in it.
func (f *File) RemoveWord(key, word string) (Edit, error) {
	return f.editWords(key, func(value string) string { return RemoveWord(value, word) })
}

func (f *File) editWords(key string, edit func(string) string) (Edit, error) {
	had := f.Get(key)
	if had.Doubt != "" {
		return Edit{}, fmt.Errorf("set %s: %w: %s", printable(key), ErrUncertain, had.Doubt)
	}
	value := edit(had.Value)
	if value == had.Value {
		return Edit{Key: key}, nil
	}
	return f.Set(key, value)
}

// HasWord tells whether word is one of the words of value.
func HasWord(value, word string) bool { return slices.Contains(strings.Fields(value), word) }

// AddWord adds word at the end of value, where it is not in it.
func AddWord(value, word string) string {
	if HasWord(value, word) {
		return value
	}
	return strings.TrimLeft(strings.TrimRight(value, " \t\n")+" "+word, " ")
}

// RemoveWord takes word out of value, which is otherwise left as it is where it does not have it.
func RemoveWord(value, word string) string {
	if !HasWord(value, word) {
		return value
	}
	return strings.Join(slices.DeleteFunc(strings.Fields(value), func(w string) bool { return w == word }), " ")
}

// fileLines are the lines of a text, and whether the last one ends in a newline. The empty text has none.
type fileLines struct {
	all     []string
	newline bool
}

func linesOf(text string) fileLines {
	all := strings.Split(text, "\n")
	if last := len(all) - 1; all[last] == "" {
		return fileLines{all[:last], true}
	}
	return fileLines{all, false}
}

func (l fileLines) text() string {
	text := strings.Join(l.all, "\n")
	if l.newline && len(l.all) > 0 {
		text += "\n"
	}
	return text
}

// find is the index of the place nearest to near where all of wanted stand, or -1. For none it is near, or the end.
func (l fileLines) find(wanted []string, near int) int {
	if len(wanted) == 0 {
		return max(0, min(near, len(l.all)))
	}
	best := -1
	for i := 0; i+len(wanted) <= len(l.all); i++ {
		if slices.Equal(l.all[i:i+len(wanted)], wanted) && (best < 0 || distance(i, near) < distance(best, near)) {
			best = i
		}
	}
	return best
}

func distance(a, b int) int { return max(a-b, b-a) }

// hunk is the one run of lines in which two texts differ.
func hunk(key string, before, after fileLines) Edit {
	from := 0
	for from < len(before.all) && from < len(after.all) && before.all[from] == after.all[from] {
		from++
	}
	a, b := len(before.all), len(after.all)
	for a > from && b > from && before.all[a-1] == after.all[b-1] {
		a, b = a-1, b-1
	}
	return Edit{
		Key: key, Line: from + 1,
		Before: slices.Clone(before.all[from:a]), After: slices.Clone(after.all[from:b]),
		NewlineAdded: !before.newline && after.newline,
	}
}

// allowed tells why key or value cannot stand in the file. A value may be a password: it is never in the error.
func (f *File) allowed(key, value string) error {
	if !keyForm(f.syntax, key) {
		return fmt.Errorf("%w: the key", ErrValue)
	}
	if !utf8.ValidString(value) {
		return fmt.Errorf("%w: it is not UTF-8", ErrValue)
	}
	for _, r := range value {
		if r < ' ' && r != '\t' || r == 0x7f {
			return fmt.Errorf("%w: it has a control character", ErrValue)
		}
		if strings.ContainsRune(f.reserved(), r) {
			return fmt.Errorf("%w: it has a %q, which the reader of the file acts on", ErrValue, r)
		}
	}
	if f.syntax == Sysctl && (value == "" || value != strings.TrimSpace(value)) {
		return fmt.Errorf("%w: it is empty, or begins or ends in a space", ErrValue)
	}
	return nil
}

// reserved are the characters that a value may not have.
func (f *File) reserved() string {
	switch f.syntax {
	case Shell:
		return "$`\\\""
	case Loader:
		return "$\\\""
	}
	return "#\"'\\"
}

// ownStyle is the quote of a line that is ours.
func (f *File) ownStyle() byte {
	if f.syntax == Sysctl {
		return 0
	}
	return '"'
}

// quoted is value as it stands in the file, in the quotes that are there, where they can hold it. loader.conf(5) wants
// double quotes.
func (f *File) quoted(value string, style byte) string {
	switch {
	case f.syntax == Sysctl && style == 0, f.syntax == Shell && style == 0 && bare(value):
		return value
	case f.syntax != Loader && style == '\'' && !strings.Contains(value, "'"):
		return "'" + value + "'"
	}
	return `"` + value + `"`
}

// bare tells that sh takes value as it is without quotes.
func bare(value string) bool {
	return value != "" && strings.Trim(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+./,:@%") == ""
}
