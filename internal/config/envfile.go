package config

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// ReadEnvFile reads the settings of a DNS provider: lines KEY=VALUE. Blank lines and lines that begin with # are passed
// over, and `export ` may stand before a key, so that sh(1) can read the same file; but nothing is expanded, $ and \
// stand for themselves. A value with blanks or quotes in it stands in single quotes, where everything is itself, or in
// double quotes, where \" \\ \$ and \` are the second character alone. The file may be read by its owner and its
// group. Errors name the line and never show a value; they are cluster.ErrUsage.
func ReadEnvFile(path string) (map[string]string, error) {
	data, err := readSecret(path, ownerAndGroup)
	if err != nil {
		return nil, err
	}
	return parseEnv(path, data)
}

// parseEnv reads the text of an environment file; name stands for the file in errors, which all come at once.
func parseEnv(name string, data []byte) (map[string]string, error) {
	env, lines := map[string]string{}, map[string]int{}
	var errs Errors
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	for i, text := range strings.Split(string(data), "\n") {
		key, value, err := parseEnvLine(strings.TrimSuffix(text, "\r"))
		first, twice := lines[key]
		switch {
		case err == nil && key == "":
			continue
		case err == nil && twice:
			err = fmt.Errorf("given twice, first on line %d", first)
		}
		if err != nil && len(errs) < maxErrors {
			errs = append(errs, &Error{File: name, Line: i + 1, Path: key, Reason: err.Error()})
		}
		env[key], lines[key] = value, i+1
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return env, nil
}

// parseEnvLine gives the key, which is "" for a blank line or a comment. With an error the key is given only where it
// is one: what stands there instead could be a secret.
func parseEnvLine(line string) (key, value string, err error) {
	line = strings.Trim(line, " \t")
	if line == "" || line[0] == '#' {
		return "", "", nil
	}
	if !utf8.ValidString(line) || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return "", "", errors.New("characters that are no text")
	}
	if word, rest, _ := strings.Cut(line, " "); word == "export" {
		line = strings.TrimLeft(rest, " \t")
	}
	key, value, ok := strings.Cut(line, "=")
	if !ok || key == "" || !onlyRunes(key, letters+digits+"_") || strings.ContainsAny(key[:1], digits) {
		return "", "", errors.New("not KEY=VALUE, a key being letters, digits and underscore, without blanks around the =")
	}
	value, err = unquote(value)
	return key, value, err
}

// unquote takes the quotes off a value.
func unquote(value string) (string, error) {
	if value == "" || value[0] != '"' && value[0] != '\'' {
		if strings.ContainsAny(value, " \t\"'") {
			return "", errors.New("blanks or quotes within the value: put all of it in single quotes; a comment has a line of its own")
		}
		return value, nil
	}
	quote, out := value[0], strings.Builder{}
	for i := 1; i < len(value); i++ {
		c := value[i]
		switch {
		case c == quote && i+1 == len(value):
			return out.String(), nil
		case c == quote:
			return "", errors.New("text after the closing quote; a comment has a line of its own")
		case c == '\\' && quote == '"' && i+1 < len(value) && strings.IndexByte("\"\\$`", value[i+1]) >= 0:
			i++
			c = value[i]
		}
		out.WriteByte(c)
	}
	return "", errors.New("the closing quote is missing; a value has one line")
}
