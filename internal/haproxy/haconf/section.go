package haconf

import (
	"slices"
	"strconv"
	"strings"
)

// sections are the keywords that begin a section, in all versions up to 3.4.
var sections = map[string]bool{
	"global": true, "defaults": true, "frontend": true, "listen": true, "backend": true, "userlist": true, "peers": true,
	"resolvers": true, "mailers": true, "cache": true, "program": true, "http-errors": true, "ring": true, "log-forward": true,
	"log-profile": true, "crt-store": true, "fcgi-app": true, "namespace_list": true, "traces": true, "acme": true, "healthcheck": true,
}

// begin begins a section: KEYWORD [NAME] [from DEFAULTS].
func (r *reader) begin(words []string) {
	s := &Section{Kind: words[0]}
	rest := words[1:]
	if len(rest) > 0 && !(rest[0] == "from" && s.Kind == "defaults") {
		s.Name, rest = rest[0], rest[1:]
	}
	from := r.last
	if s.Kind == "defaults" {
		from = nil
	}
	if len(rest) > 1 && rest[0] == "from" {
		if from = r.defaults[rest[1]]; from == nil {
			r.problem("the defaults section %s is not there", rest[1])
		}
	}
	if inherits := s.Kind == "defaults" || s.Kind == "frontend" || s.Kind == "listen"; inherits && from != nil {
		s.Disabled, s.Guarded, s.proxied = from.Disabled, from.Guarded, from.proxied
	}
	if s.Kind == "defaults" {
		r.last, r.defaults[s.Name] = s, s
	}
	r.section, r.storeBase = s, ""
}

// keyword reads a line of the section at hand.
func (r *reader) keyword(words []string) {
	switch {
	case r.section == nil:
		r.problem("%.40q stands in no section", words[0])
	case r.section.Kind == "global":
		r.global(words)
	case r.section.Kind == "crt-store":
		r.store(words)
	case words[0] == "bind" && (r.section.Kind == "defaults" || r.section.Kind == "backend"):
		r.problem("bind in a section %s, where HAProxy refuses it", r.section.Kind)
	case words[0] == "bind":
		r.bind(words)
	case words[0] == "disabled" || words[0] == "enabled":
		r.section.Disabled = words[0] == "disabled"
	case words[0] == "ssl-f-use":
		r.use(words[1:])
	case len(words) > 2 && words[0] == "tcp-request" && words[1] == "connection":
		r.guard(words[2:])
	}
}

func (r *reader) global(words []string) {
	word := func(i int) string {
		if i < len(words) {
			return words[i]
		}
		return ""
	}
	switch words[0] {
	case "crt-base":
		r.crtBase = word(1)
	case "setenv", "presetenv":
		r.setenv(word(1), word(2), words[0] == "setenv")
	case "unsetenv":
		for _, name := range words[1:] {
			r.set[name] = variable{set: no}
		}
	case "resetenv":
		r.resetenv(words[1:])
	case "chroot":
		r.c.Chroot = word(1)
	case "master-worker":
		r.c.MasterWorker = true
	case "tune.bufsize":
		r.c.Bufsize, _ = strconv.Atoi(word(1))
	case "default-path":
		r.defaultPath = word(1) + " " + word(2)
		r.applyDefaultPath()
	case "unix-bind":
		if i := slices.Index(words, "prefix"); i > 0 {
			r.prefix = word(i + 1)
		}
	case "ssl-default-bind-options":
		for i := 1; i < len(words); i++ {
			r.versions.option(words[i], word(i+1))
		}
	case "stats":
		if word(1) == "socket" && len(words) > 2 {
			r.socket(words[2:])
		}
	}
}

func (r *reader) setenv(name, value string, replace bool) {
	if !replace {
		if _, set := r.env(name); set != no {
			return
		}
	}
	r.set[name] = variable{value, yes}
	if r.active() == maybe {
		r.set[name] = variable{value, maybe}
	}
}

