package acme_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-acme/lego/v4/challenge"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/lab"
)

var both = []string{"example.org", "*.example.org"}

const challengeName = "_acme-challenge.example.org"

func TestApexAndWildcardInOneOrder(t *testing.T) {
	for _, keyType := range []cert.KeyType{cert.EC256, cert.RSA2048} {
		t.Run(string(keyType), func(t *testing.T) {
			w := newWorld(t)
			c := w.registered()
			o := w.order(keyType, both...)
			var j journal
			b, err := c.Obtain(w.ctx(), w.account, o, j.checkpoint)
			if err != nil {
				t.Fatal(err)
			}
			w.checkBundle(b, o)
			w.checkClean()
			counts := w.ca.Counts()
			if counts.NewOrders != 1 || counts.Challenges != 2 || counts.Finalized != 1 || counts.Certificates != 1 {
				t.Errorf("%+v, want one order, two challenges, one certificate", counts)
			}
			if n := len(w.dns.History(challengeName)); n != 2 {
				t.Errorf("%d TXT values published, want 2", n)
			}
			last := j.last(o)
			if last.Step != cluster.StepDownloading || last.URL == "" || len(last.Records) != 2 || !last.Expires.After(time.Now()) {
				t.Errorf("recorded last: step %s, URL %q, expires %s, %d records", last.Step, last.URL, last.Expires, len(last.Records))
			}
			for _, r := range last.Records {
				if !r.Removed {
					t.Errorf("record of %s is not marked as removed", r.Value)
				}
			}
			w.checkQuiet(o)
		})
	}
}

// A checkpoint comes before what it is about: nothing at the CA or in the DNS has happened yet when it is asked.
func TestCheckpointComesBeforeEachStep(t *testing.T) {
	w := newWorld(t)
	c := w.registered()
	var j journal
	presented := 0
	j.refuse = func(_ int, o cluster.Order) error {
		counts := w.ca.Counts()
		switch o.Step {
		case cluster.StepPlanned:
			if counts.NewOrders != 0 {
				t.Error("planned: newOrder was sent before")
			}
		case cluster.StepOrdered:
			if o.URL == "" || counts.Challenges != 0 || len(w.dns.History(challengeName)) != 0 {
				t.Errorf("ordered: URL %q, %d challenges", o.URL, counts.Challenges)
			}
		case cluster.StepPresenting:
			if len(o.Records) > presented { // a new record: its value is not there yet
				presented = len(o.Records)
				if value := o.Records[presented-1].Value; slices.Contains(w.dns.History(challengeName), value) {
					t.Errorf("presenting: %s was published before its record", value)
				}
			}
		case cluster.StepFinalizing:
			if counts.Finalized != 0 || counts.Challenges != 2 {
				t.Errorf("finalizing: %d challenges, %d finalised", counts.Challenges, counts.Finalized)
			}
		}
		return nil
	}
	if _, err := c.Obtain(w.ctx(), w.account, w.order(cert.EC256, both...), j.checkpoint); err != nil {
		t.Fatal(err)
	}
	steps := slices.Compact(j.steps())
	if want := cluster.Steps(); !slices.Equal(steps, want) {
		t.Errorf("steps %v, want %v", steps, want)
	}
}

// checkpoints is how many times an order for both names asks its checkpoint, the last after its clean-up.
func checkpoints(t *testing.T) int {
	w := newWorld(t)
	var j journal
	if _, err := w.registered().Obtain(w.ctx(), w.account, w.order(cert.EC256, both...), j.checkpoint); err != nil {
		t.Fatal(err)
	}
	return len(j.orders)
}

// A certificate that was issued does not wait for a clean-up that hangs, once its caller is in a hurry.
func TestHangingCleanUpEndsWithTheContext(t *testing.T) {
	w := newWorld(t)
	w.provider = lasting
	w.dnsCfg.Timeout = 2 * patience
	c := w.registered()
	ctx, cancel := context.WithCancel(w.ctx())
	defer cancel()
	o := w.order(cert.EC256, "example.org")
	j := journal{refuse: func(_ int, o cluster.Order) error {
		if o.Step == cluster.StepDownloading {
			w.dns.SetFaults(lab.DNSFaults{HangUpdates: true, HangQueries: true})
			time.AfterFunc(100*time.Millisecond, cancel)
		}
		return nil
	}}
	done := make(chan error, 1)
	go func() {
		_, err := c.Obtain(ctx, w.account, o, j.checkpoint)
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("it hangs with the provider")
	}
	if r := j.last(o).Records; len(r) != 1 || r[0].Removed {
		t.Errorf("records %+v, want one that is still there", r)
	}
}

