package haconf

import (
	"errors"
	"strconv"
	"strings"
)

// truth is what is known of a condition.
type truth int

const (
	no truth = iota
	maybe
	yes
)

func (t truth) not() truth        { return yes - t }
func (t truth) and(u truth) truth { return min(t, u) }
func (t truth) or(u truth) truth  { return max(t, u) }
func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

// maxDepth bounds nested parentheses and nested blocks (HAProxy's MAXNESTEDCONDS).
const maxDepth = 1024

// block is one .if ... .endif: whether the lines at hand are taken, and whether an earlier branch was.
type block struct {
	taken, done truth
	last        bool
}

// errCondition: the expression is none of HAProxy's.
var errCondition = errors.New("not a condition")

// condition evaluates an expression of .if and .elif (Configuration Manual 2.4): `||` binds less than `&&`, `!` most.
type condition struct {
	in      string
	env     lookup
	version string
	depth   int
}

func evaluate(expression string, env lookup, version string) (truth, error) {
	c := &condition{in: expression, env: env, version: version}
	c.space()
	if c.in == "" {
		return no, nil // HAProxy takes no expression for a false one
	}
	t, err := c.expression()
	if err == nil && c.in != "" {
		err = errCondition
	}
	return t, err
}

func (c *condition) space() { c.in = strings.TrimLeft(c.in, " \t") }

func (c *condition) cut(prefix string) bool {
	c.space()
	rest, ok := strings.CutPrefix(c.in, prefix)
	if ok {
		c.in = rest
		c.space()
	}
	return ok
}

func (c *condition) expression() (truth, error) {
	if c.depth++; c.depth > maxDepth {
		return no, errCondition
	}
	defer func() { c.depth-- }()
	t, err := c.conjunction()
	for err == nil && c.cut("||") {
		var u truth
		u, err = c.conjunction()
		t = t.or(u)
	}
	return t, err
}

func (c *condition) conjunction() (truth, error) {
	t, err := c.term()
	for err == nil && c.cut("&&") {
		var u truth
		u, err = c.term()
		t = t.and(u)
	}
	return t, err
}

func (c *condition) term() (truth, error) {
	negated := false
	for c.cut("!") {
		negated = !negated
	}
	t, err := c.atom()
	if negated {
		t = t.not()
	}
	return t, err
}

func (c *condition) atom() (truth, error) {
	if c.cut("(") {
		t, err := c.expression()
		if err == nil && !c.cut(")") {
			err = errCondition
		}
		return t, err
	}
	end := strings.IndexFunc(c.in, func(r rune) bool { return r > 127 || !isName(byte(r)) })
	if end < 0 {
		end = len(c.in)
	}
	word := c.in[:end]
	c.in = c.in[end:]
	if number, err := strconv.ParseInt(word, 0, 64); err == nil {
		c.space()
		return truthOf(number != 0), nil
	}
	if word == "" {
		return no, errCondition
	}
	arguments, err := c.arguments()
	c.space()
	if err != nil {
		return no, err
	}
	return c.predicate(word, arguments), nil
}

// arguments reads (a,b), each of them maybe quoted.
func (c *condition) arguments() ([]string, error) {
	rest, ok := strings.CutPrefix(c.in, "(")
	if !ok {
		return nil, nil
	}
	var arguments []string
	var word strings.Builder
	var quote byte
	for i := 0; i < len(rest); i++ {
		switch b := rest[i]; {
		case quote != 0 && b == quote:
			quote = 0
		case quote == 0 && (b == '"' || b == '\''):
			quote = b
		case b == '\\' && quote != '\'' && i+1 < len(rest) && strings.IndexByte(`\ "'`, rest[i+1]) >= 0:
			i++
			word.WriteByte(rest[i])
		case quote == 0 && (b == ',' || b == ')'):
			arguments = append(arguments, word.String())
			word.Reset()
			if b == ')' {
				c.in = rest[i+1:]
				return arguments, nil
			}
		default:
			word.WriteByte(b)
		}
	}
	return nil, errCondition
}

// predicate is maybe for what only the running HAProxy knows: what it was built with, and its TLS library.
func (c *condition) predicate(word string, a []string) truth {
	two := len(a) == 2
	switch {
	case word == "defined" && len(a) == 1:
		_, set := c.env(a[0])
		return set
	case word == "streq" && two:
		return truthOf(a[0] == a[1])
	case word == "strneq" && two:
		return truthOf(a[0] != a[1])
	case word == "strstr" && two:
		return truthOf(strings.Contains(a[0], a[1]))
	case word == "version_atleast" && len(a) == 1 && c.version != "":
		return truthOf(compareVersions(c.version, a[0]) >= 0)
	case word == "version_before" && len(a) == 1 && c.version != "":
		return truthOf(compareVersions(c.version, a[0]) < 0)
	}
	return maybe
}

// compareVersions orders versions such as 3.0.11-1+deb13u4 and 3.2-dev5 by their numbers; a development version comes
// before the release, as HAProxy has it.
func compareVersions(a, b string) int {
	for {
		x, restA := number(&a)
		y, restB := number(&b)
		if x != y {
			return x - y
		}
		if !restA && !restB {
			return development(a) - development(b)
		}
	}
}

// number takes the next number off a version; more tells whether there was one.
func number(version *string) (n int, more bool) {
	v := strings.TrimPrefix(*version, ".")
	end := 0
	for end < len(v) && end < 9 && v[end] >= '0' && v[end] <= '9' {
		end++
	}
	if end == 0 {
		return 0, false
	}
	n, _ = strconv.Atoi(v[:end])
	*version = v[end:]
	return n, true
}

// development is 0 for a release, and less for its earlier development versions.
func development(suffix string) int {
	rest, ok := strings.CutPrefix(suffix, "-dev")
	if !ok {
		return 0
	}
	n, _ := number(&rest)
	return n - 1<<30
}
