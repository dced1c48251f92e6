package haconf

import (
	"errors"
	"fmt"
	"strings"
)

// maxWords is how many words HAProxy takes of a line (MAX_LINE_ARGS).
const maxWords = 64

// lookup gives the value of an environment variable, and whether it is set: maybe, where that is not known. HAProxy takes
// "" for one that is not set.
type lookup func(name string) (value string, set truth)

// splitter cuts one line into words as HAProxy does (Configuration Manual 2.2 and 2.3).
type splitter struct {
	in    string
	pos   int
	env   lookup
	words []string
	word  strings.Builder
	// begun tells that a word is under way; it may be empty, as "" is.
	begun          bool
	single, double bool
	// expanded tells that the quotes that are open held a list of words, ${NAME[*]}, which makes no word where it is empty.
	expanded bool
}

// split gives the words of line without its line feed. A comment and a carriage return end it.
func split(line string, env lookup) ([]string, error) {
	s := &splitter{in: line, env: env}
	for s.pos < len(s.in) {
		done, err := s.next()
		if err != nil {
			return nil, err
		}
		if done {
			break
		}
	}
	if s.single || s.double {
		return nil, errors.New("a quote is not closed")
	}
	s.end()
	if len(s.words) > maxWords {
		return nil, fmt.Errorf("more than %d words", maxWords)
	}
	return s.words, nil
}

func (s *splitter) emit(c byte) {
	s.begun = true
	s.word.WriteByte(c)
}

func (s *splitter) end() {
	if s.begun {
		s.words = append(s.words, s.word.String())
	}
	s.word.Reset()
	s.begun = false
}

// next takes what is at pos; done tells that the line ends there.
func (s *splitter) next() (done bool, err error) {
	c := s.in[s.pos]
	s.pos++
	quoted := s.single || s.double
	switch {
	case c == '\n' || c == '\r', c == '#' && !quoted:
		return true, nil
	case c == '"' && !s.single:
		s.quote(&s.double)
	case c == '\'' && !s.double:
		s.quote(&s.single)
	case c == '\\' && !s.single:
		return false, s.escape()
	case isSpace(c) && !quoted:
		s.end()
	case c == '$' && s.double:
		return false, s.variable()
	default:
		s.emit(c)
	}
	return false, nil
}

func (s *splitter) quote(open *bool) {
	if *open && !s.expanded {
		s.begun = true
	}
	s.expanded = false
	*open = !*open
}

// escape takes what follows a backslash. What is no escape stands for itself, the backslash included.
func (s *splitter) escape() error {
	if s.pos == len(s.in) {
		s.emit('\\')
		return nil
	}
	switch c := s.in[s.pos]; {
	case c == 't', c == 'n', c == 'r':
		s.emit(map[byte]byte{'t': '\t', 'n': '\n', 'r': '\r'}[c])
	case c == ' ', c == '\\', c == '#', c == '\'', c == '"', c == '$' && s.double:
		s.emit(c)
	case c == 'x':
		high, low, ok := 0, 0, s.pos+2 < len(s.in)
		if ok {
			high, low = unhex(s.in[s.pos+1]), unhex(s.in[s.pos+2])
		}
		if !ok || high < 0 || low < 0 {
			return errors.New(`\x is not followed by two hexadecimal digits`)
		}
		s.emit(byte(high<<4 | low))
		s.pos += 2
	default:
		s.emit('\\')
		return nil
	}
	s.pos++
	return nil
}

// unhex is the value of a hexadecimal digit, -1 for anything else.
func unhex(c byte) int {
	i := strings.IndexByte("0123456789abcdef0123456789ABCDEF", c)
	if i < 0 {
		return -1
	}
	return i % 16
}

// variable takes $NAME, ${NAME}, ${NAME-default} and ${NAME[*]}, from behind the dollar.
func (s *splitter) variable() error {
	brace := s.pos < len(s.in) && s.in[s.pos] == '{'
	if brace {
		s.pos++
	}
	begin := s.pos
	if s.pos < len(s.in) && s.in[s.pos] == '.' {
		s.pos++
	}
	for s.pos < len(s.in) && isName(s.in[s.pos]) {
		s.pos++
	}
	name := s.in[begin:s.pos]
	if name == "" || name[0] >= '0' && name[0] <= '9' {
		return errors.New("a dollar without the name of a variable (write \\$ for the sign)")
	}
	value, set := s.env(name)
	list := false
	if brace {
		rest := s.in[s.pos:]
		rest, list = strings.CutPrefix(rest, "[*]")
		inner, after, closed := strings.Cut(rest, "}")
		if !closed || inner != "" && inner[0] != '-' {
			return fmt.Errorf("the brace of ${%s is not closed", name)
		}
		if set != yes && inner != "" {
			value, set = inner[1:], yes
		}
		s.pos = len(s.in) - len(after)
	}
	s.insert(value, set, list)
	return nil
}

// insert puts a variable's value into the word, or as words of their own.
func (s *splitter) insert(value string, set truth, list bool) {
	s.expanded = s.expanded || list
	for i := range len(value) {
		if list && isSpace(value[i]) {
			s.end()
		} else {
			s.emit(value[i])
		}
	}
	if set != yes && !list {
		s.begun = true
	}
}

// expand replaces $NAME and ${NAME} in an address, where HAProxy knows them without quotes too.
func expand(text string, env lookup) string {
	var out strings.Builder
	for {
		before, after, found := strings.Cut(text, "$")
		out.WriteString(before)
		if !found {
			return out.String()
		}
		after, brace := strings.CutPrefix(after, "{")
		n := 0
		for n < len(after) && isName(after[n]) {
			n++
		}
		value, _ := env(after[:n])
		out.WriteString(value)
		text = after[n:]
		if brace {
			text = strings.TrimPrefix(text, "}")
		}
	}
}

func isSpace(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }

func isName(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// Quote writes a word so that HAProxy reads it as that word.
func Quote(word string) string {
	if word != "" && strings.IndexFunc(word, func(c rune) bool { return c <= ' ' || strings.ContainsRune("\"'\\#$", c) }) < 0 {
		return word
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`, "\n", `\n`, "\r", `\r`).Replace(word) + `"`
}
