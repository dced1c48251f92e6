//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"certsync/internal/carp"
	"certsync/internal/cluster"
	"certsync/internal/lab"
)

// tellEnv makes this test program one that tells the role of the host that it runs on: the interface's name.
const tellEnv = "CERTSYNC_E2E_TELL_ROLES"

// tellSettle is its settle time, the default of carp.settle. ucarp, when it is preempted, holds an address a second
// longer: until the next advertisement of the one that took it.
const tellSettle = 3 * time.Second

func init() {
	if iface := os.Getenv(tellEnv); iface != "" {
		if err := tellChanges(iface); err != nil {
			fmt.Fprintln(os.Stderr, "tell roles:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// roleChange is a change of the role that certsync acts by.
type roleChange struct {
	Role cluster.Role
	// Last is when a role was last told before this one, and At when this one was first.
	Last, At time.Time
	// Error is why there was none to tell.
	Error string
}

// tellChanges asks for the role again and again, as the flow's fences do, and prints each change.
func tellChanges(iface string) error {
	auto, err := carp.NewAuto(carp.Config{Node: iface, Settle: tellSettle, VHIDs: []carp.Spec{
		{Interface: iface, VHID: 1, Addresses: []netip.Prefix{lab.VirtualAddress}}}})
	if err != nil {
		return err
	}
	defer auto.Close()
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	out := json.NewEncoder(os.Stdout)
	now := roleChange{Role: -1}
	for {
		seen, err := auto.Role(ctx)
		if ctx.Err() != nil {
			return nil
		}
		then := now
		now = roleChange{Role: seen.Role, At: time.Now(), Last: then.At}
		if err != nil {
			now.Error = err.Error()
		}
		if now.Role != then.Role {
			if err := out.Encode(now); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// roleTeller is such a program on a host.
type roleTeller struct {
	host  *lab.Host
	lines lines[roleChange]
}

// tellRoles starts one.
func tellRoles(t *testing.T, h *lab.Host) *roleTeller {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := &roleTeller{host: h}
	if _, err := h.StartProgram(&r.lines, []string{tellEnv + "=" + h.Station.Interface}, program); err != nil {
		t.Fatal(err)
	}
	return r
}

// span is a time for which a host was told MASTER.
type span struct{ from, to time.Time }

func (r *roleTeller) spans(t *testing.T) []span {
	t.Helper()
	var out []span
	now := time.Now()
	master := false
	for _, c := range r.lines.read(t) {
		if c.Error != "" {
			t.Fatalf("the role of %s: %s", r.host.Name, c.Error)
		}
		if master {
			out[len(out)-1].to = c.Last
		}
		if master = c.Role == cluster.Master; master {
			out = append(out, span{c.At, now})
		}
	}
	return out
}

// awaitMaster waits until the host counts as MASTER.
func (r *roleTeller) awaitMaster(t *testing.T) {
	t.Helper()
	await(t, r.host.Name+" to count as MASTER", func() bool {
		changes := r.lines.read(t)
		return len(changes) > 0 && changes[len(changes)-1].Role == cluster.Master
	})
}

// wantNeverTwo wants no moment at which both hosts counted as MASTER.
func wantNeverTwo(t *testing.T, roles []*roleTeller) {
	t.Helper()
	for _, a := range roles[0].spans(t) {
		for _, b := range roles[1].spans(t) {
			if !a.to.Before(b.from) && !b.to.Before(a.from) {
				t.Errorf("%s counted as MASTER from %s to %s, and %s from %s to %s", roles[0].host.Name, a.from, a.to, roles[1].host.Name, b.from, b.to)
			}
		}
	}
}
