package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

// releaseTimeout bounds what a peer may take to activate what it was told to: where it must reload a HAProxy of 10,000
// certificates, the check and the start take 25 s each, and either may take 2 min before it is given up.
const releaseTimeout = 5 * time.Minute

// bring puts generations, each the newest of its slot, in service everywhere: on every reachable node's disk first,
// then, the BACKUPs before the MASTER, in HAProxy's memory and in a handshake. A node that is not MASTER brings only
// itself in line, and only to what a MASTER released.
func (p *pass) bring(ctx context.Context, newest ...cert.Generation) {
	records, err := p.Store.Records(ctx)
	if err != nil {
		p.failAll(ctx, newest, fmt.Errorf("records held: %w", err))
		return
	}
	wanted := p.neverBack(ctx, newest, records)
	if len(wanted) == 0 {
		return
	}
	if p.seen.Role != cluster.Master {
		released := releasedBySlot(records)
		p.activateSelf(ctx, slices.DeleteFunc(wanted, func(g cert.Generation) bool { return !same(g, released[g.Slot]) }))
		return
	}
	if err := p.fence(ctx); err != nil {
		p.failAll(ctx, wanted, fmt.Errorf("before distribution: %w", err))
		return
	}
	p.distribute(ctx, wanted, releasedBySlot(records))
}

// distribute is stage and activate on the MASTER. A demotion ends what waits for the peers; this node's own HAProxy is
// never stopped half way. released is what was released before.
func (p *pass) distribute(ctx context.Context, wanted []cert.Generation, released map[cert.Slot]cert.Generation) {
	master, cancel := p.whileMaster(ctx)
	defer cancel()
	p.stage(master, wanted)
	failpoint.Hit("reconcile.staged")
	wanted = p.ripe(master, wanted, released)
	releases := p.releases(wanted)
	fresh := slices.DeleteFunc(slices.Clone(releases), func(r cluster.Release) bool { return same(r.Generation, released[r.Generation.Slot]) })
	if err := p.release(master, fresh); err != nil {
		p.failAll(ctx, wanted, fmt.Errorf("record the release: %w", demoted(master, err)))
		return
	}
	failpoint.Hit("reconcile.released")
	p.activatePeers(master, releases)
	failpoint.Hit("reconcile.canary")
	if err := p.fence(ctx); err != nil {
		p.failAll(ctx, wanted, fmt.Errorf("before activation: %w", err))
		return
	}
	own := p.cleared(ctx, wanted)
	if p.activatePassedOver(master, releases, own) {
		if err := p.fence(ctx); err != nil {
			p.failAll(ctx, own, fmt.Errorf("before activation: %w", err))
			return
		}
	}
	p.activateSelf(ctx, own)
	failpoint.Hit("reconcile.activated")
}

// release records that generations may be activated.
func (p *pass) release(ctx context.Context, fresh []cluster.Release) error {
	if len(fresh) == 0 {
		return nil
	}
	return p.Store.Merge(ctx, cluster.Records{Releases: fresh})
}

// neverBack leaves out what is older than what was released of the slot. Either a peer released that one since the pass
// looked, and saw to it; or the store lost it, and HAProxy may well serve it.
func (p *pass) neverBack(ctx context.Context, newest []cert.Generation, records cluster.Records) []cert.Generation {
	var out []cert.Generation
	released := releasedBySlot(records)
	for _, g := range newest {
		switch last := released[g.Slot]; {
		case g.IsZero():
		case last.Newer(g) && p.holds(ctx, last):
		case last.Newer(g):
			p.fail(g.Slot, cluster.Failure, fmt.Errorf("generation %s, which was released, is lost on %s: what is in service stays, and is not replaced by the earlier %s",
				last.Fingerprint.Short(), p.Settings.Node, g.Fingerprint.Short()))
		default:
			out = append(out, g)
		}
	}
	return out
}

// holds tells whether this node's store has a generation now.
func (p *pass) holds(ctx context.Context, g cert.Generation) bool {
	held, err := p.Store.Generations(ctx)
	return err == nil && contains(held, g)
}

