package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"certsync/internal/bootstrap/sysfile"
	"certsync/internal/carp"
	"certsync/internal/cluster"
	"certsync/internal/config"
)

// NewHost is this host, with its kernel; or, with a root, the tree there, which has no kernel and runs nothing.
func NewHost(kernel *carp.Kernel, root string) *Host {
	h := &Host{
		Kernel: kernel, Tree: &sysfile.Tree{Root: root}, Image: root != "",
		Run: run, Getuid: os.Getuid, Now: time.Now, SSHConnection: os.Getenv("SSH_CONNECTION"), Password: ReadPassword,
	}
	if h.Image {
		h.Kernel = nil
		h.Run = func(_ context.Context, argv []string) ([]byte, error) {
			return nil, fmt.Errorf("run %s for a tree: %w", argv[0], errors.ErrUnsupported)
		}
	}
	return h
}

// waitDelay is what a command's children get to let go of its output, after it ended or was killed.
const waitDelay = 2 * time.Second

// run runs a command with a fixed environment and no input.
func run(ctx context.Context, argv []string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = []string{"PATH=/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin", "LANG=C"}
	cmd.WaitDelay = waitDelay
	return cmd.CombinedOutput()
}

// ReadPassword reads a password_file, which only its owner may read. The newline at its end is not the password's.
func ReadPassword(path string) (cluster.Secret, error) {
	data, err := config.ReadSecret(path)
	if err != nil {
		return nil, err
	}
	return cluster.Secret(bytes.TrimSuffix(bytes.TrimSuffix(data, []byte("\n")), []byte("\r"))), nil
}

// Hostname is the name that a tree's rc.conf gives its host: how a tree knows which node it is.
func Hostname(tree *sysfile.Tree) (string, error) {
	v, err := tree.RC()
	if err != nil {
		return "", fmt.Errorf("read the host's name: %w", err)
	}
	e := v.Get("hostname")
	const hint = `write hostname="NAME" in the tree's /etc/rc.conf, or set node: in the configuration`
	switch {
	case e.Doubt != "":
		return "", cluster.WithHint(fmt.Errorf("read the host's name: hostname cannot be told: %s", e.Doubt), hint)
	case strings.TrimSpace(e.Value) == "":
		return "", cluster.WithHint(errors.New("read the host's name: no file of rc.conf sets hostname"), hint)
	}
	return e.Value, nil
}
