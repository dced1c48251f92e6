package acme

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-acme/lego/v4/acme"
	"github.com/go-acme/lego/v4/challenge"
	"golang.org/x/sync/errgroup"

	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

// proof is one authorization that is still to be proven.
type proof struct {
	url       string // the authorization's
	domain    string // without "*."
	shown     string // with it, for messages
	challenge acme.Challenge
	keyAuth   string
	value     string
	name      string // where the value goes, absolute
}

// authorize proves every authorization of an order that is not valid yet. Names go side by side; the values of one
// name together where the provider can hold several, else one after the other.
func (w *work) authorize(ctx context.Context, remote acme.Order) (acme.Order, error) {
	proofs, err := w.proofs(ctx, remote)
	if err != nil {
		return acme.Order{}, err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(sideBySide)
	for _, atName := range byName(proofs) {
		group.Go(func() error { return w.prove(ctx, atName) })
	}
	if err := group.Wait(); err != nil {
		return acme.Order{}, err
	}
	// The order is ready now; where the CA is behind, finalize hears of it.
	remote.Status = acme.StatusReady
	return remote, nil
}

// proofs reads the authorizations and finds out where the values of those that are pending go.
func (w *work) proofs(ctx context.Context, remote acme.Order) ([]proof, error) {
	var mu sync.Mutex
	var out []proof
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(sideBySide)
	for _, url := range remote.Authorizations {
		group.Go(func() error {
			authorization, err := w.authorization(ctx, url)
			if err != nil || authorization.Status == acme.StatusValid {
				return err
			}
			p, err := w.proof(ctx, url, authorization)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, p)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	slices.SortFunc(out, func(a, b proof) int { return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.shown, b.shown)) })
	return out, nil
}

func (w *work) authorization(ctx context.Context, url string) (acme.Authorization, error) {
	authorization, err := call(ctx, w.session, "authorization "+url, url, func() (acme.Authorization, error) {
		return w.session.core.Authorizations.Get(url)
	})
	if err != nil {
		if issue, ok := errors.AsType[*cluster.IssueError](err); ok && permanent(err) {
			issue.Dead = true
		}
		return authorization, err
	}
	switch authorization.Status {
	case acme.StatusValid, acme.StatusPending:
		return authorization, nil
	}
	return authorization, refusedAuthorization(authorization)
}

// refusedAuthorization tells why the CA did not accept a proof. The order is invalid with it.
func refusedAuthorization(a acme.Authorization) error {
	for _, c := range a.Challenges {
		if c.Error != nil {
			return dead(issueError(challenge.GetTargetedDomain(a)+": "+describeProblem(c.Error), c.Error, problemHint(c.Error)))
		}
	}
	return dead(issueError(fmt.Sprintf("%s: the CA says that its authorization is %.40q", challenge.GetTargetedDomain(a), a.Status), nil, ""))
}

func (w *work) proof(ctx context.Context, url string, a acme.Authorization) (proof, error) {
	shown := challenge.GetTargetedDomain(a)
	offered, err := challenge.FindChallenge(challenge.DNS01, a)
	if err != nil {
		return proof{}, issueError(shown+": the CA offers no dns-01 challenge", err, "")
	}
	domain := strings.ToLower(a.Identifier.Value)
	name, err := challengeName(ctx, resolversOf(w.cfg), domain)
	switch {
	case ctx.Err() != nil:
		return proof{}, fmt.Errorf("%s: %w", shown, contextError(ctx))
	case err != nil && w.cfg.Check:
		return proof{}, issueError(fmt.Sprintf("%s: where its TXT value goes: %v", shown, err), err,
			"set dns.resolvers to servers that this host can reach, or dns.propagation.check to false where it can reach none")
	}
	keyAuth := keyAuthorization(offered.Token, w.thumbprint)
	return proof{url: url, domain: domain, shown: shown, challenge: offered, keyAuth: keyAuth, value: txtValue(keyAuth), name: name}, nil
}

// byName splits proofs, which are sorted, into those of each name.
func byName(proofs []proof) [][]proof {
	var out [][]proof
	for i, p := range proofs {
		if i == 0 || p.name != proofs[i-1].name {
			out = append(out, nil)
		}
		out[len(out)-1] = append(out[len(out)-1], p)
	}
	return out
}

// prove proves the authorizations whose values go to one name.
func (w *work) prove(ctx context.Context, proofs []proof) error {
	turn, err := w.client.names.take(ctx, proofs[0].name)
	if err != nil {
		return fmt.Errorf("%s: waiting for another order's value at %s: %w", proofs[0].shown, proofs[0].name, err)
	}
	defer turn.free()
	provider, err := w.client.presenterFor(ctx, w.order.Slot.Name, proofs[0].name, w.cfg)
	if err != nil {
		return err
	}
	if !provider.sequential {
		err := w.together(ctx, provider, proofs)
		if !errors.Is(err, errOverwritten) {
			return err
		}
		w.client.say(w.order.Slot, "DNS provider %s keeps one TXT value at %s: proving its %d names one after the other",
			provider.name, proofs[0].name, len(proofs))
	}
	return w.inTurn(ctx, provider, proofs, turn)
}

// together has all values at the name at once.
func (w *work) together(ctx context.Context, provider *presenter, proofs []proof) error {
	var values []string
	for _, p := range proofs {
		if err := w.present(ctx, provider, p); err != nil {
			return err
		}
		values = append(values, p.value)
	}
	if w.cfg.Check {
		if err := w.client.awaitValues(ctx, w.cfg, proofs[0].name, values); err != nil {
			return err
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, p := range proofs {
		group.Go(func() error { return w.answer(ctx, p) })
	}
	err := group.Wait()
	if issue, ok := errors.AsType[*cluster.IssueError](err); ok && issue.Dead && !w.cfg.Check {
		return withHint(issue, fmt.Sprintf("turn dns.propagation.check on: it would tell whether %s keeps only one TXT value at a name", provider.name))
	}
	return err
}

// inTurn has one value at the name at a time, each removed before the next.
func (w *work) inTurn(ctx context.Context, provider *presenter, proofs []proof, turn *nameTurn) error {
	for _, p := range proofs {
		if err := sleep(ctx, time.Until(turn.notBefore)); err != nil {
			return fmt.Errorf("%s: %w", p.shown, err)
		}
		if err := w.present(ctx, provider, p); err != nil {
			return err
		}
		if w.cfg.Check {
			if err := w.client.awaitValues(ctx, w.cfg, p.name, []string{p.value}); err != nil {
				return err
			}
		}
		if err := w.answer(ctx, p); err != nil {
			return err
		}
		w.removeNow(ctx, p)
		turn.notBefore = time.Now().Add(w.cfg.Sequence)
	}
	return nil
}

// present publishes a value; its record is stored before.
func (w *work) present(ctx context.Context, provider *presenter, p proof) error {
	if w.isRecorded(p) && w.cfg.Check && visible(ctx, w.cfg, p.name, p.value) {
		return nil
	}
	w.note(p.value, func(p *published) {})
	err := w.save(ctx, cluster.StepPresenting, func(o *cluster.Order) { o.Records = addRecord(o.Records, p) })
	if err != nil {
		return err
	}
	w.client.say(w.order.Slot, "publishing the TXT value of %s at %s", p.shown, p.name)
	err = w.client.do(ctx, provider, w.cfg, "publish the TXT value of "+p.shown, func(dns challenge.Provider) error {
		w.note(p.value, func(p *published) { p.begun = true })
		return dns.Present(p.domain, p.challenge.Token, p.keyAuth)
	})
	if _, hung := errors.AsType[hungError](err); hung {
		w.note(p.value, func(p *published) { p.hung = true })
	}
	failpoint.Hit("acme.presented")
	return err
}

// isRecorded tells that the value was published by whoever drove the order before, and not removed.
func (w *work) isRecorded(p proof) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.published[p.value] == nil && slices.ContainsFunc(w.order.Records, func(r cluster.Record) bool {
		return r.Value == p.value && r.Token == p.challenge.Token && !r.Removed
	})
}

// note keeps what is known of a value that this work publishes.
func (w *work) note(value string, change func(*published)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.published[value] == nil {
		w.published[value] = &published{}
	}
	change(w.published[value])
}

// addRecord adds the record of a value, or marks it as there again.
func addRecord(records []cluster.Record, p proof) []cluster.Record {
	for i, r := range records {
		if r.Domain == p.domain && r.Token == p.challenge.Token && r.Value == p.value {
			if r.Removed {
				records[i].Removed = false
				records[i].Round++
			}
			records[i].FQDN = p.name
			return records
		}
	}
	return append(records, cluster.Record{Domain: p.domain, Token: p.challenge.Token, FQDN: p.name, Value: p.value})
}

// answer tells the CA to look, unless it was told before, and waits for what it says.
func (w *work) answer(ctx context.Context, p proof) error {
	var told error
	if p.challenge.Status == acme.StatusPending || p.challenge.Status == "" {
		if err := w.save(ctx, cluster.StepPresenting, nil); err != nil {
			return err
		}
		w.client.say(w.order.Slot, "asking the CA to check %s", p.shown)
		_, told = call(ctx, w.session, "challenge of "+p.shown, p.challenge.URL, func() (acme.ExtendedChallenge, error) {
			return w.session.core.Challenges.New(p.challenge.URL)
		})
		if told != nil && !permanent(told) {
			return told
		}
		failpoint.Hit("acme.answered")
	}
	return w.session.poll(ctx, p.url, w.session.http.result(p.challenge.URL).retryAfter, func() (bool, error) {
		authorization, err := w.authorization(ctx, p.url)
		if err == nil && authorization.Status != acme.StatusValid && told != nil {
			// A refused answer is no failure where the challenge had been answered already.
			return false, told
		}
		return authorization.Status == acme.StatusValid, err
	})
}

// withHint gives an error another mend.
func withHint(e *cluster.IssueError, hint string) *cluster.IssueError {
	e.Hint = hint
	e.Err = cluster.WithHint(e.Err, "%s", hint)
	return e
}
