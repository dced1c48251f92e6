package haproxytest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
)

// serveRuntime reads a command, with its payload where it has one, answers, and closes. Lines that follow at once are
// run too, as 2.6 does.
func (f *Fake) serveRuntime(conn net.Conn, level string) {
	in := bufio.NewReaderSize(conn, 1<<20)
	for {
		command, err := in.ReadString('\n')
		if err != nil {
			return
		}
		command = strings.TrimSuffix(command, "\n")
		payload := ""
		if head, ok := strings.CutSuffix(command, " <<"); ok {
			command = head
			if payload, err = f.payload(in, len(command)+4); err != nil {
				return
			}
		}
		reply, hangUp := f.do(command, payload, level)
		_, _ = io.WriteString(conn, reply)
		if hangUp || in.Buffered() == 0 {
			return
		}
	}
}

// payload reads up to the empty line. What does not fit in the buffer ends the connection without a word.
func (f *Fake) payload(in *bufio.Reader, used int) (string, error) {
	var b strings.Builder
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return "", err
		}
		if used+b.Len()+len(line) >= f.size {
			return "", io.ErrShortBuffer
		}
		if line == "\n" {
			return b.String(), nil
		}
		b.WriteString(line)
	}
}

// do runs one command.
func (f *Fake) do(command, payload, level string) (reply string, hangUp bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.commands = append(f.commands, command)
	if f.answer != nil {
		if reply, ok := f.answer(command); ok {
			return reply, true
		}
	}
	words := split(command)
	if len(words) < 2 {
		return "Unknown command: '" + command + "'\n\n", false
	}
	switch {
	case command == "show info":
		return fmt.Sprintf("Name: HAProxy\nVersion: 2.6.12-fake\nPid: %d\nStart_time_sec: %d\n\n", f.pid, f.began.Unix()), false
	case command == "show pools":
		return fmt.Sprintf("Dumping pools usage. Use SIGQUIT to flush them.\n  - Pool buffer (%d bytes) : 4 allocated\n\n", f.size), false
	case words[0] == "show" && words[1] == "ssl" && level == "user":
		return "Can't allocate memory!\n\n", false
	case level == "admin" && words[0] != "show" && len(words) > 3 && words[1] == "ssl":
		return f.change(words, payload) + "\n\n", false
	case level == "admin" && command == "show ssl crt-list":
		return f.showLists(), false
	case level == "admin" && strings.HasPrefix(command, "show ssl crt-list -n "):
		return f.showList(words[4]), false
	case strings.HasPrefix(command, "show ssl cert"):
		return f.showCert(words[3:]), false
	case words[0] == "acme":
		return "Unknown command, but maybe one of the following ones is a better match:\n  help\n\n", false
	}
	return "Permission denied\n\n", false
}

func (f *Fake) change(words []string, payload string) string {
	name := words[3]
	switch words[0] + " " + words[2] {
	case "set cert":
		return f.set(name, payload)
	case "commit cert":
		return f.commit(name)
	case "abort cert":
		return f.abort(name)
	case "new cert":
		if f.stores[name] != nil {
			return "Certificate '" + name + "' already exists!"
		}
		f.stores[name] = &store{}
		return "New empty certificate store '" + name + "'!"
	case "del cert":
		return f.del(name)
	case "add crt-list":
		return f.add(strings.TrimSuffix(name, "/"), words[4])
	case "del crt-list":
		return f.remove(name, words[4])
	}
	return "Unknown command"
}

func (f *Fake) set(name, payload string) string {
	part, err := parse([]byte(payload))
	if err != nil {
		return "unable to load certificate from file '" + name + "': " + err.Error() + "\nCan't load the payload\nCan't update " + name + "!"
	}
	name, keyOnly := strings.CutSuffix(name, ".key")
	old := f.stores[name]
	if old == nil || strings.HasSuffix(name, ".crt") {
		return "Can't replace a certificate which is not referenced by the configuration!\nCan't update " + name + "!"
	}
	verb := "updated"
	if f.tx == nil {
		f.tx, verb = &transaction{name: name, store: *old}, "created"
	}
	// In 2.6 another certificate lands in the transaction that is open.
	if !keyOnly {
		f.tx.chain = part.chain
	}
	if part.key != nil {
		f.tx.key = part.key
	}
	return "Transaction " + verb + " for certificate " + f.tx.name + "!"
}

func (f *Fake) commit(name string) string {
	switch {
	case f.tx == nil:
		return "No ongoing transaction! !\nCan't commit " + name + "!"
	case f.tx.name != name:
		return "The ongoing transaction is about '" + f.tx.name + "' but you are trying to set '" + name + "'\nCan't commit " + name + "!"
	case f.tx.key == nil || len(f.tx.chain) == 0 || !matches(f.tx.store):
		return "inconsistencies between private key and certificate loaded '" + name + "'.\nCan't commit " + name + "!"
	}
	s := f.stores[name]
	s.chain, s.key = f.tx.chain, f.tx.key
	f.tx = nil
	return "Committing " + name + strings.Repeat(".", s.users) + "\nSuccess!"
}

