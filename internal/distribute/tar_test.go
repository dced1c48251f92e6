package distribute

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
)

func tarBytes(t testing.TB, kept []cluster.Kept) []byte {
	t.Helper()
	var b bytes.Buffer
	w := newTarWriter(&b)
	for _, k := range kept {
		if err := w.write(k); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.end(nil); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// entry is one entry of a hostile tar.
type entry struct {
	header  tar.Header
	content []byte
}

func goodEntry(t testing.TB, n int, k cluster.Kept) entry {
	t.Helper()
	record, err := json.Marshal(k.Generation)
	if err != nil {
		t.Fatal(err)
	}
	pem := k.Bundle.PEM()
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: entryName(n), Mode: 0o600, Size: int64(len(pem)), Format: tar.FormatPAX,
		PAXRecords: map[string]string{recordGeneration: string(record)}}, pem}
}

func endEntry(content string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: nameEnd, Mode: 0o600, Size: int64(len(content)), Format: tar.FormatPAX}, []byte(content)}
}

func hostileTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&e.header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestReadTar_RefusesWhatTheWriterWouldNotWrite(t *testing.T) {
	kept := makeKept(t, 2)
	good := func() entry { return goodEntry(t, 1, kept[0]) }
	with := func(change func(*entry)) []byte {
		e := good()
		change(&e)
		return hostileTar(t, e, endEntry(`{"generations":1}`))
	}
	special := func(flag byte) []byte {
		return with(func(e *entry) {
			e.header.Typeflag, e.header.Linkname, e.header.Size, e.content = flag, "/etc/passwd", 0, nil
		})
	}
	record := func(change func(*cert.Generation)) []byte {
		return with(func(e *entry) {
			g := kept[0].Generation
			change(&g)
			r, err := json.Marshal(g)
			if err != nil {
				t.Fatal(err)
			}
			e.header.PAXRecords[recordGeneration] = string(r)
		})
	}
	whole := tarBytes(t, kept)
	rsa := testCA().Issue(t, certtest.Options{KeyType: cert.RSA2048})
	wrongAlgorithm := cluster.Kept{Generation: rsa.Generation("x", 1), Bundle: rsa}
	wrongAlgorithm.Generation.Algorithm = cert.ECDSA
	for name, data := range map[string][]byte{
		"nothing":           {},
		"zeros":             make([]byte, 4096),
		"junk":              []byte(strings.Repeat("junk", 1000)),
		"no end":            hostileTar(t, good()),
		"symlink":           special(tar.TypeSymlink),
		"hard link":         special(tar.TypeLink),
		"device":            special(tar.TypeChar),
		"block device":      special(tar.TypeBlock),
		"fifo":              special(tar.TypeFifo),
		"folder":            special(tar.TypeDir),
		"contiguous":        special(tar.TypeCont),
		"absolute name":     with(func(e *entry) { e.header.Name = "/etc/passwd" }),
		"parent":            with(func(e *entry) { e.header.Name = "../000001.pem" }),
		"long name":         with(func(e *entry) { e.header.Name = strings.Repeat("a/", 3000) + "b" }),
		"wrong number":      with(func(e *entry) { e.header.Name = entryName(2) }),
		"wrong order":       hostileTar(t, goodEntry(t, 2, kept[0]), goodEntry(t, 1, kept[1]), endEntry(`{"generations":2}`)),
		"duplicate":         hostileTar(t, good(), goodEntry(t, 2, kept[0]), endEntry(`{"generations":2}`)),
		"same name":         hostileTar(t, good(), goodEntry(t, 1, kept[1]), endEntry(`{"generations":2}`)),
		"device numbers":    with(func(e *entry) { e.header.Devmajor = 8 }),
		"no record":         with(func(e *entry) { e.header.PAXRecords = nil }),
		"other record":      with(func(e *entry) { e.header.PAXRecords["SCHILY.xattr.user.x"] = "y" }),
		"empty record":      with(func(e *entry) { e.header.PAXRecords[recordGeneration] = "{}" }),
		"record is no JSON": with(func(e *entry) { e.header.PAXRecords[recordGeneration] = "x" }),
		"huge record":       with(func(e *entry) { e.header.PAXRecords[recordGeneration] += strings.Repeat(" ", maxText) }),
		"global header":     hostileTar(t, entry{tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "g", PAXRecords: map[string]string{"path": "x"}}, nil}, good()),
		"another name":      record(func(g *cert.Generation) { g.Name = "../x" }),
		"another print":     record(func(g *cert.Generation) { g.Fingerprint[0]++ }),
		"another algorithm": hostileTar(t, goodEntry(t, 1, wrongAlgorithm), endEntry(`{"generations":1}`)),
		"another end":       record(func(g *cert.Generation) { g.NotAfter = g.NotAfter.AddDate(1, 0, 0) }),
		"another start":     record(func(g *cert.Generation) { g.NotBefore = g.NotBefore.AddDate(-1, 0, 0) }),
		"no key":            with(func(e *entry) { e.content = kept[0].Bundle.CertificatesPEM(); e.header.Size = int64(len(e.content)) }),
		"another key": with(func(e *entry) {
			e.content = append(kept[0].Bundle.CertificatesPEM(), kept[1].Bundle.KeyPEM()...)
			e.header.Size = int64(len(e.content))
		}),
		"empty":              with(func(e *entry) { e.content, e.header.Size = nil, 0 }),
		"wrong count":        hostileTar(t, good(), endEntry(`{"generations":2}`)),
		"end is no JSON":     hostileTar(t, good(), endEntry(`x`)),
		"more after the end": hostileTar(t, good(), endEntry(`{"generations":1}`), goodEntry(t, 3, kept[1])),
		"more after trailer": append(bytes.Clone(whole), 'x'),
		"second tar":         append(bytes.Clone(whole), whole...),
	} {
		t.Run(name, func(t *testing.T) {
			err := readTar(bytes.NewReader(data), func(cluster.Kept) error { return nil })
			if !errors.Is(err, ErrForm) {
				t.Errorf("error %v, want %v", err, ErrForm)
			}
			if err != nil && strings.Contains(err.Error(), "PRIVATE") {
				t.Errorf("the error quotes the input: %v", err)
			}
		})
	}
	if err := readTar(bytes.NewReader(whole), func(cluster.Kept) error { return nil }); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

