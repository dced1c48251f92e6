package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"time"

	"certsync/internal/bootstrap/sysfile"
	"certsync/internal/carp"
	"certsync/internal/cluster"
)

// Host is the machine, or the tree of one, that is set up.
type Host struct {
	// Kernel is nil where there is none to ask: a tree (--root), or a system without CARP.
	Kernel *carp.Kernel
	// Tree has the system's files.
	Tree *sysfile.Tree
	// Image tells that Tree is not the running system's: only the steps over files are done, and Run is not called.
	Image bool
	// OS is the running system, as runtime.GOOS names it; "" is that.
	OS string
	// Run runs a command with a deadline and gives what it printed; its error says how it ended.
	Run func(ctx context.Context, argv []string) ([]byte, error)
	// Getuid is os.Getuid. Without root only Plan works.
	Getuid func() int
	// Now is the time of records and of the placeholder.
	Now func() time.Time
	// SSHConnection is the environment's SSH_CONNECTION: client, port, server, port (ssh(1)); "" outside of SSH.
	SSHConnection string
	// Password reads a password_file as the configuration names it, never below a tree.
	Password func(path string) (cluster.Secret, error)

	// at is told each place where a kill would have to be survived; a test ends the run there.
	at func(place string)
}

// State is what a step comes to.
type State string

// The states of a step.
const (
	// OK: it is as it should be, and is not touched.
	OK State = "ok"
	// Change: Apply would do it.
	Change State = "change"
	// Blocked: it would do harm, or cannot be right. Nothing is applied until the cause is mended.
	Blocked State = "blocked"
	// Note: said, never changed by certsync.
	Note State = "note"
	// Unsupported: it has to be done elsewhere or later (on the jail's host, after a reboot); the rest is applied.
	Unsupported State = "unsupported"
)

// Step is one line of a plan.
type Step struct {
	Name  string `json:"name"`
	State State  `json:"state"`
	// Found is what is there, Want what is to be.
	Found string `json:"found"`
	Want  string `json:"want,omitempty"`
	// Why says what stands against it, Mend what to do about it.
	Why  string `json:"why,omitempty"`
	Mend string `json:"mend,omitempty"`
	// Interface is the one that the step touches; "" for none.
	Interface string `json:"interface,omitempty"`
	// Warnings are what --yes confirms: a failover, the interface of the SSH session.
	Warnings []string `json:"warnings,omitempty"`
	// Commands do the same by hand, as root, on this host, or on the jail's host where OnHost is true.
	Commands []string `json:"commands,omitempty"`
	OnHost   bool     `json:"on_host,omitempty"`
	// Diff is what changes in files, without passwords.
	Diff string `json:"diff,omitempty"`

	actions []action
}

// Plan is what bootstrap found and would do, in the order in which it would be done.
type Plan struct {
	Node string `json:"node"`
	// Root is the folder of the tree, "" for the running system.
	Root string `json:"root,omitempty"`
	// Jail is "", "jail" or "vnet jail".
	Jail string `json:"jail,omitempty"`
	// Privileged tells that this process is root, and may apply it.
	Privileged bool   `json:"privileged"`
	Steps      []Step `json:"steps"`
}

// Of lists the steps of one state.
func (p *Plan) Of(state State) []Step {
	var out []Step
	for _, s := range p.Steps {
		if s.State == state {
			out = append(out, s)
		}
	}
	return out
}

// Warnings are what --yes confirms, of all steps that would be done.
func (p *Plan) Warnings() []string {
	var out []string
	for _, s := range p.Of(Change) {
		for _, w := range s.Warnings {
			out = append(out, s.Name+": "+w)
		}
	}
	return out
}

// Err is nil where nothing is blocked; else it names each blocked step, and hints at the first mend.
func (p *Plan) Err() error {
	var errs []error
	mend := ""
	for _, s := range p.Of(Blocked) {
		errs = append(errs, fmt.Errorf("%s: %s", s.Name, s.Why))
		if mend == "" {
			mend = s.Mend
		}
	}
	if len(errs) == 0 {
		return nil
	}
	err := fmt.Errorf("bootstrap is blocked: %w", errors.Join(errs...))
	if mend == "" {
		return err
	}
	return cluster.WithHint(err, "%s", mend)
}

