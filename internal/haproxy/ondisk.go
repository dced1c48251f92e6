package haproxy

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// errNotAsked stands for HAProxy's memory where HAProxy is not asked.
var errNotAsked = errors.New("HAProxy was not asked")

// OnDisk makes the bundle files of targets right for HAProxy's next start, and asks no HAProxy: one that is missing, torn,
// earlier, or open to other readers is written; one that is right is not touched. standing tells of a bundle that lies
// there, and is another than the target's, how it compares: what is later stays, and so does what is neither of this
// certificate nor certsync's to replace. A target's Load need not give what else is known. What a killed certsync left
// half written is removed; the record of a transaction that it left open stays, since only HAProxy can tell whether it
// is open still, and Activate asks. The error is for what concerns all targets, as of Activate.
func (p *Proxy) OnDisk(ctx context.Context, targets []cluster.Target, standing func(cluster.Target, *cert.Bundle) cluster.Standing) ([]cluster.Placement, error) {
	release, err := p.takeTurn(ctx)
	if err != nil {
		return nil, fmt.Errorf("write to disk for HAProxy %s: %w", p.config.Name, err)
	}
	defer release()
	p.journal.sweep()
	sweep(filepath.Clean(p.config.BundleDir))
	a := &activation{survey: &survey{p: p, err: errNotAsked, who: p.access()}, swept: map[string]bool{}, files: p.filesOf(targets)}
	a.swept[filepath.Clean(p.config.BundleDir)] = true
	out := make([]cluster.Placement, len(targets))
	sideways(familiesOf(targets), func(family []int) {
		for _, i := range family {
			out[i] = a.onlyDisk(ctx, targets[i], standing)
		}
	})
	p.replacePlaceholder(out)
	return out, nil
}

// familiesOf are the places of targets, those of one certificate together: each may have to change the other's file.
func familiesOf(targets []cluster.Target) [][]int {
	var out [][]int
	at := map[string]int{}
	for i, t := range targets {
		k, ok := at[t.Slot.Name]
		if !ok {
			k = len(out)
			at[t.Slot.Name], out = k, append(out, nil)
		}
		out[k] = append(out[k], i)
	}
	return out
}

// onlyDisk is target for the disk alone.
func (a *activation) onlyDisk(ctx context.Context, t cluster.Target, standing func(cluster.Target, *cert.Bundle) cluster.Standing) cluster.Placement {
	t, err := t.Loaded(ctx)
	v := view{Target: t, loadErr: err, path: a.p.file(t), who: a.who, memoryErr: errNotAsked}
	v.placement = cluster.Placement{Slot: t.Slot, Proxy: a.p.config.Name, File: v.path, Proof: cluster.NoProof}
	v.lookOnDisk()
	if err := ctx.Err(); err != nil {
		return failure(v, cluster.Interrupted, fmt.Errorf("write %s: %w", t.Slot, err))
	}
	if v.disk != nil && v.Bundle != nil && v.disk.Fingerprint() != v.Bundle.Fingerprint() {
		switch standing(t, v.disk) {
		case cluster.Later:
			v.placement.Outcome = cluster.Unchanged
			v.placement.Disk.Note = "later than what is to be there: it stays"
			return v.placement
		case cluster.Earlier:
			v.Known = []*cert.Bundle{v.disk} // certsync's, whoever wrote it
		case cluster.Strange:
		}
	}
	if err := a.fitForDisk(ctx, &v); err != nil {
		return failure(v, cluster.Failure, err)
	}
	if v.diskRight() && !v.exposed && len(a.earlierFiles(&v)) == 0 {
		v.placement.Outcome = cluster.Unchanged
		return v.placement
	}
	return a.writeOnly(ctx, v)
}

// fitForDisk is check, but for the dates where nothing readable lies there: what is expired, or seems not valid yet to a
// clock that is not set, fails its own clients, and a file that is missing or torn may keep HAProxy from starting.
func (a *activation) fitForDisk(ctx context.Context, v *view) error {
	err := a.check(ctx, v)
	if v.disk == nil && (errors.Is(err, cert.ErrExpired) || errors.Is(err, cert.ErrNotYetValid)) {
		return nil
	}
	return err
}

// earlierFiles are the files of v's certificate under its other names that HAProxy would load too, with another bundle.
func (a *activation) earlierFiles(v *view) []rival {
	return slices.DeleteFunc(a.sameFamily(v), func(r rival) bool { return r.disk.Fingerprint() == v.Bundle.Fingerprint() })
}

// writeOnly writes the file, and its rivals'; what was there is put back where that fails half way.
func (a *activation) writeOnly(ctx context.Context, v view) cluster.Placement {
	a.mu.Lock()
	a.sweep(filepath.Dir(v.real))
	a.mu.Unlock()
	var u undo
	err := a.write(&v, &u)
	if err == nil {
		err = a.yieldOnDisk(&v, &u)
	}
	if err != nil {
		for _, f := range slices.Backward(u) {
			err = errors.Join(err, f(context.WithoutCancel(ctx)))
		}
	}
	v.lookOnDisk()
	if err != nil {
		return failure(v, cluster.Failure, fmt.Errorf("write %s: %w", v.Slot, err))
	}
	v.placement.Outcome = cluster.DiskOnly
	return v.placement
}
