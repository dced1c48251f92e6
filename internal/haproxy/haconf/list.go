package haconf

import (
	"path/filepath"
	"strings"
)

// maxListLine is the longest line of a crt-list that HAProxy takes, in bytes (CRT_LINESIZE).
const maxListLine = 65536

// List is a crt-list file.
type List struct {
	// Name is HAProxy's name of it: as configured.
	Name string
	// Path is the file; relative where the folder that it begins at is not known.
	Path string
	// Entries are its lines, in order.
	Entries []Entry
	// Unread tells that the file could not be read: a Problem says why.
	Unread bool
}

// Entry is a line of a crt-list.
type Entry struct {
	Crt
	Line int
	// Options are the words between the brackets.
	Options []string
	// Filters are the SNI filters as written: `*.example.org`, `!www.example.org`; none means the certificate's own names.
	Filters []string
}

// list reads a crt-list once, as HAProxy does, for the crt-base of that moment.
func (r *reader) list(name string) *List {
	if l := r.lists[name]; l != nil {
		return l
	}
	l := &List{Name: strings.TrimRight(name, "/"), Path: r.place(name)}
	r.lists[name] = l
	r.c.Lists = append(r.c.Lists, l)
	if !filepath.IsAbs(l.Path) {
		l.Unread = true
		r.problem("crt-list %s: the folder that a relative path begins at is not known: write an absolute path", name)
		return l
	}
	text, err := r.read(l.Path)
	if err != nil {
		l.Unread = true
		r.problem("crt-list: %v", err)
		return l
	}
	outer := r.position
	defer func() { r.position = outer }()
	r.position = position{file: l.Path}
	for line := range r.lines(text) {
		r.entry(l, line)
	}
	return l
}

func (r *reader) entry(l *List, line string) {
	switch {
	case len(line) > maxListLine-2:
		r.problem("a line of more than %d bytes, which HAProxy does not take", maxListLine-2)
		return
	case line == "", line[0] == '#', line[0] == '\r':
		return
	}
	words, options, filters, ok := cutEntry(line)
	if !ok {
		r.problem("brackets that do not match, or no file before them")
		return
	}
	if words == "" {
		return
	}
	l.Entries = append(l.Entries, Entry{Crt: r.crt(words), Line: r.position.line, Options: options, Filters: filters})
}

// cutEntry cuts `FILE [OPTIONS] FILTERS`. Quotes mean nothing there.
func cutEntry(line string) (file string, options, filters []string, ok bool) {
	head, rest, bracket := strings.Cut(line, "[")
	var inside string
	if bracket {
		if inside, rest, ok = strings.Cut(rest, "]"); !ok || strings.ContainsAny(rest, "[]") || strings.Contains(inside, "[") {
			return "", nil, nil, false
		}
	} else if strings.Contains(head, "]") {
		return "", nil, nil, false
	}
	before := strings.FieldsFunc(head, isSpaceRune)
	if len(before) == 0 {
		return "", nil, nil, !bracket
	}
	// What stands between the file and the brackets is ignored by HAProxy, with a warning.
	if filters = strings.FieldsFunc(rest, isSpaceRune); !bracket {
		filters = before[1:]
	}
	return before[0], strings.FieldsFunc(inside, isSpaceRune), filters, true
}

func isSpaceRune(c rune) bool { return c < 128 && isSpace(byte(c)) }
