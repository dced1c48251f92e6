package sysfile

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"certsync/internal/cluster"
)

// parse is Parse of a file that is right.
func parse(t testing.TB, syntax Syntax, text string) *File {
	t.Helper()
	f, err := Parse(syntax, []byte(text))
	if err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	return f
}

func TestAPlainAssignmentIsReadAsShReadsIt(t *testing.T) {
	for text, want := range map[string]string{
		`k=v`:                                `v`,
		`k="v w"`:                            `v w`,
		`k='v w'`:                            `v w`,
		"k=\"v\"\t# comment":                 `v`,
		`k="v" # k="w"`:                      `v`,
		`k=v#w`:                              `v#w`,
		`k=#v`:                               `#v`,
		`k="v"#w`:                            `v#w`,
		`k=`:                                 ``,
		`k=""`:                               ``,
		`k=''`:                               ``,
		`  k=v`:                              `v`,
		"\tk='a\tb'":                         "a\tb",
		`export k="*?[" x='*'`:               `*?[`,
		`export k=v`:                         `v`,
		`export k="v w" l=x`:                 `v w`,
		`export k="v"; x=1`:                  `v`,
		`a=1;k=v;b=2`:                        `v`,
		`a=1 k=v b=2`:                        `v`,
		`k=a; k=b`:                           `b`,
		"k=a\nk=b\n":                         `b`,
		"k=\"a\\\nb\"":                       `ab`,
		"k=\"a \\\n  b\"":                    `a   b`,
		"k=a\\\nb":                           `ab`,
		"k=\"a\nb\"":                         "a\nb",
		"k='a\\\nb'":                         "a\\\nb",
		`k=a\ b`:                             `a b`,
		"a\\\nb=1;\\\nk\\\n=v":               `v`,
		`k="a\"b"`:                           `a"b`,
		`k="a\b"`:                            `a\b`,
		`k="a\$b"`:                           `a$b`,
		`k='a$b'`:                            `a$b`,
		`k="a$"`:                             `a$`,
		`k=a$`:                               `a$`,
		`k=a'b c'"d"e`:                       `ab cde`,
		`k=a~`:                               `a~`,
		`k="~"`:                              `~`,
		`k=*`:                                `*`,
		`k={a,b}`:                            `{a,b}`,
		`k=a=b`:                              `a=b`,
		`k=v; ifconfig_em0.10="inet 1"`:      `v`, // no variable's name: sh looks for a program
		`k=v; k+=w`:                          `v`, // sh has no +=
		`k=v; /sbin/foo k=w`:                 `v`,
		`k=v; k=w /usr/bin/true`:             `v`,
		`k=v; (k=w)`:                         `v`,
		`k=v; f() { k=w; }`:                  `v`,
		`k=v; echo k=w`:                      `v`,
		`k=v; : k=w`:                         `v`,
		`k=v; [ -f /etc/x ]`:                 `v`,
		`k=v; x=$(k=w; echo "$k")`:           `v`,
		`k=v; x="$(echo ')' # k=w` + "\n)\"": `v`,
		"k=v; x=`k=w`":                       `v`,
	} {
		got := parse(t, Shell, text).Get("k")
		if !got.Is(want) {
			t.Errorf("%q: %+v, want %q", text, got, want)
		}
	}
}

