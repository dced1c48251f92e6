package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"time"

	"certsync/internal/carp"
	"certsync/internal/cluster"
)

// action is one change of the host. It is data, so that the record of it is enough to undo it, in another process too.
type action interface {
	// look reads what is there, into what is recorded, just before do; false: there is nothing to do any more.
	look(h *Host) (needed bool, err error)
	do(ctx context.Context, h *Host) error
	// verify reads back what do did.
	verify(h *Host) error
	// undo brings back what look saw, where what do left is still there. What somebody else changed since stays, and left
	// says so.
	undo(ctx context.Context, h *Host) (left string, err error)
	// touches names the interface that the action changes; "" for none.
	touches() string
}

// entry is an action in the record: exactly one of the pointers is set.
type entry struct {
	At   time.Time `json:"at"`
	Step string    `json:"step"`
	// Done tells that the action was verified. Without it, it may have happened or not.
	Done bool `json:"done"`

	Module  *moduleChange  `json:"module,omitempty"`
	Sysctl  *sysctlChange  `json:"sysctl,omitempty"`
	VHID    *vhidChange    `json:"vhid,omitempty"`
	Address *addressChange `json:"address,omitempty"`
	File    *fileChange    `json:"file,omitempty"`
	Folder  *folderChange  `json:"folder,omitempty"`
	Account *accountChange `json:"account,omitempty"`
}

func entryOf(step string, a action, at time.Time) entry {
	e := entry{Step: step, At: at}
	switch a := a.(type) {
	case *moduleChange:
		e.Module = a
	case *sysctlChange:
		e.Sysctl = a
	case *vhidChange:
		e.VHID = a
	case *addressChange:
		e.Address = a
	case *fileChange:
		e.File = a
	case *folderChange:
		e.Folder = a
	case *accountChange:
		e.Account = a
	}
	return e
}

// action is the one that the entry holds; nil where the record was written by something else.
func (e entry) action() action {
	switch {
	case e.Module != nil:
		return e.Module
	case e.Sysctl != nil:
		return e.Sysctl
	case e.VHID != nil:
		return e.VHID
	case e.Address != nil:
		return e.Address
	case e.File != nil:
		return e.File
	case e.Folder != nil:
		return e.Folder
	case e.Account != nil:
		return e.Account
	}
	return nil
}

// moduleChange loads carp.
type moduleChange struct{}

func (*moduleChange) touches() string { return "" }

func (*moduleChange) look(h *Host) (bool, error) {
	loaded, err := h.Kernel.ModuleLoaded()
	return !loaded, err
}

func (*moduleChange) do(_ context.Context, h *Host) error { return h.Kernel.LoadModule() }

func (*moduleChange) verify(h *Host) error {
	loaded, err := h.Kernel.ModuleLoaded()
	if err == nil && !loaded {
		err = errors.New("carp is still not in the kernel")
	}
	return err
}

// undo leaves carp where vhids that are none of ours keep it: kldunload(8) refuses then.
func (*moduleChange) undo(ctx context.Context, h *Host) (string, error) {
	loaded, err := h.Kernel.ModuleLoaded()
	if err != nil || !loaded {
		return "", err
	}
	if _, err := h.Run(ctx, []string{"/sbin/kldunload", "carp"}); err != nil {
		return fmt.Sprintf("carp stays loaded: kldunload: %v", err), nil
	}
	return "", nil
}

// sysctlChange sets an int sysctl.
type sysctlChange struct {
	Name   string `json:"name"`
	Before int    `json:"before"`
	After  int    `json:"after"`
}

func (*sysctlChange) touches() string { return "" }

func (c *sysctlChange) look(h *Host) (needed bool, err error) {
	c.Before, err = h.Kernel.Sysctl(c.Name)
	return c.Before != c.After, err
}

func (c *sysctlChange) do(_ context.Context, h *Host) error {
	return h.Kernel.SetSysctl(c.Name, c.After)
}

func (c *sysctlChange) verify(h *Host) error { return c.is(h, c.After) }

func (c *sysctlChange) is(h *Host, want int) error {
	now, err := h.Kernel.Sysctl(c.Name)
	if err == nil && now != want {
		err = fmt.Errorf("%s is %d after it was set to %d", c.Name, now, want)
	}
	return err
}

func (c *sysctlChange) undo(_ context.Context, h *Host) (string, error) {
	now, err := h.Kernel.Sysctl(c.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && now == c.Before:
		return "", nil // carp is gone, or it was never done
	case err != nil:
		return "", err
	case now != c.After:
		return fmt.Sprintf("%s is %d now, which certsync did not set", c.Name, now), nil
	}
	if err := h.Kernel.SetSysctl(c.Name, c.Before); err != nil {
		return "", err
	}
	return "", c.is(h, c.Before)
}

