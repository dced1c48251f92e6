package carp

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"certsync/internal/cluster"
)

// demotionStep is how far a change of the demotion has come.
type demotionStep string

const (
	// stepNone: nothing of ours is in the demotion.
	stepNone demotionStep = ""
	// stepRaising: Amount is about to be added to Before.
	stepRaising demotionStep = "raising"
	// stepRaised: Amount was added.
	stepRaised demotionStep = "raised"
	// stepLowering: Amount is about to be taken from Before.
	stepLowering demotionStep = "lowering"
)

// demotionFormat is the record's; a record of a later one is not touched.
const demotionFormat = 1

// maxDemotionRecord is the largest record that is read, in bytes.
const maxDemotionRecord = 4 << 10

// demotionRecord is what is on disk.
type demotionRecord struct {
	Format int `json:"format"`
	// Boot is the run of the kernel that it is about.
	Boot Boot         `json:"boot"`
	Step demotionStep `json:"step"`
	// Before is the demotion as it was read before the write of Step.
	Before int `json:"before"`
	// Amount is what was added, above 0.
	Amount int       `json:"amount"`
	Time   time.Time `json:"time"`
}

// standing is the step that is true where the demotion is now. The kernel itself adds to it and takes away again (an
// interface that goes down, or cannot send), and so may an operator: a write that was under way counts as made where the
// number has gone as far as it would have led, or further. A demotion of less than ours has nothing of ours in it: below
// 0 a node would go before the others.
func (r demotionRecord) standing(now int) demotionStep {
	step := r.Step
	switch {
	case step == stepRaising && now < r.Before+r.Amount, step == stepLowering && now <= r.Before-r.Amount:
		return stepNone
	case now < r.Amount:
		return stepNone
	}
	return stepRaised
}

// load reads the record; a zero one where there is none.
func (d *Demotion) load() (demotionRecord, error) {
	r, err := readDemotion(d.file)
	if err != nil {
		return r, fmt.Errorf("record %s: %w", d.file, err)
	}
	return r, nil
}

func readDemotion(file string) (demotionRecord, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return demotionRecord{}, nil
	}
	if err != nil {
		return demotionRecord{}, pathCause(err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxDemotionRecord+1))
	if err != nil {
		return demotionRecord{}, pathCause(err)
	}
	return parseDemotion(data)
}

// parseDemotion reads a record. One that makes no sense is no reason to guess.
func parseDemotion(data []byte) (demotionRecord, error) {
	var r demotionRecord
	err := json.Unmarshal(data, &r)
	switch {
	case err != nil || len(data) > maxDemotionRecord:
		err = errors.New("not a record of the demotion")
	case r.Format > demotionFormat:
		return demotionRecord{}, fmt.Errorf("format %d: %w", r.Format, cluster.ErrNewerFormat)
	case r.Format != demotionFormat:
		err = fmt.Errorf("format %d: not a record of the demotion", r.Format)
	case r.Step != stepNone && r.Step != stepRaising && r.Step != stepRaised && r.Step != stepLowering:
		err = fmt.Errorf("step %.40q: not one that there is", string(r.Step))
	case r.Step != stepNone && r.Amount != DemotionStep:
		err = fmt.Errorf("amount %d: not %d", r.Amount, DemotionStep)
	}
	if err != nil {
		return demotionRecord{}, cluster.WithHint(err, "see whether `sysctl %s` is 0 as it should be, take back what is too much "+
			"(a write is added: %s=-%d), and remove the file", demotionName, demotionName, DemotionStep)
	}
	return r, nil
}

// keep makes the record durable: whole or not at all. The temporary file has a fixed name, so that a kill leaves no more
// than that one; nobody else writes here.
func (d *Demotion) keep(r demotionRecord) error {
	r.Format = demotionFormat
	data, err := json.Marshal(r)
	if err == nil {
		err = d.save(d.file, append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("record %s: %w", d.file, err)
	}
	return nil
}

func replaceFile(path string, data []byte) error {
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return pathCause(err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		_ = os.Remove(temp)
		return pathCause(err)
	}
	return syncFolder(filepath.Dir(path))
}

func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync its folder: %w", pathCause(err))
	}
	err = f.Sync()
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("sync its folder: %w", pathCause(err))
	}
	return nil
}

// pathCause leaves out the operation and the path, which our own message names.
func pathCause(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return e.Err
	}
	return err
}
