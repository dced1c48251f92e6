package sysfile

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"certsync/internal/cluster"
)

// Syntax is the language of a file, after the program that reads it.
type Syntax int

// The languages.
const (
	// Shell is rc.conf(5)'s and that of the files in rc.conf.d: sh(1) reads them.
	Shell Syntax = iota + 1
	// Loader is loader.conf(5)'s: the loader's Lua reads it, line by line.
	Loader
	// Sysctl is sysctl.conf(5)'s: `sysctl -f` reads it, line by line.
	Sysctl
)

// The errors of a file's content.
var (
	// ErrSyntax: the file is not what its reader takes, and nothing in it can be told or changed.
	ErrSyntax = errors.New("cannot be read")
	// ErrValue: a key or a value that the reader of the file would act on, cut or refuse.
	ErrValue = errors.New("not a value for this file")
	// ErrUncertain: what the file sets, or whether its end is reached, depends on what only running it would tell.
	ErrUncertain = errors.New("cannot be told without running the file")
	// ErrChanged: what is to be undone is no longer there as it was left.
	ErrChanged = errors.New("changed by somebody else since")
)

// Found is what a file, or all that are read one after the other, say of a key.
type Found struct {
	// Set: a line sets the key, and nothing after it unsets it.
	Set bool `json:"set"`
	// Value is what the last line that sets the key plainly sets it to.
	Value string `json:"value,omitempty"`
	// Line is that line's number from 1, or 0.
	Line int `json:"line,omitempty"`
	// Times is how many lines set the key plainly.
	Times int `json:"times,omitempty"`
	// Commented are the lines where it is set in a comment.
	Commented []int `json:"commented,omitempty"`
	// Doubt says, where it is not empty, why the value cannot be told: Value may be another in truth.
	Doubt string `json:"doubt,omitempty"`
}

// Is tells that the key is certainly set to value.
func (f Found) Is(value string) bool { return f.Set && f.Doubt == "" && f.Value == value }

// File is the parsed content of one file. Its zero value is not usable: see Parse.
type File struct {
	syntax Syntax
	text   string
	parsed
}

// parsed is what a parser finds.
type parsed struct {
	events    []event
	commented []commented
	// open: the last line ends in a backslash that would join a line after it.
	open bool
}

// event is something in a file that bears on the value of keys, in the order of execution.
type event struct {
	kind  eventKind
	key   string
	value string
	// why tells of a doubt, for a person.
	why string
	// reads is the file that a "." command reads, where it is plain.
	reads string
	line  int
	// start and end are the bytes of the whole assignment; from is the first byte of its value.
	start, from, end int
	// style is the quote around all of the value: " or ', 0 for none, 'x' for a mixture.
	style byte
}

type eventKind int

const (
	// sets: the key has the value from here on.
	sets eventKind = iota + 1
	// unsets: the key has none from here on.
	unsets
	// maybe: the key may have another value from here on.
	maybe
	// anything: any key may have another value from here on.
	anything
	// stops: what follows in the file may not be reached.
	stops
)

type commented struct {
	key  string
	line int
}

// Parse reads data. It fails with ErrSyntax where the file's own reader would, or where lines end in CR LF: those
// readers would take the CR for a part of the value, or would not see the end of a line.
func Parse(syntax Syntax, data []byte) (*File, error) {
	f := &File{syntax: syntax, text: string(data)}
	if err := check(f.text); err != nil {
		return nil, err
	}
	var err error
	switch syntax {
	case Shell:
		f.parsed, err = parseShell(f.text)
	case Loader:
		f.parsed, err = parseLines(f.text, loaderLine), nil
	case Sysctl:
		f.parsed, err = parseLines(f.text, sysctlLine), nil
	default:
		err = fmt.Errorf("syntax %d: %w", syntax, errors.ErrUnsupported)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// check refuses what none of the readers takes.
func check(text string) error {
	if len(text) > MaxSize {
		return fmt.Errorf("%w: %d bytes, at most %d are read", ErrSyntax, len(text), MaxSize)
	}
	if i := strings.IndexByte(text, 0); i >= 0 {
		return fmt.Errorf("%w: line %d: a NUL byte", ErrSyntax, lineAt(text, i))
	}
	if i := strings.Index(text, "\r\n"); i >= 0 {
		return cluster.WithHint(fmt.Errorf("%w: line %d: ends in CR LF, as files of other systems do", ErrSyntax, lineAt(text, i)),
			"take the CRs out of the file, as `tr -d '\\r'` does")
	}
	return nil
}

// lineAt is the number of the line, from 1, that the byte at i lies in.
func lineAt(text string, i int) int { return 1 + strings.Count(text[:i], "\n") }

// Bytes is the content as it is now.
func (f *File) Bytes() []byte { return []byte(f.text) }

// Get tells what the file says of key.
func (f *File) Get(key string) Found {
	var w fold
	w.key = key
	w.file("", "", f)
	return w.Found
}

// Keys lists, sorted, the keys that the file sets, certainly or perhaps.
func (f *File) Keys() []string {
	var keys []string
	for _, e := range f.events {
		if e.key != "" && e.kind != unsets {
			keys = append(keys, e.key)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// fold goes through events in their order for one key.
type fold struct {
	Effective
	key string
	// last is the event that decides, in the file that was added last.
	last *event
	// stopped says why what follows in the file under way may not be reached.
	stopped string
	// group is the folder whose files have no certain order, of the file that decides, or "".
	group string
	// own: the doubt is about the key itself, and not about every key.
	own bool
	// unset: the last thing known is that the key was unset.
	unset bool
}

// file adds the events of the file at path. Files of one group have no certain order among themselves.
func (w *fold) file(path, group string, f *File) {
	w.stopped = ""
	for i := range f.events {
		w.event(path, group, &f.events[i])
	}
	for _, c := range f.commented {
		if c.key == w.key {
			w.Commented = append(w.Commented, c.line)
		}
	}
}

func (w *fold) event(path, group string, e *event) {
	if e.key != w.key && e.kind != anything && e.kind != stops {
		return
	}
	switch e.kind {
	case sets:
		w.set(path, group, e)
	case unsets:
		w.Set, w.Value, w.Line, w.File, w.Doubt, w.last, w.unset = false, "", 0, path, w.stopped, nil, true
	case maybe, anything:
		w.Doubt, w.own = inFile(path, e.why), e.kind == maybe
	case stops:
		w.stopped = inFile(path, e.why)
	}
}

func (w *fold) set(path, group string, e *event) {
	clash := group != "" && w.group == group && w.Set && w.Value != e.value && w.File != path
	other := w.File
	w.Settings = append(w.Settings, Setting{File: path, Line: e.line, Value: e.value})
	w.Set, w.Value, w.Line, w.File, w.Doubt, w.last, w.group, w.unset = true, e.value, e.line, path, w.stopped, e, group, false
	w.Times++
	w.own = w.Doubt != "" || clash
	if clash {
		w.Doubt = fmt.Sprintf("%s and %s set it to different values, and a folder's files are read in no certain order", other, path)
	}
}

func inFile(path, why string) string {
	if path == "" {
		return why
	}
	return path + ": " + why
}
