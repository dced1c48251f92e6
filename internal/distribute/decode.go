package distribute

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// decoder reads a JSON body with a budget of entries, counted while it reads: 64 MiB of `[{},{},...]` would otherwise
// become many gigabytes of values. Fields that are not known are skipped: a newer peer may send them.
type decoder struct {
	*json.Decoder
	entries int
}

func newDecoder(r io.Reader) *decoder {
	return &decoder{Decoder: json.NewDecoder(r), entries: maxEntries}
}

// take counts n entries.
func (d *decoder) take(n int) error {
	if d.entries -= n; d.entries < 0 {
		return fmt.Errorf("more than %d entries: %w", maxEntries, errTooLarge)
	}
	return nil
}

// value decodes the next value into v.
func (d *decoder) value(v any) error { return jsonError(d.Decode(v)) }

// jsonError makes the decoder's own errors ErrForm, and leaves those of the stream below as they are.
func jsonError(err error) error {
	if err == nil || errors.Is(err, ErrForm) || errors.Is(err, errTooLarge) || isStreamError(err) {
		return err
	}
	if kind, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return malformed("JSON: %s cannot be field %s", kind.Value, kind.Field)
	}
	return malformed("JSON: %s", cleanText(err.Error(), 200))
}

// delim reads one of [ ] { }. It reports false, without an error, for null.
func (d *decoder) delim(want json.Delim) (bool, error) {
	token, err := d.Token()
	if err != nil {
		if err == io.EOF {
			err = malformed("JSON: cut")
		}
		return false, jsonError(err)
	}
	if token == nil {
		return false, nil
	}
	if got, ok := token.(json.Delim); !ok || got != want {
		return false, malformed("JSON: want %s", want)
	}
	return true, nil
}

// object reads an object, calling field for each key; field reads the value. A field that returns errUnknown is
// skipped.
func (d *decoder) object(field func(key string) error) error {
	if ok, err := d.delim('{'); err != nil || !ok {
		return err
	}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return jsonError(err)
		}
		key, _ := token.(string)
		if err = field(key); errors.Is(err, errUnknown) {
			var skipped json.RawMessage
			err = d.value(&skipped)
		}
		if err != nil {
			return err
		}
	}
	_, err := d.delim('}')
	return err
}

var errUnknown = errors.New("unknown field")

// end wants nothing but white space after what was read.
func (d *decoder) end() error {
	switch _, err := d.Token(); err {
	case io.EOF:
		return nil
	case nil:
		return malformed("JSON: more after the end")
	default:
		return jsonError(err)
	}
}

// list reads an array; check refuses an entry, and tells how many entries its inner lists hold.
func list[T any](d *decoder, out *[]T, check func(T) (int, error)) error {
	if ok, err := d.delim('['); err != nil || !ok {
		return err
	}
	for d.More() {
		var entry T
		if err := d.take(1); err != nil {
			return err
		}
		if err := d.entry(&entry); err != nil {
			return err
		}
		inner, err := check(entry)
		if err != nil {
			return err
		}
		if err := d.take(inner); err != nil {
			return err
		}
		*out = append(*out, entry)
	}
	_, err := d.delim(']')
	return err
}

// entry decodes one entry of a list, of a bounded size: its inner lists are counted only once it is decoded.
func (d *decoder) entry(v any) error {
	var raw json.RawMessage
	if err := d.value(&raw); err != nil {
		return err
	}
	if len(raw) > maxEntry {
		return fmt.Errorf("entry of %d bytes, at most %d: %w", len(raw), maxEntry, errTooLarge)
	}
	return jsonError(json.Unmarshal(raw, v))
}

// flat adapts a check of an entry without inner lists.
func flat[T any](check func(T) error) func(T) (int, error) {
	return func(t T) (int, error) { return 0, check(t) }
}

