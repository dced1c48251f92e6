package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"certsync/internal/cert"
	"certsync/internal/config"
)

// documents are the pages that users read, and the files that they copy, by their paths from the top.
func documents(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, pattern := range []string{"README.md", "docs/*.md", "configs/*", "configs/*/*"} {
		paths, err := filepath.Glob(filepath.Join("../..", pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if info, err := os.Stat(path); err != nil || info.IsDir() || filepath.Ext(path) == ".go" {
				continue
			}
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			name, err := filepath.Rel("../..", path)
			if err != nil {
				t.Fatal(err)
			}
			out[name] = string(data)
		}
	}
	return out
}

var (
	// codeSpan is a command in the text, codeLine one in a block, or of a systemd unit or a devd rule.
	codeSpan = regexp.MustCompile("`((?:doas |sudo )?(?:/usr/local/sbin/)?certsync [^`]+)`")
	codeLine = regexp.MustCompile(`(?m)^(?:    |\t|\s*\w+="?|\s*action "|Exec\w+=-?|restrict,command=")((?:doas |sudo )?(?:/usr/local/sbin/)?certsync [^"\n]+)`)
	word     = regexp.MustCompile(`^[a-z][a-z-]*$`)
)

// commandsIn are the calls of certsync that a document shows.
func commandsIn(text string) []string {
	var out []string
	for _, form := range []*regexp.Regexp{codeSpan, codeLine} {
		for _, m := range form.FindAllStringSubmatch(text, -1) {
			command, _, _ := strings.Cut(m[1], " #")
			out = append(out, strings.TrimSpace(command))
		}
	}
	return out
}

// TestEveryCommandInTheDocumentsExists: a reader who types what a page shows must not be told that there is no such thing.
func TestEveryCommandInTheDocumentsExists(t *testing.T) {
	count := map[string]int{}
	for name, text := range documents(t) {
		for _, command := range commandsIn(text) {
			count[name]++
			if err := exists(command); err != nil {
				t.Errorf("%s: %s: %v", name, command, err)
			}
		}
	}
	for name, atLeast := range map[string]int{"README.md": 25, "docs/carp.md": 4, "docs/haproxy.md": 2, "configs/systemd/certsync.service": 2,
		"configs/devd/certsync.conf": 1, "configs/ssh/authorized_keys": 1} {
		if count[name] < atLeast {
			t.Errorf("%s: only %d commands are found, want %d at least: is the form of them another?", name, count[name], atLeast)
		}
	}
}

func TestACommandThatDoesNotExistIsFoundInADocument(t *testing.T) {
	for _, c := range []string{"certsync isue", "certsync issue --drry-run", "certsync carp stat", "certsync renew -x", "doas certsync sync --disk --deadlin 5s", "certsync --version"} {
		if exists(c) == nil {
			t.Errorf("%q passes", c)
		}
	}
	text := "    doas certsync one --two   # three\nsee `certsync four` and `certsync five --six`\nExecStart=/usr/local/sbin/certsync run\nand certsync itself\n"
	want := []string{"certsync four", "certsync five --six", "doas certsync one --two", "/usr/local/sbin/certsync run"}
	if got := commandsIn(text); !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

// exists holds a call against the table of commands: each word that is no argument is a command of the one before, and
// each option one of its own or of all.
func exists(call string) error {
	a := &app{stdin: io.NopCloser(strings.NewReader("")), stdout: nopWriter{io.Discard}, stderr: io.Discard}
	root := a.root()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	words := strings.Fields(call)
	for words[0] == "doas" || words[0] == "sudo" {
		words = words[1:]
	}
	command := root
	for _, w := range words[1:] {
		w = strings.Trim(w, "[]|().,;")
		switch {
		case strings.HasPrefix(w, "-"):
			if err := hasFlag(command, w); err != nil {
				return err
			}
		case command.HasSubCommands() && word.MatchString(w):
			next, _, err := command.Find([]string{w})
			if err != nil || next == command {
				return fmt.Errorf("%s has no command %s", command.CommandPath(), w)
			}
			command = next
		}
	}
	if command == root {
		return fmt.Errorf("it names no command")
	}
	return nil
}

// nopWriter is a writer whose Close does nothing.
type nopWriter struct{ io.Writer }

func (nopWriter) Close() error { return nil }

func hasFlag(c *cobra.Command, w string) error {
	name, _, _ := strings.Cut(strings.TrimLeft(w, "-"), "=")
	c.InitDefaultHelpFlag()
	if strings.HasPrefix(w, "--") {
		if c.Flags().Lookup(name) == nil && c.InheritedFlags().Lookup(name) == nil && c.PersistentFlags().Lookup(name) == nil {
			return fmt.Errorf("%s has no option --%s", c.CommandPath(), name)
		}
		return nil
	}
	if len(name) != 1 || c.Flags().ShorthandLookup(name) == nil && c.InheritedFlags().ShorthandLookup(name) == nil {
		return fmt.Errorf("%s has no option -%s", c.CommandPath(), name)
	}
	return nil
}

// TestEveryCommandIsInTheREADME: its table has each that a person may want.
func TestEveryCommandIsInTheREADME(t *testing.T) {
	readme := documents(t)["README.md"]
	a := &app{stdin: io.NopCloser(strings.NewReader("")), stdout: nopWriter{io.Discard}, stderr: io.Discard}
	for _, c := range a.root().Commands() {
		if !strings.Contains(readme, "\n| `"+c.CommandPath()) && !strings.Contains(readme, ", `"+c.CommandPath()+"`") {
			t.Errorf("README.md has no line for %s", c.CommandPath())
		}
	}
}

var (
	link       = regexp.MustCompile(`\]\(([^):#]+)\)`)
	configFile = regexp.MustCompile(`\bconfigs/[a-zA-Z0-9_./-]*[a-zA-Z0-9]`)
	serviceArg = regexp.MustCompile(`service certsync (\w+)`)
)

// TestWhatTheDocumentsPointToIsThere: the files that are to be copied, the pages that are linked, what the service does.
func TestWhatTheDocumentsPointToIsThere(t *testing.T) {
	script, err := os.ReadFile("../../configs/rc.d/certsync")
	if err != nil {
		t.Fatal(err)
	}
	known := "start stop restart status " + string(regexp.MustCompile(`extra_commands="([a-z ]+)"`).FindSubmatch(script)[1])
	for name, text := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join("../..", filepath.Dir(name), m[1])); err != nil && filepath.Ext(name) == ".md" {
				t.Errorf("%s: the link %s: %v", name, m[1], err)
			}
		}
		for _, path := range configFile.FindAllString(text, -1) {
			if _, err := os.Stat(filepath.Join("../..", path)); err != nil {
				t.Errorf("%s names %s: %v", name, path, err)
			}
		}
		for _, m := range serviceArg.FindAllStringSubmatch(text, -1) {
			if !slices.Contains(strings.Fields(known), m[1]) {
				t.Errorf("%s: the service has no command %s: it has %s", name, m[1], known)
			}
		}
	}
}

