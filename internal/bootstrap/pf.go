package bootstrap

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// verdict is what a packet filter's rules come to for CARP's packets.
type verdict struct {
	blocks bool
	// line is the one that decides; 0 for none.
	line int
	// unsure tells that rules decide which are not in this file or not understood.
	unsure bool
}

// packetFilter says where pf keeps the nodes from hearing each other: both become MASTER. It changes no rule.
func (p *planner) packetFilter(context.Context) error {
	if len(p.set.VHIDs) == 0 {
		return nil
	}
	const name = "packet filter"
	enabled, err := p.rcValue("pf_enable", "pf")
	switch {
	case err != nil:
		return err
	case !isYes(enabled):
		p.add(Step{Name: name, State: OK, Found: "pf is not enabled in rc.conf"})
		return nil
	}
	path, err := p.rcValue("pf_rules", "pf")
	if err != nil {
		return err
	}
	if path == "" {
		path = "/etc/pf.conf"
	}
	f, err := p.open(path)
	if err != nil {
		return err
	}
	switch {
	case f.denied:
		p.add(Step{Name: name, State: Note, Found: path + " cannot be read without root", Mend: passRule})
	case !f.exists():
		p.add(Step{Name: name, State: Note, Found: "pf is enabled, and there is no " + path})
	default:
		p.add(pfStep(name, path, string(f.now), p.set.VHIDs))
	}
	return nil
}

const passRule = "let CARP in and out, above the other rules: pass quick proto carp"

func pfStep(name, path, rules string, vhids []VHID) Step {
	s := Step{Name: name, State: OK, Found: path + " lets CARP pass"}
	for _, v := range vhids {
		for _, direction := range []string{"in", "out"} {
			got := judgePF(rules, packet{v.Interface, direction, v.family()})
			switch {
			case got.blocks:
				return Step{Name: name, State: Note, Found: fmt.Sprintf("%s:%d blocks CARP %s on %s", path, got.line, direction, v.Interface),
					Why: "the nodes would not hear each other, and both be MASTER", Mend: passRule}
			case got.unsure && s.State == OK:
				s = Step{Name: name, State: Note, Found: fmt.Sprintf("whether %s lets CARP pass on %s cannot be told (line %d)", path, v.Interface, got.line), Mend: passRule}
			}
		}
	}
	return s
}

// judgePF follows pf.conf(5): the last rule that matches decides, unless one with quick comes first. Only rules that
// surely match or surely do not are counted; what depends on addresses, tables, macros or anchors makes it unsure.
func judgePF(rules string, p packet) verdict {
	var v verdict
	for number, words := range pfLines(rules) {
		switch words[0] {
		case "set":
			if len(words) > 3 && words[1] == "skip" && words[2] == "on" && mentions(words[3:], p.iface) == yes {
				return verdict{}
			}
			continue
		case "anchor", "load", "include":
			v.unsure, v.line = true, number
			continue
		case "pass", "block":
		default:
			continue
		}
		match, quick := p.match(words[1:])
		switch {
		case match == no:
		case match == maybe:
			v.unsure, v.line = true, number
		default:
			v = verdict{blocks: words[0] == "block", line: number, unsure: v.unsure && quick}
			if quick {
				return v
			}
		}
	}
	if v.unsure {
		v.blocks = false
	}
	return v
}

type answer int

const (
	no answer = iota
	maybe
	yes
)

// pfLines gives the words of each rule by the number of its first line: comments are cut, lines that end in a backslash
// joined, braces are words.
func pfLines(text string) func(func(int, []string) bool) {
	return func(yield func(int, []string) bool) {
		lines := strings.Split(text, "\n")
		for i := 0; i < len(lines); i++ {
			first, line := i+1, ""
			for ; i < len(lines); i++ {
				one, _, _ := strings.Cut(lines[i], "#")
				one, more := strings.CutSuffix(strings.TrimRight(one, " \t\r"), "\\")
				line += one + " "
				if !more {
					break
				}
			}
			line = strings.NewReplacer("{", " { ", "}", " } ", ",", " ").Replace(line)
			if words := strings.Fields(line); len(words) > 0 && !yield(first, words) {
				return
			}
		}
	}
}

// packet is one of CARP's, of protocol 112: "in" or "out" on an interface, of the family "inet" or "inet6".
type packet struct{ iface, direction, family string }

// match tells whether a rule is for the packet, and whether it has the word quick.
func (p packet) match(words []string) (answer, bool) {
	result, quick := yes, false
	for len(words) > 0 {
		word := words[0]
		words = words[1:]
		var values []string
		switch word {
		case "in", "out":
			if word != p.direction {
				return no, false
			}
			continue
		case "quick":
			quick = true
			continue
		case "on", "proto", "from", "to":
			values, words = pfValues(words)
		case "inet", "inet6":
			if word != p.family {
				return no, false
			}
			continue
		case "all", "return", "drop", "log", "any", "keep", "no", "modulate", "state":
			continue
		default:
			result = min(result, maybe)
			continue
		}
		switch word {
		case "on":
			result = min(result, mentions(values, p.iface))
		case "proto":
			result = min(result, max(mentions(values, "carp"), mentions(values, "112")))
		default:
			result = min(result, mentions(values, "any"))
			if result == no {
				result = maybe
			}
		}
		if result == no {
			return no, false
		}
	}
	return result, quick
}

// pfValues takes one word, or those between braces.
func pfValues(words []string) (values, rest []string) {
	if len(words) == 0 {
		return nil, nil
	}
	if words[0] != "{" {
		return words[:1], words[1:]
	}
	end := slices.Index(words, "}")
	if end < 0 {
		return words[1:], nil
	}
	return words[1:end], words[end+1:]
}

// mentions tells whether want is among values; macros, negations and groups of interfaces leave it open.
func mentions(values []string, want string) answer {
	result := no
	for _, v := range values {
		switch {
		case v == want:
			return yes
		case strings.ContainsAny(v, "$!<(") || v == "egress" || v == strings.TrimRight(want, "0123456789"):
			result = maybe
		}
	}
	return result
}

func isYes(value string) bool {
	switch strings.ToLower(value) {
	case "yes", "true", "on", "1":
		return true
	}
	return false
}
