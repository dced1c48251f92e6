package haproxy

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"certsync/internal/cluster"
)

// master is a client of the socket of `haproxy -W -S PATH` (HAProxy's Management Manual, "Master CLI").
type master struct{ runtime }

// workers is what `show proc` tells.
type workers struct {
	// reloads counts those since the master began, the failed ones too; failed are those since the last that worked.
	reloads, failed int
	// pid is the worker's that serves; 0 where the master names none.
	pid int
	// old are those that go on with the connections that they have. After a failed reload the one that serves is listed
	// as old by 3.2, as the current one by 2.6.
	old []int
}

// errEnd ends the reading of a reply: the master keeps the connection open.
var errEnd = errors.New("end of the reply")

// workers asks `show proc`. In 2.6 the master listens, or answers, only when a reload has ended: it is asked again for
// patience.
func (m *master) workers(ctx context.Context, patience time.Duration) (workers, error) {
	begin := time.Now()
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		w, err := m.showProc(ctx)
		again := errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, errUnclear)
		if !again || time.Since(begin) > patience || sleep(ctx, pause) != nil {
			return w, err
		}
	}
}

// commandPatience is how long one look at a process is waited for: it is made again.
const commandPatience = 2 * time.Second

func (m *master) showProc(ctx context.Context) (workers, error) {
	ctx, cancel := context.WithTimeout(ctx, commandPatience)
	defer cancel()
	var lines []string
	_, err := m.exchange(ctx, "show proc\n", maxReply, func(line string) error {
		if line == "" && len(lines) > 0 {
			return errEnd
		}
		lines = append(lines, line)
		return nil
	})
	if err == nil || errors.Is(err, errEnd) {
		if w, ok := parseWorkers(lines); ok {
			return w, nil
		}
		err = fmt.Errorf("%w: %s", errUnclear, tell(lines, ""))
	}
	return workers{}, fmt.Errorf("HAProxy's master: show proc: %w", m.own(err))
}

// own gives an error the hint that is the master's, not the runtime socket's.
func (m *master) own(err error) error {
	switch {
	case errors.Is(err, cluster.ErrNotRunning):
		return cluster.WithHint(err, "see whether HAProxy runs with `-W -S %s`; haproxy.master_socket names that socket", m.address)
	case errors.Is(err, errLevel):
		return cluster.WithHint(err, "let certsync's user write %s: `-S %s,mode,660,group,GROUP`", m.address, m.address)
	}
	return err
}

// parseWorkers reads lines of PID, type, reloads (with `[failed: N]` for the master, from 2.6 on), uptime, version.
func parseWorkers(lines []string) (w workers, ok bool) {
	section := ""
	for _, line := range lines {
		if strings.HasPrefix(line, "#") {
			section = line
			continue
		}
		words := strings.Fields(line)
		if len(words) < 3 {
			continue
		}
		pid, err := strconv.Atoi(words[0])
		if err != nil || pid <= 0 {
			continue
		}
		switch {
		case words[1] == "master":
			w.reloads, err = strconv.Atoi(words[2])
			ok = err == nil
			if _, after, found := strings.Cut(line, "[failed: "); found {
				number, _, _ := strings.Cut(after, "]")
				w.failed, _ = strconv.Atoi(number)
			}
		case words[1] == "worker" && section == "# old workers":
			w.old = append(w.old, pid)
		case words[1] == "worker" && w.pid == 0:
			w.pid = pid
		}
	}
	return w, ok
}

// verdict is the master's answer to `reload`.
type verdict int

const (
	// silent: no answer (2.6), or none that is known. `show proc` and the Pid tell.
	silent verdict = iota
	success
	refused
)

// reload asks for one. The answer, `Success=1` or `Success=0`, a line `--` and the start's log (2.7 and later), comes
// when the new worker is ready; 2.6 closes the connection at once. said is HAProxy's reason for a failure. An error means
// that nothing was asked for.
func (m *master) reload(ctx context.Context) (v verdict, said string, err error) {
	var log strings.Builder
	lines := 0
	_, err = m.exchange(ctx, "reload\n", maxList, func(line string) error {
		lines++
		switch {
		case lines == 1 && line == "Success=1":
			v = success
		case lines == 1 && line == "Success=0":
			v = refused
		case lines == 1 && refusal([]string{line}) != nil:
			return refusal([]string{line})
		case line == "" && v != silent:
			return errEnd
		case log.Len() < maxOutput:
			log.WriteString(line + "\n")
		}
		return nil
	})
	switch {
	case errors.Is(err, cluster.ErrNotRunning), errors.Is(err, errLevel):
		return silent, "", fmt.Errorf("HAProxy's master: reload: %w", m.own(err))
	case v == refused:
		return v, quote(log.String()), nil
	}
	return v, "", nil
}
