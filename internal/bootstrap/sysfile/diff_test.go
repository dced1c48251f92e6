package sysfile

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestADiffShowsTheChangedLinesOnly(t *testing.T) {
	for _, c := range []struct{ before, after, want string }{
		{"", "", ""},
		{"a\n", "a\n", ""},
		{"", "a\nb\n", "f\n+a\n+b\n"},
		{"a\nb\n", "", "f\n-a\n-b\n"},
		{"a\nb\nc\n", "a\nB\nc\n", "f\n-b\n+B\n"},
		{"a\nb\nc\nd\n", "a\nc\nd\ne\n", "f\n-b\n+e\n"},
		{"a", "a\nb\n", "f\n+b\n\\ the last line gets its newline\n"},
		{"a\n", "a", "f\n\\ the last line has no newline any more\n"},
		{"a\n", "a\n\x1b[31m\u009b\ttab é\r\n", "f\n+\\x1b[31m\\x9b\ttab é\\x0d\n"},
	} {
		if got := Diff([]byte(c.before), []byte(c.after), "f", nil); got != c.want {
			t.Errorf("%q to %q: %q, want %q", c.before, c.after, got, c.want)
		}
	}
}

func TestADiffTurnsTheOneIntoTheOther(t *testing.T) {
	lines := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", ""}), 0, 12)
	rapid.Check(t, func(t *rapid.T) {
		a, b := lines.Draw(t, "a"), lines.Draw(t, "b")
		var gone, come []string
		for _, c := range changes(a, b) {
			if c.sign == '-' {
				gone = append(gone, c.line)
			} else {
				come = append(come, c.line)
			}
		}
		if len(a)-len(gone) != len(b)-len(come) {
			t.Errorf("%q to %q: -%q +%q", a, b, gone, come)
		}
		all := slices.Concat(a, come)
		want := slices.Concat(b, gone)
		slices.Sort(all)
		slices.Sort(want)
		if !slices.Equal(all, want) {
			t.Errorf("%q to %q: -%q +%q", a, b, gone, come)
		}
	})
	var a, b []string
	for i := range 3000 {
		a, b = append(a, fmt.Sprint("a", i)), append(b, fmt.Sprint("b", i))
	}
	if got := changes(a, b); len(got) != 6000 {
		t.Errorf("%d changes of two files that share nothing", len(got))
	}
}

func TestADiffNeverShowsASecret(t *testing.T) {
	for _, line := range []string{
		`ifconfig_em0_alias0="inet vhid 1 advskew 100 pass S3cret alias 192.0.2.10/32"`,
		`ifconfig_em0_alias0="inet vhid 1 alias 192.0.2.10/32 pass S3cret"`,
		`ifconfig_em0_alias0='inet vhid 1 pass	S3cret'`,
		`ifconfig_em0_alias0="inet vhid 1 pass 'S3cret S3cret' alias 192.0.2.10/32"`,
		`ifconfig_em0_alias0='inet vhid 1 pass "S3cret S3cret"'`,
		`ifconfig_em0_alias0="inet vhid 1 pass \"S3cret S3cret\" alias x"`,
		`ifconfig_em0_alias0="inet vhid 1 pass \\`,
		`#ifconfig_em0_alias0="inet vhid 1 pass S3cret"; b=1`,
		`pass S3cret`,
		`password="S3cret"`, `x_token=S3cret`, `API_KEY: S3cret`, `export some_secret='S3cret' # S3cret`, `geli_passphrase="S3cret"`,
		` # bootlock_password="S3cret"`,
	} {
		got := Diff(nil, []byte(line+"\n"), "f", nil)
		if strings.Contains(got, "S3cret") {
			t.Errorf("%s", got)
		}
		if strings.Contains(line, "S3cret") && !strings.Contains(got, Redacted) {
			t.Errorf("%s", got)
		}
	}
	for _, line := range []string{`ifconfig_em0_alias0="inet vhid 1 advskew 100 alias 192.0.2.10/32"`, `carp_load="YES"`, `certsync_enable="YES"`, `# pass`, `x="passenger list"`} {
		if got := Redact(line); got != line {
			t.Errorf("%s became %s", line, got)
		}
	}
	if got := Redact(`a="vhid 1 pass S3cret alias 192.0.2.10/32"`); got != `a="vhid 1 pass [secret] alias 192.0.2.10/32"` {
		t.Errorf("%s", got)
	}
	if got := Diff(nil, []byte("x\n"), "f", func(string) string { return "y" }); got != "f\n+y\n" {
		t.Errorf("%q", got)
	}
}

func FuzzDiff(f *testing.F) {
	f.Add([]byte("a\nb\n"), []byte("b\nc"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		got := Diff(a, b, "f", func(string) string { return "" })
		if (got == "") != (string(a) == string(b)) {
			t.Errorf("%q for %q and %q", got, a, b)
		}
	})
}
