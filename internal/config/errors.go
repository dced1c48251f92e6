package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"certsync/internal/cluster"
)

// maxErrors is how many errors are told at once; more of them help nobody.
const maxErrors = 100

// Error is one thing that is wrong in the file.
type Error struct {
	File string
	// Line counts from 1; 0 where no line can be named.
	Line int
	// Path is the option, such as acme.key_types[1]; "" for the file as a whole.
	Path string
	// Reason says what is wrong, and the mend where there is one.
	Reason string
}

// Error is FILE:LINE: PATH: REASON.
func (e *Error) Error() string {
	out := e.File
	if e.Line > 0 {
		out = fmt.Sprintf("%s:%d", out, e.Line)
	}
	if e.Path != "" {
		out += ": " + e.Path
	}
	return out + ": " + e.Reason
}

// Is makes it a usage error.
func (e *Error) Is(target error) bool { return target == cluster.ErrUsage }

// Errors is all that is wrong in the file, in the order of its lines.
type Errors []*Error

// Error has one line for each.
func (e Errors) Error() string {
	lines := make([]string, 0, len(e))
	for _, one := range e {
		lines = append(lines, one.Error())
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives each of them.
func (e Errors) Unwrap() []error {
	out := make([]error, 0, len(e))
	for _, one := range e {
		out = append(out, one)
	}
	return out
}

// Is makes them a usage error.
func (e Errors) Is(target error) bool { return target == cluster.ErrUsage }

// usageError is an error that ends certsync with the exit code of a wrong configuration.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }

func (e *usageError) Unwrap() []error { return []error{e.err, cluster.ErrUsage} }

// failf adds an error at path, unless the option, or one that it stands in, was found wrong before: what follows from
// a mistake is not told as another.
func (d *decoder) failf(path, format string, args ...any) {
	if d.isBad(path) {
		return
	}
	d.bad[path] = true
	d.failAt(d.lineOf(path), path, format, args...)
}

// isBad tells that the option at path, or one that it stands in, was found wrong.
func (d *decoder) isBad(path string) bool {
	for ; path != ""; path = parentOf(path) {
		if d.bad[path] {
			return true
		}
	}
	return d.bad[""]
}

// failAt adds an error at a line of its own.
func (d *decoder) failAt(line int, path, format string, args ...any) {
	if len(d.errs) >= maxErrors {
		d.dropped = true
		return
	}
	d.errs = append(d.errs, &Error{File: d.file, Line: line, Path: path, Reason: fmt.Sprintf(format, args...)})
}

// lineOf is the line of the option, or of the nearest one above it that the file has.
func (d *decoder) lineOf(path string) int {
	for {
		if line, ok := d.lines[path]; ok || path == "" {
			return line
		}
		path = parentOf(path)
	}
}

// parentOf cuts the last key or index off a path.
func parentOf(path string) string { return path[:max(0, strings.LastIndexAny(path, ".["))] }

func (d *decoder) err() error {
	if len(d.errs) == 0 {
		return nil
	}
	slices.SortStableFunc(d.errs, func(a, b *Error) int { return cmp.Compare(a.Line, b.Line) })
	if d.dropped {
		d.errs = append(d.errs, &Error{File: d.file, Reason: fmt.Sprintf("and more than these %d errors", maxErrors)})
	}
	return d.errs
}