func (f *Fake) abort(name string) string {
	switch {
	case f.tx == nil:
		return "No ongoing transaction!"
	case f.tx.name != name:
		return "The ongoing transaction is about '" + f.tx.name + "' but you are trying to abort a transaction for '" + name + "'"
	}
	f.tx = nil
	return "Transaction aborted for certificate '" + name + "'!"
}

func (f *Fake) del(name string) string {
	switch s := f.stores[name]; {
	case s == nil:
		return "Can't remove the certificate: certificate '" + name + "' doesn't exist!\n"
	case s.users > 0:
		return "Can't remove the certificate: certificate '" + name + "' in use, can't be deleted!\n"
	}
	delete(f.stores, name)
	return "Certificate '" + name + "' deleted!"
}

func (f *Fake) add(listName, name string) string {
	i := slices.IndexFunc(f.lists, func(l *list) bool { return l.name == listName })
	s := f.stores[name]
	switch {
	case i < 0:
		return "Can't edit the crt-list: crt-list '" + listName + "' does not exist!"
	case s == nil:
		return "Can't edit the crt-list: certificate '" + name + "' does not exist!"
	case len(s.chain) == 0:
		return "Can't edit the crt-list: certificate '" + name + "' is empty!"
	case f.lists[i].dir && !strings.HasPrefix(name, listName+"/"):
		return "Can't edit the crt-list: '" + listName + "' is a directory, certificate path '" + name + "' must contain the directory path"
	case f.lists[i].dir && slices.Contains(f.lists[i].entries, name):
		return "Can't edit the crt-list: file already exists in this directory!"
	}
	f.lists[i].entries = append(f.lists[i].entries, name)
	s.users++
	return "Inserting certificate '" + name + "' in crt-list '" + listName + "'.\nSuccess!"
}

func (f *Fake) remove(listName, name string) string {
	line := 0
	if i := strings.LastIndexByte(name, ':'); i > 0 {
		if n, err := strconv.Atoi(name[i+1:]); err == nil {
			name, line = name[:i], n
		}
	}
	for _, l := range f.lists {
		if several := f.linesOf(l, name); l.name == listName && len(several) > 1 && !slices.Contains(several, line) {
			return "Can't delete the entry: found the certificate '" + name + "' in several entries, please specify a line number preceded by colons (2, 3)!\n"
		}
		if i := slices.Index(l.entries, name); l.name == listName && i >= 0 {
			if f.defaults[name] {
				return "Can't delete the entry: certificate '" + name + "' cannot be deleted, it is used as default certificate by the following frontends:\n\t- fake:1\n"
			}
			l.entries = slices.Delete(l.entries, i, i+1)
			f.stores[name].users--
			return "Entry '" + name + "' deleted in crtlist '" + listName + "'!"
		}
	}
	return "Can't delete the entry: certificate '" + name + "' can't be found in crt-list '" + listName + "'!"
}

// linesOf are the numbers of a name's lines: the fake does not count those that stay empty, or were deleted.
func (f *Fake) linesOf(l *list, name string) (numbers []int) {
	for i, entry := range l.entries {
		if entry == name && !l.dir {
			numbers = append(numbers, i+1)
		}
	}
	return numbers
}

func (f *Fake) showList(name string) string {
	i := slices.IndexFunc(f.lists, func(l *list) bool { return l.name == name })
	if i < 0 {
		return "didn't find the specified filename\n\n"
	}
	l := f.lists[i]
	var b strings.Builder
	b.WriteString("# " + name + "\n")
	for i, entry := range l.entries {
		if l.dir {
			i = -1
		}
		fmt.Fprintf(&b, "%s:%d\n", entry, i+1)
	}
	return b.String() + "\n"
}

func (f *Fake) showLists() string {
	var b strings.Builder
	for _, l := range f.lists {
		b.WriteString(l.name + "\n")
	}
	return b.String() + "\n"
}

func (f *Fake) showCert(words []string) string {
	if len(words) == 0 {
		return f.listCerts()
	}
	name := words[0]
	s := f.stores[name]
	staged := strings.HasPrefix(name, "*")
	if staged {
		s = nil
		if f.tx != nil && "*"+f.tx.name == name {
			s = &f.tx.store
		}
	}
	if s == nil {
		return "Can't display the certificate: Not found or the certificate is a bundle!\n\n"
	}
	if len(s.chain) == 0 {
		return "Filename: " + name + "\nStatus: Empty\nOCSP Response Key: \n\n"
	}
	status := "Unused"
	if s.users > 0 && !staged {
		status = "Used"
	}
	return fmt.Sprintf("Filename: %s\nStatus: %s\nSerial: %X\nnotAfter: %s\nSHA1 FingerPrint: %s\nOCSP Response Key: \n\n", name, status,
		s.chain[0].SerialNumber, s.chain[0].NotAfter.UTC().Format("Jan _2 15:04:05 2006 GMT"), fingerprint(s.chain[0]))
}

func (f *Fake) listCerts() string {
	var b strings.Builder
	if f.tx != nil {
		b.WriteString("# transaction\n*" + f.tx.name + "\n")
	}
	b.WriteString("# filename\n")
	names := make([]string, 0, len(f.stores))
	for name := range f.stores {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		b.WriteString(name + "\n")
	}
	return b.String() + "\n"
}