func (p *pass) failAll(ctx context.Context, wanted []cert.Generation, err error) {
	outcome, err := failure(ctx, err)
	for _, g := range wanted {
		if !g.IsZero() {
			p.fail(g.Slot, outcome, err)
		}
	}
}

// stage makes the generations durable on every reachable peer that lacks them, the peers side by side. One that could
// not be reached at the pass's begin is tried again: an order takes its time.
func (p *pass) stage(ctx context.Context, wanted []cert.Generation) {
	p.eachPeer(func(v *peerView) {
		if v.askAgain(ctx) {
			p.welcome(ctx, v)
			p.level(ctx, v)
		}
		if v.reachable() {
			p.stageOn(ctx, v, slices.DeleteFunc(slices.Clone(wanted), v.holds))
		}
	})
}

func (p *pass) stageOn(ctx context.Context, v *peerView, generations []cert.Generation) {
	var kept []cluster.Kept
	for _, g := range generations {
		bundle, err := p.Store.Bundle(ctx, g)
		if err != nil {
			p.warn("generation %s of %s: %v", g.Fingerprint.Short(), g.Slot, err)
			continue
		}
		kept = append(kept, cluster.Kept{Generation: g, Bundle: bundle})
	}
	if len(kept) == 0 {
		return
	}
	limited, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	start := time.Now()
	results, err := v.Stage(limited, kept)
	if err != nil {
		v.lose(start, err)
	}
	answers := make(map[generationKey]cluster.StageResult, len(results))
	for _, r := range results {
		answers[keyOf(r.Generation)] = r
	}
	for _, k := range kept {
		if err := cmp.Or(err, resultOf(answers, k.Generation)); err != nil {
			p.refuse(ctx, v.Name(), k.Generation, demoted(ctx, err))
			continue
		}
		v.given(k.Generation)
		p.tell("stage", k.Generation.Slot, v.Name(), "generation %d (%s) is on %s's disk", k.Generation.Sequence, k.Generation.Fingerprint.Short(), v.Name())
	}
}

// resultOf is what a peer said of one generation. Only a result without an error is proof that it is durable there.
func resultOf(answers map[generationKey]cluster.StageResult, g cert.Generation) error {
	switch r, ok := answers[keyOf(g)]; {
	case !ok:
		return errors.New("its answer says nothing of it")
	case r.Error == "":
		return nil
	case r.Hint == "":
		return errors.New(r.Error)
	default:
		return cluster.WithHint(errors.New(r.Error), "%s", r.Hint)
	}
}

// refuse notes that a peer did not take a generation: it is skipped for that, and delays no other.
func (p *pass) refuse(ctx context.Context, node string, g cert.Generation, err error) {
	p.tell("stage", g.Slot, node, "%s did not take it: %v", node, err)
	outcome, err := failure(ctx, fmt.Errorf("stage: %w", err))
	p.place(node, failedPlacement(g.Slot, outcome, err))
}

func (p *pass) releases(wanted []cert.Generation) []cluster.Release {
	now := p.Now().UTC()
	var out []cluster.Release
	for _, g := range wanted {
		out = append(out, cluster.Release{Generation: g, Node: p.Settings.Node, Time: now})
	}
	return out
}

// activatePeers lets the peers activate what they hold, one after the other: what the first turns out to serve wrongly
// goes no further.
func (p *pass) activatePeers(ctx context.Context, releases []cluster.Release) {
	for _, v := range p.peers {
		mine := slices.DeleteFunc(slices.Clone(releases), func(r cluster.Release) bool {
			node, _ := p.canary(r.Generation)
			return node != "" || !v.holds(r.Generation)
		})
		if !v.reachable() || len(mine) == 0 {
			continue
		}
		if needed := p.needed(ctx, v, mine); v.reachable() && len(needed) > 0 {
			p.activateOn(ctx, v, needed)
		}
	}
}

