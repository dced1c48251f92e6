package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"certsync/internal/cluster"
	"certsync/internal/config"
)

const (
	// eventPath is asked for at the daemon's socket for local commands.
	eventPath = "/v1/event"
	// eventTimeout bounds the whole call: devd(8) waits for its actions, one after the other.
	eventTimeout = 2 * time.Second
)

func (a *app) eventCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "event",
		Short: "wake the daemon to read the role again (devd runs it)",
		Long: `event tells the daemon that the state of a virtual host may have changed, so that it reads it again at once. The
daemon listens to devd by itself; event is for those who prefer devd.conf:

  notify 100 {
      match "system" "CARP";
      match "subsystem" "[0-9]+@.+";
      action "/usr/local/sbin/certsync event";
  };

Where no daemon runs there is nothing to wake, and that is no error.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.event(cmd.Context()) },
	}
}

func (a *app) event(ctx context.Context) error {
	cfg, err := config.Load(a.configPath)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, eventTimeout)
	defer cancel()
	socket := filepath.Join(cfg.RunDir, config.LocalSocket)
	err = postLocal(ctx, socket, eventPath)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		fmt.Fprintf(a.stderr, "certsync: no daemon listens on %s: nothing to wake\n", socket)
		return nil
	case errors.Is(err, fs.ErrPermission):
		return cluster.WithHint(fmt.Errorf("wake the daemon: %w", err), "run it as root, or as a user who may write %s", socket)
	case err != nil:
		return fmt.Errorf("wake the daemon: %w", err)
	}
	return nil
}

// postLocal makes a request without a body at the daemon's socket.
func postLocal(ctx context.Context, socket, path string) error {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://certsync"+path, http.NoBody)
	if err != nil {
		return err
	}
	reply, err := transport.RoundTrip(request)
	if err != nil {
		return fmt.Errorf("ask %s: %w", socket, err)
	}
	defer reply.Body.Close()
	if reply.StatusCode/100 == 2 {
		return nil
	}
	text, _ := io.ReadAll(io.LimitReader(reply.Body, 200))
	return fmt.Errorf("ask %s: HTTP status %d: %q", socket, reply.StatusCode, text)
}