// The driver dies at each of its checkpoints, which is where kill -9 leaves an order at worst, and another client takes
// up what was recorded: the CA sees one order, one finalisation, and no value stays in the DNS.
func TestResumeAtEveryCheckpoint(t *testing.T) {
	errDisk := errors.New("no space left on device")
	n := checkpoints(t)
	for _, why := range []error{errDisk, cluster.ErrNotMaster} {
		for at := 1; at <= n; at++ {
			t.Run(fmt.Sprintf("%v at %d", why, at), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				o := w.order(cert.EC256, both...)
				first := w.registered()
				o.Account = w.account.Thumbprint
				j := journal{refuse: func(n int, _ cluster.Order) error {
					if n >= at {
						return why
					}
					return nil
				}}
				_, err := first.Obtain(w.ctx(), w.account, o, j.checkpoint)
				if at < n && !errors.Is(err, why) {
					t.Fatalf("error %v, want the checkpoint's", err)
				}
				if _, ok := errors.AsType[*cluster.IssueError](err); ok {
					t.Errorf("%v is the CA's fault, by its type", err)
				}
				if why == errDisk {
					w.checkClean()
				}
				recorded := j.last(o)
				j.refuse = nil
				b, err := w.client().Obtain(w.ctx(), w.account, recorded, j.checkpoint)
				if err != nil {
					t.Fatalf("resume from %s: %v", recorded.Step, err)
				}
				w.checkBundle(b, o)
				w.checkClean()
				if counts := w.ca.Counts(); counts.Orders != 1 || counts.Finalized != 1 || counts.Certificates != 1 {
					t.Errorf("%+v, want one order, finalised once", counts)
				}
				for _, r := range j.last(o).Records {
					if !r.Removed {
						t.Errorf("record of %s is not marked as removed", r.Value)
					}
				}
			})
		}
	}
}

// After a checkpoint's refusal nothing more is begun.
func TestRefusalEndsTheWorkAtOnce(t *testing.T) {
	for step, none := range map[cluster.Step]func(*world) int{
		cluster.StepPlanned:     func(w *world) int { return w.ca.Counts().Requests[lab.EndpointNewOrder] },
		cluster.StepOrdered:     func(w *world) int { return w.ca.Counts().Requests[lab.EndpointAuthorization] },
		cluster.StepPresenting:  func(w *world) int { return len(w.dns.History(challengeName)) + w.ca.Counts().Challenges },
		cluster.StepFinalizing:  func(w *world) int { return w.ca.Counts().Requests[lab.EndpointFinalize] },
		cluster.StepDownloading: func(w *world) int { return w.ca.Counts().Requests[lab.EndpointCertificate] },
	} {
		t.Run(step.String(), func(t *testing.T) {
			w := newWorld(t)
			j := journal{refuse: func(_ int, o cluster.Order) error {
				if o.Step == step {
					return cluster.ErrOrderTaken
				}
				return nil
			}}
			_, err := w.registered().Obtain(w.ctx(), w.account, w.order(cert.EC256, both...), j.checkpoint)
			if !errors.Is(err, cluster.ErrOrderTaken) {
				t.Fatalf("error %v, want ErrOrderTaken", err)
			}
			if n := none(w); n != 0 {
				t.Errorf("the step was begun: %d", n)
			}
		})
	}
}

// Another node that took the order over needs the values that are there.
func TestValuesAreLeftToTheNodeThatTookTheOrderOver(t *testing.T) {
	w := newWorld(t)
	w.provider = lasting
	j := journal{refuse: func(_ int, o cluster.Order) error {
		if o.Step == cluster.StepFinalizing {
			return fmt.Errorf("fence: %w", cluster.ErrNotMaster)
		}
		return nil
	}}
	if _, err := w.registered().Obtain(w.ctx(), w.account, w.order(cert.EC256, "example.org"), j.checkpoint); !errors.Is(err, cluster.ErrNotMaster) {
		t.Fatal(err)
	}
	if len(w.dns.Records(challengeName)) != 1 {
		t.Error("the value was removed under the other node")
	}
}

func TestCancelAtEachRequestEndsTheWorkAndCleansUp(t *testing.T) {
	for _, endpoint := range []lab.Endpoint{lab.EndpointDirectory, lab.EndpointNewNonce, lab.EndpointNewOrder, lab.EndpointAuthorization,
		lab.EndpointChallenge, lab.EndpointFinalize, lab.EndpointOrder, lab.EndpointCertificate} {
		t.Run(string(endpoint), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.cfg.Timeout = 2 * patience // only the context can end it
			o := w.order(cert.EC256, both...)
			w.registered()
			c := w.client() // one that has not read the directory yet
			ctx, cancel := context.WithCancel(w.ctx())
			var once sync.Once
			w.ca.SetHook(func(_ http.ResponseWriter, r *http.Request) bool {
				if lab.EndpointOf(r) != endpoint {
					return false
				}
				once.Do(cancel)
				<-r.Context().Done()
				return true
			})
			var j journal
			done := make(chan error, 1)
			go func() {
				_, err := c.Obtain(ctx, w.account, o, j.checkpoint)
				done <- err
			}()
			select {
			case err := <-done:
				if !errors.Is(err, context.Canceled) {
					t.Errorf("error %v, want Canceled", err)
				}
				w.checkQuiet(o, err)
			case <-time.After(patience):
				t.Fatal("it goes on after its context ended")
			}
			w.checkClean()
			w.ca.SetHook(nil)
			b, err := w.client().Obtain(w.ctx(), w.account, j.last(o), j.checkpoint)
			if err != nil {
				t.Fatalf("resume from %s: %v", j.last(o).Step, err)
			}
			w.checkBundle(b, o)
			w.checkClean()
			if n := w.ca.Counts().Orders; n != 1 {
				t.Errorf("%d orders, want 1", n)
			}
		})
	}
}

