package haproxy

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"certsync/internal/cluster"
)

// defaultBufsize is tune.bufsize where the configuration does not set it, in bytes.
const defaultBufsize = 16384

// bufsizeMargin is kept free of the buffer, in bytes. 2.6 to 3.2 take bufsize-1; over it, 2.6 hangs up, 3.0 refuses,
// 3.2.0 exits and 3.3 hangs, so that the edge is not for us to find.
const bufsizeMargin = 256

// process is what `show info` tells of the worker that answers.
type process struct {
	Pid     int
	Version string
	// Start is when it began, in whole seconds; zero where it did not say.
	Start time.Time
}

func (r *runtime) showInfo(ctx context.Context) (process, error) {
	reply, err := r.read(ctx, "show info\n")
	if err != nil {
		return process{}, err
	}
	var p process
	name := ""
	for _, line := range reply {
		key, value, _ := strings.Cut(line, ": ")
		switch key {
		case "Name":
			name = value
		case "Pid":
			p.Pid, _ = strconv.Atoi(value)
		case "Version":
			p.Version = value
		case "Start_time_sec":
			if n, err := strconv.ParseInt(value, 10, 64); err == nil && n > 0 {
				p.Start = time.Unix(n, 0)
			}
		}
	}
	if p.Pid <= 0 || p.Version == "" {
		return process{}, fmt.Errorf("HAProxy: show info: an answer without Pid and Version (Name %.40q): is %s HAProxy's stats socket?", name, r.address)
	}
	return p, nil
}

var bufferPool = regexp.MustCompile(`Pool buffer \((\d+) bytes\)`)

// bufsize is tune.bufsize as it is in force.
func (r *runtime) bufsize(ctx context.Context) (int, error) {
	reply, err := r.read(ctx, "show pools\n")
	if err != nil {
		return 0, err
	}
	for _, line := range reply {
		if m := bufferPool.FindStringSubmatch(line); m != nil {
			if n, err := strconv.Atoi(m[1]); err == nil && n >= 1024 {
				return n, nil
			}
		}
	}
	return defaultBufsize, nil
}

// listing is what `show ssl cert` tells.
type listing struct {
	names []string
	// open is the certificate that a transaction is open for, "" where none is.
	open string
}

func (r *runtime) showCerts(ctx context.Context) (listing, error) {
	var l listing
	section := ""
	err := r.list(ctx, "show ssl cert\n", func(line string) {
		switch {
		case line == "# transaction" || line == "# filename":
			section = line
		case section == "# transaction":
			l.open = strings.TrimPrefix(line, "*")
		case section == "# filename":
			l.names = append(l.names, line)
		}
	}, func() { l, section = listing{}, "" })
	if err == nil && section != "# filename" {
		// An empty list has this heading too. Whatever else this is, it does not say that there are no certificates.
		err = fmt.Errorf("HAProxy: show ssl cert: %w: an answer without a list", errUnclear)
	}
	return l, err
}

// showLists names the crt-lists: files, and the folders of `crt DIR`.
func (r *runtime) showLists(ctx context.Context) ([]string, error) {
	var lists []string
	err := r.list(ctx, "show ssl crt-list\n", func(line string) { lists = append(lists, line) }, func() { lists = nil })
	return lists, err
}

// showList gives the certificates of a crt-list, each with the numbers of its lines (0 in a folder's list).
func (r *runtime) showList(ctx context.Context, list string) (map[string][]int, error) {
	word, err := escape(list)
	if err != nil {
		return nil, err
	}
	var lines map[string][]int
	answered := false
	err = r.list(ctx, "show ssl crt-list -n "+word+"\n", func(line string) {
		if line == "# "+list {
			answered = true
		} else if name, number, ok := numbered(line); ok && answered {
			lines[name] = append(lines[name], number)
		}
	}, func() { lines, answered = map[string][]int{}, false })
	if err == nil && !answered {
		err = fmt.Errorf("HAProxy: show ssl crt-list %s: %w: it answered of another one", list, errUnclear)
	}
	return lines, err
}

var numberedLine = regexp.MustCompile(`^(.+?):(\d+)(?: .*)?$`)