// parameters are those of a vhid, as they are recorded.
type parameters struct {
	AdvBase  int            `json:"advbase"`
	AdvSkew  int            `json:"advskew"`
	Password cluster.Secret `json:"password,omitempty"`
	Peer     netip.Addr     `json:"peer,omitzero"`
}

func (p parameters) equal(q parameters) bool {
	return p.AdvBase == q.AdvBase && p.AdvSkew == q.AdvSkew && string(p.Password) == string(q.Password) && p.Peer == q.Peer
}

func (p parameters) settings(id int) carp.Settings {
	return carp.Settings{VHID: id, AdvBase: p.AdvBase, AdvSkew: p.AdvSkew, Password: p.Password, Peer: p.Peer}
}

// parametersOf leaves out the multicast groups, which are what no peer means.
func parametersOf(s carp.State) parameters {
	p := parameters{AdvBase: s.AdvBase, AdvSkew: s.AdvSkew, Password: s.Password}
	for _, peer := range []netip.Addr{s.Peer, s.Peer6} {
		if peer.IsValid() && !peer.IsMulticast() && !peer.IsUnspecified() {
			p.Peer = peer
		}
	}
	return p
}

// vhidChange makes a vhid, or sets its parameters; that alone changes no role.
type vhidChange struct {
	Interface string `json:"interface"`
	ID        int    `json:"vhid"`
	// Before is nil where the vhid was not there.
	Before *parameters `json:"before,omitempty"`
	After  parameters  `json:"after"`
	// Address is one of the vhid's: FreeBSD removes a vhid only with its last address.
	Address netip.Prefix `json:"address"`
}

func (c *vhidChange) touches() string { return c.Interface }

func (c *vhidChange) now(h *Host) (*parameters, error) {
	s, err := h.Kernel.VHID(c.Interface, c.ID)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	}
	p := parametersOf(s)
	return &p, nil
}

func (c *vhidChange) look(h *Host) (needed bool, err error) {
	c.Before, err = c.now(h)
	return c.Before == nil || !c.Before.equal(c.After), err
}

func (c *vhidChange) do(_ context.Context, h *Host) error {
	return h.Kernel.SetVHID(c.Interface, c.After.settings(c.ID))
}

func (c *vhidChange) verify(h *Host) error {
	now, err := c.now(h)
	switch {
	case err != nil:
		return err
	case now == nil:
		return errors.New("the vhid is not there")
	case string(now.Password) != string(c.After.Password):
		return errors.New("the kernel has another password than was set")
	case !now.equal(c.After):
		return fmt.Errorf("the kernel has advbase %d advskew %d, not %d and %d", now.AdvBase, now.AdvSkew, c.After.AdvBase, c.After.AdvSkew)
	}
	return nil
}

func (c *vhidChange) undo(_ context.Context, h *Host) (string, error) {
	now, err := c.now(h)
	switch {
	case err != nil && !errors.Is(err, carp.ErrNoModule):
		return "", err
	case now == nil, c.Before != nil && now.equal(*c.Before):
		return "", nil
	case !now.equal(c.After):
		return fmt.Sprintf("vhid %d on %s has other parameters now, which certsync did not set", c.ID, c.Interface), nil
	case c.Before != nil:
		return c.giveBack(h)
	}
	return c.remove(h)
}

// giveBack sets the former parameters. A password that certsync would not set, and none at all, cannot be given back.
func (c *vhidChange) giveBack(h *Host) (string, error) {
	before := *c.Before
	kept := ""
	if len(before.Password) == 0 && len(c.After.Password) > 0 || len(before.Password) > 0 && carp.CheckPassword(before.Password) != nil {
		before.Password = c.After.Password
		kept = fmt.Sprintf("vhid %d on %s keeps its new password: the former one is none that certsync sets", c.ID, c.Interface)
	}
	return kept, h.Kernel.SetVHID(c.Interface, before.settings(c.ID))
}