// TestTheREADMEMakesThePlaceholderThatCertsyncKnows: else it would stay beside the first certificate.
func TestTheREADMEMakesThePlaceholderThatCertsyncKnows(t *testing.T) {
	readme := documents(t)["README.md"]
	for _, want := range []string{"-keyout " + cert.PlaceholderName + " -out " + cert.PlaceholderName, "-subj /CN=" + cert.PlaceholderDomain} {
		if !strings.Contains(readme, want) {
			t.Errorf("README.md has no %s", want)
		}
	}
}

// TestTheREADMEsConfigurationIsRight: the least that works is what most begin with.
func TestTheREADMEsConfigurationIsRight(t *testing.T) {
	readme := documents(t)["README.md"]
	_, rest, found := strings.Cut(readme, "\nThe least that works:\n\n")
	block, _, ended := strings.Cut(rest, "\n\n")
	if !found || !ended {
		t.Fatal("README.md has no block with it")
	}
	path := filepath.Join(t.TempDir(), "certsync.yaml")
	if err := os.WriteFile(path, []byte(block), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	shipped, err := config.Load("../../configs/certsync.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// haproxy.cfg and the rules of doas are made for these.
	have, want := c.HAProxy[0], shipped.HAProxy[0]
	if !slices.Equal(c.Virtual(), shipped.Virtual()) || have.Config != want.Config || have.BundleDir != want.BundleDir ||
		have.RuntimeSocket != want.RuntimeSocket || !slices.Equal(have.Reload, want.Reload) || !slices.Equal(have.Check, want.Check) {
		t.Errorf("it does not fit the files in configs: %+v", have)
	}
}
