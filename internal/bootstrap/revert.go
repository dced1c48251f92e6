package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"certsync/internal/cluster"
)

// Revert undoes what was applied, the newest first, and forgets each when it is undone, so that a kill between two leaves
// the rest to the next. What somebody else changed since stays, and the Result says so. yes confirms that interfaces are
// touched.
func (h *Host) Revert(ctx context.Context, yes bool) (*Result, error) {
	if err := h.usable(); err != nil {
		return nil, err
	}
	if !h.Image && h.Getuid() != 0 {
		return nil, cluster.WithHint(errors.New("revert the bootstrap: only root can"), "run it by doas or sudo")
	}
	unlock, err := h.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, err := h.loadRecord()
	if err != nil {
		return nil, err
	}
	result := &Result{Done: []string{}}
	if !r.there { // one without entries is what a kill at the end of a revert left
		return result, nil
	}
	if err := h.mayRevert(r, yes); err != nil {
		return nil, err
	}
	return result, h.undoAll(ctx, r, result)
}

// mayRevert asks for --yes where an address goes: who uses it loses its connections.
func (h *Host) mayRevert(r *record, yes bool) error {
	var touched []string
	for _, e := range r.Entries {
		name := e.action().touches()
		if name == "" {
			continue
		}
		if h.Kernel == nil {
			return cluster.WithHint(errors.New("revert the bootstrap: the record has changes of a running kernel, and there is none to ask"), "run it on that host, without --root")
		}
		if !slices.Contains(touched, name) {
			touched = append(touched, name)
		}
	}
	if len(touched) == 0 || yes {
		return nil
	}
	err := fmt.Errorf("revert the bootstrap: it has to be confirmed: it takes virtual addresses from %s", strings.Join(touched, ", "))
	return cluster.WithHint(cluster.Usage(err), "add --yes")
}

func (h *Host) undoAll(ctx context.Context, r *record, result *Result) error {
	for len(r.Entries) > 0 {
		last := len(r.Entries) - 1
		e := r.Entries[last]
		if err := h.undo(ctx, e, result); err != nil {
			result.Failed, result.Error = e.Step, err.Error()
			for _, rest := range slices.Backward(r.Entries[:last]) {
				result.NotDone = append(result.NotDone, rest.Step)
			}
			result.NotDone = slices.Compact(result.NotDone)
			return cluster.WithHint(fmt.Errorf("undo %s: %w", e.Step, err), "mend it and run `certsync bootstrap --revert` again")
		}
		h.passed("undone")
		r.Entries = r.Entries[:last]
		if err := r.save(h); err != nil {
			return err
		}
		h.passed("forgotten")
	}
	left, err := r.end(h)
	result.Left = append(result.Left, left...)
	return err
}

func (h *Host) undo(ctx context.Context, e entry, result *Result) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, actionLimit)
	defer cancel()
	left, err := e.action().undo(ctx, h)
	switch {
	case err != nil:
		return err
	case left != "":
		result.Left = append(result.Left, e.Step+": "+left)
	case !slices.Contains(result.Done, e.Step):
		result.Done = append(result.Done, e.Step)
	}
	return nil
}
