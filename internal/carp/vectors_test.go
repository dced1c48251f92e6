package carp

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// vector is one recording of a FreeBSD kernel, testdata/RELEASE/NAME.txt: lines `key: value`, bytes in hex, and `#`
// lines with the decoded meaning. A text recording ends in a program's output, after a line `--- output of: COMMAND`.
type vector struct {
	Release string // "13.2" or "15.1"
	Name    string // without .txt
	Lines   []vectorLine
	Output  string
}

// vectorLine is one line. Key is "#" for a meaning, with its indentation kept in Value; it is "" where the line is
// neither that nor `key: value`.
type vectorLine struct{ Key, Value string }

// vectors reads the recordings of every release whose file name matches the pattern (filepath.Match), sorted. None is
// a failure: a pattern that lost its files must not pass.
func vectors(t testing.TB, pattern string) []vector {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", "[0-9]*", pattern))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no recordings match %s (%v)", pattern, err)
	}
	all := make([]vector, 0, len(paths))
	for _, path := range paths {
		all = append(all, readVector(t, path))
	}
	return all
}

// oneVector reads testdata/RELEASE/NAME.txt.
func oneVector(t testing.TB, release, name string) vector {
	t.Helper()
	return readVector(t, filepath.Join("testdata", release, name+".txt"))
}

func readVector(t testing.TB, path string) vector {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	v := vector{Release: filepath.Base(filepath.Dir(path)), Name: strings.TrimSuffix(filepath.Base(path), ".txt")}
	text := string(data)
	for text != "" {
		var line string
		line, text, _ = strings.Cut(text, "\n")
		if strings.HasPrefix(line, "--- output of:") {
			v.Output = text
			break
		}
		v.Lines = append(v.Lines, parseVectorLine(line))
	}
	return v
}

func parseVectorLine(line string) vectorLine {
	if meaning, ok := strings.CutPrefix(line, "#"); ok {
		return vectorLine{"#", strings.TrimPrefix(meaning, " ")}
	}
	if key, value, ok := strings.Cut(line, ":"); ok {
		return vectorLine{key, strings.TrimSpace(value)}
	}
	return vectorLine{"", line}
}

func (v vector) String() string { return v.Release + "/" + v.Name }

// Values are those of the lines with this key, in order.
func (v vector) Values(key string) []string {
	var values []string
	for _, line := range v.Lines {
		if line.Key == key {
			values = append(values, line.Value)
		}
	}
	return values
}

// Value is the one line with this key; none, or several, is a failure.
func (v vector) Value(t testing.TB, key string) string {
	t.Helper()
	values := v.Values(key)
	if len(values) != 1 {
		t.Fatalf("%v has %d lines %q, want 1", v, len(values), key)
	}
	return values[0]
}

// Bytes are those of the one line with this key.
func (v vector) Bytes(t testing.TB, key string) []byte {
	t.Helper()
	return vectorBytes(t, v.Value(t, key))
}

// Errno is the one line `errno:`; 0 is success.
func (v vector) Errno(t testing.TB) errno {
	t.Helper()
	number, _, _ := strings.Cut(v.Value(t, "errno"), " ")
	n, err := strconv.Atoi(number)
	if err != nil {
		t.Fatalf("%v: errno %q", v, number)
	}
	return errno(n)
}

// Ops are the parts that begin with `# op: NAME`.
func (v vector) Ops() []vector {
	var ops []vector
	for _, line := range v.Lines {
		if name, ok := strings.CutPrefix(line.Value, "op: "); ok && line.Key == "#" {
			ops = append(ops, vector{Release: v.Release, Name: v.Name + "/" + name})
		} else if len(ops) > 0 {
			last := &ops[len(ops)-1]
			last.Lines = append(last.Lines, line)
		}
	}
	return ops
}

// Op is the last element of an op's name, such as `get:ifname=vtnet0,vhid=1`.
func (v vector) Op() string { return v.Name[strings.LastIndex(v.Name, "/")+1:] }

func vectorBytes(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatalf("hex %.40q: %v", text, err)
	}
	return b
}

// number reads a recording's number, decimal or 0x; nothing is 0.
func number(t testing.TB, text string) int {
	t.Helper()
	if text == "" {
		return 0
	}
	n, err := strconv.ParseInt(text, 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}
