package haproxytest

import (
	"crypto"
	"crypto/sha1" //nolint:gosec // as HAProxy prints it
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"certsync/internal/cert"
)

// Fake is a HAProxy in this process, as far as certificates go. It reads the lines of a configuration that matter
// (stats socket, tune.bufsize, crt-base, bind ... ssl crt/crt-list), loads the files as HAProxy does, serves TLS from
// its memory, and answers the runtime API with the state and the texts of 2.6, its faults included: one transaction for
// the whole process that outlives its connection, `set` of another certificate that lands in it, a closed connection
// for what does not fit in the buffer, and lines after a payload that are run as commands.
type Fake struct {
	mu     sync.Mutex
	pid    int
	size   int
	stores map[string]*store
	lists  []*list
	// defaults are the certificates that a bind shows to who asks for no name: they cannot be taken out of a list.
	defaults map[string]bool
	tx       *transaction
	// commands are the first lines of what was sent, in order.
	commands []string
	// answer, where set, is asked first: a true second value sends its text instead of doing the command.
	answer    func(command string) (string, bool)
	listeners []net.Listener
	wg        sync.WaitGroup
	conns     map[net.Conn]bool
	stopped   bool
	// config and dir are what it was started with; binds are its TLS binds by address; reloads counts the reloads.
	config, dir string
	binds       map[string]*bind
	reloads     int
	began       time.Time
}

type store struct {
	chain []*x509.Certificate
	key   crypto.Signer
	// users counts the binds and lists that have it.
	users int
}

type list struct {
	name    string
	dir     bool
	entries []string
}

type bind struct {
	names []string
	lists []*list
}

type transaction struct {
	name string
	store
}

// StartFake starts a Fake on a configuration; relative paths in it begin at dir.
func StartFake(config, dir string) (*Fake, error) {
	text, err := os.ReadFile(config)
	if err != nil {
		return nil, err
	}
	f := &Fake{pid: os.Getpid(), size: 16384, stores: map[string]*store{}, defaults: map[string]bool{}, conns: map[net.Conn]bool{},
		config: config, dir: dir, binds: map[string]*bind{}, began: time.Now()}
	if err := f.start(string(text), dir); err != nil {
		f.Stop()
		return nil, err
	}
	return f, nil
}

// CheckFake is `haproxy -c` of the fake.
func CheckFake(config, dir string) error {
	text, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	f := &Fake{stores: map[string]*store{}, defaults: map[string]bool{}, conns: map[net.Conn]bool{}}
	_, err = f.load(string(text), dir)
	return err
}

// Commands are the first lines of all commands so far, without payloads.
func (f *Fake) Commands() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.commands)
}

// Answer makes the fake answer by itself where fn says so; nil ends that.
func (f *Fake) Answer(fn func(command string) (reply string, ok bool)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = fn
}

// Pid sets what `show info` tells, as a reload would.
func (f *Fake) Pid(pid int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pid = pid
}

// Stop implements Server.
func (f *Fake) Stop() {
	f.mu.Lock()
	f.stopped = true
	for _, l := range f.listeners {
		_ = l.Close()
	}
	for c := range f.conns {
		_ = c.Close()
	}
	f.mu.Unlock()
	f.wg.Wait()
}

type address struct {
	network, address, level string
	bind                    *bind
	// serve, where set, answers there.
	serve func(net.Conn)
}

func (f *Fake) start(text, dir string) error {
	addresses, err := f.load(text, dir)
	if err != nil {
		return err
	}
	for _, a := range addresses {
		if a.network == "unix" {
			_ = os.Remove(a.address)
		}
		l, err := net.Listen(a.network, a.address)
		if err != nil {
			return err
		}
		f.listeners = append(f.listeners, l)
		if a.bind != nil {
			f.binds[a.address] = a.bind
		}
		f.wg.Add(1)
		go f.accept(l, a)
	}
	return nil
}