// numbered takes a line of `show ssl crt-list -n` apart: NAME:NUMBER, then options and filters.
func numbered(line string) (name string, number int, ok bool) {
	m := numberedLine.FindStringSubmatch(line)
	if m == nil {
		return "", 0, false
	}
	number, err := strconv.Atoi(m[2])
	return m[1], number, err == nil
}

// list reads a reply that may be long, line by line; reset is called before each try. Where HAProxy answers that
// certificates are locked it is asked again for a while, as in ask: what it says then is no list.
func (r *runtime) list(ctx context.Context, command string, each func(string), reset func()) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout+r.wait)
	defer cancel()
	pause := 20 * time.Millisecond
	for try := 1; ; {
		reset()
		err := r.listOnce(ctx, command, each)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errLocked):
			if ended := sleep(ctx, pause); ended != nil {
				return fmt.Errorf("HAProxy: %s: %w: %w", strings.TrimSuffix(command, "\n"), err, ended)
			}
			pause = min(2*pause, time.Second)
		case try == 3, ctx.Err() != nil, !errors.Is(err, errUnclear), errors.Is(err, context.DeadlineExceeded):
			return fmt.Errorf("HAProxy: %s: %w", strings.TrimSuffix(command, "\n"), err)
		default:
			try++
		}
	}
}

func (r *runtime) listOnce(ctx context.Context, command string, each func(string)) error {
	// A refusal takes up to two lines: what cannot be done, and why.
	var head []string
	complete, err := r.exchange(ctx, command, maxList, func(line string) error {
		if len(head) < 2 {
			head = append(head, line)
			if err := refusal(head); err != nil {
				return err
			}
			if isLocked(head) {
				return errLocked
			}
		}
		if line != "" {
			each(line)
		}
		return nil
	})
	if err == nil && !complete {
		err = fmt.Errorf("%w: the reply was cut", errUnclear)
	}
	return err
}

// loaded is what `show ssl cert NAME` tells.
type loaded struct {
	// Status is Used, Unused, Empty, or (3.2, for a transaction) Uncommitted.
	Status string
	// SHA1 is the leaf's, in upper-case hexadecimal; "" for an empty store.
	SHA1     string
	NotAfter time.Time
	// File is where the certificate was loaded from, which 3.2 tells and earlier versions do not.
	File string
}

// showCert tells of one certificate; of the one that the open transaction holds, where staged is true.
func (r *runtime) showCert(ctx context.Context, name string, staged bool) (loaded, error) {
	word, err := escape(name)
	if err != nil {
		return loaded{}, err
	}
	if staged {
		word, name = "*"+word, "*"+name
	}
	reply, err := r.read(ctx, "show ssl cert "+word+"\n")
	if err != nil {
		return loaded{}, err
	}
	if contains(reply, "Not found or the certificate is a bundle") {
		return loaded{}, fmt.Errorf("HAProxy: show ssl cert %s: %w", name, errUnknownName)
	}
	if !has(reply, "Filename: "+name) {
		return loaded{}, fmt.Errorf("HAProxy: show ssl cert %s: %w: it answered of another one: %s", name, errUnclear, tell(reply, ""))
	}
	return parseLoaded(reply), nil
}

func parseLoaded(reply []string) loaded {
	var l loaded
	for _, line := range reply {
		key, value, _ := strings.Cut(line, ": ")
		switch key {
		case "Status":
			l.Status = value
		case "Crt filename":
			l.File = value
		case "SHA1 FingerPrint":
			l.SHA1 = strings.ToUpper(value)
		case "notAfter":
			// As OpenSSL prints an ASN1_TIME; the day is padded with a space.
			l.NotAfter, _ = time.Parse("Jan _2 15:04:05 2006 MST", value)
		}
	}
	return l
}

// Parts of a bundle that can be set by themselves.
const keyPart = ".key"

