package carp

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"certsync/internal/cluster"
)

// kld is a recording of modfind(2) and kldload(2): the answers for "carp" in their order.
type kld struct {
	vector
	modfind, kldload []errno
	jailed, root     bool
	level            int
}

var kldLine = regexp.MustCompile(`^(modfind|kldload)\(30[34]\) "carp" -> -?\d+ errno (\d+)`)

func readKLD(t testing.TB, v vector) kld {
	t.Helper()
	k := kld{vector: v}
	for _, line := range v.Lines {
		text := line.Value
		if m := kldLine.FindStringSubmatch(text); m != nil && line.Key == "" {
			n, err := strconv.Atoi(m[2])
			if err != nil {
				t.Fatal(err)
			}
			if m[1] == "modfind" {
				k.modfind = append(k.modfind, errno(n))
			} else {
				k.kldload = append(k.kldload, errno(n))
			}
		}
		k.jailed = k.jailed || strings.HasSuffix(text, "jailed=1")
		k.root = k.root || strings.HasSuffix(text, "(uid 0)")
		if level, ok := strings.CutPrefix(text, "kern.securelevel="); ok {
			k.level = atoi(t, strings.Fields(level)[0])
		}
	}
	if len(k.modfind) == 0 {
		t.Fatalf("%v has no answers", v)
	}
	return k
}

// calls play the recording.
func (k *kld) calls() *calls {
	next := func(list *[]errno) error {
		e := (*list)[0]
		if len(*list) > 1 {
			*list = (*list)[1:]
		}
		if e == 0 {
			return nil
		}
		return e
	}
	return &calls{
		modfind: func(string) error { return next(&k.modfind) },
		kldload: func(string) error { return next(&k.kldload) },
		sysctl: func(name string, old, _ []byte) (int, error) {
			switch name {
			case "kern.securelevel":
				order.PutUint32(old, uint32(int32(k.level)))
			case "security.jail.jailed":
				if k.jailed {
					order.PutUint32(old, 1)
				}
			}
			return 4, nil
		},
	}
}

func TestLoadingDoesWhatTheRecordedKernelsAllow(t *testing.T) {
	for _, v := range vectors(t, "*kld*.txt") {
		k := readKLD(t, v)
		found, asked := k.modfind[0] == 0, len(k.kldload)
		c := k.calls()
		if loaded, err := c.moduleLoaded(); err != nil || loaded != found {
			t.Errorf("%v: loaded %v, %v", v, loaded, err)
		}
		k = readKLD(t, v)
		err := k.calls().loadModule()
		switch {
		case found:
			// EPERM of kldload, at securelevel 1 and in a jail, does not count where carp is there.
			if err != nil || len(k.kldload) != asked {
				t.Errorf("%v: %v, kldload was called %d times", v, err, asked-len(k.kldload))
			}
		case k.jailed:
			if !failsWith(err, eperm, "jail", "on the host") {
				t.Errorf("%v: %v, hint %q", v, err, cluster.HintOf(err))
			}
		case k.level > 0:
			if !failsWith(err, eperm, "kern.securelevel is 1", "/boot/loader.conf carp_load=YES` and reboot") {
				t.Errorf("%v: %v, hint %q", v, err, cluster.HintOf(err))
			}
		case !k.root:
			if !failsWith(err, eperm, "only root", "as root") {
				t.Errorf("%v: %v, hint %q", v, err, cluster.HintOf(err))
			}
		case err != nil:
			t.Errorf("%v: %v", v, err)
		}
	}
}

func TestLoadingAgainIsNoError(t *testing.T) {
	b := newBox(t)
	b.loaded = false
	c := b.calls()
	if err := c.loadModule(); err != nil || !b.loaded {
		t.Fatal(err)
	}
	if err := c.loadModule(); err != nil || len(b.log) != 1 {
		t.Errorf("%v, %v", err, b.log)
	}
	// Somebody else loads it between the question and the call: EEXIST.
	asked := false
	c.modfind = func(string) error {
		if !asked {
			asked = true
			return enoent
		}
		return nil
	}
	if err := c.loadModule(); err != nil || len(b.log) != 2 {
		t.Errorf("%v, %v", err, b.log)
	}
}

func TestEveryRefusalToLoadSaysWhatToDo(t *testing.T) {
	for _, c := range []struct {
		err         errno
		jail        Jail
		level       int
		words, hint string
	}{
		{enoent, Jail{}, -1, "no such file", "/boot/kernel/carp.ko"},
		{enoexec, Jail{}, -1, "another kernel", "reboot"},
		{eperm, Jail{Jailed: true, VNET: true}, 2, "jail", "on the host"},
		{eperm, Jail{}, 3, "kern.securelevel is 3", "reboot"},
		{eperm, Jail{}, 0, "only root", "as root"},
		{enomem, Jail{}, -1, "cannot allocate memory", ""},
	} {
		if err := moduleError(c.err, c.jail, c.level); !failsWith(err, c.err, c.words, c.hint) || !strings.Contains(err.Error(), "load carp.ko") {
			t.Errorf("%v: %v, hint %q", c, err, cluster.HintOf(err))
		}
	}
}

func TestAKernelThatOnlySaysThatItLoadedIsNotBelieved(t *testing.T) {
	c := newBox(t).calls()
	c.modfind = func(string) error { return enoent }
	c.kldload = func(string) error { return nil }
	if err := c.loadModule(); !errors.Is(err, ErrNoModule) {
		t.Error(err)
	}
	cause := fmt.Errorf("no memory")
	c.modfind = func(string) error { return cause }
	if err := c.loadModule(); !errors.Is(err, cause) {
		t.Error(err)
	}
	if loaded, err := c.moduleLoaded(); loaded || !errors.Is(err, cause) {
		t.Error(loaded, err)
	}
}