// A value that was removed at a cancel and published again by the next driver must be known as there, wherever the two
// records meet: else nobody removes it after a crash.
func TestValuePublishedAgainIsRecordedAsThereAgain(t *testing.T) {
	w := newWorld(t)
	w.provider = lasting
	o := w.order(cert.EC256, "example.org")
	c := w.registered()
	ctx, cancel := context.WithCancel(w.ctx())
	w.ca.SetHook(at(lab.EndpointChallenge, func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	}))
	var first journal
	if _, err := c.Obtain(ctx, w.account, o, first.checkpoint); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	cancelled := first.last(o)
	if len(cancelled.Records) != 1 || !cancelled.Records[0].Removed {
		t.Fatalf("after the cancel: %+v", cancelled.Records)
	}
	w.ca.SetHook(nil)
	second := journal{refuse: func(_ int, o cluster.Order) error {
		if o.Step == cluster.StepFinalizing {
			return cluster.ErrNotMaster // which leaves the value, as a crash does
		}
		return nil
	}}
	_, _ = w.client().Obtain(w.ctx(), w.account, cancelled, second.checkpoint)
	if len(w.dns.Records(challengeName)) != 1 {
		t.Fatal("the value is not there")
	}
	for _, merged := range []cluster.Order{cluster.MergeOrder(cancelled, second.last(o)), cluster.MergeOrder(second.last(o), cancelled)} {
		if merged.Records[0].Removed {
			t.Errorf("the records joined say that it is removed: %+v", merged.Records)
		}
	}
}

func TestPauseBetweenTwoValuesEndsWithTheContext(t *testing.T) {
	w := newWorld(t)
	w.dnsCfg.Sequence = 2 * patience
	c := w.registered()
	ctx, cancel := context.WithCancel(w.ctx())
	defer cancel()
	done := make(chan error, 1)
	var j journal
	go func() {
		_, err := c.Obtain(ctx, w.account, w.order(cert.EC256, both...), j.checkpoint)
		done <- err
	}()
	for start := time.Now(); w.dns.Updates() < 2 && time.Since(start) < patience; { // published and removed
		time.Sleep(time.Millisecond)
	}
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want Canceled", err)
		}
	case <-time.After(patience):
		t.Fatal("it goes on after its context ended")
	}
	if n := w.ca.Counts().Challenges; n != 1 {
		t.Errorf("%d challenges answered, want the first only", n)
	}
	w.checkClean()
}

func TestCancelWhileTheDNSHangs(t *testing.T) {
	for name, faults := range map[string]lab.DNSFaults{"updates": {HangUpdates: true}, "queries": {HangQueries: true}, "unseen": {HideFor: time.Hour}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.dnsCfg.Timeout = 2 * patience
			c := w.registered()
			w.dns.SetFaults(faults)
			ctx, cancel := context.WithCancel(w.ctx())
			defer cancel()
			done := make(chan error, 1)
			var j journal
			go func() {
				_, err := c.Obtain(ctx, w.account, w.order(cert.EC256, both...), j.checkpoint)
				done <- err
			}()
			queries := w.dns.Queries()
			for start := time.Now(); w.dns.Queries() < queries+2 && time.Since(start) < patience; {
				time.Sleep(time.Millisecond)
			}
			cancel()
			select {
			case err := <-done:
				if !errors.Is(err, context.Canceled) {
					t.Errorf("error %v, want Canceled", err)
				}
			case <-time.After(patience):
				t.Fatal("it goes on after its context ended")
			}
			if n := w.ca.Counts().Challenges; n != 0 {
				t.Errorf("%d challenges answered", n)
			}
		})
	}
}

func TestNonceRejectionsAndRandomDelays(t *testing.T) {
	w := newWorld(t, func(_ *world, _ *lab.DNSOptions, ca *lab.CAOptions) {
		ca.NonceReject, ca.Sleep, ca.RetryAfterAuthz, ca.RetryAfterOrder = 30, 2, 1, 1
	})
	c := w.registered()
	o := w.order(cert.EC256, both...)
	var j journal
	b, err := c.Obtain(w.ctx(), w.account, o, j.checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	w.checkBundle(b, o)
	w.checkClean()
}

// Certificates may share a name's challenge record, as example.org and *.example.org do, and a provider that holds one
// value at a time must not lose one order's to another's.
func TestOrdersThatShareANameDoNotDisturbEachOther(t *testing.T) {
	for kind, wrap := range map[string]func(challenge.Provider) challenge.Provider{
		"sequential": nil, "overwriting": func(p challenge.Provider) challenge.Provider { return wrapped{p} },
	} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t)
			w.provider = wrap
			c := w.registered()
			var done sync.WaitGroup
			for i := range 6 {
				domains := []string{"*.example.org", fmt.Sprintf("n%d.example.org", i)}
				if i%2 == 0 {
					domains[0] = "example.org"
				}
				o := w.order(cert.EC256, domains...)
				done.Go(func() {
					var j journal
					if _, err := c.Obtain(w.ctx(), w.account, o, j.checkpoint); err != nil {
						t.Error(err)
					}
				})
			}
			done.Wait()
			w.checkClean()
		})
	}
}