func TestReadTar_RefusesLargeAndSparseEntries(t *testing.T) {
	// A size that is only claimed: nothing of it may be allocated or read.
	for _, size := range []int64{cert.MaxSize + 1, 8 << 30, 1 << 60} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: entryName(1), Size: size, Format: tar.FormatPAX}); err != nil {
			t.Fatal(err)
		}
		if err := readTar(&b, nil); !errors.Is(err, errTooLarge) {
			t.Errorf("%d bytes: error %v, want %v", size, err, errTooLarge)
		}
	}
	// Sparse files say that they hold more than was sent. Go's writer does not make them: the records are patched in,
	// at their length.
	k := makeKept(t, 1)[0]
	e := goodEntry(t, 1, k)
	e.header.PAXRecords = map[string]string{"XXX.sparse.major": "1", "XXX.sparse.minor": "0", "XXX.sparse.realsize": "999999999"}
	data := bytes.ReplaceAll(hostileTar(t, e, endEntry(`{}`)), []byte("XXX.sparse"), []byte("GNU.sparse"))
	if err := readTar(bytes.NewReader(data), nil); !errors.Is(err, ErrForm) && !errors.Is(err, errTooLarge) {
		t.Errorf("sparse: error %v, want it refused", err)
	}
}

// A stream that is cut anywhere is an error, and what was handed over before is whole.
func TestReadTar_CutAnywhere(t *testing.T) {
	kept := makeKept(t, 3)
	whole := tarBytes(t, kept)
	// Nothing is missing once the content of the end entry is there, before its padding and the trailer.
	for cut := 0; cut <= len(whole)-1024-512; cut += 37 {
		n := 0
		err := readTar(bytes.NewReader(whole[:cut]), func(k cluster.Kept) error {
			if err := checkKept(k); err != nil {
				t.Errorf("cut at %d: %v", cut, err)
			}
			n++
			return nil
		})
		if err == nil {
			t.Fatalf("cut at %d of %d: taken for whole, with %d generations", cut, len(whole), n)
		}
	}
}

func TestReadTar_TheSendersFailureArrives(t *testing.T) {
	var b bytes.Buffer
	w := newTarWriter(&b)
	if err := w.end(cluster.WithHint(cluster.ErrBusy, "wait")); err != nil {
		t.Fatal(err)
	}
	if err := readTar(&b, nil); !errors.Is(err, cluster.ErrBusy) || cluster.HintOf(err) != "wait" {
		t.Errorf("error %v", err)
	}
}

func FuzzReadTar(f *testing.F) {
	kept := makeKept(f, 2)
	f.Add(tarBytes(f, kept))
	f.Add(tarBytes(f, nil))
	f.Add(hostileTar(f, goodEntry(f, 1, kept[0])))
	f.Fuzz(func(t *testing.T, data []byte) {
		var got []cluster.Kept
		err := readTar(bytes.NewReader(data), func(k cluster.Kept) error { got = append(got, k); return nil })
		for _, k := range got {
			if err := checkKept(k); err != nil {
				t.Errorf("handed over: %v", err)
			}
		}
		if err != nil {
			return
		}
		again := tarBytes(t, got)
		n := 0
		if err := readTar(bytes.NewReader(again), func(cluster.Kept) error { n++; return nil }); err != nil || n != len(got) {
			t.Errorf("written again: %d of %d, %v", n, len(got), err)
		}
	})
}

// What a decoder takes has the form that is promised, and survives another trip.
func FuzzDecode(f *testing.F) {
	seed, err := json.Marshal(makeRecords(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(`{"node":"n","api":1,"role":"MASTER","generations":[],"placements":null,"x":{}}`))
	f.Add([]byte(`{"releases":[{"generation":{"name":"a","algorithm":"rsa"}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		body := func() io.Reader { return bytes.NewReader(data) }
		if i, err := decodeInventory(body()); err == nil {
			if checkName("node", i.Node) != nil {
				t.Errorf("node %q", i.Node)
			}
			again, err := json.Marshal(i)
			if err != nil {
				t.Fatalf("encode: %v", err)
			}
			if _, err := decodeInventory(bytes.NewReader(again)); err != nil {
				t.Errorf("decode again: %v\n%s", err, again)
			}
		}
		if r, err := decodeRecords(body()); err == nil {
			for _, o := range r.Orders {
				if checkOrder(o) != nil {
					t.Errorf("order %+v", o)
				}
			}
		}
		_, _ = decodeStatus(body())
		_, _ = decodeCARP(body())
		_, _ = decodePlacements(body())
		_, _ = decodeList(body(), "generations", checkGeneration)
		var w wireError
		_ = json.Unmarshal(data, &w)
		if e := w.toError(500); strings.ContainsAny(e.Error(), "\x00\x1b\n\r") {
			t.Errorf("error %q", e)
		}
	})
}
