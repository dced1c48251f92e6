package distribute

import (
	"archive/tar"
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// The stream of generations is a tar of POSIX.1-2001 (pax) entries: for each generation a regular file whose pax record
// recordGeneration holds the Generation as JSON and whose content is the bundle's PEM; last, an entry nameEnd with how
// many there were, or the error that ended the sender's work. The end entry tells a whole stream from one that was cut
// between two entries. Names are numbers in order, for whoever looks at it with tar; nothing is ever created under them.
const (
	recordGeneration = "CERTSYNC.generation"
	nameEnd          = "end.json"
)

func entryName(i int) string { return fmt.Sprintf("%06d.pem", i) }

// streamEnd is the content of the end entry.
type streamEnd struct {
	Generations int        `json:"generations"`
	Failure     *wireError `json:"failure,omitempty"`
}

// tarWriter writes a stream of generations. It gathers what it writes: net/http makes a packet of each piece that it
// is given, and tar gives it pieces of 512 bytes.
type tarWriter struct {
	w        *tar.Writer
	buffered *bufio.Writer
	n        int
}

func newTarWriter(w io.Writer) *tarWriter {
	buffered := bufio.NewWriterSize(w, 32<<10)
	return &tarWriter{w: tar.NewWriter(buffered), buffered: buffered}
}

func (t *tarWriter) write(k cluster.Kept) error {
	if err := checkKept(k); err != nil {
		return err
	}
	record, err := json.Marshal(k.Generation)
	if err != nil {
		return fmt.Errorf("generation %s of %s: %w", k.Generation.Fingerprint.Short(), k.Generation.Slot, err)
	}
	t.n++
	return t.file(entryName(t.n), map[string]string{recordGeneration: string(record)}, k.Bundle.PEM())
}

// end closes the stream, with failure where the work ended early.
func (t *tarWriter) end(failure error) error {
	e := streamEnd{Generations: t.n}
	if failure != nil {
		w, _ := toWire(failure)
		e.Failure = &w
	}
	content, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("end of the stream: %w", err)
	}
	if err := t.file(nameEnd, nil, content); err != nil {
		return err
	}
	return firstThen(t.w.Close(), t.buffered.Flush)
}

func (t *tarWriter) file(name string, records map[string]string, content []byte) error {
	err := t.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(content)),
		PAXRecords: records, Format: tar.FormatPAX})
	if err != nil {
		return fmt.Errorf("tar entry %s: %w", name, err)
	}
	if _, err := t.w.Write(content); err != nil {
		return fmt.Errorf("tar entry %s: %w", name, err)
	}
	return nil
}

// readTar reads a stream of generations and hands each, checked for form, to each. It refuses whatever tarWriter would
// not have written: other types (links, devices, sparse files, global headers), other names, other records, what is
// larger than a bundle may be, a generation that comes twice, a stream that is cut. An error of each is given back as
// it is.
func readTar(r io.Reader, each func(cluster.Kept) error) error {
	t := tar.NewReader(r)
	seen := map[cert.Generation]bool{}
	for n := 1; ; n++ {
		h, err := t.Next()
		if err != nil {
			return tarError(n, err)
		}
		if err := checkEntry(h, n); err != nil {
			return err
		}
		content, err := io.ReadAll(t)
		if err != nil {
			return tarError(n, err)
		}
		if h.Name == nameEnd {
			return firstThen(readEnd(t, content, n-1), func() error { return wantEOF(r) })
		}
		k, err := readKept(h, content)
		if err != nil {
			return fmt.Errorf("tar entry %d: %w", n, err)
		}
		if seen[k.Generation] {
			return malformed("tar entry %d: generation %s of %s comes twice", n, k.Generation.Fingerprint.Short(), k.Generation.Slot)
		}
		seen[k.Generation] = true
		if err := each(k); err != nil {
			return err
		}
	}
}

// tarError tells a stream that broke from one that is wrong.
func tarError(n int, err error) error {
	switch {
	case isStreamError(err) || errors.Is(err, errTooLarge):
		return fmt.Errorf("tar entry %d: %w", n, err)
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return malformed("tar is cut at entry %d", n)
	}
	return malformed("tar entry %d: %s", n, cleanText(err.Error(), 200))
}

func checkEntry(h *tar.Header, n int) error {
	switch {
	case h.Typeflag != tar.TypeReg || h.Linkname != "" || h.Devmajor != 0 || h.Devminor != 0:
		return malformed("tar entry %d: type %q: not a regular file", n, h.Typeflag)
	case h.Size < 0 || h.Size > cert.MaxSize:
		return fmt.Errorf("tar entry %d: %d bytes, at most %d: %w", n, h.Size, cert.MaxSize, errTooLarge)
	case n > maxGenerations+1:
		return fmt.Errorf("more than %d generations: %w", maxGenerations, errTooLarge)
	}
	for record := range h.PAXRecords {
		if record != recordGeneration || h.Name == nameEnd {
			return malformed("tar entry %d: record %.40q", n, record)
		}
	}
	if h.Name != nameEnd && h.Name != entryName(n) {
		return malformed("tar entry %d: name %.40q, want %s", n, h.Name, entryName(n))
	}
	return nil
}

func readKept(h *tar.Header, content []byte) (cluster.Kept, error) {
	var k cluster.Kept
	record := h.PAXRecords[recordGeneration]
	if len(record) == 0 || len(record) > maxText {
		return k, malformed("record %s of %d bytes", recordGeneration, len(record))
	}
	if err := jsonError(json.Unmarshal([]byte(record), &k.Generation)); err != nil {
		return k, err
	}
	bundle, err := cert.Parse(content)
	if err != nil {
		return k, malformed("bundle: %w", err)
	}
	k.Bundle = bundle
	if err := checkKept(k); err != nil {
		return k, err
	}
	// The same instant in another zone would be another Generation to ==.
	k.Generation.NotBefore, k.Generation.NotAfter = k.Generation.NotBefore.UTC(), k.Generation.NotAfter.UTC()
	return k, nil
}

// readEnd checks the end entry, and that nothing follows it.
func readEnd(t *tar.Reader, content []byte, n int) error {
	var e streamEnd
	if err := jsonError(json.Unmarshal(content, &e)); err != nil {
		return fmt.Errorf("end of the tar: %w", err)
	}
	if _, err := t.Next(); err != io.EOF {
		if err == nil {
			return malformed("tar goes on after its end")
		}
		return tarError(n+2, err)
	}
	if e.Failure != nil {
		return e.Failure.toError(0)
	}
	if e.Generations != n {
		return malformed("tar says that it holds %d generations, and holds %d", e.Generations, n)
	}
	return nil
}

// wantEOF reads what the tar's reader leaves: nothing may follow the trailer.
func wantEOF(r io.Reader) error {
	switch n, err := io.Copy(io.Discard, io.LimitReader(r, 1)); {
	case err != nil:
		return err
	case n > 0:
		return malformed("more after the tar's trailer")
	}
	return nil
}
