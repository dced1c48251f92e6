package reconcile

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// simStep is one thing that happens, after a pause: at once, or at a call of a port that the node makes in a pass, before
// or after its effect.
type simStep struct {
	wait       time.Duration
	kind       string
	node, peer int
	arg        int
	long       time.Duration
	atCall     int
	after      bool
}

func (s simStep) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "after %-8s %-9s proxy%d", s.wait, s.kind, s.node+1)
	if simPairs[s.kind] {
		fmt.Fprintf(&b, " proxy%d", s.peer+1)
	}
	if s.long != 0 {
		fmt.Fprintf(&b, " %s", s.long)
	}
	if s.arg != 0 {
		fmt.Fprintf(&b, " (%d)", s.arg)
	}
	if s.atCall > 0 {
		when := "before"
		if s.after {
			when = "after"
		}
		fmt.Fprintf(&b, " %s the effect of call %d of a pass", when, s.atCall)
	}
	return b.String()
}

// simPairs are the kinds that concern two nodes.
var simPairs = map[string]bool{"split": true, "flap": true, "cut": true, "join": true, "lose": true, "slow": true}

// simKinds is what happens, each as often as it stands here.
var simKinds = []string{"wait", "wait", "master", "master", "split", "nobody", "flap", "cut", "cut", "join", "lose", "lose", "slow", "crash", "crash", "crash", "crash",
	"full", "room", "down", "up", "restart", "reject", "accept", "clock", "ca", "ca", "mend", "mend", "urgent", "issue", "issue", "rollback", "revoke", "config", "expire"}

// newSimPlan and newSimSteps draw a schedule.
func newSimPlan(r *rand.Rand) simPlan {
	p := simPlan{nodes: 2, lifetime: 6 * day, directory: simLetsEncrypt, period: 12 * time.Hour, ari: r.IntN(3) == 0, twin: r.IntN(4) == 0}
	if r.IntN(4) == 0 {
		p.nodes = 3
	}
	if r.IntN(3) == 0 {
		p.directory = simPrivateCA
	}
	switch r.IntN(4) {
	case 0:
		p.lifetime, p.period = 90*day, 5*day
	case 1:
		p.lifetime, p.period, p.directory = time.Hour, 20*time.Minute, simPrivateCA
	}
	return p
}

func newSimSteps(r *rand.Rand, p simPlan) []simStep {
	steps := make([]simStep, 1+r.IntN(12))
	for i := range steps {
		s := simStep{kind: simKinds[r.IntN(len(simKinds))], node: r.IntN(p.nodes), arg: r.IntN(8)}
		s.peer = (s.node + 1 + r.IntN(p.nodes-1)) % p.nodes
		s.wait = p.drawn(r)
		s.long = []time.Duration{time.Second, 10 * time.Second, 3 * time.Minute, 2 * time.Hour}[r.IntN(4)]
		if r.IntN(2) == 0 {
			s.atCall, s.after = 1+r.IntN(30), r.IntN(2) == 0
		}
		steps[i] = s
	}
	return steps
}

// drawn is a pause, mostly short against the certificates' life.
func (p simPlan) drawn(r *rand.Rand) time.Duration {
	waits := []time.Duration{time.Second, 30 * time.Second, 5 * time.Minute, 5 * time.Minute, 20 * time.Minute, time.Hour, 6 * time.Hour, p.lifetime / 50, p.lifetime / 10}
	if r.IntN(12) == 0 {
		return p.lifetime / 3
	}
	if p.lifetime < day {
		waits = []time.Duration{time.Second, 30 * time.Second, time.Minute, 5 * time.Minute, 5 * time.Minute, 15 * time.Minute}
	}
	return waits[r.IntN(len(waits))].Round(time.Second)
}

// run goes through a schedule, then lets all be well, and looks whether the cluster comes in line.
func (s *simulation) run(steps []simStep) {
	defer s.end()
	s.mu.Lock()
	for _, n := range s.nodes {
		n.boot()
	}
	s.mu.Unlock()
	s.pause(time.Minute)
	for _, step := range steps {
		if !s.pause(step.wait) {
			return
		}
		s.take(step)
	}
	if s.pause(10 * time.Second) {
		s.quiet()
	}
}

