package acme

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-acme/lego/v4/challenge"
	"golang.org/x/sync/errgroup"

	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

// cleanGrace is how long the removal of TXT values may go on after the context of the work ended. What is not done by
// then is left to the order's record.
const cleanGrace = 3 * time.Second

// cleanLimit is how long it may take while the context lives: a certificate that is there must not wait for it longer.
const cleanLimit = 30 * time.Second

// CleanUp removes the TXT values that an order left, one by one, and marks them removed in what it returns; it removes
// no value that is not in order.Records. The error joins those of the values that are still there. The CleanUp of some
// providers works only in the process that published the value: their error says so, and the value is harmless.
func (c *Client) CleanUp(ctx context.Context, account cluster.Account, order cluster.Order) (cluster.Order, error) {
	_, thumbprint, err := accountKey(account)
	if err != nil {
		return order, fmt.Errorf("order %s: clean up: %w", order.ID, err)
	}
	cfg, err := c.cfg.DNS(order.Slot.Name)
	if err != nil {
		return order, fmt.Errorf("order %s: clean up: dns: %w", order.ID, err)
	}
	order.Records = slices.Clone(order.Records)
	var left []int
	for i, r := range order.Records {
		if !r.Removed {
			left = append(left, i)
		}
	}
	errs := c.remove(ctx, order, cfg.withDefaults(), thumbprint, left, "")
	var failed []error
	for n, i := range left {
		if errs[n] == nil {
			order.Records[i].Removed = true
		} else {
			failed = append(failed, errs[n])
		}
	}
	if err := errors.Join(failed...); err != nil {
		return order, fmt.Errorf("order %s: clean up: %w", order.ID, err)
	}
	return order, nil
}

// remove removes the records of the given indexes: those of one name one by one, names side by side. It gives the
// error of each. The caller has the turn of the name holding, if any; the others' turns are waited for, since the
// CleanUp of a provider that keeps one value may remove whatever is there.
func (c *Client) remove(ctx context.Context, order cluster.Order, cfg DNSConfig, thumbprint string, indexes []int, holding string) []error {
	errs := make([]error, len(indexes))
	byName := map[string][]int{}
	for n, i := range indexes {
		name := order.Records[i].FQDN
		byName[name] = append(byName[name], n)
	}
	var group errgroup.Group
	group.SetLimit(sideBySide)
	for name, ns := range byName {
		group.Go(func() error {
			var turn *nameTurn
			var err error
			if name != holding {
				if turn, err = c.names.take(ctx, name); err == nil {
					defer turn.free()
				}
			}
			for _, n := range ns {
				if errs[n] = err; err == nil {
					errs[n] = c.removeOne(ctx, order, cfg, thumbprint, order.Records[indexes[n]])
				}
			}
			return nil
		})
	}
	_ = group.Wait()
	return errs
}

func (c *Client) removeOne(ctx context.Context, order cluster.Order, cfg DNSConfig, thumbprint string, r cluster.Record) error {
	op := fmt.Sprintf("remove the TXT value of %s at %s", r.Domain, strings.TrimSuffix(r.FQDN, "."))
	if !isOwn(r, thumbprint) {
		return fmt.Errorf("%s: it was published with another account's key", op)
	}
	provider, err := c.presenterFor(ctx, order.Slot.Name, r.FQDN, cfg)
	if err != nil {
		return err
	}
	return c.do(ctx, provider, cfg, op, func(dns challenge.Provider) error {
		return dns.CleanUp(r.Domain, r.Token, keyAuthorization(r.Token, thumbprint))
	})
}

// removeNow removes the value of a proof that is done, to make room for the next at the same name.
func (w *work) removeNow(ctx context.Context, p proof) {
	w.removeRecords(ctx, p.name, func(r cluster.Record) bool { return r.Value == p.value })
}

// cleanUp removes what was published, after the work ended with err, and tells the checkpoint. It gives a phrase for
// each value that is still there.
func (w *work) cleanUp(ctx context.Context, err error) (left []string) {
	if handedOver(ctx, err) {
		return nil
	}
	grace, cancel := graceful(ctx)
	defer cancel()
	before := w.marks()
	left = w.removeRecords(grace, "", func(cluster.Record) bool { return true })
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refused == nil && !slices.Equal(before, w.order.Records) {
		// The record is not needed to be right here: what it says to be there is removed again, which does no harm.
		_ = w.checkpoint(grace, w.snapshot())
	}
	return left
}

func (w *work) marks() []cluster.Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.order.Records)
}

// removeRecords removes the published values that which picks, and marks them; the caller has the turn of the name
// holding, if any.
func (w *work) removeRecords(ctx context.Context, holding string, which func(cluster.Record) bool) (left []string) {
	w.mu.Lock()
	order := w.snapshot()
	var indexes []int
	for i, r := range order.Records {
		if !r.Removed && w.published[r.Value].removable() && which(r) {
			indexes = append(indexes, i)
		}
	}
	w.mu.Unlock()
	errs := w.client.remove(ctx, order, w.cfg, w.thumbprint, indexes, holding)
	w.mu.Lock()
	defer w.mu.Unlock()
	for n, i := range indexes {
		r := order.Records[i]
		if errs[n] != nil {
			left = append(left, oneLine(errs[n].Error()))
			w.client.say(order.Slot, "a TXT value is left behind: %v", errs[n])
			continue
		}
		failpoint.Hit("acme.cleaned")
		at := slices.Index(w.order.Records, r)
		if at >= 0 {
			w.order.Records[at].Removed = true
		}
	}
	return left
}

// handedOver tells that another node drives the order now, and needs its values.
func handedOver(ctx context.Context, err error) bool {
	for _, e := range []error{err, context.Cause(ctx)} {
		if errors.Is(e, cluster.ErrNotMaster) || errors.Is(e, cluster.ErrOrderTaken) {
			return true
		}
	}
	return false
}

// graceful gives a context that ends after cleanLimit, or cleanGrace after ctx.
func graceful(ctx context.Context) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-time.After(cleanGrace):
			cancel()
		case <-longer.Done():
		}
	})
	return longer, func() {
		stop()
		cancel()
	}
}

// mention adds to an error what was left behind.
func mention(err error, left []string) error {
	if issue, ok := errors.AsType[*cluster.IssueError](err); ok && len(left) > 0 {
		issue.Cause = oneLine(issue.Cause + "; left behind: " + strings.Join(left, "; "))
	}
	return err
}
