package haproxy

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"certsync/internal/cluster"
)

// errNoCheck: whether HAProxy would start with what is on disk is not known. Nothing is reloaded then.
var errNoCheck = errors.New("HAProxy's configuration could not be checked")

// refusedError is what `haproxy -c` says of a configuration, or of a file that it names, that HAProxy would not start with.
type refusedError struct {
	// said are HAProxy's own [ALERT] lines, in one; output is all that it printed.
	said, output string
}

func (e *refusedError) Error() string {
	return "HAProxy would not start with what is on disk: " + e.said
}

// blames tells whether HAProxy names the file as what it cannot load.
func (e *refusedError) blames(path string) bool {
	telling, _ := alerts(e.output)
	return contains(telling, "'"+path+"'")
}

// checkCommand is the argument list of the check; nil where the configuration's files are not known.
func (c Config) checkCommand() []string {
	if len(c.Check) > 0 || len(c.Files) == 0 {
		return c.Check
	}
	argv := []string{"haproxy", "-c"}
	for _, f := range c.Files {
		argv = append(argv, "-f", f)
	}
	return argv
}

// checkConfiguration runs `haproxy -c`: a start that ends before it would bind. It loads every certificate, as a start
// does: 25 s for 10,000. It gives a refusedError, or errNoCheck.
func (p *Proxy) checkConfiguration(ctx context.Context) error {
	argv := p.config.checkCommand()
	if len(argv) == 0 {
		return cluster.WithHint(fmt.Errorf("%w: the command is not known", errNoCheck), "set haproxy.check, e.g. [haproxy, -c, -f, FILE]")
	}
	limited, cancel := context.WithTimeout(ctx, p.config.CheckTimeout)
	defer cancel()
	output, err := run(limited, argv)
	var exit *exec.ExitError
	telling, general := alerts(output)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", errNoCheck, err)
	case limited.Err() != nil:
		return cluster.WithHint(fmt.Errorf("%w: no result after %s: %w", errNoCheck, p.config.CheckTimeout, err), "run it by hand: %s", strings.Join(argv, " "))
	case errors.As(err, &exit) && len(telling)+len(general) > 0:
		return cluster.WithHint(&refusedError{said: quote(output), output: output}, "mend it until `%s` passes; %s", strings.Join(argv, " "), checkAsRoot)
	case errors.As(err, &exit):
		return cluster.WithHint(fmt.Errorf("%w: %w: %s", errNoCheck, err, quote(output)), "run it by hand as certsync's user: %s; %s", strings.Join(argv, " "), checkAsRoot)
	}
	return cluster.WithHint(fmt.Errorf("%w: %w", errNoCheck, err), "name HAProxy's program by its path in haproxy.check, e.g. [/usr/local/sbin/haproxy, -c, -f, FILE]")
}

// checkAsRoot is for files that certsync's user may not read, which HAProxy started by root may.
const checkAsRoot = "where it must run as root, say so in haproxy.check: [/usr/local/bin/doas, -n, /usr/local/sbin/haproxy, -c, -f, FILE]"
