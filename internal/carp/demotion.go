package carp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

const (
	// DemotionStep is what a node adds to net.inet.carp.demotion to stand behind the others: carp(4) adds it to the
	// advskew that is advertised, which is 240 at most.
	DemotionStep = 240

	demotionName = "net.inet.carp.demotion"
	// bootWindow is how long after the kernel began the first start of the daemon counts as part of the boot.
	bootWindow = 5 * time.Minute
)

// DemotionCommands are the two command lines, to the letter, by which the demotion is raised and given back. Whoever is
// not root runs them through doas or sudo.
func DemotionCommands() (raise, giveBack []string) {
	line := func(change int) []string { return []string{"/sbin/sysctl", fmt.Sprintf("%s=%d", demotionName, change)} }
	return line(DemotionStep), line(-DemotionStep)
}

// Demotion raises net.inet.carp.demotion by DemotionStep and gives that back, never twice: a write is added to what is
// there, and nobody can tell afterwards who wrote. What is about to be written is in a file before it is, with the boot
// and the number that was read before, so that a process that dies at any point leaves enough for the next one to find
// out. It is safe for concurrent use in one process; only the holder of the actor lock may use the file.
type Demotion struct {
	kernel *Kernel
	file   string
	write  func(ctx context.Context, change int) error
	now    func() time.Time
	// save is replaceFile, or what a test does instead.
	save func(file string, data []byte) error

	// turn is held by the one who reads and writes.
	turn chan struct{}
	// knows tells that this process has looked at the record: what it says is of this run of the kernel, also where
	// kern.boottime was moved since by a clock that was set.
	knows bool
}

// DemotionConfig is what NewDemotion needs.
type DemotionConfig struct {
	// Kernel is asked for the demotion and, by root, told it.
	Kernel *Kernel
	// File is where the record is kept, in a folder that is there and survives a boot.
	File string
	// Write, where it is set, adds to the demotion instead of the kernel or doas and sudo.
	Write func(ctx context.Context, change int) error
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// NewDemotion prepares it. It asks and changes nothing yet.
func NewDemotion(cfg DemotionConfig) *Demotion {
	d := &Demotion{kernel: cfg.Kernel, file: cfg.File, write: cfg.Write, now: cfg.Now, save: replaceFile, turn: make(chan struct{}, 1)}
	if d.now == nil {
		d.now = time.Now
	}
	if d.write == nil {
		d.write = d.asRoot
		if os.Geteuid() != 0 {
			d.write = newDoer().write
		}
	}
	return d
}

// asRoot lets the kernel add.
func (d *Demotion) asRoot(_ context.Context, change int) error {
	return d.kernel.SetSysctl(demotionName, change)
}

// Begin settles what an earlier process left, and tells whether the demotion is raised by it, and whether this is the
// first start since the machine was booted, some minutes ago at most.
func (d *Demotion) Begin(ctx context.Context) (raised, booted bool, err error) {
	err = d.inTurn(ctx, "look at the demotion", func(context.Context) error {
		before, err := d.load()
		if err != nil {
			return err
		}
		boot, err := d.kernel.Boot()
		if err != nil {
			return err
		}
		r, err := d.settle()
		if err != nil {
			return err
		}
		raised = r.Step == stepRaised
		booted = !before.Boot.same(boot) && d.now().Sub(boot.Time) <= bootWindow
		r.Boot = boot
		return d.keep(r)
	})
	return raised, booted, err
}

// Raise adds DemotionStep, unless it did already. An error may leave it open whether it was added: the next call finds
// out.
func (d *Demotion) Raise(ctx context.Context) error {
	return d.inTurn(ctx, "raise the demotion", func(ctx context.Context) error {
		r, err := d.settle()
		if err != nil || r.Step == stepRaised {
			return err
		}
		if r.Before, err = d.kernel.Sysctl(demotionName); err != nil {
			return err
		}
		if r.Before < 0 {
			return cluster.WithHint(fmt.Errorf("%s is %d: somebody has this node go before the others", demotionName, r.Before),
				"find out who; `sysctl %s=%d` takes it back", demotionName, -r.Before)
		}
		r.Step, r.Amount, r.Time = stepRaising, DemotionStep, d.now().UTC()
		return d.change(ctx, r, DemotionStep, "carp.demotion_raising", "carp.demotion_raised", stepRaised)
	})
}

// GiveBack takes away what Raise added, here or in an earlier process since the boot; nothing where nothing was, or
// where somebody else took it back.
func (d *Demotion) GiveBack(ctx context.Context) error {
	return d.inTurn(ctx, "give the demotion back", func(ctx context.Context) error {
		if r, err := d.load(); err != nil || r.Step == stepNone {
			return err // nothing to ask the kernel for, which may have no carp
		}
		r, err := d.settle()
		if err != nil || r.Step == stepNone {
			return err
		}
		if r.Before, err = d.kernel.Sysctl(demotionName); err != nil {
			return err
		}
		r.Step, r.Time = stepLowering, d.now().UTC()
		return d.change(ctx, r, -r.Amount, "carp.demotion_lowering", "carp.demotion_lowered", stepNone)
	})
}

// change makes r durable, adds amount, and notes that it did. Where it is not known whether it was added, the kernel is
// asked; where the writer may be at it still, that is left to the next call.
func (d *Demotion) change(ctx context.Context, r demotionRecord, amount int, recorded, written string, done demotionStep) error {
	if err := d.keep(r); err != nil {
		return err
	}
	failpoint.Hit(recorded)
	if err := d.write(ctx, amount); err != nil {
		if errors.Is(err, errGoesOn) {
			return err
		}
		if found, e := d.settle(); e != nil || found.Step != done {
			return errors.Join(err, e)
		}
		return nil // it was added all the same
	}
	failpoint.Hit(written)
	r.Step = done
	return d.keep(r)
}

// settle gives the record as it is true of the running kernel, and keeps it where it changed: a demotion does not
// outlive a boot, what was being written was or was not, and somebody else may have taken it back.
func (d *Demotion) settle() (demotionRecord, error) {
	r, err := d.load()
	if err != nil {
		return r, err
	}
	boot, err := d.kernel.Boot()
	if err != nil {
		return r, err
	}
	was := r
	if !d.knows && !r.Boot.same(boot) {
		r = demotionRecord{}
	}
	r.Boot = boot
	if r.Step != stepNone {
		now, err := d.kernel.Sysctl(demotionName)
		if err != nil {
			return r, err
		}
		r.Step = r.standing(now)
	}
	if r.Step != was.Step || !was.Boot.same(r.Boot) {
		err = d.keep(r)
	}
	d.knows = d.knows || err == nil
	return r, err
}

// inTurn does something while nobody else does. op is a phrase for the error.
func (d *Demotion) inTurn(ctx context.Context, op string, do func(context.Context) error) error {
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", op, context.Cause(ctx))
	}
	if err := do(ctx); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}
