package sysfile

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

// The files, by their paths in a tree.
const (
	RCDefaults     = "/etc/defaults/rc.conf"
	RCVendor       = "/etc/defaults/vendor.conf"
	RCConf         = "/etc/rc.conf"
	RCConfLocal    = "/etc/rc.conf.local"
	LoaderDefaults = "/boot/defaults/loader.conf"
	LoaderConf     = "/boot/loader.conf"
	LoaderConfDir  = "/boot/loader.conf.d"
	LoaderLocal    = "/boot/loader.conf.local"
	SysctlConf     = "/etc/sysctl.conf"
	SysctlLocal    = "/etc/sysctl.conf.local"
)

// Setting is one line that sets a key plainly.
type Setting struct {
	File  string `json:"file"`
	Line  int    `json:"line"`
	Value string `json:"value"`
}

// Effective is what all files together say of a key. Found's Line and Commented are those of File.
type Effective struct {
	Found
	// File is the one that decides; "" where none sets the key.
	File string `json:"file,omitempty"`
	// Settings are all lines that set it, in the order in which they are read: each overrides those before.
	Settings []Setting `json:"settings,omitempty"`
}

// View is what a system ends up with from the files that it reads one after the other.
type View struct {
	files []viewed
	// doubt says why the list of files itself cannot be told.
	doubt string
}

type viewed struct {
	path string
	// group is the folder whose files are read in no certain order, or "".
	group string
	file  *File
	// unread: this user may not read it.
	unread bool
}

// Get tells what the files together say of key.
func (v *View) Get(key string) Effective {
	w := v.fold(key)
	if w.Doubt == "" {
		w.Doubt = v.doubt
	}
	return w.Effective
}

func (v *View) fold(key string) *fold {
	w := &fold{key: key}
	commented := map[string][]int{}
	for _, f := range v.files {
		w.Commented = nil
		w.file(f.path, f.group, f.file)
		commented[f.path] = w.Commented
	}
	w.Commented = commented[w.File]
	return w
}

// Keys lists, sorted, the keys with the prefix that any of the files sets, certainly or perhaps.
func (v *View) Keys(prefix string) []string {
	var keys []string
	for _, f := range v.files {
		keys = append(keys, f.file.Keys()...)
	}
	keys = slices.DeleteFunc(keys, func(key string) bool { return !strings.HasPrefix(key, prefix) })
	slices.Sort(keys)
	return slices.Compact(keys)
}

// Files are the paths of the files that are there, in the order in which they are read.
func (v *View) Files() []string {
	var paths []string
	for _, f := range v.files {
		paths = append(paths, f.path)
	}
	return paths
}

// ReadsAfter tells whether later is read after file, and so overrides it. A file that is not there is read nowhere.
func (v *View) ReadsAfter(later, file string) bool {
	paths := v.Files()
	a, b := slices.Index(paths, later), slices.Index(paths, file)
	return a >= 0 && b >= 0 && a > b
}

// add parses the file at path and appends it to what is read; one that is not there is passed over.
func (v *View) add(t *Tree, syntax Syntax, path, group string) (*File, error) {
	data, err := t.Read(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, ErrNotFolder):
		return nil, nil
	case errors.Is(err, fs.ErrPermission):
		v.files = append(v.files, viewed{path: path, group: group, file: unread(syntax), unread: true})
		return nil, nil
	case err != nil:
		return nil, err
	}
	f, err := Parse(syntax, data)
	if err != nil {
		return nil, fmt.Errorf("%s %w", t.name(path), err)
	}
	if path == RCDefaults {
		f.withoutVendor()
	}
	v.files = append(v.files, viewed{path: path, group: group, file: f})
	return f, nil
}

// unread is a file that this user may not read: it may set anything.
func unread(syntax Syntax) *File {
	return &File{syntax: syntax, parsed: parsed{events: []event{{kind: anything, why: "this user may not read it"}}}}
}

// Unread are the paths of the files that this user may not read. Every key that is not set after one of them has a
// Doubt.
func (v *View) Unread() []string {
	var paths []string
	for _, f := range v.files {
		if f.unread {
			paths = append(paths, f.path)
		}
	}
	return paths
}

// withoutVendor takes the doubt away that /etc/defaults/rc.conf reads vendor.conf: the view has that file too.
func (f *File) withoutVendor() {
	f.events = slices.DeleteFunc(f.events, func(e event) bool { return e.kind == anything && e.reads == RCVendor })
}

