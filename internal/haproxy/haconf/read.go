package haconf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxFile is the largest file that is read, in bytes: a crt-list of 100,000 lines has about 10 MB.
const maxFile = 64 << 20

// Options are what the text of a configuration does not tell.
type Options struct {
	// Env looks up the environment that HAProxy was started with; nil means that it is not known.
	Env func(name string) (value string, set bool)
	// Version is HAProxy's, such as 3.0.11; "" means that it is not known.
	Version string
}

// Read reads the configuration of a HAProxy that is started with -f for each of files, which are files or folders.
func Read(files []string, o Options) *Config {
	r := newReader(o)
	for _, name := range files {
		for _, file := range r.expandFolder(name) {
			r.file(file)
		}
	}
	r.finish()
	return r.c
}

func newReader(o Options) *reader {
	return &reader{c: &Config{}, options: o, load: readFile, lists: map[string]*List{}, set: map[string]variable{}, defaults: map[string]*Section{}}
}

type position struct {
	file string
	line int
}

// variable is what the configuration itself says of an environment variable.
type variable struct {
	value string
	set   truth
}

type reader struct {
	c       *Config
	options Options
	// load gives the content of a file.
	load func(path string) ([]byte, error)
	position
	// section is the one at hand, nil before the first of a file.
	section *Section
	blocks  []block
	// set are the variables that global sections set; reset tells that they took all others away.
	set   map[string]variable
	reset bool
	// defaults has the defaults sections by their names; last is the one that was read last, nil before the first.
	defaults map[string]*Section
	last     *Section
	lists    map[string]*List

	// crtBase and storeBase are the crt-base of the global section and of the crt-store at hand; prefix is unix-bind's.
	crtBase, storeBase, prefix string
	// cwd is what default-path says: "" where relative paths begin where HAProxy was started.
	defaultPath, cwd string
	// versions are what ssl-default-bind-options say.
	versions versions
}

// maxProblems is where it is said only that there are more.
const maxProblems = 200

func (r *reader) problem(format string, args ...any) {
	p := Problem{File: r.position.file, Line: r.position.line, Text: fmt.Sprintf(format, args...)}
	switch n := len(r.c.Problems); {
	case n > maxProblems || slices.Contains(r.c.Problems, p):
	case n == maxProblems:
		r.c.Problems = append(r.c.Problems, Problem{File: p.File, Line: p.Line, Text: "and more from here on"})
	default:
		r.c.Problems = append(r.c.Problems, p)
	}
}

// expandFolder gives the *.cfg files of a folder in the order of their names, and any other path as it is.
func (r *reader) expandFolder(name string) []string {
	info, err := os.Stat(name)
	if err != nil || !info.IsDir() {
		return []string{name}
	}
	r.c.Sources = append(r.c.Sources, name)
	entries, err := os.ReadDir(name)
	if err != nil {
		r.position = position{file: name}
		r.problem("%v", err)
	}
	var files []string
	for _, e := range entries {
		path := filepath.Join(name, e.Name())
		info, err := os.Stat(path)
		if !strings.HasPrefix(e.Name(), ".") && strings.HasSuffix(e.Name(), ".cfg") && (err != nil || info.Mode().IsRegular()) {
			files = append(files, path)
		}
	}
	return files
}

// read gives the content of a file, and keeps its path.
func (r *reader) read(path string) ([]byte, error) {
	r.c.Sources = append(r.c.Sources, path)
	return r.load(path)
}

// readFile reads a regular file: a name in a configuration may lead to anything, a device that never ends included.
func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	case info.Size() > maxFile:
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("more than %d MB", maxFile>>20)}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// lines gives the lines of a file without their line feeds, and keeps the position. HAProxy refuses a file with a NUL
// byte, and one whose last line has no line feed.
func (r *reader) lines(text []byte) iter.Seq[string] {
	return func(yield func(string) bool) {
		for len(text) > 0 {
			r.position.line++
			line, rest, whole := bytes.Cut(text, []byte{'\n'})
			if at := bytes.IndexByte(line, 0); at >= 0 {
				r.problem("a NUL byte at position %d: HAProxy refuses the file, and what follows was not read", at+1)
				return
			}
			if !whole {
				r.problem("the last line has no line feed: HAProxy refuses the file, since it may have been cut")
			}
			text = rest
			if !yield(string(line)) {
				return
			}
		}
	}
}

func (r *reader) file(path string) {
	r.c.Files = append(r.c.Files, path)
	r.position, r.section, r.blocks = position{file: path}, nil, nil
	text, err := r.read(path)
	if err != nil {
		r.problem("%v", err)
		return
	}
	r.applyDefaultPath()
	for line := range r.lines(text) {
		r.line(line)
	}
	if len(r.blocks) > 0 {
		r.problem("an .if without its .endif")
	}
}

