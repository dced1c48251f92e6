package bootstrap

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"certsync/internal/config"
)

// shippedSettings are those of the configuration that is shipped, as its first node has them.
func shippedSettings(t *testing.T) Settings {
	t.Helper()
	const path = "../../configs/certsync.yaml"
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return SettingsOf(c, c.Nodes[0], config.DefaultPath)
}

// rulesOf are the lines of a shipped file that are no comments.
func rulesOf(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(strings.Split(string(data), "\n"), func(l string) bool { return l == "" || strings.HasPrefix(l, "#") })
}

// The rules that are copied by hand, and those that bootstrap writes, are the same: for root's rights there is one list.
func TestShippedDoasRulesAreThoseOfBootstrap(t *testing.T) {
	s := shippedSettings(t)
	var want []string
	for _, argv := range s.rootCommands() {
		want = append(want, doasRule(s.User, argv))
	}
	if got := rulesOf(t, "../../configs/doas.conf"); !slices.Equal(got, want) {
		t.Errorf("configs/doas.conf has\n%s\nand has to have\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestShippedSudoersIsThatOfBootstrap(t *testing.T) {
	want := slices.DeleteFunc(strings.Split(sudoersText(shippedSettings(t)), "\n"), func(l string) bool { return l == "" || strings.HasPrefix(l, "#") })
	if got := rulesOf(t, "../../configs/sudoers"); !slices.Equal(got, want) {
		t.Errorf("configs/sudoers has\n%s\nand has to have\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// What carp.demote_unready needs is in the files, for whoever sets it to take the comment signs off.
func TestShippedRulesHaveThoseOfDemoteUnreadyCommentedOut(t *testing.T) {
	s := shippedSettings(t)
	without := len(s.rootCommands())
	s.DemoteUnready = true
	more := s.rootCommands()[without:]
	if len(more) == 0 {
		t.Fatal("demote_unready needs no rules")
	}
	doasText, err := os.ReadFile("../../configs/doas.conf")
	if err != nil {
		t.Fatal(err)
	}
	sudoText, err := os.ReadFile("../../configs/sudoers")
	if err != nil {
		t.Fatal(err)
	}
	for _, argv := range more {
		if rule := "\n# " + doasRule(s.User, argv) + "\n"; !strings.Contains(string(doasText), rule) {
			t.Errorf("configs/doas.conf lacks %q", rule)
		}
	}
	for _, rule := range strings.Split(sudoersText(s), "\n") {
		if strings.Contains(rule, "demotion") && !strings.Contains(string(sudoText), "\n# "+rule+"\n") {
			t.Errorf("configs/sudoers lacks %q", "# "+rule)
		}
	}
}

// The commands of the shipped configuration are among those that the rules allow, to the letter.
func TestShippedRulesAllowWhatTheShippedConfigurationRuns(t *testing.T) {
	c, err := config.Load("../../configs/certsync.yaml")
	if err != nil {
		t.Fatal(err)
	}
	allowed := shippedSettings(t).rootCommands()
	for _, argv := range [][]string{c.HAProxy[0].Reload, c.HAProxy[0].Check} {
		if len(argv) < 3 || argv[0] != doas || argv[1] != "-n" {
			t.Errorf("%q does not go by doas -n", argv)
			continue
		}
		if !slices.ContainsFunc(allowed, func(a []string) bool { return slices.Equal(a, argv[2:]) }) {
			t.Errorf("no rule allows %q", argv[2:])
		}
	}
}

// What sudo and doas themselves say, where they are installed: neither is needed for a build.
func TestShippedRulesAreRightForSudoAndDoas(t *testing.T) {
	for _, c := range [][]string{{"visudo", "-cf", "../../configs/sudoers"}, {"doas", "-C", "../../configs/doas.conf"}} {
		t.Run(c[0], func(t *testing.T) {
			if _, err := exec.LookPath(c[0]); err != nil {
				t.Skipf("%s is not installed; the rules are compared with bootstrap's, word for word", c[0])
			}
			if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
				t.Errorf("%q: %v: %s", c, err, out)
			}
		})
	}
}