// RC is what rc(8) ends up with for the services named, whose own files under rc.conf.d are read after all others and
// in the order of the names (rc.d/netif reads those of "network", then "netif"). The order is that of rc.subr(8):
// /etc/defaults/rc.conf, /etc/defaults/vendor.conf, the files of rc_conf_files, then, in /etc and in /usr/local/etc,
// the file rc.conf.d/SERVICE or the files in that folder whose names do not begin with a dot.
func (t *Tree) RC(services ...string) (*View, error) {
	v := &View{}
	for _, p := range []string{RCDefaults, RCVendor} {
		if _, err := v.add(t, Shell, p, ""); err != nil {
			return nil, err
		}
	}
	// Twice, because one of the files may name more of them.
	for range 2 {
		if err := v.addListed(t, "rc_conf_files", RCConf+" "+RCConfLocal); err != nil {
			return nil, err
		}
	}
	startup := v.list("local_startup", "/usr/local/etc/rc.d")
	for _, service := range services {
		for _, dir := range append([]string{"/etc"}, startup...) {
			if err := v.addService(t, strings.TrimSuffix(dir, "/rc.d"), service); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}

// addListed adds the files that key lists, those that were read already excepted.
func (v *View) addListed(t *Tree, key, standard string) error {
	for _, p := range v.list(key, standard) {
		if slices.ContainsFunc(v.files, func(f viewed) bool { return f.path == p }) {
			continue
		}
		if _, err := v.add(t, Shell, p, ""); err != nil {
			return err
		}
	}
	return nil
}

// list is the value of key as absolute paths, or the standard one where no file sets it. That a command may set any key
// is no reason to doubt this one: nobody sets it that way, and every other key would be in doubt.
func (v *View) list(key, standard string) []string {
	found := v.fold(key)
	value := found.Value
	if !found.Set {
		value = standard
	}
	if found.Doubt != "" && found.own {
		v.doubt = fmt.Sprintf("which files are read cannot be told, because of %s: %s", key, found.Doubt)
	}
	return slices.DeleteFunc(strings.Fields(value), func(p string) bool { return !path.IsAbs(p) || path.Clean(p) != p })
}

// addService adds dir/rc.conf.d/service, or the files in it.
func (v *View) addService(t *Tree, dir, service string) error {
	base := path.Join(dir, "rc.conf.d", service)
	names, err := t.List(base)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, ErrNotFolder):
		_, err = v.add(t, Shell, base, "")
		return err
	case err != nil:
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, ".") {
			continue
		}
		if _, err := v.add(t, Shell, path.Join(base, name), ""); err != nil && !errors.Is(err, ErrNotFile) {
			return err
		}
	}
	return nil
}

// Sysctl is what the files of sysctl.conf(5) set: those of the modules named, which are applied when rc(8) loads them
// (/etc/sysctl.kld.d/NAME.conf), then /etc/sysctl.conf and /etc/sysctl.conf.local.
func (t *Tree) Sysctl(modules ...string) (*View, error) {
	var paths []string
	for _, m := range modules {
		paths = append(paths, path.Join("/etc/sysctl.kld.d", m+".conf"))
	}
	v := &View{}
	for _, p := range append(paths, SysctlConf, SysctlLocal) {
		if _, err := v.add(t, Sysctl, p, ""); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// Loader is what the loader's Lua ends up with: /boot/defaults/loader.conf, each file of loader_conf_files followed by
// those that it names itself, the files *.conf in the folders of loader_conf_dirs, then local_loader_conf_files. Where
// there are no defaults these are /boot/device.hints and /boot/loader.conf, /boot/loader.conf.d, /boot/loader.conf.local.
// nextboot.conf(5), which counts for one boot, is not read.
func (t *Tree) Loader() (*View, error) {
	v := &View{}
	read := map[string]bool{}
	if err := v.addConf(t, LoaderDefaults, "", read); err != nil {
		return nil, err
	}
	if len(v.files) == 0 {
		for _, p := range []string{"/boot/device.hints", LoaderConf} {
			if err := v.addConf(t, p, "", read); err != nil {
				return nil, err
			}
		}
	}
	for _, dir := range v.list("loader_conf_dirs", LoaderConfDir) {
		if err := v.addDir(t, dir, read); err != nil {
			return nil, err
		}
	}
	for _, p := range v.list("local_loader_conf_files", LoaderLocal) {
		if err := v.addConf(t, p, "", read); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// addConf adds the file at p, then those that it names in loader_conf_files.
func (v *View) addConf(t *Tree, p, group string, read map[string]bool) error {
	if read[p] {
		return nil
	}
	read[p] = true
	if strings.HasSuffix(p, ".lua") {
		if there, err := t.Exists(p); err != nil || !there {
			return err
		}
		v.doubt = p + " is a program"
		return nil
	}
	f, err := v.add(t, Loader, p, group)
	if err != nil || f == nil {
		return err
	}
	named := &View{files: []viewed{{path: p, file: f}}}
	for _, next := range named.list("loader_conf_files", "") {
		if err := v.addConf(t, next, "", read); err != nil {
			return err
		}
	}
	if named.doubt != "" {
		v.doubt = named.doubt
	}
	return nil
}

// addDir adds the files of dir whose names end in .conf.
func (v *View) addDir(t *Tree, dir string, read map[string]bool) error {
	names, err := t.List(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNotFolder) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".conf") {
			continue
		}
		if err := v.addConf(t, path.Join(dir, name), dir, read); err != nil && !errors.Is(err, ErrNotFile) {
			return err
		}
	}
	return nil
}

// Blacklisted tells whether the loader passes over the module of that name because of module_blacklist, and by which
// line. The words there are of letters, digits, - and _, with spaces, commas or semicolons between them.
func (v *View) Blacklisted(module string) (Effective, bool) {
	list := v.Get("module_blacklist")
	words := moduleName.FindAllString(list.Value, -1)
	return list, list.Set && slices.Contains(words, module)
}

var moduleName = regexp.MustCompile(`[-A-Za-z0-9_]+`)
