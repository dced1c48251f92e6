package sysfile

import (
	"errors"
	"testing"

	"pgregory.net/rapid"
)

func TestALineOfLoaderConfIsReadAsTheLoaderReadsIt(t *testing.T) {
	for text, want := range map[string]string{
		`carp_load="YES"`:                            "YES",
		`carp_load=YES`:                              "YES",
		`carp_load="yes" # why`:                      "yes",
		"carp_load=\"YES\"#why":                      "YES",
		" \tcarp_load = \"YES\"\t":                   "YES",
		`carp_load=""`:                               "",
		`carp_load="$x"`:                             "$x", // as it is, for a module
		"carp_load=NO\ncarp_load=YES":                "YES",
		"carp_load=YES\n#carp_load=NO":               "YES",
		"carp_load=YES\ncarp_load='NO'":              "YES", // no line: it is passed over
		"carp_load=YES\ncarp_load=\"NO":              "YES",
		"carp_load=YES\ncarp_load=NO x":              "YES",
		"carp_load=YES\ncarp_load=\"NO\" exec=\"x\"": "YES",
		"carp_load=YES\ncarp_load":                   "YES",
		"carp_load=YES\nexport carp_load=NO":         "YES",
		"carp_load=YES; x=1\ncarp_load=1-2.3_4":      "1-2.3_4",
	} {
		if got := parse(t, Loader, text).Get("carp_load"); !got.Is(want) {
			t.Errorf("%q: %+v, want %q", text, got, want)
		}
	}
	for _, text := range []string{"", "#carp_load=YES", "carp_load='YES'", "_carp_load=YES", "exec=\"carp_load=YES\"", "xcarp_load=YES", "carp_load=/x"} {
		if got := parse(t, Loader, text).Get("carp_load"); got.Set || got.Doubt != "" {
			t.Errorf("%q: %+v", text, got)
		}
	}
	if got := parse(t, Loader, "exec=\"x\"\nexec=word").Get("exec"); !got.Is("word") {
		t.Errorf("exec: %+v", got) // a variable of that name, to config.lua
	}
	for _, text := range []string{`module_blacklist="${module_blacklist} carp"`, `module_blacklist="a\b"`} {
		if got := parse(t, Loader, text).Get("module_blacklist"); got.Doubt != "line 1 computes it" {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func TestALineOfSysctlConfIsReadAsSysctlReadsIt(t *testing.T) {
	const key = "net.inet.carp.preempt"
	for text, want := range map[string]string{
		key + "=1":                  "1",
		key + " = 1 ":               "1",
		key + ": 1":                 "1",
		"\t" + key + "=1# why":      "1",
		key + `="1"`:                "1",
		key + `='1' # why "x"`:      "1",
		key + `="1`:                 "1",
		key + `="a#b" # c`:          "a#b",
		key + `=a\#b # c`:           `a\#b`,
		key + "=":                   "",
		key + "=0\n" + key + "=1":   "1",
		key + "=1\n" + key:          "1", // shows it
		key + "=1\n#" + key + "=0":  "1",
		key + "=1\n" + key + ".x=0": "1",
		key + "=1\nx " + key + "=0": "1",
	} {
		if got := parse(t, Sysctl, text).Get(key); !got.Is(want) {
			t.Errorf("%q: %+v, want %q", text, got, want)
		}
	}
}

func TestSetOfLoaderAndSysctlChangesOneLine(t *testing.T) {
	for name, c := range map[string]struct {
		syntax                    Syntax
		before, key, value, after string
	}{
		"loader, empty":         {Loader, "", "carp_load", "YES", "carp_load=\"YES\"\n"},
		"loader, no newline":    {Loader, "zfs_load=\"YES\"", "carp_load", "YES", "zfs_load=\"YES\"\ncarp_load=\"YES\"\n"},
		"loader, NO":            {Loader, "a=1\n carp_load = \"NO\"  # x\nb=2\n", "carp_load", "YES", "a=1\n carp_load = \"YES\"  # x\nb=2\n"},
		"loader, bare":          {Loader, "carp_load=NO#x\n", "carp_load", "YES", "carp_load=\"YES\"#x\n"},
		"loader, commented":     {Loader, "#carp_load=\"YES\"\nb=2", "carp_load", "YES", "#carp_load=\"YES\"\ncarp_load=\"YES\"\nb=2"},
		"loader, unparseable":   {Loader, "carp_load='NO'\nif x\nexec=\"y\"\n", "carp_load", "YES", "carp_load='NO'\nif x\nexec=\"y\"\ncarp_load=\"YES\"\n"},
		"loader, twice":         {Loader, "carp_load=\"YES\"\ncarp_load=\"NO\"\n", "carp_load", "YES", "carp_load=\"YES\"\ncarp_load=\"YES\"\n"},
		"sysctl, empty":         {Sysctl, "", "net.inet.carp.log", "2", "net.inet.carp.log=2\n"},
		"sysctl, fresh":         {Sysctl, sysctlFile, "net.inet.carp.log", "2", sysctlFile + "net.inet.carp.log=2\n"},
		"sysctl, commented":     {Sysctl, sysctlFile, "security.bsd.see_other_uids", "1", sysctlFile + "security.bsd.see_other_uids=1\n"},
		"sysctl, in place":      {Sysctl, "a.b=1\n net.inet.carp.log : 1 # x\nc=2", "net.inet.carp.log", "2", "a.b=1\n net.inet.carp.log : 2 # x\nc=2"},
		"sysctl, quoted":        {Sysctl, "a=\"1\"# x\n", "a", "2", "a=\"2\"# x\n"},
		"sysctl, single quoted": {Sysctl, "a='1'\n", "a", "2", "a='2'\n"},
		"sysctl, no value":      {Sysctl, "a=\n", "a", "2", "a=2\n"},
		"sysctl, shown":         {Sysctl, "a\n", "a", "2", "a\na=2\n"},
	} {
		f := parse(t, c.syntax, c.before)
		if e, err := f.Set(c.key, c.value); err != nil || !e.Changed() || string(f.Bytes()) != c.after {
			t.Errorf("%s: %q (%v), want %q", name, f.Bytes(), err, c.after)
		}
		checkEdits(t, c.syntax, []byte(c.before), c.key, c.value)
	}
}

func TestSetRefusesWhatTheLoaderOrSysctlWouldActOn(t *testing.T) {
	for _, c := range []struct {
		syntax     Syntax
		key, value string
	}{
		{Loader, "carp_load", `a"b`}, {Loader, "carp_load", "a\nb"}, {Loader, "x", "$y"}, {Loader, "x", `\`},
		{Loader, "exec", "x"}, {Loader, "_x", "x"}, {Loader, "a b", "x"}, {Loader, "", "x"},
		{Sysctl, "a", ""}, {Sysctl, "a", "1 # x"}, {Sysctl, "a", " 1"}, {Sysctl, "a", "1\n"}, {Sysctl, "a", `"1"`}, {Sysctl, "a", `1\`},
		{Sysctl, "a b", "1"}, {Sysctl, "", "1"}, {Sysctl, "a=", "1"},
	} {
		f := parse(t, c.syntax, "y=1\n")
		if _, err := f.Set(c.key, c.value); !errors.Is(err, ErrValue) || string(f.Bytes()) != "y=1\n" {
			t.Errorf("%d %q=%q: %v, %q", c.syntax, c.key, c.value, err, f.Bytes())
		}
	}
}

func TestFilesOfOtherSystemsAreRefusedInAllSyntaxes(t *testing.T) {
	for _, syntax := range []Syntax{Shell, Loader, Sysctl} {
		for _, text := range []string{"a=1\r\n", "a=1\nb=\x00"} {
			if _, err := Parse(syntax, []byte(text)); !errors.Is(err, ErrSyntax) {
				t.Errorf("%d %q: %v", syntax, text, err)
			}
		}
	}
	if _, err := Parse(0, nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v", err)
	}
}

// sysctlFile is a fresh host's.
const sysctlFile = `# $FreeBSD$
#
#  This file is read when going to multi-user and its contents piped thru
#  sysctl to adjust kernel values.  See sysctl.conf(5) for details.
#

# Uncomment this to prevent users from seeing information about processes that
# are being run under another UID.
vfs.zfs.min_auto_ashift=12
#security.bsd.see_other_uids=0
`

// lineFile is a file of lines as they are, or nearly are, in loader.conf and sysctl.conf.
func lineFile() *rapid.Generator[string] {
	line := rapid.OneOf(
		rapid.StringMatching(`[ \t]{0,2}(carp_load|a\.b|x) ?[=:] ?("[a-zA-Z0-9 #$\\]{0,6}"|[a-zA-Z0-9]{0,4}|'[a-z#]{0,3}') ?(# ?x="1")?`),
		rapid.SampledFrom([]string{"", "# x", "#carp_load=\"NO\"", "# a.b=1", "exec=\"echo x\"", "x", "a.b", "x=\"", "'", "a.b='1", "x=1 y"}),
	)
	return rapid.Custom(func(t *rapid.T) string {
		text := ""
		for _, l := range rapid.SliceOfN(line, 0, 6).Draw(t, "lines") {
			text += l + "\n"
		}
		if text != "" && rapid.Bool().Draw(t, "cut") {
			text = text[:len(text)-1]
		}
		return text
	})
}

func TestEditsOfLoaderAndSysctlKeepTheirPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		syntax := rapid.SampledFrom([]Syntax{Loader, Sysctl}).Draw(t, "syntax")
		key := rapid.SampledFrom([]string{"carp_load", "a.b", "x", "new"}).Draw(t, "key")
		value := rapid.StringMatching(`[a-zA-Z0-9 .:=-]{0,6}`).Draw(t, "value")
		checkEdits(t, syntax, []byte(lineFile().Draw(t, "file")), key, value)
	})
}

func FuzzLoader(f *testing.F) {
	f.Add([]byte("carp_load=\"YES\" # x\n#a=1\nexec=\"y\"\nb=word\n"), "carp_load", "NO")
	f.Add([]byte("module_blacklist=\"${x} carp\""), "module_blacklist", "a,b")
	f.Fuzz(func(t *testing.T, data []byte, key, value string) { checkEdits(t, Loader, data, key, value) })
}

func FuzzSysctl(f *testing.F) {
	f.Add([]byte(sysctlFile), "net.inet.carp.preempt", "1")
	f.Add([]byte(" a.b : \"1#\" # '\nc='#'#\nd"), "a.b", "2")
	f.Fuzz(func(t *testing.T, data []byte, key, value string) { checkEdits(t, Sysctl, data, key, value) })
}