// resetenv takes all variables away but those that are named.
func (r *reader) resetenv(keep []string) {
	kept := map[string]variable{}
	for _, name := range keep {
		value, set := r.env(name)
		kept[name] = variable{value, set}
	}
	r.set, r.reset = kept, true
}

func (r *reader) socket(words []string) {
	s := Socket{Level: "operator", File: r.position.file, Line: r.position.line}
	a, err := r.address(words[0], "")
	if err != nil {
		r.problem("stats socket: %v", err)
		return
	}
	s.Address = a
	for i := 1; i+1 < len(words); i++ {
		switch words[i] {
		case "level":
			s.Level = words[i+1]
		case "expose-fd":
			s.ExposeFD = s.ExposeFD || words[i+1] == "listeners"
		}
	}
	r.c.Sockets = append(r.c.Sockets, s)
}

// store reads a line of a crt-store.
func (r *reader) store(words []string) {
	if len(words) < 2 {
		return
	}
	if words[0] == "crt-base" {
		r.storeBase = words[1]
	}
	if words[0] != "load" {
		return
	}
	options := map[string]string{}
	for i := 1; i+1 < len(words); i += 2 {
		options[words[i]] = words[i+1]
	}
	crt, alias := options["crt"], options["alias"]
	if crt == "" {
		r.problem("load without crt")
		return
	}
	base := r.storeBase
	if base == "" {
		base = r.crtBase
	}
	s := Stored{Path: r.place(prefixed(crt, base))}
	switch {
	case alias != "":
		s.Name = "@" + r.section.Name + "/" + alias
	case r.section.Name != "":
		s.Name = "@" + r.section.Name + "/" + strings.TrimPrefix(crt, "/")
	default:
		s.Name = prefixed(crt, r.crtBase)
	}
	r.c.Stored = append(r.c.Stored, s)
}

// prefixed puts crt-base before what is relative.
func prefixed(name, base string) string {
	if base == "" || name == "" || name[0] == '/' || name[0] == '@' {
		return name
	}
	return base + "/" + name
}

// crt is what a name after `crt`, or at the beginning of a crt-list's line, means.
func (r *reader) crt(name string) Crt {
	name = prefixed(name, r.crtBase)
	if strings.HasPrefix(name, "@") {
		return Crt{Name: name}
	}
	// HAProxy cuts the slashes at the end of a folder.
	if cut := strings.TrimRight(name, "/"); cut != "" {
		name = cut
	}
	return Crt{Name: name, Path: r.place(name)}
}

// use reads ssl-f-use, which makes a crt-list @SECTION for all ssl binds of the section (3.3 and later).
func (r *reader) use(words []string) {
	i := slices.Index(words, "crt")
	if i < 0 || i+1 == len(words) {
		r.problem("ssl-f-use without crt")
		return
	}
	name := "@" + r.section.Name
	l := r.lists[name]
	if l == nil {
		l = &List{Name: name, Path: r.position.file}
		r.lists[name] = l
		r.c.Lists = append(r.c.Lists, l)
	}
	l.Entries = append(l.Entries, Entry{Crt: r.crt(words[i+1]), Line: r.position.line})
	for _, b := range r.section.binds {
		r.attach(b, l)
	}
}

// attach gives an ssl bind the list of its section's ssl-f-use lines.
func (r *reader) attach(b *Bind, l *List) {
	if b.SSL && !slices.Contains(b.Lists, l) {
		b.Lists = append(b.Lists, l)
	}
}

// guard reads a rule that is applied before the handshake. expect-proxy does what accept-proxy does, mostly for some
// sources only.
func (r *reader) guard(rule []string) {
	switch conditional := len(rule) > 2; {
	case rule[0] == "expect-proxy" && !conditional:
		r.section.proxied = true
	case rule[0] == "expect-proxy", rule[0] == "reject", rule[0] == "silent-drop":
		r.section.Guarded = true
	}
}
