package carp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"certsync/internal/cluster"
)

const (
	// doerTimeout is how long the command may take. sysctl(8) is done at once.
	doerTimeout = 3 * time.Second
	// doerPath is the PATH of the command: what certsync was started with may be a cron job's.
	doerPath = "/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
)

// errGoesOn: the command has not ended, cannot be killed since it is root's, and may do its work at any time.
var errGoesOn = errors.New("it has not ended and cannot be killed")

// doer lets sysctl(8) add to the demotion, as root through doas or sudo.
type doer struct {
	// helpers are the ways to become root, the first that is installed is taken.
	helpers [][]string
	timeout time.Duration
	// last is closed when the last command has ended; nil before there was one. Only one call is made at a time.
	last chan struct{}
}

func newDoer() *doer {
	return &doer{helpers: [][]string{{"/usr/local/bin/doas", "-n"}, {"/usr/local/bin/sudo", "-n"}}, timeout: doerTimeout}
}

// write adds to the demotion. nil is said only where sysctl(8) printed what it did. It does not end with ctx: a command
// that is root's cannot be killed, and what became of it has to be known.
func (d *doer) write(ctx context.Context, change int) error {
	argv, giveBack := DemotionCommands()
	if change < 0 {
		argv = giveBack
	}
	helper, err := d.helper()
	if err != nil {
		return err
	}
	if d.last != nil {
		select {
		case <-d.last:
		default:
			return fmt.Errorf("the command before this one: %w", errGoesOn)
		}
	}
	argv = append(append([]string{}, helper...), argv...)
	out, err := d.run(context.WithoutCancel(ctx), argv)
	said := strings.TrimSpace(strings.ToValidUTF8(string(out), "?"))
	switch {
	case errors.Is(err, errGoesOn):
		return fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
	case err != nil:
		return cluster.WithHint(fmt.Errorf("%s: %w: %.200q", strings.Join(argv, " "), err, said),
			"as root, `certsync bootstrap --apply` writes the rule for %s", helper[0])
	case !strings.HasPrefix(said, demotionName+": "):
		return fmt.Errorf("%s: it said %.200q and not what it changed", strings.Join(argv, " "), said)
	}
	return nil
}

// helper is how to become root.
func (d *doer) helper() ([]string, error) {
	for _, h := range d.helpers {
		if info, err := os.Stat(h[0]); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return h, nil
		}
	}
	return nil, cluster.WithHint(errors.New("neither doas nor sudo is installed, and only root may write "+demotionName),
		"as root: `pkg install doas`, then `certsync bootstrap --apply` writes its rule")
}

// run runs a command with a fixed environment, since certsync's own has the DNS provider's credentials, and leaves it
// behind where it does not end.
func (d *doer) run(ctx context.Context, argv []string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...) //nolint:gosec // one of our own command lines
	cmd.Dir, cmd.Env = "/", []string{"PATH=" + doerPath, "LANG=C"}
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = d.timeout
	if err := cmd.Start(); err != nil {
		return nil, pathCause(err)
	}
	ended, result := make(chan struct{}), error(nil)
	d.last = ended
	go func() {
		result = cmd.Wait()
		close(ended)
	}()
	// What gets the signal at the deadline dies at once, unless it is root's.
	patience := time.NewTimer(d.timeout + d.timeout/4)
	defer patience.Stop()
	select {
	case <-ended:
		return out.Bytes(), result
	case <-patience.C:
		return nil, errGoesOn
	}
}