// end ends every process.
func (s *simulation) end() {
	close(s.ended)
	s.mu.Lock()
	for _, n := range s.nodes {
		n.endServed()
		if n.process != nil {
			n.process.die()
		}
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// take does one step: at a port call of the node's next pass, or, where it makes no such, after a while.
func (s *simulation) take(step simStep) {
	n := s.nodes[step.node]
	do := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.tell("--- %s", step)
		s.apply(step, n, s.nodes[step.peer])
	}
	if step.atCall == 0 {
		do()
		return
	}
	h := &simHook{left: step.atCall, after: step.after, do: do, done: make(chan struct{})}
	s.mu.Lock()
	n.hook = h
	n.rouse("event", 0)
	s.mu.Unlock()
	timer := time.NewTimer(30 * time.Second)
	defer timer.Stop()
	select {
	case <-h.done:
		return
	case <-timer.C:
	}
	s.mu.Lock()
	pending := n.hook == h
	n.hook = nil
	s.mu.Unlock()
	if pending {
		do()
	} else {
		<-h.done
	}
}

// apply is what a step does. s.mu is held.
func (s *simulation) apply(step simStep, n, peer *simNode) {
	switch step.kind {
	case "master":
		s.masters(n)
	case "split":
		s.masters(n, peer)
	case "nobody":
		s.masters()
	case "flap":
		s.flap(n, peer, 2+step.arg*2, min(step.long, 10*time.Second))
	case "cut", "join", "lose", "slow":
		s.link(step, n, peer)
	case "crash":
		n.kill(step.arg&1 == 1)
		s.later(step.long, func() { n.boot() })
	case "full", "room":
		n.full = step.kind == "full"
		n.troubled()
		s.atMost(2*time.Hour, n.full, func() { n.full = false; n.troubled() })
	case "down":
		n.proxy.stop()
	case "up", "restart":
		n.proxy.start()
		n.rouse("haproxy", 0)
	case "reject", "accept":
		n.proxy.rejects = step.kind == "reject"
		n.proxy.trouble = time.Now()
	case "clock":
		s.setClock(n, []time.Duration{2 * time.Hour, -2 * time.Hour, 10 * time.Minute, -10 * time.Minute, 0, 0, 26 * time.Hour, 73 * 365 * day}[step.arg])
	case "ca":
		s.ca.mode, s.ca.until = simModes[step.arg], step.long
		s.atMost(3*day, true, func() { s.ca.mode = caFine })
	case "mend":
		s.ca.mode = caFine
	case "urgent":
		s.ca.urgentAt = time.Now()
	case "issue", "rollback", "revoke":
		s.operate(step.kind, n)
	case "config":
		s.configure(n)
	}
}

// masters makes nodes MASTER, and the others BACKUP.
func (s *simulation) masters(nodes ...*simNode) {
	for _, n := range s.nodes {
		role := cluster.Backup
		if slices.Contains(nodes, n) {
			role = cluster.Master
		}
		n.setRole(role)
	}
}

// later does something after a while, unless the simulation is over by then; at no instant at which something else does.
func (s *simulation) later(after time.Duration, do func()) {
	s.counts["later"]++
	after += 333*time.Microsecond + time.Duration(s.counts["later"])*time.Microsecond
	s.wg.Go(func() {
		timer := time.NewTimer(after)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-s.ended:
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		do()
	})
}

// atMost ends a fault after a while: what is tried again each minute, or each quarter of an hour, would only be tried so
// thousands of times.
func (s *simulation) atMost(long time.Duration, begins bool, end func()) {
	if begins {
		s.later(long, end)
	}
}

func (s *simulation) flap(n, peer *simNode, times int, each time.Duration) {
	for i := range times {
		s.later(time.Duration(i)*each+time.Duration(i)*time.Millisecond, func() {
			if i%2 == 0 {
				s.masters(n)
			} else {
				s.masters(peer)
			}
		})
	}
}

func (s *simulation) link(step simStep, n, peer *simNode) {
	there, back := n.links[peer.place], peer.links[n.place]
	there.trouble = time.Now()
	switch step.kind {
	case "cut":
		there.cut, there.silent = true, step.arg&1 == 1
		if step.arg&2 == 2 {
			back.cut, back.silent, back.trouble = true, there.silent, time.Now()
		}
	case "join":
		there.mend()
		back.mend()
		n.rouse("peer", 10*time.Second)
		peer.rouse("peer", 10*time.Second)
	case "lose":
		there.lose = 1 + step.arg
	case "slow":
		there.slow = min(step.long, 3*time.Minute)
	}
}

func (l *simLink) mend() {
	if l.cut || l.slow > 0 || l.lose > 0 {
		l.trouble = time.Now()
	}
	l.cut, l.silent, l.lose, l.slow = false, false, 0, 0
}

func (s *simulation) setClock(n *simNode, skew time.Duration) {
	if n.skew == skew {
		return
	}
	s.clocked = true
	n.skew = skew
	n.troubled()
	n.rouse("clock", 10*time.Second)
}

// configure gives a node the other configuration, or the old one again; its daemon is restarted for that.
func (s *simulation) configure(n *simNode) {
	n.other = !n.other
	n.troubled()
	if n.process != nil {
		n.kill(false)
		n.boot()
	}
}

// operate lets a person ask a node's daemon for something.
func (s *simulation) operate(what string, n *simNode) {
	if n.process == nil {
		return
	}
	slots := s.slots()
	slot := slots[int(s.draw("operate")%uint64(len(slots)))]
	n.requests = append(n.requests, func(ctx context.Context, p *simProcess) {
		switch what {
		case "issue":
			_, _ = p.pass(ctx, Wanted{Names: []string{slot.Name}, MasterOnly: true}, "issue "+slot.Name)
		case "rollback":
			p.rollBack(ctx, slot)
		case "revoke":
			p.revoke(ctx, slot)
		}
	})
	n.rouse("command", 0)
}

// rollBack puts the bundle before the newest in service again: as the newest generation. It goes by what was adopted just
// before.
func (p *simProcess) rollBack(ctx context.Context, slot cert.Slot) {
	if _, err := p.pass(ctx, Wanted{MasterOnly: true, NoOrders: true}, "rollback: adopt"); err != nil {
		return
	}
	held, err := p.Store.Generations(ctx)
	records := p.n.records()
	newest := cluster.Newest(held, records.Tombstones, slot)
	var before cert.Generation
	for _, g := range held {
		if g.Slot == slot && g.Fingerprint != newest.Fingerprint && g.Newer(before) && g.NotAfter.After(p.Now()) && !cluster.Revoked(records.Tombstones, g.Fingerprint) {
			before = g
		}
	}
	if err != nil || before.IsZero() || p.fence(ctx) != nil {
		return
	}
	bundle, err := p.Store.Bundle(ctx, before)
	if err != nil {
		return
	}
	before.Sequence = newest.Sequence + 1
	if err := p.Store.Keep(ctx, cluster.Kept{Generation: before, Bundle: bundle}); err != nil {
		return
	}
	_, _ = p.pass(ctx, Wanted{MasterOnly: true, NoOrders: true}, "rollback")
}

// revoke replaces the newest certificate, and then marks it revoked.
func (p *simProcess) revoke(ctx context.Context, slot cert.Slot) {
	old := p.n.newest(slot)
	if _, err := p.pass(ctx, Wanted{Names: []string{slot.Name}, MasterOnly: true}, "revoke: replace"); err != nil {
		return
	}
	if g := p.n.newest(slot); old.IsZero() || !g.Newer(old) || g.Fingerprint == old.Fingerprint || p.fence(ctx) != nil {
		return
	}
	if err := p.Store.Merge(ctx, cluster.Records{Tombstones: []cluster.Tombstone{{Fingerprint: old.Fingerprint, Name: slot.Name, Time: p.Now(), Reason: "keyCompromise"}}}); err != nil {
		return
	}
	_, _ = p.pass(ctx, Wanted{MasterOnly: true, NoOrders: true}, "revoke")
}

// quiet lets all be well, and looks whether the cluster comes in line: soon what there is, and as soon as it may be asked
// for, a certificate that is valid.
func (s *simulation) quiet() {
	s.mu.Lock()
	s.calm()
	s.mu.Unlock()
	s.await("convergence", time.Now().Add(90*time.Minute), func() string { return s.apartBut() })
	s.mu.Lock()
	latest := s.allowedAt()
	s.mu.Unlock()
	s.await("valid", latest, func() string {
		if text := s.expired(); text != "" {
			return text
		}
		return s.apart()
	})
}

// apartBut is apart, as far as it needs no order: what may wait for the CA is looked at later.
func (s *simulation) apartBut() string {
	if s.expired() != "" {
		return ""
	}
	return s.apart()
}

// calm ends every fault.
func (s *simulation) calm() {
	s.tell("--- all is well from here on")
	s.ca.mode = caFine
	other := slices.ContainsFunc(s.nodes, func(n *simNode) bool { return n.other })
	master := s.nodes[0]
	for _, n := range s.nodes {
		n.hook = nil
		n.full = false
		n.proxy.rejects = false
		if !n.proxy.running {
			n.proxy.start()
		}
		s.setClock(n, 0)
		if n.other != other {
			s.configure(n)
		}
		n.boot()
		for _, l := range n.links {
			if l != nil {
				l.mend()
			}
		}
		if n.role == cluster.Master {
			master = n
		}
	}
	s.masters(master)
	for _, n := range s.nodes {
		n.rouse("peer", 10*time.Second)
		n.rouse("haproxy", time.Second)
	}
}

// await waits until what says "", for an hour without anything else, or until a time.
func (s *simulation) await(kind string, latest time.Time, what func() string) {
	since, begin := time.Time{}, time.Now()
	for {
		s.pause(time.Minute)
		s.mu.Lock()
		text := what()
		if text != "" && time.Now().After(latest) {
			s.violate(kind, "%s after all was well: %s", time.Since(begin), text)
		}
		over := s.wrong != nil
		s.mu.Unlock()
		switch {
		case over:
			return
		case text != "":
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case time.Since(since) >= 3*time.Minute:
			return
		}
	}
}
