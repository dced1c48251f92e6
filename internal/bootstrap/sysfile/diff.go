package sysfile

import (
	"fmt"
	"regexp"
	"strings"
)

// Diff shows what changes between two contents of the file name: a line with the name, then each line that goes with "-"
// before it and each that comes with "+", in their order. It is "" where nothing does. Each line passes through redact,
// which must take secrets out of it; nil is Redact.
func Diff(before, after []byte, name string, redact func(line string) string) string {
	if string(before) == string(after) {
		return ""
	}
	if redact == nil {
		redact = Redact
	}
	var out strings.Builder
	out.WriteString(printable(name) + "\n")
	a, b := linesOf(string(before)), linesOf(string(after))
	for _, c := range changes(a.all, b.all) {
		fmt.Fprintf(&out, "%c%s\n", c.sign, printable(redact(c.line)))
	}
	if a.newline != b.newline && len(a.all) > 0 && len(b.all) > 0 {
		out.WriteString(endNote(b.newline))
	}
	return out.String()
}

func endNote(now bool) string {
	if now {
		return "\\ the last line gets its newline\n"
	}
	return "\\ the last line has no newline any more\n"
}

type change struct {
	sign byte
	line string
}

// mostCompared bounds the table of the comparison; beyond it all lines between the common beginning and the common end
// count as changed.
const mostCompared = 1 << 20

// changes are the lines that go and come, by a longest common subsequence.
func changes(a, b []string) []change {
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	if len(a)*len(b) > mostCompared {
		return append(signed('-', a), signed('+', b)...)
	}
	common := commonLengths(a, b)
	var out []change
	i, j := 0, 0
	for i < len(a) && j < len(b) {
		switch {
		case a[i] == b[j]:
			i, j = i+1, j+1
		case common[i+1][j] >= common[i][j+1]:
			out = append(out, change{'-', a[i]})
			i++
		default:
			out = append(out, change{'+', b[j]})
			j++
		}
	}
	return append(append(out, signed('-', a[i:])...), signed('+', b[j:])...)
}

func signed(sign byte, lines []string) []change {
	var out []change
	for _, line := range lines {
		out = append(out, change{sign, line})
	}
	return out
}

// commonLengths tells, for each pair of places, how many lines the rests have in common.
func commonLengths(a, b []string) [][]int {
	t := make([][]int, len(a)+1)
	for i := range t {
		t[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				t[i][j] = t[i+1][j+1] + 1
			} else {
				t[i][j] = max(t[i+1][j], t[i][j+1])
			}
		}
	}
	return t
}

// Redacted stands in the place of a secret.
const Redacted = "[secret]"

var (
	passWord  = regexp.MustCompile(`\b(pass[ \t]+)(?:\\?"[^"]*"?|\\?'[^']*'?|[^\s"';]\S*?)(["';]?(?:\s|$))`)
	secretKey = regexp.MustCompile(`(?i)^([\s#]*(?:export\s+)?[^\s=:#]*(?:pass|secret|token|psk|key|credential|auth)[^\s=:]*\s*[=:]).*`)
)

// Redact takes out of a line of rc.conf(5), loader.conf(5) or sysctl.conf(5) what looks like a secret: the word after
// `pass` of ifconfig(8), and the value of a key whose name says that it is one.
func Redact(line string) string {
	if m := secretKey.FindStringSubmatch(line); m != nil {
		return m[1] + Redacted
	}
	return passWord.ReplaceAllString(line, "${1}"+Redacted+"${2}")
}

// printable is s with what a terminal would act on written as an escape.
func printable(s string) string {
	var out strings.Builder
	for _, r := range s {
		if r == '\t' || r >= ' ' && r != 0x7f && (r < 0x80 || r > 0x9f) && r != '\ufffd' {
			out.WriteRune(r)
		} else {
			fmt.Fprintf(&out, `\x%02x`, r)
		}
	}
	return out.String()
}