// Plan looks at the host and says what would be done. It changes nothing.
func (h *Host) Plan(ctx context.Context, s Settings) (*Plan, error) {
	if err := h.usable(); err != nil {
		return nil, err
	}
	p := &planner{
		host: h, set: s, files: map[string]*file{}, above: map[string]bool{}, made: map[string]bool{},
		passwords: map[string]password{}, aliases: map[string]int{}, ours: map[string]bool{}, heard: map[string]heard{},
	}
	if err := p.remember(); err != nil {
		return nil, err
	}
	if err := p.look(); err != nil {
		return nil, err
	}
	for _, plan := range []func(context.Context) error{
		p.moduleAtBoot, p.moduleNow, p.sysctls, p.vhids, p.packetFilter,
		p.user, p.folders, p.privileges, p.placeholder, p.service,
	} {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("plan the bootstrap: %w", err)
		}
		if err := plan(ctx); err != nil {
			return nil, fmt.Errorf("plan the bootstrap: %w", err)
		}
	}
	return p.plan(), nil
}

// usable refuses systems whose files these are not.
func (h *Host) usable() error {
	system := h.OS
	if system == "" {
		system = runtime.GOOS
	}
	if system == "freebsd" || h.Image {
		return nil
	}
	return cluster.WithHint(fmt.Errorf("set up CARP on %s: %w: carp(4) and rc.conf are FreeBSD's", system, errors.ErrUnsupported),
		"run it on the FreeBSD host, or prepare a FreeBSD tree with --root DIR; on Linux, keepalived or ucarp moves the address")
}

// planner collects the steps. Its files are what each file would hold after the steps so far, so that the numbers of
// aliases continue and the differences are right.
type planner struct {
	host  *Host
	set   Settings
	steps []Step
	files map[string]*file

	// above are the folders that a step so far makes for what it writes, made those of the configuration.
	above, made map[string]bool
	passwords   map[string]password
	// aliases are the next numbers of the aliases of each interface.
	aliases map[string]int
	// heard is what was on the segment of each interface.
	heard map[string]heard

	jail   carp.Jail
	loaded bool
	// loading tells that a step loads carp.
	loading    bool
	interfaces []carp.Interface
	// rc is what rc.d/netif reads; rcPartial tells that this user may not read all of it.
	rc        *sysfile.View
	rcPartial bool
	// ours are the files that certsync made, by the record.
	ours map[string]bool
	// userThere tells that the service's user is there, or made by a step.
	userThere bool
}

func (p *planner) add(s Step) { p.steps = append(p.steps, s) }

func (p *planner) plan() *Plan {
	out := &Plan{Node: p.set.Node, Privileged: p.host.Getuid() == 0, Steps: p.steps}
	switch {
	case p.jail.VNET:
		out.Jail = "vnet jail"
	case p.jail.Jailed:
		out.Jail = "jail"
	}
	if p.host.Image {
		out.Root = p.host.Tree.Root
		for i := range out.Steps {
			out.Steps[i].Commands = With("chroot "+quote(out.Root), out.Steps[i].Commands)
		}
	}
	return out
}

// live tells that there is a kernel to ask.
func (p *planner) live() bool { return p.host.Kernel != nil }

// sharesStack tells that the network belongs to the jail's host.
func (p *planner) sharesStack() bool { return p.jail.Jailed && !p.jail.VNET }

// look asks the kernel, once, what the steps need.
func (p *planner) look() (err error) {
	if !p.live() {
		return nil
	}
	k := p.host.Kernel
	if p.jail, err = k.Jail(); err != nil {
		return fmt.Errorf("look whether this is a jail: %w", err)
	}
	if p.loaded, err = k.ModuleLoaded(); err != nil {
		return fmt.Errorf("look for carp in the kernel: %w", err)
	}
	if p.interfaces, err = k.Interfaces(); err != nil {
		return fmt.Errorf("list the interfaces: %w", err)
	}
	return nil
}

// sshInterface is the interface that carries the SSH session; "" for none.
func (p *planner) sshInterface() string {
	fields := strings.Fields(p.host.SSHConnection)
	if len(fields) != 4 {
		return ""
	}
	local, err := netip.ParseAddr(fields[2])
	if err != nil {
		return ""
	}
	for _, i := range p.interfaces {
		for _, a := range i.Addresses {
			if a.Prefix.Addr().WithZone("") == local.Unmap().WithZone("") {
				return i.Name
			}
		}
	}
	return ""
}