// activatePassedOver lets the peers have what this node goes on to serve although one of them refuses it: those that were
// passed over for that refusal come before the MASTER too. It tells whether there were any.
func (p *pass) activatePassedOver(ctx context.Context, releases []cluster.Release, own []cert.Generation) (any bool) {
	for _, v := range p.peers {
		mine := slices.DeleteFunc(slices.Clone(releases), func(r cluster.Release) bool {
			node, _ := p.canary(r.Generation)
			return node == "" || !contains(own, r.Generation) || !v.holds(r.Generation) || p.placed(v.Name(), r.Generation.Slot)
		})
		if !v.reachable() || len(mine) == 0 {
			continue
		}
		any = true
		if needed := p.needed(ctx, v, mine); v.reachable() && len(needed) > 0 {
			p.activateOn(ctx, v, needed)
		}
	}
	return any
}

// needed are the releases that a peer needs: those that it does not have, and those of slots that do not stand there as
// they should, so that it brings them in line. Where it stands with the others its status says: one question, and not an
// activation of thousands that are in service. A peer that does not tell is given all.
func (p *pass) needed(ctx context.Context, v *peerView, releases []cluster.Release) []cluster.Release {
	var out, had []cluster.Release
	released := v.released()
	for _, r := range releases {
		if same(released[r.Generation.Slot], r.Generation) {
			had = append(had, r)
		} else {
			out = append(out, r)
		}
	}
	if len(had) == 0 {
		return out
	}
	limited, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	start := time.Now()
	status, err := v.Status(limited)
	if err != nil {
		v.lose(start, err)
		return releases
	}
	placed := placedBySlot(status.Placements)
	for _, r := range had {
		stands := placed[r.Generation.Slot]
		if len(stands) == 0 || slices.ContainsFunc(stands, func(pl cluster.Placement) bool { return !inService(pl, r.Generation) }) {
			out = append(out, r)
			continue
		}
		for i := range stands {
			stands[i].Outcome = cluster.Unchanged
			if stands[i].Proof == cluster.NoProof {
				stands[i].Outcome = cluster.Unproven
			}
		}
		p.place(v.Name(), stands...)
	}
	return out
}

// inService tells whether an activation of g would find nothing to do, by a placement that a look gave.
func inService(pl cluster.Placement, g cert.Generation) bool {
	right := func(s cluster.Sighting) bool { return s.Fingerprint == g.Fingerprint && s.Note == "" }
	return pl.Proxy != "" && pl.Running && pl.Error == "" && right(pl.Disk) && right(pl.Memory) && pl.Proof != cluster.Disproven
}

func placedBySlot(placements []cluster.Placement) map[cert.Slot][]cluster.Placement {
	out := make(map[cert.Slot][]cluster.Placement, len(placements))
	for _, pl := range placements {
		out[pl.Slot] = append(out[pl.Slot], pl)
	}
	return out
}

func (p *pass) activateOn(ctx context.Context, v *peerView, releases []cluster.Release) {
	limited, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	start := time.Now()
	placements, err := v.Release(limited, releases)
	if err != nil {
		v.lose(start, err)
		for _, r := range releases {
			p.place(v.Name(), failedPlacement(r.Generation.Slot, cluster.Skipped, fmt.Errorf("activate: %w", demoted(ctx, err))))
		}
		return
	}
	answered := placedBySlot(placements)
	var asked []cluster.Placement
	for _, r := range releases {
		stands := answered[r.Generation.Slot]
		if len(stands) == 0 {
			stands = []cluster.Placement{failedPlacement(r.Generation.Slot, cluster.Skipped, errors.New("activate: its answer says nothing of it"))}
		}
		asked = append(asked, stands...)
	}
	p.place(v.Name(), asked...)
	p.tellPlacements(v.Name(), asked)
}

// cleared are the generations that this node may activate: all but those that the canary holds back.
func (p *pass) cleared(ctx context.Context, wanted []cert.Generation) []cert.Generation {
	var out []cert.Generation
	for _, g := range wanted {
		node, reason := p.canary(g)
		if node == "" || !p.waits(ctx, g, node) {
			out = append(out, g)
			continue
		}
		err := cluster.WithHint(fmt.Errorf("%s does not serve generation %s: %s; %s goes on serving what it has", node, g.Fingerprint.Short(), reason,
			p.Settings.Node), "see to HAProxy on %s, then run it again", node)
		p.fail(g.Slot, cluster.Waiting, err)
		p.tell("activate", g.Slot, p.Settings.Node, "held back: %s does not serve it", node)
	}
	return out
}

