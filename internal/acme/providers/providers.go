// Package providers makes lego's DNS providers by name: all of them, or, built with the tag "fewproviders", only those
// that need no vendor's library. The full set is 50 MB of machine code and minutes of compilation, so only the command
// imports this package; tests and the race detector use the tag.
package providers

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/go-acme/lego/v4/challenge"

	"certsync/internal/cluster"
)

// list is where a person finds what each provider needs.
const list = "https://go-acme.github.io/lego/dns/"

// ErrUnknown: lego has no provider of that name.
var ErrUnknown = errors.New("no DNS provider of that name")

//go:embed names.txt
var names string

// Names are the names of all providers of lego, sorted, whether they are in this binary or not.
func Names() []string { return strings.Fields(names) }

// Known is nil where lego has a provider of that name, else ErrUnknown with the nearest names as its hint.
func Known(name string) error {
	if slices.Contains(Names(), name) {
		return nil
	}
	return cluster.WithHint(fmt.Errorf("%q: %w", name, ErrUnknown), "%s", unknownHint(name))
}

// environment guards the variables of the process, which is where lego's providers read their settings from.
var environment sync.Mutex

// New makes the provider called name with the settings in env, which are in the process's environment while it is made
// and not after. (A program run by the "exec" provider therefore does not see them.) Names in env that lego documents
// with the suffix _FILE work as well.
func New(name string, env map[string]string) (challenge.Provider, error) {
	if err := Known(name); err != nil {
		return nil, err
	}
	environment.Lock()
	defer environment.Unlock()
	defer setenv(env)()
	provider, err := byName(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return provider, nil
}

// setenv sets env and gives the function that restores what was there.
func setenv(env map[string]string) (restore func()) {
	type old struct {
		value string
		set   bool
	}
	before := map[string]old{}
	for name, value := range env {
		was, ok := os.LookupEnv(name)
		before[name] = old{was, ok}
		_ = os.Setenv(name, value)
	}
	return func() {
		for name, was := range before {
			if was.set {
				_ = os.Setenv(name, was.value)
			} else {
				_ = os.Unsetenv(name)
			}
		}
	}
}

func unknownHint(name string) string {
	near := nearest(name)
	if len(near) == 0 {
		return "see " + list + " for the names"
	}
	return "did you mean " + strings.Join(near, ", ") + "? See " + list
}

// nearest are up to three names that name may be meant to be: those that hold it or are held by it, and those that
// few edits away.
func nearest(name string) []string {
	type match struct {
		name  string
		edits int
	}
	name = strings.ToLower(name)
	var found []match
	for _, n := range Names() {
		edits := distance(name, n)
		if len(name) >= 3 && strings.Contains(n, name) || len(n) >= 4 && strings.Contains(name, n) {
			edits = min(edits, 1)
		}
		if edits <= max(1, len(name)/3) {
			found = append(found, match{n, edits})
		}
	}
	slices.SortStableFunc(found, func(a, b match) int { return a.edits - b.edits })
	var out []string
	for _, m := range found[:min(3, len(found))] {
		out = append(out, m.name)
	}
	return out
}

// distance is the Levenshtein distance.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		last := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := last
			if a[i] != b[j] {
				cost++
			}
			last = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
