package notify

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nicholas-fedor/shoutrrr/pkg/types"

	"certsync/internal/cluster"
)

// Timeout is the longest that a send is waited for.
const Timeout = 15 * time.Second

// errBusy is why nothing more is sent to a service that keeps its connections and says nothing.
var errBusy = errors.New("earlier messages were not answered yet")

// Send sends one message, and returns once the service has taken it, or with Timeout or ctx. An error names the target,
// and holds no part of its URL. One that comes of a deadline does not mean that the message will not arrive.
func (t *Target) Send(ctx context.Context, subject, text string) error {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	select {
	case t.left <- struct{}{}:
	default:
		return fmt.Errorf("notify %s: %w", t.name, errBusy)
	}
	done := make(chan error, 1)
	go func() {
		defer func() { <-t.left }()
		done <- t.safely(func() error { return t.send(subject, text) })
	}()
	select {
	case err := <-done:
		return t.failure(err)
	case <-ctx.Done():
		return t.failure(ctx.Err())
	}
}

// send hands the message to the library.
func (t *Target) send(subject, text string) error {
	params := types.Params{}
	if untitled[t.service] {
		text = subject + "\n\n" + text
	} else {
		params.SetTitle(subject)
	}
	if t.service == "generic" {
		params.SetTitle(subject) // for its template=json
	}
	sender := t.sender
	if online[t.service] {
		var err error
		if sender, err = t.locate(); err != nil {
			return err
		}
	}
	return sender.Send(text, &params)
}

func (t *Target) failure(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		err = errors.New("no answer in time")
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("notify %s: %w", t.name, context.Canceled)
	}
	return cluster.WithHint(fmt.Errorf("notify %s: %w", t.name, err), "check its URL, and that this host reaches it: certsync notify test")
}
