package main

import (
	"fmt"
	"io"
	"strings"
)

// narrator prints the story: numbered steps with why each matters, and what the programs said, set apart.
type narrator struct {
	w    io.Writer
	step int
}

// begin opens a step.
func (n *narrator) begin(title, why string) {
	n.step++
	fmt.Fprintf(n.w, "\n%d. %s\n", n.step, title)
	n.say("%s", why)
}

// say prints a line of the story, wrapped where it is long.
func (n *narrator) say(format string, args ...any) {
	const width = 100
	line := ""
	for word := range strings.FieldsSeq(fmt.Sprintf(format, args...)) {
		if line != "" && len(line)+1+len(word) > width {
			fmt.Fprintf(n.w, "   %s\n", line)
			line = ""
		}
		line = strings.TrimPrefix(line+" "+word, " ")
	}
	fmt.Fprintf(n.w, "   %s\n", line)
}

// quote prints what a program said.
func (n *narrator) quote(text []byte) {
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimRight(line, " \n"); line != "" {
			fmt.Fprintf(n.w, "   | %s\n", line)
		}
	}
}

// command prints a command line as a person would have typed it on a node.
func (n *narrator) command(node string, args ...string) {
	fmt.Fprintf(n.w, "   %s$ certsync %s\n", node, strings.Join(args, " "))
}

// last prints the demo's last line.
func (n *narrator) last(summary string) { fmt.Fprintf(n.w, "\n%s\n", summary) }
