package bootstrap

import (
	"fmt"
	"strings"
)

// quote makes one word for sh(1) of s.
func quote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./:,=@%+", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// command makes a line for sh(1) of a command and its arguments. The line can follow `doas` or `sudo`: what needs a
// pipe, a redirection or a password from its file is one argument of `sh -c`.
func command(argv ...string) string {
	words := make([]string, len(argv))
	for i, a := range argv {
		words[i] = quote(a)
	}
	return strings.Join(words, " ")
}

// script is a command that runs lines by sh(1).
func script(format string, args ...any) string {
	return command("sh", "-c", fmt.Sprintf(format, args...))
}

// appendLine adds a line to a file by hand. open tells that the file's last line has no newline.
func appendLine(path, line string, open bool) string {
	return script("printf '%s%%s\\n' %s >> %s", newlineIf(open), quote(line), quote(path))
}

// appendSecret adds a line in which @ stands for the password, read from its file by the command: no password is ever an
// argument. printf is sh's own, so that ps(1) shows nothing.
func appendSecret(path, line, passwordFile string, open bool) string {
	format := strings.ReplaceAll(strings.ReplaceAll(line, "%", "%%"), "@", "%s")
	return script("umask 077; printf '%s%s\\n' \"$(cat %s)\" >> %s", newlineIf(open), format, quote(passwordFile), quote(path))
}

func newlineIf(open bool) string {
	if open {
		return `\n`
	}
	return ""
}

// With puts doas, sudo or another prefix before each command.
func With(prefix string, commands []string) []string {
	var out []string
	for _, c := range commands {
		out = append(out, prefix+" "+c)
	}
	return out
}