// canary is the first peer that serves the wrong thing for a slot, and what it said; "" where none does.
func (p *pass) canary(g cert.Generation) (node, reason string) {
	for _, v := range p.peers {
		for _, pl := range p.at(v.Name(), g.Slot) {
			if condemns(pl, g) {
				return v.Name(), cmp.Or(pl.Error, "a handshake shows another certificate")
			}
		}
	}
	return "", ""
}

// condemns tells whether a BACKUP's placement speaks against a generation: HAProxy refused it, or has it and shows
// another. A node that is unproven, runs no HAProxy, or has no room for the bundle speaks of itself only.
func condemns(pl cluster.Placement, g cert.Generation) bool {
	if pl.Outcome == cluster.RolledBack {
		return true
	}
	arrived := pl.Disk.Fingerprint == g.Fingerprint || pl.Memory.Fingerprint == g.Fingerprint
	return pl.Proof == cluster.Disproven && pl.Outcome != cluster.DiskOnly && arrived
}

// waits tells whether this node goes on serving what it has instead of g, which node turned out not to serve. It does
// not where it serves nothing valid, or has under a tenth of the lifetime left: waiting would cost more than a bad
// activation. Where it serves g already there is nothing to wait with.
func (p *pass) waits(ctx context.Context, g cert.Generation, node string) bool {
	placements, err := p.inspect(ctx, []cert.Slot{g.Slot})
	if err != nil {
		p.warn("%v", err)
		return true
	}
	has := 0
	for i := range placements {
		pl := &placements[i]
		now := p.dated(ctx, standing(*pl))
		if now.IsZero() && pl.Error == "" || now.Expiring(p.Now()) {
			return false
		}
		if now.Fingerprint == g.Fingerprint {
			has++
		}
		pl.Outcome, pl.Error = cluster.Waiting, cmp.Or(pl.Error, "held back: "+node+" does not serve it")
	}
	if has == len(placements) {
		return false
	}
	p.place(p.Settings.Node, placements...)
	return true
}

// standing is what a HAProxy goes on serving where it is left alone: what a handshake showed; else what it has in
// memory; else, where none runs, what it would start with.
func standing(pl cluster.Placement) cluster.Sighting {
	switch {
	case pl.Proof != cluster.NoProof:
		return pl.Served
	case pl.Running:
		return pl.Memory
	}
	return pl.Disk
}

// dated is a sighting with the notBefore of the generation that it shows, where that is held.
func (p *pass) dated(ctx context.Context, s cluster.Sighting) cluster.Sighting {
	held, err := p.Store.Generations(ctx)
	i := slices.IndexFunc(held, func(g cert.Generation) bool { return g.Fingerprint == s.Fingerprint })
	if err == nil && i >= 0 && s.NotBefore.IsZero() {
		s.NotBefore, s.NotAfter = held[i].NotBefore, held[i].NotAfter
	}
	return s
}

// activateSelf brings this node's own HAProxies in line, but not to what a peer's release has overtaken since the pass
// looked: that peer saw to the later one.
func (p *pass) activateSelf(ctx context.Context, wanted []cert.Generation) {
	if records, err := p.Store.Records(ctx); err == nil {
		wanted = p.neverBack(ctx, wanted, records)
	}
	placements := p.Node.activate(ctx, wanted)
	p.place(p.Settings.Node, placements...)
	p.tellPlacements(p.Settings.Node, placements)
}

func (p *pass) tellPlacements(node string, placements []cluster.Placement) {
	for _, pl := range placements {
		switch pl.Outcome {
		case cluster.Done:
			p.tell("activate", pl.Slot, node, "%s serves %s, seen in a handshake", node, pl.Served.Fingerprint.Short())
		case cluster.Unchanged:
		default:
			p.tell("activate", pl.Slot, node, "%s: %s", node, cmp.Or(pl.Error, strings.ReplaceAll(string(pl.Outcome), "_", " ")))
		}
	}
}