// Half of the nonces refused costs repeats, and no waiting.
func TestHalfOfTheNoncesRefused(t *testing.T) {
	w := newWorld(t, func(_ *world, _ *lab.DNSOptions, ca *lab.CAOptions) { ca.NonceReject = 50 })
	o := w.order(cert.EC256, both...)
	c := w.registered()
	var j journal
	if _, err := c.Obtain(w.ctx(), w.account, o, j.checkpoint); err != nil {
		t.Fatal(err)
	}
	if counts := w.ca.Counts(); counts.Orders != 1 || counts.Challenges != 2 || counts.Finalized != 1 {
		t.Errorf("%+v, want one of each", counts)
	}
}

func TestEveryNonceRefused(t *testing.T) {
	w := newWorld(t)
	c := w.registered()
	w.ca.SetHook(at(lab.EndpointNewOrder, func(rw http.ResponseWriter, _ *http.Request) {
		lab.Problem(rw, http.StatusBadRequest, "badNonce", "no nonce is good")
	}))
	ctx, cancel := context.WithCancel(w.ctx())
	defer cancel()
	var j journal
	_, err := c.Obtain(ctx, w.account, w.order(cert.EC256, "example.org"), j.checkpoint)
	if issue := issueError(t, err); issue.Dead || !strings.Contains(issue.Cause, "badNonce: no nonce is good") {
		t.Errorf("%q, dead %t", issue.Cause, issue.Dead)
	}
}

func TestEightOrdersAtOnce(t *testing.T) {
	w := newWorld(t, func(_ *world, _ *lab.DNSOptions, ca *lab.CAOptions) { ca.NonceReject = 10 })
	c := w.registered()
	var done sync.WaitGroup
	for i := range 8 {
		name := fmt.Sprintf("n%d.example.org", i)
		o := w.order(cert.EC256, name, "*."+name, "other-"+name)
		done.Go(func() {
			var j journal
			b, err := c.Obtain(w.ctx(), w.account, o, j.checkpoint)
			if err != nil {
				t.Error(err)
				return
			}
			w.checkBundle(b, o)
		})
	}
	done.Wait()
	w.checkClean()
	if counts := w.ca.Counts(); counts.Orders != 8 || counts.Certificates != 8 || counts.Challenges != 24 {
		t.Errorf("%+v, want 8 orders with 3 challenges each", counts)
	}
	if n := w.ca.Counts().Requests[lab.EndpointDirectory]; n != 1 {
		t.Errorf("the directory was read %d times, want once", n)
	}
}

func TestOrderHandedOutAgainIsOneOrder(t *testing.T) {
	w := newWorld(t)
	c := w.registered()
	var urls []string
	for range 2 {
		j := journal{refuse: func(_ int, o cluster.Order) error {
			if o.Step == cluster.StepOrdered {
				urls = append(urls, o.URL)
				return cluster.ErrOrderTaken
			}
			return nil
		}}
		_, _ = c.Obtain(w.ctx(), w.account, w.order(cert.EC256, both...), j.checkpoint)
	}
	if len(urls) != 2 || urls[0] != urls[1] {
		t.Errorf("two records have the orders %v, want the same one", urls)
	}
}

func TestOrderFinalisedWithAnotherKeyIsDead(t *testing.T) {
	w := newWorld(t)
	c := w.registered()
	var first, second journal
	o := w.order(cert.EC256, both...)
	if _, err := c.Obtain(w.ctx(), w.account, o, first.checkpoint); err != nil {
		t.Fatal(err)
	}
	other := w.order(cert.EC256, both...)
	other.URL, other.Step = first.last(o).URL, cluster.StepFinalizing
	_, err := c.Obtain(w.ctx(), w.account, other, second.checkpoint)
	issue := issueError(t, err)
	if !issue.Dead || !strings.Contains(issue.Cause, "was finalised with another key") {
		t.Errorf("%q, dead %t; want it dead and named", issue.Cause, issue.Dead)
	}
	w.checkQuiet(other, err)
}