// recordsField reads the field key of r, or returns errUnknown.
func (d *decoder) recordsField(r *cluster.Records, key string) error {
	switch key {
	case "accounts":
		return list(d, &r.Accounts, flat(checkAccount))
	case "orders":
		return list(d, &r.Orders, func(o cluster.Order) (int, error) { return len(o.Domains) + len(o.Records), checkOrder(o) })
	case "ledger":
		return list(d, &r.Ledger, func(a cluster.Attempt) (int, error) { return len(a.Domains), checkAttempt(a) })
	case "tombstones":
		return list(d, &r.Tombstones, flat(checkTombstone))
	case "releases":
		return list(d, &r.Releases, flat(checkRelease))
	case "renewals":
		return list(d, &r.Renewals, flat(checkRenewal))
	case "revocations":
		return list(d, &r.Revocations, flat(checkRevocation))
	}
	return errUnknown
}

func decodeRecords(body io.Reader) (cluster.Records, error) {
	var r cluster.Records
	d := newDecoder(body)
	err := firstThen(d.object(func(key string) error { return d.recordsField(&r, key) }), d.end)
	return r, err
}

func decodeInventory(body io.Reader) (cluster.Inventory, error) {
	var i cluster.Inventory
	d := newDecoder(body)
	err := d.object(func(key string) error {
		switch key {
		case "api":
			return d.value(&i.API)
		case "version":
			return d.value(&i.Version)
		case "node":
			return d.value(&i.Node)
		case "role":
			return d.value(&i.Role)
		case "time":
			return d.value(&i.Time)
		case "digest":
			return d.value(&i.Digest)
		case "generations":
			return list(d, &i.Generations, flat(checkGeneration))
		case "alarms":
			return d.alarms(&i.Alarms)
		}
		return d.recordsField(&i.Records, key)
	})
	err = firstThen(err, d.end)
	if err == nil {
		err = firstError(checkName("node", i.Node), checkText("version", i.Version, maxText), checkText("digest", i.Digest, maxText))
	}
	return i, err
}

// alarms reads what a peer told of alarms.
func (d *decoder) alarms(out **cluster.AlarmBook) error {
	var book cluster.AlarmBook
	err := d.object(func(key string) error {
		switch key {
		case "judged":
			return d.value(&book.Judged)
		case "master":
			return d.text(&book.Master)
		case "master_seen":
			return d.value(&book.MasterSeen)
		case "entries":
			return list(d, &book.Entries, func(e cluster.AlarmEntry) (int, error) { return len(e.Rises), checkAlarm(e.Alarm) })
		}
		return errUnknown
	})
	for i := range book.Entries {
		e := &book.Entries[i]
		for _, text := range []*string{(*string)(&e.Kind), &e.Node, &e.Subject, &e.Text, &e.Hint, &e.By} {
			*text = cleanText(*text, maxText)
		}
	}
	*out = &book
	return err
}

// checkAlarm wants an alarm that is about a certificate to name one.
func checkAlarm(a cluster.Alarm) error {
	if a.Slot == (cert.Slot{}) {
		return nil
	}
	return checkSlot(a.Slot)
}

func decodeStatus(body io.Reader) (cluster.NodeStatus, error) {
	var s cluster.NodeStatus
	d := newDecoder(body)
	err := d.object(func(key string) error {
		switch key {
		case "node":
			return d.value(&s.Node)
		case "role":
			return d.value(&s.Role)
		case "time":
			return d.value(&s.Time)
		case "version":
			return d.text(&s.Version)
		case "digest":
			return d.text(&s.Digest)
		case "reachable":
			return d.value(&s.Reachable)
		case "error":
			return d.text(&s.Error)
		case "hint":
			return d.text(&s.Hint)
		case "held":
			return list(d, &s.Held, flat(checkGeneration))
		case "placements":
			return d.placements(&s.Placements)
		case "unconfigured":
			return list(d, &s.Unconfigured, flat(checkSlot))
		case "problems":
			return d.texts(&s.Problems)
		}
		return errUnknown
	})
	err = firstThen(err, d.end)
	if err == nil {
		err = checkName("node", s.Node)
	}
	return s, err
}