func (f *Fake) accept(l net.Listener, a address) {
	defer f.wg.Done()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		f.mu.Lock()
		if f.stopped { // accepted before the listener was closed, seen after
			f.mu.Unlock()
			_ = conn.Close()
			return
		}
		f.conns[conn] = true
		f.mu.Unlock()
		f.wg.Add(1)
		go func() {
			defer f.wg.Done()
			defer func() {
				_ = conn.Close()
				f.mu.Lock()
				delete(f.conns, conn)
				f.mu.Unlock()
			}()
			switch {
			case a.serve != nil:
				a.serve(conn)
			case a.bind != nil:
				f.serveTLS(conn, a.bind)
			default:
				f.serveRuntime(conn, a.level)
			}
		}()
	}
}

// load reads the configuration and the files that it names.
func (f *Fake) load(text, dir string) ([]address, error) {
	var out []address
	base := ""
	for line := range strings.Lines(text) {
		words := split(strings.TrimSpace(line))
		switch {
		case len(words) >= 3 && words[0] == "stats" && words[1] == "socket":
			a := address{network: "unix", address: words[2], level: "operator"}
			if i := slices.Index(words, "level"); i > 0 {
				a.level = words[i+1]
			}
			out = append(out, a)
		case len(words) == 2 && words[0] == "crt-base":
			base = words[1]
		case len(words) == 2 && words[0] == "tune.bufsize":
			_, _ = fmt.Sscan(words[1], &f.size)
		case len(words) > 3 && words[0] == "bind" && words[2] == "ssl":
			b, err := f.loadBind(words[3:], base, dir)
			if err != nil {
				return nil, err
			}
			a := address{network: "tcp", address: words[1], bind: b}
			if filepath.IsAbs(words[1]) {
				a.network = "unix"
			}
			out = append(out, a)
		}
	}
	return out, nil
}

// split cuts a line into words as HAProxy's parser does, for the quotes and backslashes that the tests use.
func split(line string) []string {
	var words []string
	var word strings.Builder
	quoted, started := false, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\\' && i+1 < len(line) && !quoted:
			i++
			word.WriteByte(line[i])
			started = true
		case c == '"':
			quoted, started = !quoted, true
		case (c == ' ' || c == '\t') && !quoted:
			if started {
				words = append(words, word.String())
			}
			word.Reset()
			started = false
		default:
			word.WriteByte(c)
			started = true
		}
	}
	if started {
		words = append(words, word.String())
	}
	return words
}

func (f *Fake) loadBind(words []string, base, dir string) (*bind, error) {
	b := &bind{}
	for i := 0; i+1 < len(words); i++ {
		var err error
		switch words[i] {
		case "crt":
			err = f.loadCrt(b, prefixed(words[i+1], base), dir)
		case "crt-list":
			err = f.loadList(b, words[i+1], base, dir)
		default:
			continue
		}
		if err != nil {
			return nil, err
		}
		i++
	}
	switch {
	case len(b.names) > 0:
		f.defaults[b.names[0]] = true
	case len(b.lists) > 0 && len(b.lists[0].entries) > 0:
		f.defaults[b.lists[0].entries[0]] = true
	}
	return b, nil
}

func prefixed(name, base string) string {
	if base != "" && !filepath.IsAbs(name) {
		return base + "/" + name
	}
	return name
}

func absolute(name, dir string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(dir, name)
}

// loadCrt is `crt X`: a file, a folder, or the files X.rsa and X.ecdsa.
func (f *Fake) loadCrt(b *bind, name, dir string) error {
	name = strings.TrimSuffix(name, "/")
	info, err := os.Stat(absolute(name, dir))
	if err == nil && info.IsDir() {
		return f.loadDir(b, name, dir)
	}
	names := []string{name}
	if err != nil {
		names = nil
		for _, suffix := range []string{".rsa", ".ecdsa"} {
			if _, err := os.Stat(absolute(name+suffix, dir)); err == nil {
				names = append(names, name+suffix)
			}
		}
		if names == nil {
			return err
		}
	}
	for _, n := range names {
		if err := f.loadFile(n, dir); err != nil {
			return err
		}
		b.names = append(b.names, n)
	}
	return nil
}