func TestOrderThatCannotGoOnIsDead(t *testing.T) {
	for name, kill := range map[string]func(*world){
		"expired": func(w *world) { w.ca.ExpireOrders() },
		"404": func(w *world) {
			w.ca.SetHook(func(rw http.ResponseWriter, r *http.Request) bool {
				if lab.EndpointOf(r) != lab.EndpointOrder {
					return false
				}
				rw.Header().Set("Replay-Nonce", "none")
				rw.WriteHeader(http.StatusNotFound)
				return true
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c := w.registered()
			o := w.order(cert.EC256, "example.org")
			j := journal{refuse: func(_ int, o cluster.Order) error {
				if o.Step > cluster.StepOrdered {
					return cluster.ErrNotMaster
				}
				return nil
			}}
			_, _ = c.Obtain(w.ctx(), w.account, o, j.checkpoint)
			kill(w)
			j.refuse = nil
			_, err := c.Obtain(w.ctx(), w.account, j.last(o), j.checkpoint)
			if issue := issueError(t, err); !issue.Dead {
				t.Errorf("%q is not dead", issue.Cause)
			}
		})
	}
}

func TestRefusedChallengeIsDeadAndCleanedUp(t *testing.T) {
	w := newWorld(t)
	w.dnsCfg.Check = false
	c := w.registered()
	w.dns.SetFaults(lab.DNSFaults{HideFor: time.Hour})
	o := w.order(cert.EC256, "example.org")
	var j journal
	_, err := c.Obtain(w.ctx(), w.account, o, j.checkpoint)
	issue := issueError(t, err)
	if !issue.Dead || !strings.Contains(issue.Cause, "example.org: unauthorized: ") || issue.Hint == "" || cluster.HintOf(err) != issue.Hint {
		t.Errorf("cause %q, dead %t, hint %q/%q", issue.Cause, issue.Dead, issue.Hint, cluster.HintOf(err))
	}
	w.checkClean()
	w.checkQuiet(o, err)
}

func TestWithoutThePropagationCheckNoResolverIsNeeded(t *testing.T) {
	w := newWorld(t)
	w.dnsCfg.Check = false
	w.dnsCfg.Resolvers = []string{"127.0.0.1:1"}
	c := w.registered()
	var j journal
	if _, err := c.Obtain(w.ctx(), w.account, w.order(cert.EC256, both...), j.checkpoint); err != nil {
		t.Fatal(err)
	}
	w.checkClean()
}

func TestCNAMEsAreFollowed(t *testing.T) {
	const target = "example-org.acme.example.net"
	w := newWorld(t, func(_ *world, dns *lab.DNSOptions, _ *lab.CAOptions) {
		dns.CNAMEs = map[string]string{challengeName: "hop.example.net", "hop.example.net": target, "_acme-challenge.www.example.org": target}
	})
	c := w.registered()
	o := w.order(cert.EC256, "example.org", "*.example.org", "www.example.org")
	var j journal
	b, err := c.Obtain(w.ctx(), w.account, o, j.checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	w.checkBundle(b, o)
	w.checkClean()
	if n := len(w.dns.History(target)); n != 3 {
		t.Errorf("%d values at %s, want 3", n, target)
	}
	for _, r := range j.last(o).Records {
		if r.FQDN != target+"." {
			t.Errorf("record at %q, want %s.", r.FQDN, target)
		}
	}
}

func TestCNAMELoopIsAnErrorThatNamesIt(t *testing.T) {
	w := newWorld(t, func(_ *world, dns *lab.DNSOptions, _ *lab.CAOptions) {
		dns.CNAMEs = map[string]string{challengeName: "a.example.net", "a.example.net": "b.example.net", "b.example.net": "a.example.net"}
	})
	var j journal
	_, err := w.registered().Obtain(w.ctx(), w.account, w.order(cert.EC256, "example.org"), j.checkpoint)
	if issue := issueError(t, err); !strings.Contains(issue.Cause, "CNAME loop") {
		t.Errorf("cause %q, want the loop", issue.Cause)
	}
}

func TestReusedAuthorizationsNeedNoChallenge(t *testing.T) {
	w := newWorld(t, func(_ *world, _ *lab.DNSOptions, ca *lab.CAOptions) { ca.AuthzReuse = 100 })
	c := w.registered()
	for _, keyType := range []cert.KeyType{cert.EC256, cert.RSA2048} {
		var j journal
		o := w.order(keyType, both...)
		b, err := c.Obtain(w.ctx(), w.account, o, j.checkpoint)
		if err != nil {
			t.Fatal(err)
		}
		w.checkBundle(b, o)
	}
	if counts := w.ca.Counts(); counts.Challenges != 2 || counts.Orders != 2 {
		t.Errorf("%+v, want two orders and the challenges of one", counts)
	}
}

// ariID is the certificate identifier of RFC 9773 section 4.1.
func ariID(authorityKeyID []byte, serial *big.Int) string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode(authorityKeyID) + "." + encode(serial.Bytes())
}

func TestReplaces(t *testing.T) {
	w := newWorld(t)
	c := w.registered()
	var first, second, third, fourth journal
	b, err := c.Obtain(w.ctx(), w.account, w.order(cert.EC256, both...), first.checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	renewal := w.order(cert.EC256, both...)
	renewal.Replaces = ariID(b.Leaf().AuthorityKeyId, b.Leaf().SerialNumber)
	if _, err := c.Obtain(w.ctx(), w.account, renewal, second.checkpoint); err != nil {
		t.Fatal(err)
	}
	if got := second.last(renewal).Replaces; got != renewal.Replaces {
		t.Errorf("the record says that %q is replaced, want %q", got, renewal.Replaces)
	}
	again := w.order(cert.EC256, both...)
	again.Replaces = renewal.Replaces
	if _, err := c.Obtain(w.ctx(), w.account, again, third.checkpoint); err != nil {
		t.Fatalf("already replaced: %v", err)
	}
	if got := third.last(again).Replaces; got != "" {
		t.Errorf("already replaced: the record still says that %q is", got)
	}
	wrong := w.order(cert.EC256, both...)
	wrong.Replaces = "not.known"
	if _, err := c.Obtain(w.ctx(), w.account, wrong, fourth.checkpoint); err != nil {
		t.Fatalf("a predecessor that the CA does not know: %v", err)
	}
	if got := fourth.last(wrong).Replaces; got != "" {
		t.Errorf("unknown predecessor: the record still says that %q is replaced", got)
	}
}

func TestProfiles(t *testing.T) {
	w := newWorld(t, func(_ *world, _ *lab.DNSOptions, ca *lab.CAOptions) {
		ca.Profiles = map[string]lab.CAProfile{"classic": {Lifetime: 90 * 24 * time.Hour}, "shortlived": {Lifetime: 160 * time.Hour}}
	})
	c := w.registered()
	o := w.order(cert.EC256, both...)
	o.Profile = "shortlived"
	var j journal
	b, err := c.Obtain(w.ctx(), w.account, o, j.checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	if life := b.Leaf().NotAfter.Sub(b.Leaf().NotBefore).Round(time.Minute); life != 160*time.Hour {
		t.Errorf("lifetime %s, want 160h", life)
	}
	o = w.order(cert.EC256, both...)
	o.Profile = "tlsserver"
	_, err = c.Obtain(w.ctx(), w.account, o, j.checkpoint)
	if issue := issueError(t, err); !issue.Dead || !strings.Contains(issue.Hint, "classic, shortlived") {
		t.Errorf("%q, hint %q, dead %t; want the profiles that there are", issue.Cause, issue.Hint, issue.Dead)
	}
}

func TestDomainsAreLowerCasedAndSorted(t *testing.T) {
	w := newWorld(t)
	c := w.registered()
	o := w.order(cert.EC256, "WWW.Example.org", "example.org", "www.example.org")
	var j journal
	b, err := c.Obtain(w.ctx(), w.account, o, j.checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(b.Leaf().DNSNames, " "); got != "example.org www.example.org" {
		t.Errorf("names %q", got)
	}
}

// wrapped hides the mark of lego's rfc2136 provider that says that it holds one value at a name.
type wrapped struct{ challenge.Provider }

// lasting makes a provider whose values stay until the order's end, as those of most do.
func lasting(p challenge.Provider) challenge.Provider { return wrapped{p} }

func TestProviderThatKeepsOneValueIsFoundOut(t *testing.T) {
	w := newWorld(t)
	w.provider = func(p challenge.Provider) challenge.Provider { return wrapped{p} }
	c := w.registered()
	o := w.order(cert.EC256, both...)
	var j journal
	b, err := c.Obtain(w.ctx(), w.account, o, j.checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	w.checkBundle(b, o)
	w.checkClean()
	if !w.said("keeps one TXT value at _acme-challenge.example.org.") {
		t.Errorf("nobody was told: %q", w.progress)
	}
	if n := w.ca.Counts().Orders; n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
}

func TestProviderThatKeepsOneValueIsNamedWhereItIsNotChecked(t *testing.T) {
	w := newWorld(t)
	w.provider = func(p challenge.Provider) challenge.Provider { return wrapped{p} }
	w.dnsCfg.Check = false
	var j journal
	_, err := w.registered().Obtain(w.ctx(), w.account, w.order(cert.EC256, both...), j.checkpoint)
	issue := issueError(t, err)
	if !issue.Dead || !strings.Contains(issue.Hint, "rfc2136 keeps only one TXT value") {
		t.Errorf("%q, hint %q; want the provider named", issue.Cause, issue.Hint)
	}
	w.checkClean()
}

// several adds a value to those that are there, as most providers do, and counts its calls.
type several struct {
	w *world
	challenge.Provider
}

func (s several) Present(domain, token, keyAuth string) error {
	before := s.w.dns.Records("_acme-challenge." + domain)
	if err := s.Provider.Present(domain, token, keyAuth); err != nil {
		return err
	}
	s.w.dns.SetTXT("_acme-challenge."+domain, append(before, s.w.dns.Records("_acme-challenge."+domain)...)...)
	return nil
}

func TestBothValuesAreThereAtOnceWhereTheProviderHoldsThem(t *testing.T) {
	w := newWorld(t)
	w.provider = func(p challenge.Provider) challenge.Provider { return several{w, p} }
	c := w.registered()
	var mu sync.Mutex
	least := 2
	w.ca.SetHook(func(_ http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if lab.EndpointOf(r) == lab.EndpointChallenge {
			least = min(least, len(w.dns.Records(challengeName)))
		}
		return false
	})
	var j journal
	if _, err := c.Obtain(w.ctx(), w.account, w.order(cert.EC256, both...), j.checkpoint); err != nil {
		t.Fatal(err)
	}
	w.ca.SetHook(nil)
	if least != 2 {
		t.Errorf("%d values at a challenge, want both", least)
	}
	w.checkClean()
}

func TestProviderThatFailsLeavesAnOrderToBeTakenUp(t *testing.T) {
	w := newWorld(t)
	c := w.registered()
	w.dns.SetFaults(lab.DNSFaults{RefuseUpdates: true})
	o := w.order(cert.EC256, both...)
	var j journal
	_, err := c.Obtain(w.ctx(), w.account, o, j.checkpoint)
	issue := issueError(t, err)
	if issue.Dead || !strings.Contains(issue.Cause, "DNS provider rfc2136") || !strings.Contains(issue.Cause, "REFUSED") || issue.Hint == "" {
		t.Errorf("%q, dead %t, hint %q", issue.Cause, issue.Dead, issue.Hint)
	}
	w.dns.SetFaults(lab.DNSFaults{})
	if _, err := c.Obtain(w.ctx(), w.account, j.last(o), j.checkpoint); err != nil {
		t.Fatal(err)
	}
	if n := w.ca.Counts().Orders; n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
	w.checkClean()
}

func TestProviderThatHangsIsLeftBehindAndCleanedUpLater(t *testing.T) {
	w := newWorld(t)
	w.dnsCfg.Timeout = 300 * time.Millisecond
	release := make(chan struct{})
	w.provider = func(p challenge.Provider) challenge.Provider { return slow{p, release} }
	c := w.registered()
	o := w.order(cert.EC256, "example.org")
	var j journal
	_, err := c.Obtain(w.ctx(), w.account, o, j.checkpoint)
	issue := issueError(t, err)
	if issue.Dead || !strings.Contains(issue.Cause, "no answer within 300ms") {
		t.Errorf("%q, dead %t", issue.Cause, issue.Dead)
	}
	recorded := j.last(o)
	if len(recorded.Records) != 1 || recorded.Records[0].Removed {
		t.Fatalf("records %+v, want the value that may still come", recorded.Records)
	}
	close(release) // now the call that hung publishes its value
	for start := time.Now(); len(w.dns.Records(challengeName)) == 0; time.Sleep(time.Millisecond) {
		if time.Since(start) > patience {
			t.Fatal("the value was never published")
		}
	}
	cleaned, err := c.CleanUp(w.ctx(), w.account, recorded)
	if err != nil || !cleaned.Records[0].Removed {
		t.Errorf("clean up: %v, %+v", err, cleaned.Records)
	}
	w.checkClean()
}

// slow publishes only when it is released.
type slow struct {
	challenge.Provider
	release chan struct{}
}

func (s slow) Present(domain, token, keyAuth string) error {
	<-s.release
	return s.Provider.Present(domain, token, keyAuth)
}

// panics is a provider with a bug.
type panics struct{ challenge.Provider }

func (panics) Present(string, string, string) error { panic("index out of range") }

func TestProviderThatPanicsIsAnError(t *testing.T) {
	w := newWorld(t)
	w.provider = func(p challenge.Provider) challenge.Provider { return panics{p} }
	var j journal
	_, err := w.registered().Obtain(w.ctx(), w.account, w.order(cert.EC256, "example.org"), j.checkpoint)
	if issue := issueError(t, err); issue.Dead || !strings.Contains(issue.Cause, "panic: index out of range") {
		t.Errorf("%q, dead %t", issue.Cause, issue.Dead)
	}
}

func TestProviderWhoseConstructorHangsIsGivenUp(t *testing.T) {
	w := newWorld(t)
	w.dnsCfg.Timeout = 200 * time.Millisecond
	release := make(chan struct{})
	defer close(release)
	w.provider = func(p challenge.Provider) challenge.Provider { <-release; return p }
	var j journal
	_, err := w.registered().Obtain(w.ctx(), w.account, w.order(cert.EC256, "example.org"), j.checkpoint)
	if issue := issueError(t, err); issue.Dead || !strings.Contains(issue.Cause, "no answer within 200ms") {
		t.Errorf("%q, dead %t", issue.Cause, issue.Dead)
	}
}

func TestValueThatIsNeverSeenIsNotOfferedToTheCA(t *testing.T) {
	w := newWorld(t)
	w.dnsCfg.Timeout = 300 * time.Millisecond
	c := w.registered()
	w.dns.SetFaults(lab.DNSFaults{HideFor: time.Hour})
	var j journal
	_, err := c.Obtain(w.ctx(), w.account, w.order(cert.EC256, "example.org"), j.checkpoint)
	issue := issueError(t, err)
	if issue.Dead || !strings.Contains(issue.Cause, "shows 0 of 1") || !strings.Contains(issue.Hint, "dns.propagation.check") {
		t.Errorf("%q, hint %q, dead %t", issue.Cause, issue.Hint, issue.Dead)
	}
	if n := w.ca.Counts().Challenges; n != 0 {
		t.Errorf("%d challenges answered, want none", n)
	}
	w.checkClean()
}

func TestValueThatAppearsLateIsWaitedFor(t *testing.T) {
	w := newWorld(t)
	c := w.registered()
	w.dns.SetFaults(lab.DNSFaults{HideFor: 200 * time.Millisecond})
	var j journal
	if _, err := c.Obtain(w.ctx(), w.account, w.order(cert.EC256, both...), j.checkpoint); err != nil {
		t.Fatal(err)
	}
	w.checkClean()
}

// A crash leaves values; CleanUp, in another process, removes those and none that it does not own.
func TestCleanUpRemovesExactlyTheOrdersValues(t *testing.T) {
	w := newWorld(t)
	w.provider = lasting
	o := w.order(cert.EC256, "example.org", "www.example.org")
	j := journal{refuse: func(_ int, o cluster.Order) error {
		if o.Step == cluster.StepFinalizing {
			return cluster.ErrNotMaster // which leaves the values, as a crash does
		}
		return nil
	}}
	_, _ = w.registered().Obtain(w.ctx(), w.account, o, j.checkpoint)
	own := w.dns.Records(challengeName)
	if len(own) != 1 {
		t.Fatalf("values %v, want one left", own)
	}
	w.dns.SetTXT(challengeName, append(own, "another-client's")...)
	recorded := j.last(o)
	foreign := cluster.Record{Domain: "example.org", Token: "t", FQDN: challengeName + ".", Value: "another-client's"}
	recorded.Records = append(recorded.Records, foreign)
	cleaned, err := w.client().CleanUp(w.ctx(), w.account, recorded)
	if err == nil || !strings.Contains(err.Error(), "another account's key") {
		t.Errorf("error %v, want one about the foreign value", err)
	}
	if got := w.dns.AllRecords(); len(got) != 1 || !slices.Equal(got[challengeName+"."], []string{"another-client's"}) {
		t.Errorf("left: %v, want only the foreign value", got)
	}
	for _, r := range cleaned.Records {
		if r.Removed == (r.Value == foreign.Value) {
			t.Errorf("record of %s: removed %t", r.Value, r.Removed)
		}
	}
	if slices.ContainsFunc(recorded.Records, func(r cluster.Record) bool { return r.Removed }) {
		t.Error("CleanUp changed the caller's order")
	}
}

func TestCleanUpThatFailsIsTold(t *testing.T) {
	w := newWorld(t)
	w.provider = lasting
	c := w.registered()
	j := journal{refuse: func(_ int, o cluster.Order) error {
		if o.Step == cluster.StepFinalizing {
			w.dns.SetFaults(lab.DNSFaults{RefuseUpdates: true})
		}
		return nil
	}}
	o := w.order(cert.EC256, "example.org")
	if _, err := c.Obtain(w.ctx(), w.account, o, j.checkpoint); err != nil {
		t.Fatalf("a certificate was issued, and then: %v", err)
	}
	if !w.said("a TXT value is left behind") {
		t.Errorf("nobody was told: %q", w.progress)
	}
	if r := j.last(o).Records; len(r) != 1 || r[0].Removed {
		t.Errorf("records %+v, want one that is still there", r)
	}
}

// Two certificates may have different resolvers and credentials at once.
func TestCertificatesWithDifferentResolvers(t *testing.T) {
	a, b := newWorld(t), newWorld(t)
	var done sync.WaitGroup
	for _, w := range []*world{a, b} {
		c := w.registered()
		for i := range 4 {
			o := w.order(cert.EC256, fmt.Sprintf("n%d.example.org", i))
			done.Go(func() {
				var j journal
				if _, err := c.Obtain(w.ctx(), w.account, o, j.checkpoint); err != nil {
					t.Error(err)
				}
			})
		}
	}
	done.Wait()
	a.checkClean()
	b.checkClean()
}

func TestOrderAndAccountMustBelongTogether(t *testing.T) {
	w := newWorld(t)
	c := w.registered()
	good := w.order(cert.EC256, "example.org")
	for name, change := range map[string]func(*cluster.Account, *cluster.Order){
		"another directory": func(_ *cluster.Account, o *cluster.Order) { o.Directory = "https://example.com/dir" },
		"another account":   func(_ *cluster.Account, o *cluster.Order) { o.Account = "someone" },
		"no account URL":    func(a *cluster.Account, _ *cluster.Order) { a.URL = "" },
		"another key type":  func(_ *cluster.Account, o *cluster.Order) { o.KeyType = cert.RSA2048 },
		"no key":            func(_ *cluster.Account, o *cluster.Order) { o.Key = nil },
		"junk key":          func(a *cluster.Account, _ *cluster.Order) { a.Key = cluster.Secret("junk") },
		"no domains":        func(_ *cluster.Account, o *cluster.Order) { o.Domains = nil },
	} {
		t.Run(name, func(t *testing.T) {
			account, o := w.account, good
			change(&account, &o)
			var j journal
			if _, err := c.Obtain(w.ctx(), account, o, j.checkpoint); err == nil || len(j.orders) > 0 {
				t.Errorf("error %v after %d checkpoints, want one before any", err, len(j.orders))
			}
		})
	}
	if n := w.ca.Counts().Requests[lab.EndpointNewOrder]; n != 0 {
		t.Errorf("%d orders were asked for", n)
	}
}

func TestUnknownProviderIsAnErrorWithAHint(t *testing.T) {
	w := newWorld(t)
	w.dnsCfg.Provider = "nosuch"
	var j journal
	_, err := w.registered().Obtain(w.ctx(), w.account, w.order(cert.EC256, "example.org"), j.checkpoint)
	if issue := issueError(t, err); !strings.Contains(issue.Cause, "nosuch") || !strings.Contains(issue.Hint, "dns.env_file") {
		t.Errorf("%q, hint %q", issue.Cause, issue.Hint)
	}
}
