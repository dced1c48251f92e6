package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// ErrNoSegment means that this machine or this user cannot make network namespaces with CARP in them.
var ErrNoSegment = errors.New("no CARP in network namespaces here")

// CanSegment is nil where NewSegment and ucarp can work: root, with ip(8) and ucarp(8) installed, allowed to make
// network namespaces, and with IPv6. Else the error is an ErrNoSegment that says what is missing.
func CanSegment() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: only root can", ErrNoSegment)
	}
	for _, program := range []string{"ip", "ucarp"} {
		if _, err := systemProgram(program); err != nil {
			return fmt.Errorf("%w: %w", ErrNoSegment, err)
		}
	}
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return fmt.Errorf("%w: the kernel has no IPv6: %w", ErrNoSegment, err)
	}
	made := make(chan error)
	onThread(func() { made <- unix.Unshare(unix.CLONE_NEWNET) })
	if err := <-made; err != nil {
		return fmt.Errorf("%w: unshare: %w", ErrNoSegment, err)
	}
	return nil
}

// systemProgram finds a program of the system, whose folder may not be in a user's PATH.
func systemProgram(name string) (string, error) {
	var errs []error
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		path, err := exec.LookPath(candidate)
		if err == nil {
			return path, nil
		}
		errs = append(errs, err)
	}
	return "", errs[0]
}

// Segment is a layer-2 segment: a switch, which is a bridge in a namespace of its own, and stations, each a namespace
// with one interface. Nothing of it is in the namespace of the machine. ucarp speaks real CARP over it.
type Segment struct {
	fabric   *namespace
	stations []*Station
}

// NewSegment makes a switch without stations.
func NewSegment(ctx context.Context) (*Segment, error) {
	fabric, err := newNamespace(ctx)
	if err != nil {
		return nil, fmt.Errorf("switch: %w", err)
	}
	s := &Segment{fabric: fabric}
	// No forward delay: a port that comes up forwards at once. No snooping: every port gets every group.
	if err := fabric.ip(ctx, "link", "add", switchName, "up", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0"); err != nil {
		return nil, errors.Join(fmt.Errorf("switch: %w: %w", ErrNoSegment, err), s.Close())
	}
	return s, nil
}

const switchName = "switch0"

// Attach gives the segment another station, whose interface has the name and the addresses given.
func (s *Segment) Attach(ctx context.Context, iface string, addresses ...netip.Prefix) (*Station, error) {
	ns, err := newNamespace(ctx)
	if err != nil {
		return nil, fmt.Errorf("station: %w", err)
	}
	st := &Station{Interface: iface, segment: s, ns: ns, port: fmt.Sprintf("port%d", len(s.stations)+1)}
	s.stations = append(s.stations, st)
	if err := st.connect(ctx, addresses); err != nil {
		return nil, fmt.Errorf("station on %s: %w", st.port, err)
	}
	return st, nil
}

// Split cuts the stations off from one another: each keeps its link, and the stations that are not named, so that each
// goes on as if the others named were dead.
func (s *Segment) Split(ctx context.Context, stations ...*Station) error {
	if err := s.isolate(ctx, stations, "on"); err != nil {
		return fmt.Errorf("split the segment: %w", err)
	}
	return nil
}

// Heal ends every Split.
func (s *Segment) Heal(ctx context.Context) error {
	if err := s.isolate(ctx, s.stations, "off"); err != nil {
		return fmt.Errorf("heal the segment: %w", err)
	}
	return nil
}

// isolate sets the isolation of ports: frames do not pass from one isolated port to another.
func (s *Segment) isolate(ctx context.Context, stations []*Station, to string) error {
	for _, st := range stations {
		if err := s.fabric.ip(ctx, "link", "set", st.port, "type", "bridge_slave", "isolated", to); err != nil {
			return err
		}
	}
	return nil
}

// Close ends what runs on the stations and removes everything. It may be called twice.
func (s *Segment) Close() error {
	var errs []error
	for _, st := range s.stations {
		errs = append(errs, st.ns.close())
	}
	if s.fabric != nil {
		errs = append(errs, s.fabric.close())
	}
	s.stations, s.fabric = nil, nil
	return errors.Join(errs...)
}

// Station is a host of a segment, as the network knows it.
type Station struct {
	// Interface is its interface's name.
	Interface string

	segment *Segment
	ns      *namespace
	port    string // of the switch
}

func (st *Station) connect(ctx context.Context, addresses []netip.Prefix) error {
	// A bind to the virtual address works on who does not have it, as on FreeBSD, and as those who run HAProxy with
	// ucarp or keepalived set it. IPv6 addresses stay when the link is down, as they do on FreeBSD.
	for name, value := range map[string]string{"ipv4/ip_nonlocal_bind": "1", "ipv6/conf/default/keep_addr_on_down": "1"} {
		if err := st.ns.setSysctl(name, value); err != nil {
			return err
		}
	}
	fabric := st.segment.fabric
	steps := []func() error{
		func() error {
			return fabric.ip(ctx, "link", "add", st.port, "type", "veth", "peer", "name", st.Interface, "netns", st.ns.path())
		},
		func() error { return fabric.ip(ctx, "link", "set", st.port, "master", switchName, "up") },
		func() error { return st.LinkUp(ctx) },
	}
	for _, a := range addresses {
		steps = append(steps, func() error {
			args := []string{"address", "add", a.String(), "dev", st.Interface}
			if a.Addr().Is6() {
				args = append(args, "nodad")
			}
			return st.ns.ip(ctx, args...)
		})
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// LinkDown takes the station's interface down, which keeps its IPv4 addresses.
func (st *Station) LinkDown(ctx context.Context) error {
	return st.ns.ip(ctx, "link", "set", st.Interface, "down")
}

// LinkUp takes it up again.
func (st *Station) LinkUp(ctx context.Context) error {
	return st.ns.ip(ctx, "link", "set", st.Interface, "up")
}

// Unplug pulls the cable at the switch: the station's interface stays up and has no carrier.
func (st *Station) Unplug(ctx context.Context) error {
	return st.segment.fabric.ip(ctx, "link", "set", st.port, "down")
}

// Plug puts the cable in again.
func (st *Station) Plug(ctx context.Context) error {
	return st.segment.fabric.ip(ctx, "link", "set", st.port, "up")
}