// remove takes a vhid away that has no address: the last address takes its vhid with it, so it is given one.
func (c *vhidChange) remove(h *Host) (string, error) {
	i, err := h.iface(c.Interface)
	if err != nil {
		return "", err
	}
	for _, a := range i.Addresses {
		if a.VHID == c.ID {
			return fmt.Sprintf("vhid %d on %s has %s, which certsync did not add", c.ID, c.Interface, a.Prefix), nil
		}
		if a.Prefix.Addr() == c.Address.Addr() {
			return fmt.Sprintf("vhid %d on %s stays, without an address: %s is used otherwise now", c.ID, c.Interface, a.Prefix), nil
		}
	}
	if err := h.Kernel.AddAddress(c.Interface, c.Address, c.ID); err != nil {
		return "", err
	}
	return "", h.Kernel.RemoveAddress(c.Interface, c.Address)
}

// iface is one interface with its addresses.
func (h *Host) iface(name string) (carp.Interface, error) {
	all, err := h.Kernel.Interfaces()
	if err != nil {
		return carp.Interface{}, err
	}
	i := slices.IndexFunc(all, func(i carp.Interface) bool { return i.Name == name })
	if i < 0 {
		return carp.Interface{}, fmt.Errorf("%s: %w", name, carp.ErrNoInterface)
	}
	return all[i], nil
}

// addressChange gives an interface an address under a vhid, or takes it away.
type addressChange struct {
	Interface string       `json:"interface"`
	Address   netip.Prefix `json:"address"`
	VHID      int          `json:"vhid"`
	Remove    bool         `json:"remove,omitempty"`
	// Before is what the interface had of the address: nil for nothing.
	Before *carp.Address `json:"before,omitempty"`
	// Vhid are the parameters of Before's, which goes with its last address.
	Vhid *parameters `json:"vhid_before,omitempty"`
}

func (c *addressChange) touches() string { return c.Interface }

func (c *addressChange) now(h *Host) (*carp.Address, error) {
	i, err := h.iface(c.Interface)
	if err != nil {
		return nil, err
	}
	for _, a := range i.Addresses {
		if a.Prefix.Addr() == c.Address.Addr() {
			return &a, nil
		}
	}
	return nil, nil
}

func (c *addressChange) look(h *Host) (needed bool, err error) {
	if c.Before, err = c.now(h); err != nil {
		return false, err
	}
	if c.Before != nil && c.Before.VHID != 0 {
		v := vhidChange{Interface: c.Interface, ID: c.Before.VHID}
		if c.Vhid, err = v.now(h); err != nil {
			return false, err
		}
	}
	return !c.isDone(c.Before), nil
}

func (c *addressChange) isDone(now *carp.Address) bool {
	if c.Remove {
		return now == nil || now.VHID != c.VHID
	}
	return now != nil && *now == carp.Address{Prefix: c.Address, VHID: c.VHID}
}

func (c *addressChange) do(_ context.Context, h *Host) error {
	if c.Remove {
		return h.Kernel.RemoveAddress(c.Interface, c.Address)
	}
	return h.Kernel.AddAddress(c.Interface, c.Address, c.VHID)
}

func (c *addressChange) verify(h *Host) error {
	now, err := c.now(h)
	switch {
	case err != nil:
		return err
	case c.isDone(now):
		return nil
	case c.Remove:
		return fmt.Errorf("%s still has %s", c.Interface, c.Address)
	}
	return fmt.Errorf("%s does not have %s under vhid %d", c.Interface, c.Address, c.VHID)
}

func (c *addressChange) undo(_ context.Context, h *Host) (string, error) {
	now, err := c.now(h)
	switch {
	case err != nil:
		return "", err
	case same(now, c.Before), now == nil && c.Before == nil:
		return "", nil
	case now == nil:
		return "", c.giveBack(h)
	case c.Remove, !c.isDone(now):
		return fmt.Sprintf("%s on %s was changed since", c.Address, c.Interface), nil
	}
	// As the last address of its vhid it takes that along: made plain, it would leave the vhid behind without one.
	if err := h.Kernel.RemoveAddress(c.Interface, c.Address); err != nil || c.Before == nil {
		return "", err
	}
	return "", c.giveBack(h)
}

func same(a, b *carp.Address) bool { return a == b || a != nil && b != nil && *a == *b }

// giveBack restores an address that was plain, or under a vhid that may be gone.
func (c *addressChange) giveBack(h *Host) error {
	if c.Before.VHID != 0 && c.Vhid != nil {
		v := vhidChange{Interface: c.Interface, ID: c.Before.VHID}
		if now, err := v.now(h); err != nil || now == nil {
			if err = errors.Join(err, h.Kernel.SetVHID(c.Interface, c.Vhid.settings(c.Before.VHID))); err != nil {
				return err
			}
		}
	}
	return h.Kernel.AddAddress(c.Interface, c.Before.Prefix, c.Before.VHID)
}
