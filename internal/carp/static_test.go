package carp_test

import (
	"context"
	"errors"
	"testing"

	"certsync/internal/carp"
	"certsync/internal/cluster"
)

func fixed(value string) func() (string, error) {
	return func() (string, error) { return value, nil }
}

func TestTheNodeThatTheRoleNamesIsMasterAndEveryOtherIsBackup(t *testing.T) {
	for self, want := range map[string]cluster.Role{"proxy1": cluster.Master, "proxy2": cluster.Backup, "proxy11": cluster.Backup, "PROXY1": cluster.Backup, "": cluster.Backup} {
		seen, err := carp.NewStatic(self, fixed("static:proxy1")).Role(t.Context())
		if err != nil || seen != (cluster.Seen{Role: want, Master: "proxy1"}) {
			t.Errorf("%q: %v, %v; want %v of master proxy1", self, seen, err, want)
		}
	}
}

func TestARoleThatIsNotStatedIsUnknownAndAnError(t *testing.T) {
	for _, value := range []string{"", "auto", "static", "static:", "Static:proxy1", " static:proxy1", "proxy1", "MASTER", "master"} {
		for _, self := range []string{"proxy1", ""} {
			seen, err := carp.NewStatic(self, fixed(value)).Role(t.Context())
			if err == nil || seen != (cluster.Seen{}) {
				t.Errorf("%q on %q: %v, %v; want Unknown and an error", value, self, seen, err)
			}
			if cluster.HintOf(err) == "" {
				t.Errorf("%q: no hint", value)
			}
		}
	}
}

func TestAConfigurationThatCannotBeReadIsUnknown(t *testing.T) {
	cause := errors.New("permission denied")
	// The value that came with the error does not count.
	seen, err := carp.NewStatic("proxy1", func() (string, error) { return "static:proxy1", cause }).Role(t.Context())
	if !errors.Is(err, cause) || seen != (cluster.Seen{}) {
		t.Errorf("%v, %v; want Unknown and the cause", seen, err)
	}
}

func TestTheRoleIsReadAnewAtEveryCall(t *testing.T) {
	value := "static:proxy1"
	s := carp.NewStatic("proxy1", func() (string, error) { return value, nil })
	for _, step := range []struct {
		value string
		want  cluster.Role
	}{{"static:proxy1", cluster.Master}, {"static:proxy2", cluster.Backup}, {"nonsense", cluster.Unknown}, {"static:proxy1", cluster.Master}} {
		value = step.value
		if seen, _ := s.Role(t.Context()); seen.Role != step.want {
			t.Errorf("after %s: %v, want %v", step.value, seen.Role, step.want)
		}
	}
}

func TestAContextThatEndedIsUnknown(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	seen, err := carp.NewStatic("proxy1", fixed("static:proxy1")).Role(ctx)
	if !errors.Is(err, context.Canceled) || seen != (cluster.Seen{}) {
		t.Errorf("%v, %v; want Unknown and context.Canceled", seen, err)
	}
}