func (r *reader) line(line string) {
	if strings.HasPrefix(strings.TrimLeftFunc(line, isSpaceRune), "[") {
		return // a scope, which means nothing here
	}
	// What a condition leaves out must still be words, whatever its variables hold.
	active := r.active()
	env := r.env
	if top := len(r.blocks) - 1; top >= 0 && strings.HasPrefix(strings.TrimLeftFunc(line, isSpaceRune), ".el") {
		active = activeIn(r.blocks[:top]) // the expression of .elif belongs to what is around the block
	}
	if active == no {
		env = func(string) (string, truth) { return "", no }
	}
	words, err := split(line, env)
	switch {
	case err != nil:
		r.problem("%v", err)
		return
	case len(words) == 0 || words[0] == "":
		return
	case words[0][0] == '.':
		r.macro(words)
		return
	case active == no || words[0] == "no":
		return
	case words[0] == "default" && len(words) > 1:
		words = words[1:]
	}
	if sections[words[0]] {
		r.begin(words)
		return
	}
	r.keyword(words)
}

// active tells whether the line at hand counts.
func (r *reader) active() truth { return activeIn(r.blocks) }

func activeIn(blocks []block) truth {
	all := yes
	for _, b := range blocks {
		all = all.and(b.taken)
	}
	return all
}

func (r *reader) macro(words []string) {
	top := len(r.blocks) - 1
	switch words[0] {
	case ".if":
		if len(r.blocks) >= maxDepth {
			r.problem("more than %d nested .if", maxDepth)
			return
		}
		t := no
		if r.active() != no {
			t = r.evaluate(words[1:])
		}
		r.blocks = append(r.blocks, block{taken: t, done: t})
		return
	case ".elif", ".else", ".endif":
		if top < 0 {
			r.problem("%s without .if", words[0])
			return
		}
	default:
		return // .notice and the like say something and change nothing
	}
	b := &r.blocks[top]
	switch {
	case words[0] == ".endif":
		r.blocks = r.blocks[:top]
	case b.last:
		r.problem("%s after .else", words[0])
	case words[0] == ".else":
		b.taken, b.last = b.done.not(), true
	case b.done == yes:
		b.taken = no
	default:
		t := no
		if activeIn(r.blocks[:top]) != no {
			t = r.evaluate(words[1:])
		}
		b.taken, b.done = t.and(b.done.not()), b.done.or(t)
	}
}

func (r *reader) evaluate(words []string) truth {
	expression := strings.Join(words, " ")
	t, err := evaluate(expression, r.env, r.options.Version)
	if err != nil {
		r.problem("%v; what depends on it was read as well", err)
		return maybe
	}
	if t == maybe {
		r.problem("whether this condition holds cannot be told from here: what depends on it was read as well")
	}
	return t
}

// env is the value of a variable at this point of the configuration.
func (r *reader) env(name string) (string, truth) {
	switch name {
	case ".FILE":
		return r.position.file, yes
	case ".LINE":
		return fmt.Sprint(r.position.line), yes
	case ".SECTION":
		if r.section == nil {
			return "", yes
		}
		return r.section.Kind, yes
	}
	if v, ok := r.set[name]; ok {
		if v.set == maybe {
			r.problem("the value of the environment variable %s cannot be told from here", name)
		}
		return v.value, v.set
	}
	if r.reset {
		return "", no
	}
	r.c.Variables = true
	if r.options.Env == nil {
		r.problem("the value of the environment variable %s is not known", name)
		return "", maybe
	}
	value, set := r.options.Env(name)
	return value, truthOf(set)
}

// place is the path that a name of the configuration means.
func (r *reader) place(name string) string {
	if filepath.IsAbs(name) || r.cwd == "" {
		return name
	}
	return filepath.Join(r.cwd, name)
}

// applyDefaultPath works out where relative paths begin in the file at hand (`default-path`).
func (r *reader) applyDefaultPath() {
	mode, origin, _ := strings.Cut(r.defaultPath, " ")
	dir := filepath.Dir(r.position.file)
	switch mode {
	case "origin":
		r.cwd = origin
	case "config":
		r.cwd = dir
	case "parent":
		r.cwd = filepath.Join(dir, "..")
	default:
		r.cwd = ""
	}
	if !filepath.IsAbs(r.cwd) {
		r.cwd = ""
	}
}

// finish does what can be done only at the end.
func (r *reader) finish() {
	for _, b := range r.c.Binds {
		if b.Section.proxied {
			b.AcceptProxy = true
		}
	}
}