// set loads a payload (canonical PEM: no blank line, no CR) into the transaction for name, or, with part ".key", its
// private key alone. first tells that this opens the transaction: then HAProxy must say that it did.
//
// 2.6 answers `updated for certificate A!` where a transaction for A is open and B was set, and has put B's bundle into
// A's transaction. So the name is compared; and since that transaction now holds what we sent, it is aborted lest its
// owner commit it.
func (r *runtime) set(ctx context.Context, name, part, payload string, first bool) error {
	command, err := setCommand(name, part, payload)
	if err != nil {
		return err
	}
	reply, _, err := r.ask(ctx, command)
	if err != nil {
		return fmt.Errorf("HAProxy: set ssl cert %s%s: %w", name, part, err)
	}
	want := "Transaction updated for certificate " + name + "!"
	if first {
		want = "Transaction created for certificate " + name + "!"
	}
	if has(reply, want) {
		return nil
	}
	if err := refusal(reply); err != nil {
		return fmt.Errorf("HAProxy: set ssl cert %s%s: %w", name, part, err)
	}
	err = fmt.Errorf("HAProxy: set ssl cert %s%s: %w: %s", name, part, setFailure(reply), tell(reply, payload))
	if other, ok := strings.CutPrefix(strings.Join(reply, "\n"), "Transaction updated for certificate "); ok {
		if other, ok = strings.CutSuffix(other, "!"); ok {
			err = errors.Join(err, r.abort(ctx, other))
		}
	}
	return err
}

func setCommand(name, part, payload string) (string, error) {
	word, err := escape(name + part)
	if err != nil {
		return "", err
	}
	if strings.Contains(payload, "\n\n") || strings.ContainsAny(payload, "\r\x00") || !strings.HasSuffix(payload, "\n") || strings.HasPrefix(payload, "\n") {
		return "", errors.New("HAProxy: set ssl cert: the payload is not canonical PEM")
	}
	return "set ssl cert " + word + " <<\n" + payload + "\n", nil
}

func setFailure(reply []string) error {
	switch {
	case contains(reply, "not referenced by the configuration"):
		return errUnknownName
	case contains(reply, "The ongoing transaction is about"), contains(reply, "Transaction updated for certificate"):
		return errForeign
	case len(reply) == 0:
		return errUnclear
	}
	return cluster.ErrRejected
}

// commit puts the open transaction for name in service.
func (r *runtime) commit(ctx context.Context, name string) error {
	word, err := escape(name)
	if err != nil {
		return err
	}
	r.changes.Add(1)
	reply, _, err := r.ask(ctx, "commit ssl cert "+word+"\n")
	if err != nil {
		return fmt.Errorf("HAProxy: commit ssl cert %s: %w", name, err)
	}
	if err := refusal(reply); err != nil {
		return fmt.Errorf("HAProxy: commit ssl cert %s: %w", name, err)
	}
	if done(reply, "Committing "+name) {
		return nil
	}
	cause := cluster.ErrRejected
	if len(reply) == 0 || hasDotted(reply, "Committing "+name) && !contains(reply, "Can't commit") {
		cause = errUnclear
	}
	return fmt.Errorf("HAProxy: commit ssl cert %s: %w: %s", name, cause, tell(reply, ""))
}

// done tells that a command that works in steps said what it does, dots for its progress, and Success.
func done(reply []string, what string) bool {
	return hasDotted(reply, what) && len(reply) > 0 && reply[len(reply)-1] == "Success!"
}

func hasDotted(reply []string, what string) bool {
	for _, line := range reply {
		if dots, ok := strings.CutPrefix(line, what); ok && strings.Trim(dots, ".") == "" {
			return true
		}
	}
	return false
}

// abort ends the open transaction for name; none is as good.
func (r *runtime) abort(ctx context.Context, name string) error {
	word, err := escape(name)
	if err != nil {
		return err
	}
	reply, _, err := r.ask(ctx, "abort ssl cert "+word+"\n")
	if err != nil {
		return fmt.Errorf("HAProxy: abort ssl cert %s: %w", name, err)
	}
	if has(reply, "Transaction aborted for certificate '"+name+"'!") || contains(reply, "No ongoing transaction!") {
		return nil
	}
	if err := refusal(reply); err != nil {
		return fmt.Errorf("HAProxy: abort ssl cert %s: %w", name, err)
	}
	return fmt.Errorf("HAProxy: abort ssl cert %s: %s", name, tell(reply, ""))
}

// nobody is the name of no certificate: aborting its transaction changes nothing and tells which one is open, without
// the list of all certificates that `show ssl cert` prints with it.
const nobody = "/certsync:no-such-certificate"