func TestWhatIsNotSetIsSaidToBeNotSet(t *testing.T) {
	for _, text := range []string{
		"", "\n", "#k=v", "# k=v\n", "kk=v", "k_=v", "K=v", "x='k=v'", "x=\"\nk=v\"", "unset k", "k=v; unset k", "k=v\nunset -v k x",
		"(k=v)", "f() { k=v; }", "f () { k=v; }", "f()\n{\nk=v\n}", "k=v /bin/ls", "echo k=v", "\\k=v", "'k'=v", "export k",
	} {
		if got := parse(t, Shell, text).Get("k"); got.Set || got.Doubt != "" {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func TestWhatOnlyRunningTheFileWouldTellIsInDoubt(t *testing.T) {
	for text, want := range map[string]string{
		`k=$(hostname)`:                    "line 1 computes it",
		"k=`hostname`":                     "line 1 computes it",
		`k="${x} carp"`:                    "line 1 computes it",
		`k="$x"`:                           "line 1 computes it",
		`k=$x`:                             "line 1 computes it",
		`k=~root`:                          "line 1 computes it",
		`k=a:~`:                            "line 1 computes it",
		`k=$((1+1))`:                       "line 1 computes it",
		`k=$'a'`:                           "line 1 computes it",
		`export k=*`:                       "line 1 computes it",
		`export k=$x`:                      "line 1 computes it",
		"k=v\n. /etc/rc.conf.site":         "line 2 reads another file",
		"k=v\n[ -r /etc/x ] && . /etc/x\n": "line 2 reads another file",
		"k=v\neval \"$x\"":                 "line 2 runs the command eval",
		"k=v\n$x":                          "line 2 runs a command that is computed",
		"k=v\nsetvar k w":                  "line 2 runs the command setvar",
		"k=v\nread k":                      "line 2 runs the command read",
		"k = v":                            "line 1 runs the command k",
		"k=a b":                            "line 1 runs the command b",
		"k=v\nif [ -f /x ]; then k=w; fi":  "the command in line 2 sets it",
		"k=v\nif [ -f /x ]; then\n:\nelse k=w\nfi":    "the command in line 2 sets it",
		"k=v\nif a; then :; elif k=w; then :; fi":     "the command in line 2",
		"k=v\nwhile :; do k=w; done":                  "the command in line 2 sets it",
		"k=v\nuntil :\ndo\nk=w; done":                 "the command in line 2 sets it",
		"k=v\nfor k in a b; do :; done":               "the command in line 2 sets it",
		"k=v\nfor i in a b\ndo k=w\ndone":             "the command in line 2 sets it",
		"k=v\ncase $x in\n a|b) k=w ;;\n *) ;;\nesac": "the command in line 2 sets it",
		"k=v\ncase $x in (a) :;; (b) k=w\nesac":       "the command in line 2 sets it",
		"k=v\n{ k=w; }":                               "the command in line 2 sets it",
		"k=v\n! k=w":                                  "the command in line 2 sets it",
		"k=v\nfalse || k=w":                           "line 2 sets it under a condition",
		"k=v\nk=w && x=1":                             "line 2 sets it under a condition",
		"k=v\nk=w | x=1":                              "line 2 sets it under a condition",
		"k=v\nk=w &":                                  "line 2 sets it under a condition",
		"k=v\n: ${k:=w}":                              "line 2 sets it where it is not set",
		"k=v\n: \"${k=w}\"":                           "line 2 sets it where it is not set",
		"k=v\nx=$((k=2))":                             "an expression may set it",
		"k=v\nk=w :":                                  "line 2 sets it for a command",
		"return\nk=v":                                 "line 1 may end the file (return)",
		"[ -f /x ] && exit 0\nk=v":                    "line 1 may end the file (exit)",
		"k=v\nf() { k=w; }\nf":                        "line 3 runs the command f",
		"k=v\nunset $x":                               "line 2 unsets what is computed",
		"k=v\nexport $x":                              "line 2 exports what is computed",
		"k=v\ncat <<E >/dev/null\nk=w\nE":             "line 2 runs the command cat",
	} {
		got := parse(t, Shell, text).Get("k")
		if !strings.Contains(got.Doubt, want) {
			t.Errorf("%q: %+v, want a doubt with %q", text, got, want)
		}
	}
}

func TestWhatIsSetPlainlyAfterADoubtIsNotInDoubt(t *testing.T) {
	for _, before := range []string{
		"k=$x", ". /etc/x", "if x; then k=w; fi", "cat <<E\nk=w\nE", "cat <<-'E'\n\tk=w\n\tE", "f() (\nk=w\n)", "for i; do :; done",
		"case x in esac", "while read l; do eval \"$l\"; done < /etc/x", "x=1 2>/dev/null", ">/tmp/x", "echo \"${x:-\"a b\"}\" '${'",
		"x=${y#*\\}}", "x=\"${y:-it's}\"", "a=$(case b in b) echo c;; esac)", "x && # why\n y", "x |\n y", "{ :\n}", "( : )",
		"[ -n \"$(ls -A /x 2>/dev/null)\" ] && echo full", "x=$(cat <<E\n)\nE\n)", "if x\nthen # y\n:\nfi >/dev/null 2>&1",
	} {
		text := before + "\nk=v\n"
		if got := parse(t, Shell, text).Get("k"); !got.Is("v") {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func TestAFileThatShWouldRefuseIsRefused(t *testing.T) {
	for text, want := range map[string]string{
		"k='v":                                   "line 1: a quote is not closed",
		"a=1\nk=\"v\nb=2\n":                      "a quote is not closed",
		"k=$(v":                                  "a parenthesis is not closed",
		"k=${v":                                  "${ is not closed",
		"k=`v":                                   "a back quote is not closed",
		"k=$((1":                                 "$(( is not closed",
		"k=v\\":                                  "the file ends in a backslash",
		"k=v\r\nl=w\r\n":                         "line 1: ends in CR LF",
		"k=v\nl=\"\x00\"":                        "line 2: a NUL byte",
		"if x; then k=v":                         `there is no "fi"`,
		"fi":                                     "has nothing that it ends",
		"k=v )":                                  "has nothing that it ends",
		"k=v\n}\n":                               "has nothing that it ends",
		"x ;; k=v":                               "has nothing that it ends",
		"a &&":                                   "the file ends in the middle of a command",
		"a & & b":                                "is not understood here",
		"; a":                                    "is not understood here",
		"case x in a) k=v":                       "case has no esac",
		"cat <<E\nk=v\n":                         "a here-document has no end",
		"k=(a b)":                                "is not understood",
		"x=$'a\\'b'":                             "$'...' is not understood",
		strings.Repeat("(", 1<<16):               "more than 100 deep",
		strings.Repeat("k=${a:-", 1<<16):         "more than 100 deep",
		strings.Repeat("k=$(", 1<<16):            "more than 100 deep",
		strings.Repeat("! ", 1<<16):              "more than 100 deep",
		strings.Repeat("k=\"${a", 1<<16):         "more than 100 deep",
		strings.Repeat("k=v\n", MaxSize/4) + "x": "at most 1048576 are read",
	} {
		_, err := Parse(Shell, []byte(text))
		if !errors.Is(err, ErrSyntax) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", text, err, want)
		} else if strings.Contains(text, "\r") != strings.Contains(cluster.HintOf(err), "tr -d") {
			t.Errorf("%.40q: the hint is %q", text, cluster.HintOf(err))
		}
	}
}

// TestAHugeFileIsReadInTheTimeOfALargeOne would last for hours were anything quadratic in it.
func TestAHugeFileIsReadInTheTimeOfALargeOne(t *testing.T) {
	for _, line := range []string{"k=v\n", "#k=v\n", "k=$x\n", "f(){ k=v;}\n", "k=\"a\\\nb\"\n", "x && k=v\n", "k=a;"} {
		f := parse(t, Shell, strings.Repeat(line, MaxSize/4/len(line)))
		f.Get("k")
		_ = f.Keys()
		if _, err := f.Set("k", "w"); err != nil {
			t.Error(err)
		}
		_, _ = f.Unset("k")
	}
}

// shWord is a piece of a plain value, as it stands in a file.
func shWord() *rapid.Generator[string] {
	bareText := rapid.StringMatching(`[a-zA-Z0-9_./:,@%+=#*-]{1,8}`)
	return rapid.OneOf(
		bareText,
		rapid.Map(rapid.StringMatching(`[a-z #;&|()<>*~!{}\\-]{0,10}`), func(s string) string { return "'" + s + "'" }),
		rapid.Map(rapid.StringMatching(`[a-z #;&|()<>*~!{}'-]{0,10}`), func(s string) string { return `"` + s + `"` }),
		rapid.SampledFrom([]string{`\ `, `\"`, `\'`, `\\`, `\$`, "\\\n", `"\$"`, `"\a"`, "\"a\\\nb\"", "\"a\nb\"", `"$"`, `"\\"`, "'$x'", `'"'`, `"'"`}),
	)
}

// plainFile is the text of a file of plain lines: assignments to a, b and c in all forms, comments, blank lines.
func plainFile() *rapid.Generator[string] {
	assign := rapid.Custom(func(t *rapid.T) string {
		words := rapid.SliceOfN(shWord(), 0, 3).Draw(t, "words")
		value := strings.Join(words, "")
		if strings.HasPrefix(value, "#") {
			value = "x" + value
		}
		return rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "key") + "=" + value
	})
	line := rapid.Custom(func(t *rapid.T) string {
		indent := rapid.SampledFrom([]string{"", "", " ", "\t", "export "}).Draw(t, "indent")
		tail := rapid.SampledFrom([]string{"", "", " ", "\t# a=\"no\"", ";", "; # b=1"}).Draw(t, "tail")
		switch rapid.IntRange(0, 6).Draw(t, "kind") {
		case 0:
			return rapid.SampledFrom([]string{"", "# a comment", "#a=\"NO\"", "  # b=1", "\t", "#c='", "# it's \"", "#\\"}).Draw(t, "other")
		case 1:
			return assign.Draw(t, "first") + ";" + assign.Draw(t, "second")
		case 2:
			return assign.Draw(t, "first") + " " + assign.Draw(t, "second")
		}
		return indent + assign.Draw(t, "assignment") + tail
	})
	return rapid.Custom(func(t *rapid.T) string {
		text := strings.Join(rapid.SliceOfN(line, 0, 8).Draw(t, "lines"), "\n")
		if text != "" && rapid.Bool().Draw(t, "newline") {
			text += "\n"
		}
		return text
	})
}

// shellProgram is the path of sh(1).
func shellProgram(t testing.TB) string {
	t.Helper()
	sh, err := exec.LookPath("sh")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return sh
}

// runShell gives the value of key in a shell that read text, or "unset".
func runShell(t interface{ Fatalf(string, ...any) }, sh, text, key string) string {
	value, err := tryShell(sh, text, key)
	if err != nil {
		t.Fatalf("sh: %v of:\n%s", err, text)
	}
	return value
}

// tryShell is runShell of a text that the shell may refuse, or never come to the end of. It finds no programs.
func tryShell(sh, text, key string) (string, error) {
	file := filepath.Join(programs, "rc.conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, sh, "-c", `. "$1" >/dev/null 2>&1; eval "printf %s \"\${$2-unset}\""; printf %s end`, "sh", file, key)
	cmd.Dir, cmd.Env = programs, []string{"PATH=/nonexistent", "HOME=/home"}
	out, err := cmd.Output()
	if err != nil {
		return "", err
	}
	value, ended := strings.CutSuffix(string(out), "end")
	if !ended {
		return "", errors.New("it ended early")
	}
	return value, nil
}

func TestShAgreesOnPlainFiles(t *testing.T) {
	sh := shellProgram(t)
	rapid.Check(t, func(t *rapid.T) {
		text := plainFile().Draw(t, "file")
		f, err := Parse(Shell, []byte(text))
		if err != nil {
			t.Fatalf("%v, and sh takes:\n%s", err, text)
		}
		for _, key := range f.Keys() {
			got := f.Get(key)
			want := runShell(t, sh, text, key)
			if got.Doubt == "" && (!got.Set && want != "unset" || got.Set && got.Value != want) {
				t.Errorf("%s: %+v, and to sh %q, in:\n%s", key, got, want, text)
			}
		}
	})
}

// TestShAgreesOnTheFilesOfHosts runs the files that nothing in needs a FreeBSD for.
func TestShAgreesOnTheFilesOfHosts(t *testing.T) {
	sh := shellProgram(t)
	for name, text := range rcFiles {
		f := parse(t, Shell, text)
		for _, key := range f.Keys() {
			if got, want := f.Get(key), runShell(t, sh, text, key); got.Doubt == "" && !got.Is(want) {
				t.Errorf("%s of %s: %+v, and to sh %q", key, name, got, want)
			}
		}
	}
}

// soup are pieces of shell programs in no order, which now and then make one.
func soup() *rapid.Generator[string] {
	piece := rapid.SampledFrom([]string{
		"a=1", "a=2", "b=1", "a=\"3 4\"", "a='5'", "a=", "a=$b", "a=\"${b}\"", "a=${b:-6}", ": ${a:=7}", "a=$((1+1))", "b=$((a=8))", "a=`:`", "a=$(a=9)", "export a=10", "unset a",
		"a=11 :", "a=12 true", "a=13 x", "\"a=14\"", "a\\\n=15", "#a=16", "# c", "a=~", "a=\"17\\\n18\"", "a+=19", "a.b=20", "${c}", "$c a=21",
		"if", "then", "elif", "else", "fi", "if false; then", "if :; then", "while false; do", "until :; do", "for a in 22 23; do", "for b in; do", "do", "done",
		"case $b in", "1)", "*)", ";;", "esac", "case x in x) a=24 ;; esac", "{", "}", "(", ")", "f() {", "f()", "!", "&&", "||", "|", "&", ";", "\n", "\n", "\n", ";",
		"return", "false", "true", ":", "x", "[ 1 = 1 ]", "[ 1 = 2 ]", ">/dev/null", "2>&1", "</dev/null", "<<E\na=25\nE\n", "<<-'E'\n\ta=$(\n\tE\n", "\"", "'", "`", "$(", "${", "\\",
	})
	return rapid.Custom(func(t *rapid.T) string {
		var text strings.Builder
		for _, p := range rapid.SliceOfN(piece, 0, 12).Draw(t, "pieces") {
			text.WriteString(p + rapid.SampledFrom([]string{" ", " ", "\n", "; "}).Draw(t, "between"))
		}
		return text.String()
	})
}

// TestWhatIsToldOfAnyProgramIsWhatShMakesOfIt: where sh comes to the end of a file, the value of a key without a doubt is
// the one that sh has, and what Set wrote is what sh has then.
func TestWhatIsToldOfAnyProgramIsWhatShMakesOfIt(t *testing.T) {
	sh := shellProgram(t)
	told := 0
	rapid.Check(t, func(t *rapid.T) {
		text := soup().Draw(t, "file")
		f, err := Parse(Shell, []byte(text))
		if err != nil {
			return
		}
		want, err := tryShell(sh, text, "a")
		if err != nil {
			return // whether sh takes it is its own affair
		}
		if got := f.Get("a"); got.Doubt == "" {
			told++
			if !got.Set && want != "unset" || got.Set && got.Value != want {
				t.Errorf("%+v, and to sh %q, in:\n%s", got, want, text)
			}
		}
		if _, err := f.Set("a", "new"); err != nil {
			return
		}
		if got, err := tryShell(sh, string(f.Bytes()), "a"); err != nil || got != "new" {
			t.Errorf("sh has %q (%v) after Set made of:\n%s\n---\n%s", got, err, text, f.Bytes())
		}
	})
	if told == 0 {
		t.Error("the programs never told anything")
	}
}

// FuzzShell looks for what makes the parser fail, hang, or claim what it does not hold to.
func FuzzShell(f *testing.F) {
	for _, text := range rcFiles {
		f.Add([]byte(text), "certsync_enable", "YES")
	}
	f.Add([]byte("k=$(a \"${b:-`c`}\" $((1))) <<E\nE\n"), "k", "it's")
	f.Add([]byte("case x in a) k='v';; esac\nf() { k=v; }"), "k", "a b")
	f.Fuzz(func(t *testing.T, data []byte, key, value string) { checkEdits(t, Shell, data, key, value) })
}

// checkEdits asserts of any file, key and value what Set and Undo promise.
func checkEdits(t interface {
	Fatalf(format string, args ...any)
	Helper()
}, syntax Syntax, data []byte, key, value string) {
	t.Helper()
	f, err := Parse(syntax, data)
	if err != nil {
		return
	}
	if string(f.Bytes()) != string(data) {
		t.Fatalf("Bytes gives %q for %q", f.Bytes(), data)
	}
	others := map[string]Found{}
	for _, k := range f.Keys() {
		if others[k] = f.Get(k); k == key {
			delete(others, k)
		}
	}
	was := f.Get(key)
	edit, err := f.Set(key, value)
	if err != nil {
		if string(f.Bytes()) != string(data) {
			t.Fatalf("Set failed (%v), and left %q for %q", err, f.Bytes(), data)
		}
		return
	}
	if edit.Changed() == was.Is(value) {
		t.Fatalf("Set of %+v to %q: changed is %t", was, value, edit.Changed())
	}
	if got := f.Get(key); !got.Is(value) {
		t.Fatalf("Set %s to %q gives %+v in %q", key, value, got, f.Bytes())
	}
	for k, want := range others {
		if got := f.Get(k); got.Set != want.Set || got.Value != want.Value || (got.Doubt == "") != (want.Doubt == "") {
			t.Fatalf("Set of %s made of %s: %+v for %+v in %q", key, k, got, want, f.Bytes())
		}
	}
	if len(edit.Before) > 0 && was.Doubt != "" {
		t.Fatalf("Set replaced %q, which was in doubt: %s", edit.Before, was.Doubt)
	}
	set := string(f.Bytes())
	if again, err := f.Set(key, value); err != nil || again.Changed() || string(f.Bytes()) != set {
		t.Fatalf("the second Set: %v, %v, %q for %q", again, err, f.Bytes(), set)
	}
	if err := f.Undo(edit); err != nil || string(f.Bytes()) != string(data) {
		t.Fatalf("Undo: %v, %q for %q", err, f.Bytes(), data)
	}
}
