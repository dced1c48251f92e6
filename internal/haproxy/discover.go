package haproxy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"certsync/internal/cert"
	"certsync/internal/fileid"
	"certsync/internal/haproxy/haconf"
)

// errNotDiscovered: a HAProxy whose configuration is not named.
var errNotDiscovered = errors.New("haproxy.config is not set")

// discovery keeps the last layout for as long as none of its files changed.
type discovery struct {
	mu   sync.Mutex
	last *layout
}

// layout is what HAProxy's configuration says of its ssl binds: which file is served where.
type layout struct {
	config *haconf.Config
	// pid is that of the HAProxy that told its version and its environment, 0 where none did.
	pid    int
	stamps []stamp
	// settled is false where a file changed so shortly before it was read that the next change may look the same.
	settled bool
	// byName has HAProxy's names, byPath the real paths of files, byFolder the real paths of folders, and byFolderName
	// HAProxy's names of them.
	byName, byPath, byFolder, byFolderName map[string][]*load
	// lists has the crt-lists by their real paths; stored the files of the crt-stores by HAProxy's names.
	lists  map[string][]*haconf.Bind
	stored map[string]string
}

// load is a file or folder that ssl binds load.
type load struct {
	binds []*haconf.Bind
	path  string
	// entry is the line of the crt-list, nil for a `crt` of the bind line itself.
	entry *haconf.Entry
}

// stamp tells whether a file is still the one that was read.
type stamp struct {
	path string
	// id is zero where there is none, and where only its kind counts: a folder of bundles changes all the time.
	id   fileid.ID
	kind kind
}

// kind is what a path leads to.
type kind byte

const (
	anyKind kind = iota
	noFile
	plainFile
	folderKind
)

func kindOf(path string) kind {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return noFile
	case info.IsDir():
		return folderKind
	}
	return plainFile
}

func (s stamp) same() bool {
	if s.kind != anyKind {
		return kindOf(s.path) == s.kind
	}
	return fileid.Stat(s.path) == s.id
}

func (l *layout) fresh() bool {
	return l.settled && !slices.ContainsFunc(l.stamps, func(s stamp) bool { return !s.same() })
}

// layout reads the configuration where it changed since the last time, or another HAProxy runs.
func (p *Proxy) layout(ctx context.Context, running process) *layout {
	p.discovery.mu.Lock()
	defer p.discovery.mu.Unlock()
	if l := p.discovery.last; l != nil && l.pid == running.Pid && l.fresh() {
		return l
	}
	p.discovery.last = p.readLayout(ctx, running)
	return p.discovery.last
}

func (p *Proxy) readLayout(ctx context.Context, running process) *layout {
	begin := time.Now()
	options := haconf.Options{Version: running.Version}
	c := haconf.Read(p.config.Files, options)
	if c.Variables && running.Pid != 0 {
		// HAProxy's environment is not ours; it tells its own.
		env, err := p.environment(ctx)
		if err == nil {
			options.Env = func(name string) (string, bool) { value, set := env[name]; return value, set }
			c = haconf.Read(p.config.Files, options)
		} else {
			c.Problems = append(c.Problems, haconf.Problem{File: p.config.Name, Text: "HAProxy's environment variables: " + err.Error()})
		}
	}
	l := &layout{config: c, pid: running.Pid, settled: true, lists: map[string][]*haconf.Bind{}, stored: map[string]string{},
		byName: map[string][]*load{}, byPath: map[string][]*load{}, byFolder: map[string][]*load{}, byFolderName: map[string][]*load{}}
	for _, path := range c.Sources {
		id := fileid.Stat(path)
		l.settled = l.settled && (id.IsZero() || id.Settled(begin))
		l.stamps = append(l.stamps, stamp{path: path, id: id})
	}
	// What could not be read at all may be readable by now, for reasons that no file shows.
	l.settled = l.settled && !slices.ContainsFunc(c.Problems, func(p haconf.Problem) bool { return p.Line == 0 })
	l.index()
	return l
}

// environment is that of the running HAProxy. It may hold secrets: it is looked up in and never told.
func (p *Proxy) environment(ctx context.Context) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, p.config.ProbeTimeout)
	defer cancel()
	reply, err := p.runtime.read(ctx, "show env\n")
	if err != nil {
		return nil, err
	}
	env := map[string]string{}
	for _, line := range reply {
		if name, value, ok := strings.Cut(line, "="); ok {
			env[name] = value
		}
	}
	return env, nil
}

// serving tells whether clients are served there: a bind that HAProxy opens, of TLS, in a section that takes clients.
func serving(b *haconf.Bind) bool {
	return b.SSL && !b.Disabled && (b.Kind == "frontend" || b.Kind == "listen")
}

func (l *layout) index() {
	x := indexNames(nil)
	for _, s := range l.config.Stored {
		l.stored[s.Name] = s.Path
	}
	crts := map[string]*load{}
	lists := map[*haconf.List][]*haconf.Bind{}
	for _, b := range l.config.Binds {
		if !serving(b) {
			continue
		}
		for _, c := range b.Crts {
			if crts[c.Name] == nil {
				crts[c.Name] = &load{path: c.Path}
				l.add(x, c, crts[c.Name])
			}
			crts[c.Name].binds = append(crts[c.Name].binds, b)
		}
		for _, list := range b.Lists {
			lists[list] = append(lists[list], b)
		}
	}
	for list, binds := range lists {
		if path, ok := x.real(list.Path); ok {
			l.lists[path] = binds
		}
		for i := range list.Entries {
			e := &list.Entries[i]
			l.add(x, e.Crt, &load{binds: binds, path: e.Path, entry: e})
		}
	}
}

