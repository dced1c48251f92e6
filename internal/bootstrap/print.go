package bootstrap

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Print writes the plan: a line a step, then what needs words, then the differences of files. Without root, or where
// steps have to be done elsewhere, it ends with the same steps as commands to copy.
func (p *Plan) Print(w io.Writer) error {
	b := &strings.Builder{}
	p.table(b)
	p.words(b)
	p.diffs(b)
	p.byHand(b)
	b.WriteString(p.summary())
	_, err := io.WriteString(w, b.String())
	return err
}

func (p *Plan) table(b *strings.Builder) {
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "STATE\tSTEP\tFOUND\tWOULD BE")
	for _, s := range p.Steps {
		want := s.Want
		if s.State == OK || want == "" {
			want = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", s.State, s.Name, s.Found, want)
	}
	_ = t.Flush() // a strings.Builder takes everything
}

// words says why, what to do, and what it costs.
func (p *Plan) words(b *strings.Builder) {
	for _, s := range p.Steps {
		var lines []string
		if s.Why != "" {
			lines = append(lines, s.Why)
		}
		if s.State == Change {
			for _, warning := range s.Warnings {
				lines = append(lines, "warning: "+warning+" (needs --yes)")
			}
		}
		if s.Mend != "" {
			lines = append(lines, "hint: "+s.Mend)
		}
		if len(lines) > 0 {
			fmt.Fprintf(b, "\n%s:\n  %s\n", s.Name, strings.Join(lines, "\n  "))
		}
	}
}

func (p *Plan) diffs(b *strings.Builder) {
	for _, s := range p.Of(Change) {
		if s.Diff != "" {
			fmt.Fprintf(b, "\n%s", s.Diff)
		}
	}
}

// byHand lists the commands that do what certsync cannot: with doas and with sudo, neither of which is in FreeBSD's base.
func (p *Plan) byHand(b *strings.Builder) {
	var here, host []string
	for _, s := range p.Steps {
		switch {
		case s.OnHost:
			host = append(host, s.Commands...)
		case s.State == Unsupported, s.State == Change && !p.Privileged && p.Root == "":
			here = append(here, s.Commands...)
		}
	}
	section := func(title string, commands []string) {
		if len(commands) > 0 {
			fmt.Fprintf(b, "\n%s:\n  %s\n", title, strings.Join(commands, "\n  "))
		}
	}
	section("On the jail's host, with doas", With("doas", host))
	section("On the jail's host, with sudo", With("sudo", host))
	section("By hand, with doas", With("doas", here))
	section("By hand, with sudo", With("sudo", here))
}

func (p *Plan) summary() string {
	counts := map[State]int{}
	for _, s := range p.Steps {
		counts[s.State]++
	}
	switch {
	case counts[Blocked] > 0:
		return fmt.Sprintf("\n%d of %d steps are blocked: nothing will be applied until that is mended.\n", counts[Blocked], len(p.Steps))
	case counts[Change] == 0 && counts[Unsupported] == 0:
		return "\nNothing to do.\n"
	case counts[Change] == 0:
		return "\nNothing can be done here; see above for what has to be done elsewhere.\n"
	case !p.Privileged && p.Root == "":
		return fmt.Sprintf("\n%d steps would change something; only root can apply them.\n", counts[Change])
	}
	return fmt.Sprintf("\n%d steps would change something: certsync bootstrap --apply\n", counts[Change])
}
