package config

import (
	"os"
	"path/filepath"
	"testing"
)

const notLoopback = "not a loopback address: the page has no password. Use 127.0.0.1 or [::1], and reach it from elsewhere by ssh -L " +
	"or through a proxy that asks who is there"

func TestListenIsBroughtToOneForm(t *testing.T) {
	for text, want := range map[string]string{
		"":                       "",
		"127.0.0.1:9180":         "127.0.0.1:9180",
		"localhost:9180":         "127.0.0.1:9180",
		"LocalHost:09180":        "127.0.0.1:9180",
		"127.8.9.10:65535":       "127.8.9.10:65535",
		"[::1]:1":                "[::1]:1",
		"[::ffff:127.0.0.1]:80":  "127.0.0.1:80",
		"[0:0:0:0:0:0:0:1]:9180": "[::1]:9180",
	} {
		got, err := normalListen(text)
		if err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", text, got, err, want)
		}
	}
}

func TestListenIsOffOnlyWhereItIsGivenEmpty(t *testing.T) {
	for _, c := range []struct{ lines, want string }{
		{"", "127.0.0.1:9180"},
		{"listen:\n", "127.0.0.1:9180"},
		{"listen: \"\"\n", ""},
		{"listen: \"[::1]:9181\"\n", "[::1]:9181"},
	} {
		cfg, err := Parse("certsync.yaml", []byte(edit(t, "carp: {", c.lines+"carp: {")))
		if err != nil {
			t.Fatal(err)
		}
		if cfg.Listen != c.want {
			t.Errorf("%q: %q, want %q", c.lines, cfg.Listen, c.want)
		}
	}
}

func TestTheRunDirIsFoundInABrokenFile(t *testing.T) {
	def := Default().RunDir
	for text, want := range map[string]string{
		"run_dir: /run/x\nnodse: 1\n":             "/run/x",
		"run_dir: \"/run/x/\" # here\nnodes: [\n": "/run/x",
		"nodes: {a: b: c}\nrun_dir: '/run/y'\n":   "/run/y",
		"nodes: {a: b}\n":                         def,
		"nodes: [\n":                              def,
		"run_dir: relative\n":                     def,
		"":                                        def,
		"state_dir: /s\n  run_dir: /nested\nnodes: [": def,
	} {
		path := filepath.Join(t.TempDir(), "certsync.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := RunDirOf(path); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
	if got := RunDirOf(filepath.Join(t.TempDir(), "missing")); got != def {
		t.Errorf("no file: %s", got)
	}
}
