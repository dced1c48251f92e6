package bootstrap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

// actionLimit bounds one action: pw(8) and kldload(8) take a second, a vhid none.
const actionLimit = time.Minute

// Result is what Apply or Revert did.
type Result struct {
	// Done are the steps that were done and read back, in order.
	Done []string `json:"done"`
	// Failed is the one at which it stopped; "" where it did not.
	Failed string `json:"failed,omitempty"`
	Error  string `json:"error,omitempty"`
	// NotDone are the steps after it, and those that have to be done elsewhere.
	NotDone []string `json:"not_done,omitempty"`
	// Left is what Revert found changed by somebody else, and left.
	Left []string `json:"left,omitempty"`
}

// Apply does the steps of a plan (made with the same settings) that change something, each read back, and stops at the
// first that fails; the Result says how far it came, also beside an error. What was there goes into the record before
// each change. yes confirms the plan's warnings.
func (h *Host) Apply(ctx context.Context, s Settings, p *Plan, yes bool) (*Result, error) {
	if err := h.mayApply(p, yes); err != nil {
		return nil, err
	}
	changes := p.Of(Change)
	result := &Result{Done: []string{}}
	for _, step := range p.Of(Unsupported) {
		result.NotDone = append(result.NotDone, step.Name)
	}
	if len(changes) == 0 {
		return result, nil
	}
	unlock, err := h.lock()
	if err != nil {
		return result, err
	}
	defer unlock()
	r, err := h.loadRecord()
	if err != nil {
		return result, err
	}
	r.Node = s.Node
	if err := r.begin(h); err != nil {
		return result, err
	}
	for i, step := range changes {
		if err := h.applyStep(ctx, r, step); err != nil {
			result.Failed, result.Error = step.Name, err.Error()
			for _, rest := range changes[i+1:] {
				result.NotDone = append(result.NotDone, rest.Name)
			}
			return result, stopped(step.Name, err, result)
		}
		result.Done = append(result.Done, step.Name)
	}
	return result, nil
}

// stopped says how far it came; the hint is that of the cause, or what can be done in any case.
func stopped(step string, err error, r *Result) error {
	text := "nothing was done before it"
	if len(r.Done) > 0 {
		text = "done before it: " + strings.Join(r.Done, ", ")
	}
	wrapped := fmt.Errorf("%s: %w (%s)", step, err, text)
	if cluster.HintOf(err) != "" {
		return wrapped
	}
	return cluster.WithHint(wrapped, "mend it and run `certsync bootstrap --apply` again, or undo what was done: certsync bootstrap --revert")
}

// lock keeps two bootstraps of one tree apart. It is on the root folder, since nothing else need be there; the kernel
// releases it on death.
func (h *Host) lock() (unlock func(), err error) {
	f, err := os.Open(cmp.Or(h.Tree.Root, "/"))
	if err != nil {
		return nil, fmt.Errorf("lock the bootstrap: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = cluster.ErrBusy
		}
		return nil, cluster.WithHint(fmt.Errorf("lock the bootstrap: %w", err), "wait for the other certsync bootstrap to end")
	}
	return func() { _ = f.Close() }, nil
}

func (h *Host) mayApply(p *Plan, yes bool) error {
	if err := p.Err(); err != nil {
		return err
	}
	if !h.Image && h.Getuid() != 0 {
		return cluster.WithHint(errors.New("apply the bootstrap: only root can"), "run it by doas or sudo, or copy the commands of the plan")
	}
	if warnings := p.Warnings(); len(warnings) > 0 && !yes {
		return cluster.WithHint(cluster.Usage(fmt.Errorf("apply the bootstrap: it has to be confirmed: %s", strings.Join(warnings, "; "))), "add --yes")
	}
	return nil
}

func (h *Host) applyStep(ctx context.Context, r *record, step Step) error {
	for _, a := range step.actions {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := h.applyAction(ctx, r, step.Name, a); err != nil {
			return err
		}
	}
	return nil
}

// applyAction records what is there, does the action, reads it back, and records that it is done.
func (h *Host) applyAction(ctx context.Context, r *record, step string, a action) error {
	needed, err := a.look(h)
	if err != nil || !needed {
		return err
	}
	r.Entries = append(r.Entries, entryOf(step, a, h.Now().UTC()))
	if err := r.save(h); err != nil {
		return err
	}
	h.passed("recorded")
	ctx, cancel := context.WithTimeout(ctx, actionLimit)
	defer cancel()
	if err := a.do(ctx, h); err != nil {
		return err
	}
	h.passed("done")
	if err := a.verify(h); err != nil {
		return fmt.Errorf("read it back: %w", err)
	}
	r.Entries[len(r.Entries)-1].Done = true
	if err := r.save(h); err != nil {
		return err
	}
	h.passed("verified")
	return nil
}

// passed is a place where a kill must be survived.
func (h *Host) passed(place string) {
	failpoint.Hit("bootstrap." + place)
	if h.at != nil {
		h.at(place)
	}
}
