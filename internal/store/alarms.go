package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"certsync/internal/cluster"
	"certsync/internal/failpoint"
)

// alarmsName is the file of what the daemon remembers of alarms.
const alarmsName = "alarms.json"

// Alarms reads what was last kept of alarms; nothing where nothing was. A file that is torn is set aside, told by
// Problems, and counts as none: alarms that stand are then told once more.
func (s *Store) Alarms(ctx context.Context) (cluster.AlarmBook, error) {
	if err := s.checkFormat(); err != nil {
		return cluster.AlarmBook{}, fmt.Errorf("read alarms: %w", err)
	}
	book, bad, err := readRecord[cluster.AlarmBook](s, alarmsName)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return cluster.AlarmBook{}, nil
	case err != nil:
		return cluster.AlarmBook{}, fmt.Errorf("read alarms: %w", err)
	case bad != nil:
		s.setAside(ctx, []finding{*bad})
		return cluster.AlarmBook{}, nil
	}
	return book, nil
}

// KeepAlarms replaces what is remembered of alarms, durably when it returns nil.
func (s *Store) KeepAlarms(ctx context.Context, book cluster.AlarmBook) error {
	err := s.change(ctx, "keep alarms", func() error {
		data, err := encodeRecord(book)
		if err != nil {
			return err
		}
		if old, _, err := s.readFile(alarmsName); err == nil && bytes.Equal(old, data) {
			return nil
		}
		if err := s.writeFile(alarmsName, data); err != nil {
			return err
		}
		return s.syncFolder(".")
	})
	if err != nil {
		return fmt.Errorf("keep alarms: %w", err)
	}
	failpoint.Hit("store.alarms")
	return nil
}