func decodeCARP(body io.Reader) (cluster.CARP, error) {
	var c cluster.CARP
	d := newDecoder(body)
	err := d.object(func(key string) error {
		switch key {
		case "node":
			return d.value(&c.Node)
		case "time":
			return d.value(&c.Time)
		case "role":
			return d.value(&c.Role)
		case "error":
			return d.text(&c.Error)
		case "hint":
			return d.text(&c.Hint)
		case "source":
			return d.text(&c.Source)
		case "vhids":
			return d.vhids(&c.VHIDs)
		case "demotion":
			return d.value(&c.Demotion)
		case "preempt":
			return d.value(&c.Preempt)
		}
		return errUnknown
	})
	err = firstThen(err, d.end)
	if err == nil {
		err = checkName("node", c.Node)
	}
	return c, err
}

func (d *decoder) vhids(out *[]cluster.VHID) error {
	err := list(d, out, func(v cluster.VHID) (int, error) { return len(v.Addresses), checkVHID(v) })
	for i := range *out {
		v := &(*out)[i]
		for _, text := range []*string{&v.Interface, &v.Version, &v.Error, &v.Hint} {
			*text = cleanText(*text, maxText)
		}
	}
	return err
}

// text reads a string for people, made fit for a terminal.
func (d *decoder) text(out *string) error {
	if err := d.value(out); err != nil {
		return err
	}
	*out = cleanText(*out, maxText)
	return nil
}

func (d *decoder) texts(out *[]string) error {
	err := list(d, out, func(string) (int, error) { return 0, nil })
	for i := range *out {
		(*out)[i] = cleanText((*out)[i], maxText)
	}
	return err
}

func (d *decoder) placements(out *[]cluster.Placement) error {
	err := list(d, out, flat(func(p cluster.Placement) error { return checkSlot(p.Slot) }))
	for i := range *out {
		p := &(*out)[i]
		for _, text := range []*string{&p.Proxy, &p.File, &p.Error, &p.Hint, &p.Disk.Note, &p.Memory.Note, &p.Served.Note,
			&p.Disk.SHA1, &p.Memory.SHA1, &p.Served.SHA1} {
			*text = cleanText(*text, maxText)
		}
	}
	return err
}

// The bodies of the calls that are lists.
type (
	fetchBody struct {
		Generations []cert.Generation `json:"generations"`
	}
	stageReply struct {
		Results []cluster.StageResult `json:"results"`
	}
	releaseBody struct {
		Releases []cluster.Release `json:"releases"`
	}
	releaseReply struct {
		Placements []cluster.Placement `json:"placements"`
	}
)

// decodeList reads an object with one list, under key.
func decodeList[T any](body io.Reader, key string, check func(T) error) ([]T, error) {
	var out []T
	d := newDecoder(body)
	err := d.object(func(k string) error {
		if k != key {
			return errUnknown
		}
		return list(d, &out, flat(check))
	})
	return out, firstThen(err, d.end)
}

func decodePlacements(body io.Reader) ([]cluster.Placement, error) {
	var out []cluster.Placement
	d := newDecoder(body)
	err := d.object(func(key string) error {
		if key != "placements" {
			return errUnknown
		}
		return d.placements(&out)
	})
	return out, firstThen(err, d.end)
}

func firstThen(err error, then func() error) error {
	if err != nil {
		return err
	}
	return then()
}

// isStreamError tells that err came from the stream below a decoder: a limit, a deadline, a cut.
func isStreamError(err error) bool {
	_, ok := errors.AsType[*streamError](err)
	return ok
}

// streamError is a failure of the stream below a decoder: a deadline, a cut. It says nothing of what was sent.
type streamError struct{ err error }

func (e *streamError) Error() string { return e.err.Error() }
func (e *streamError) Unwrap() error { return e.err }

// bounded reads at most left bytes of r and then fails, instead of ending as io.LimitReader does; errors of r become
// streamErrors. progress, where set, is called before each read, and its result after it.
type bounded struct {
	r        io.Reader
	left     int64
	progress func() (done func())
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.progress != nil {
		defer b.progress()()
	}
	if b.left <= 0 {
		// Only a further byte is too much.
		p = p[:min(1, len(p))]
	} else if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("body: %w", errTooLarge)
	}
	if err != nil && err != io.EOF {
		err = &streamError{err}
	}
	return n, err
}