func (f *Fake) loadDir(b *bind, name, dir string) error {
	entries, err := os.ReadDir(absolute(name, dir))
	if err != nil {
		return err
	}
	l := f.list(name, true)
	for _, e := range entries {
		file := name + "/" + e.Name()
		if strings.HasPrefix(e.Name(), ".") || slices.Contains([]string{".key", ".issuer", ".ocsp", ".sctl"}, filepath.Ext(file)) {
			continue
		}
		// Links are followed; folders, pipes and sockets are passed over.
		if info, err := os.Stat(absolute(file, dir)); err != nil {
			return fmt.Errorf("unable to stat SSL certificate from file '%s': %w", file, err)
		} else if !info.Mode().IsRegular() {
			continue
		}
		if err := f.loadFile(file, dir); err != nil {
			return err
		}
		l.entries = append(l.entries, file)
	}
	b.lists = append(b.lists, l)
	return nil
}

func (f *Fake) loadList(b *bind, name, base, dir string) error {
	text, err := os.ReadFile(absolute(name, dir))
	if err != nil {
		return err
	}
	l := f.list(name, false)
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		file := prefixed(words[0], base)
		if err := f.loadFile(file, dir); err != nil {
			return err
		}
		l.entries = append(l.entries, file)
	}
	b.lists = append(b.lists, l)
	return nil
}

func (f *Fake) list(name string, isDir bool) *list {
	l := &list{name: name, dir: isDir}
	f.lists = append(f.lists, l)
	return l
}

func (f *Fake) loadFile(name, dir string) error {
	if s := f.stores[name]; s != nil {
		s.users++
		return nil
	}
	data, err := os.ReadFile(absolute(name, dir))
	if err != nil {
		return err
	}
	s, err := parse(data)
	if err == nil && s.key == nil {
		if data, keyErr := os.ReadFile(absolute(name+".key", dir)); keyErr == nil {
			var beside store
			beside, err = parse(data)
			s.key = beside.key
		}
	}
	if err == nil && (len(s.chain) == 0 || s.key == nil || !matches(s)) {
		err = errors.New("no certificate, no key, or another's key")
	}
	if err != nil {
		return fmt.Errorf("unable to load certificate from file '%s': %w", name, err)
	}
	s.users = 1
	f.stores[name] = &s
	return nil
}

// parse reads what OpenSSL would read; it does not look at the chain.
func parse(data []byte) (store, error) {
	var s store
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		switch {
		case block.Type == "CERTIFICATE":
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return s, err
			}
			s.chain = append(s.chain, c)
		case strings.HasSuffix(block.Type, "PRIVATE KEY"):
			key, err := cert.ParseKey(pem.EncodeToMemory(block))
			if err != nil {
				return s, err
			}
			s.key = key
		}
	}
	if s.chain == nil && s.key == nil {
		return s, errors.New("no start line")
	}
	return s, nil
}

func matches(s store) bool {
	public, ok := s.chain[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(s.key.Public())
}

func (f *Fake) serveTLS(conn net.Conn, b *bind) {
	server := tls.Server(conn, &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		return f.choose(b, hello)
	}})
	if server.Handshake() == nil {
		_, _ = server.Read(make([]byte, 1024))
	}
}

// choose takes the first certificate of the bind that has the name and that the client can verify, else the first that
// it can verify.
func (f *Fake) choose(b *bind, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	names := slices.Clone(b.names)
	for _, l := range b.lists {
		names = append(names, l.entries...)
	}
	var fallback *tls.Certificate
	for _, name := range names {
		s := f.stores[name]
		if s == nil || s.key == nil || len(s.chain) == 0 {
			continue
		}
		// Of thousands of certificates few have the name: what it costs to look at the others counts.
		named := s.chain[0].VerifyHostname(hello.ServerName) == nil
		if !named && fallback != nil {
			continue
		}
		c := &tls.Certificate{PrivateKey: s.key, Leaf: s.chain[0]}
		for _, x := range s.chain {
			c.Certificate = append(c.Certificate, x.Raw)
		}
		anyName := *hello
		anyName.ServerName = ""
		if anyName.SupportsCertificate(c) != nil {
			continue
		}
		if named {
			return c, nil
		}
		fallback = c
	}
	if fallback == nil {
		return nil, errors.New("no certificate")
	}
	return fallback, nil
}

func fingerprint(c *x509.Certificate) string {
	return fmt.Sprintf("%X", sha1.Sum(c.Raw)) //nolint:gosec // see the import
}