// add enters what a name means under all that a bundle may be known by.
func (l *layout) add(x *nameIndex, c haconf.Crt, what *load) {
	put := func(m map[string][]*load, key string) { m[key] = append(m[key], what) }
	put(l.byName, c.Name)
	path := c.Path
	if path == "" {
		path = l.stored[c.Name]
	}
	if !filepath.IsAbs(path) {
		put(l.byFolderName, c.Name) // a folder or not: HAProxy's names tell
		return
	}
	if what.entry == nil {
		s := stamp{path: path, kind: kindOf(path)}
		l.stamps = append(l.stamps, s)
		if s.kind == folderKind {
			put(l.byFolderName, c.Name)
			if dir, ok := x.realDir(path); ok {
				put(l.byFolder, dir)
			}
			return
		}
	}
	real, _ := x.real(path)
	if dir, ok := x.realDir(filepath.Dir(path)); ok {
		near := filepath.Join(dir, filepath.Base(path))
		put(l.byPath, near)
		if real == near {
			return
		}
	}
	if real != "" {
		put(l.byPath, real)
	}
}

// find gives the loads that mean v's file: by the names under which HAProxy has it, and by its path.
func (l *layout) find(x *nameIndex, v *view) []*load {
	var out []*load
	add := func(loads []*load) {
		for _, f := range loads {
			if !slices.Contains(out, f) {
				out = append(out, f)
			}
		}
	}
	for _, e := range v.entries {
		add(l.byName[e.name])
		if i := strings.LastIndexByte(e.name, '/'); i > 0 {
			add(l.byFolderName[e.name[:i]])
		}
		if base, ok := familyBase(e.name); ok {
			add(ofMissing(l.byName[base]))
		}
	}
	paths := []string{v.real}
	if dir, ok := x.realDir(filepath.Dir(v.path)); ok {
		paths = append(paths, filepath.Join(dir, filepath.Base(v.path)))
	}
	for _, path := range paths {
		add(l.byPath[path])
		if loadedFromFolder(filepath.Base(path)) {
			add(l.byFolder[filepath.Dir(path)])
		}
		if base, ok := familyBase(path); ok {
			add(ofMissing(l.byPath[base]))
		}
	}
	return out
}

// familyBase is X for X.ecdsa and X.rsa: where there is no X, `crt X` means those.
func familyBase(name string) (base string, ok bool) {
	for _, family := range []cert.Algorithm{cert.ECDSA, cert.RSA} {
		if base, ok := strings.CutSuffix(name, "."+string(family)); ok {
			return base, true
		}
	}
	return "", false
}

// ofMissing gives the loads whose own file does not exist.
func ofMissing(loads []*load) []*load {
	return slices.DeleteFunc(slices.Clone(loads), func(f *load) bool {
		_, err := os.Stat(f.path)
		return err == nil
	})
}

// loadedFromFolder tells whether `crt DIR` loads a file of this name.
func loadedFromFolder(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false
	}
	return !slices.Contains([]string{".key", ".issuer", ".ocsp", ".sctl"}, filepath.Ext(name))
}

// Discovery is what the configuration of a HAProxy tells of its ssl binds, and how this node can prove what they serve.
type Discovery struct {
	// Files are the configuration files that were read.
	Files []string         `json:"files"`
	Binds []DiscoveredBind `json:"binds"`
	// Problems are what could not be read or told.
	Problems []haconf.Problem `json:"problems,omitempty"`
	// Mend says what to add to the configuration where no bind can be probed, "" where one can.
	Mend string `json:"mend,omitempty"`
}

// DiscoveredBind is one ssl bind line.
type DiscoveredBind struct {
	// Section is where it stands, such as `frontend web`, in Line of File.
	Section string `json:"section"`
	File    string `json:"file"`
	Line    int    `json:"line"`
	Address string `json:"address"`
	// Probe is the address that is handshaken with, "" where there is none; Why then says why not.
	Probe string `json:"probe,omitempty"`
	Why   string `json:"why,omitempty"`
	// Virtual tells that the bind has no other address than virtual ones, which prove nothing on a BACKUP.
	Virtual bool `json:"virtual,omitempty"`
}

// Discovered tells what is found in the configuration, for a person to see. It connects to nothing but the runtime
// socket, which may be deaf: then the values of environment variables are not known, and Problems say so.
func (p *Proxy) Discovered(ctx context.Context) (Discovery, error) {
	if len(p.config.Files) == 0 {
		return Discovery{}, fmt.Errorf("discover the binds of HAProxy %s: %w", p.config.Name, errNotDiscovered)
	}
	running, _ := p.runtime.showInfo(ctx)
	if ctx.Err() != nil {
		return Discovery{}, fmt.Errorf("discover the binds of HAProxy %s: %w", p.config.Name, context.Cause(ctx))
	}
	l := p.layout(ctx, running)
	r := p.newReach(l)
	d := Discovery{Files: l.config.Files, Problems: l.config.Problems}
	var first *haconf.Bind
	proven := false
	for _, b := range l.config.Binds {
		if !serving(b) {
			continue
		}
		e, miss := r.bind(b)
		found := DiscoveredBind{Section: b.Section.String(), File: b.File, Line: b.Line, Address: addressesOf(b)}
		if miss == nil {
			found.Probe = e.String()
			proven = true
		} else {
			found.Why, found.Virtual = miss.why, miss.virtual
		}
		if first == nil {
			first = b
		}
		d.Binds = append(d.Binds, found)
	}
	if !proven && first != nil {
		d.Mend = r.mend(first)
	}
	return d, nil
}

func addressesOf(b *haconf.Bind) string {
	texts := make([]string, 0, len(b.Addresses))
	for _, a := range b.Addresses {
		texts = append(texts, a.Text)
	}
	return strings.Join(texts, ",")
}