var ongoing = regexp.MustCompile(`The ongoing transaction is about '(.*)' but you are trying to abort`)

// open names the certificate that a transaction is open for, "" where none is.
func (r *runtime) open(ctx context.Context) (string, error) {
	reply, err := r.read(ctx, "abort ssl cert "+nobody+"\n")
	if err != nil {
		return "", err
	}
	if contains(reply, "No ongoing transaction!") {
		return "", nil
	}
	for _, line := range reply {
		if m := ongoing.FindStringSubmatch(line); m != nil {
			return m[1], nil
		}
	}
	return "", fmt.Errorf("HAProxy: ask for the open transaction: %w: %s", errUnclear, tell(reply, ""))
}

// newCert makes an empty store called name.
func (r *runtime) newCert(ctx context.Context, name string) error {
	return r.simple(ctx, "new ssl cert", []string{name}, "New empty certificate store '"+name+"'!")
}

// delCert removes a store that nothing uses.
func (r *runtime) delCert(ctx context.Context, name string) error {
	return r.simple(ctx, "del ssl cert", []string{name}, "Certificate '"+name+"' deleted!")
}

// delFromList takes name out of a crt-list.
func (r *runtime) delFromList(ctx context.Context, list, name string) error {
	return r.simple(ctx, "del ssl crt-list", []string{list, name}, "Entry '"+name+"' deleted in crtlist '"+list+"'!")
}

// delLine takes one of several lines of a name out of a crt-list.
func (r *runtime) delLine(ctx context.Context, list, name string, line int) error {
	words := []string{list, fmt.Sprintf("%s:%d", name, line)}
	reply, err := r.write(ctx, "del ssl crt-list", words)
	if err != nil {
		return err
	}
	if has(reply, "Entry '"+name+"' deleted in crtlist '"+list+"'!") {
		return nil
	}
	return failed("del ssl crt-list", words, reply)
}

func (r *runtime) simple(ctx context.Context, command string, words []string, success string) error {
	reply, err := r.write(ctx, command, words)
	if err != nil {
		return err
	}
	if has(reply, success) {
		return nil
	}
	return failed(command, words, reply)
}

// addToList puts name into a crt-list: its binds serve it from then on.
func (r *runtime) addToList(ctx context.Context, list, name string) error {
	reply, err := r.write(ctx, "add ssl crt-list", []string{list, name})
	if err != nil {
		return err
	}
	if done(reply, "Inserting certificate '"+name+"' in crt-list '"+list+"'") {
		return nil
	}
	if hasDotted(reply, "Inserting certificate '"+name+"' in crt-list '"+list+"'") && !contains(reply, "Can't") {
		return fmt.Errorf("HAProxy: add ssl crt-list %s %s: %w: the reply was cut", list, name, errUnclear)
	}
	return failed("add ssl crt-list", []string{list, name}, reply)
}

func failed(command string, words, reply []string) error {
	cause := cluster.ErrRejected
	if len(reply) == 0 {
		cause = errUnclear
	}
	return fmt.Errorf("HAProxy: %s %s: %w: %s", command, strings.Join(words, " "), cause, tell(reply, ""))
}

// write sends a command without payload, once.
func (r *runtime) write(ctx context.Context, command string, words []string) ([]string, error) {
	line := command
	for _, w := range words {
		word, err := escape(w)
		if err != nil {
			return nil, err
		}
		line += " " + word
	}
	r.changes.Add(1)
	reply, _, err := r.ask(ctx, line+"\n")
	if err == nil {
		err = refusal(reply)
	}
	if err != nil {
		return nil, fmt.Errorf("HAProxy: %s %s: %w", command, strings.Join(words, " "), err)
	}
	return reply, nil
}

// managed names the certificates that HAProxy's own ACME client (3.2 and later) looks after; versions without it have
// none.
func (r *runtime) managed(ctx context.Context) ([]string, error) {
	reply, err := r.read(ctx, "acme status\n")
	if err != nil {
		return nil, err
	}
	if len(reply) == 0 || !strings.HasPrefix(reply[0], "# certificate\t") {
		return nil, nil
	}
	var names []string
	for _, line := range reply[1:] {
		name, _, _ := strings.Cut(line, "\t")
		names = append(names, name)
	}
	return names, nil
}
