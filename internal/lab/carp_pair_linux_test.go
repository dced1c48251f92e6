package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"certsync/internal/cluster"
)

// needSegment skips a test that cannot have network namespaces, which under CI is a failure.
func needSegment(t *testing.T, err error) {
	t.Helper()
	switch {
	case err == nil:
	case !errors.Is(err, ErrNoSegment) && !errors.Is(err, ErrNoHAProxy), os.Getenv("CI") == "true":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
}

// newTestSegment makes a segment of stations without addresses that ends with the test.
func newTestSegment(t *testing.T, stations int) *Segment {
	t.Helper()
	needSegment(t, CanSegment())
	s, err := NewSegment(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	for i := range stations {
		if _, err := s.Attach(t.Context(), "eth0", stationAddresses(11+i)...); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// reaches tells whether one station's TCP reaches another's address. A connection that is refused has reached it.
func reaches(from *Station, to netip.Addr) bool {
	err := from.ns.do(func() error {
		conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(to, 9).String(), 200*time.Millisecond)
		if err == nil {
			_ = conn.Close()
		}
		return err
	})
	return err == nil || strings.Contains(err.Error(), "refused")
}

func TestASplitSegmentLetsNothingThroughAndAHealedOneDoes(t *testing.T) {
	s := newTestSegment(t, 3)
	for i, a := range stationAddresses(12) {
		to := a.Addr()
		await(t, "the second station to be reached", func() bool { return reaches(s.stations[0], to) })
		if i > 0 {
			continue
		}
		if err := s.Split(t.Context(), s.stations[:2]...); err != nil {
			t.Fatal(err)
		}
		if reaches(s.stations[0], to) {
			t.Error("a split segment lets frames through")
		}
		if !reaches(s.stations[2], to) {
			t.Error("a station that was not cut off does not reach one that was")
		}
		if err := s.Heal(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.stations[1].Unplug(t.Context()); err != nil {
		t.Fatal(err)
	}
	if reaches(s.stations[2], stationAddresses(12)[0].Addr()) {
		t.Error("a station whose cable is pulled is reached")
	}
	if err := s.stations[1].Plug(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, a := range stationAddresses(12) {
		await(t, "the second station to be reached again", func() bool { return reaches(s.stations[2], a.Addr()) })
	}
}

func TestASegmentTouchesNothingOfTheMachine(t *testing.T) {
	s := newTestSegment(t, 1)
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		if i.Name == switchName || i.Name == s.stations[0].port {
			t.Errorf("the machine has the interface %s", i.Name)
		}
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if slices.ContainsFunc(stationAddresses(11), func(p netip.Prefix) bool { return a.String() == p.String() }) {
			t.Errorf("the machine has the address %s", a)
		}
	}
	if pids := pidsOf(t, s.stations[0].ns); len(pids) > 0 {
		t.Errorf("a station runs %v before anything was started on it", pids)
	}
}

// TestNoProcessOutlivesItsStation: also not one that ignores SIGTERM and has left its parent's group, as sshd's sessions
// do.
func TestNoProcessOutlivesItsStation(t *testing.T) {
	s := newTestSegment(t, 1)
	ns := s.stations[0].ns
	var p *process
	err := ns.start(func() (err error) {
		p, err = startProcess("/bin/sh", []string{"-c", "trap '' TERM; setsid sh -c \"trap '' TERM; sleep 600\" & sleep 600"}, baseEnv(), nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the processes to be there", func() bool { return len(pidsOf(t, ns)) >= 3 })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if p.alive() {
		<-p.done
	}
	if err := s.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
}

func pidsOf(t *testing.T, ns *namespace) []int {
	t.Helper()
	pids, err := ns.pids()
	if err != nil {
		t.Fatal(err)
	}
	return pids
}

// TestARelayCarriesBothProtocols: a station reaches a name server of the machine's loopback at the same address.
func TestARelayCarriesBothProtocols(t *testing.T) {
	s := newTestSegment(t, 1)
	server, err := NewDNS(DNSOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	server.SetTXT("_acme-challenge.example.org", "x")
	r, err := newRelay(s.stations[0].ns, server.Address())
	if err != nil {
		t.Fatal(err)
	}
	ask := func(network string) error {
		return s.stations[0].ns.do(func() error {
			query := new(dns.Msg).SetQuestion("_acme-challenge.example.org.", dns.TypeTXT)
			answer, _, err := (&dns.Client{Net: network, Timeout: 10 * time.Second}).Exchange(query, server.Address())
			if err == nil && len(answer.Answer) != 1 {
				err = fmt.Errorf("%d records", len(answer.Answer))
			}
			return err
		})
	}
	for _, network := range []string{"udp", "tcp"} {
		if err := ask(network); err != nil {
			t.Errorf("%s: %v", network, err)
		}
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := ask("tcp"); err == nil {
		t.Error("a closed relay relays")
	}
}

// TestARelayWithAHangingConnectionCloses: and so does one whose server is gone.
func TestARelayWithAHangingConnectionCloses(t *testing.T) {
	s := newTestSegment(t, 1)
	ns := s.stations[0].ns
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r, err := newRelay(ns, silent.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	dial := func() (conn net.Conn) {
		if err := ns.do(func() (err error) { conn, err = net.Dial("tcp", r.address); return err }); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	hangs := dial()
	server, err := silent.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = silent.Close()
	gone := dial()
	_ = gone.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := gone.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection whose server is gone: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	for _, c := range []net.Conn{hangs, server} {
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a connection of a closed relay: %v", err)
		}
		_ = c.Close()
	}
}

// newTestPair starts a pair without certsync, that ends with the test.
func newTestPair(t *testing.T) *Pair {
	t.Helper()
	p, err := NewPair(t.Context(), PairOptions{Options: Options{Binary: "/bin/false"}})
	needSegment(t, err)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// awaitHolders waits until exactly these hosts have the virtual address.
func awaitHolders(t *testing.T, p *Pair, want ...string) {
	t.Helper()
	var have []string
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		have = nil
		allWritten := true
		for _, h := range p.Hosts {
			has, written, err := h.HasVirtual()
			if err != nil {
				t.Fatal(err)
			}
			if has {
				have = append(have, h.Name)
			}
			allWritten = allWritten && written
		}
		if allWritten && slices.Equal(have, want) {
			return
		}
		if time.Now().After(end) {
			for _, h := range p.Hosts {
				t.Logf("%s's ucarp: %s", h.Name, h.CARPLog())
			}
			t.Fatalf("the virtual address is on %q, want %q", have, want)
		}
	}
}

// TestAPairFailsOver: the faults move the virtual address, clients meet who has it, and the journal has every move.
func TestAPairFailsOver(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	p := newTestPair(t)
	one, two := p.Hosts[0], p.Hosts[1]
	awaitHolders(t, p, one.Name)
	meet := func(h *Host) {
		t.Helper()
		await(t, "a client to meet "+h.Name, func() bool {
			a, err := p.AskVirtual(ctx, "www.example.org")
			return err == nil && a.Host == h.Name && a.Leaf == p.Lab.Old["example.org"].Fingerprint()
		})
	}
	meet(one)
	if err := one.PowerOff(ctx); err != nil {
		t.Fatal(err)
	}
	if pids := pidsOf(t, one.Station.ns); len(pids) > 0 {
		t.Errorf("a host without power runs %v", pids)
	}
	awaitHolders(t, p, two.Name)
	meet(two)
	if err := one.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	two.KillCARP() // its address lingers
	awaitHolders(t, p, one.Name, two.Name)
	if err := two.StartCARP(ctx); err != nil {
		t.Fatal(err)
	}
	if err := two.StartCARP(ctx); err == nil {
		t.Error("a second ucarp on one host")
	}
	awaitHolders(t, p, one.Name)
	meet(one)
	for h, want := range map[*Host][]cluster.Role{
		one: {cluster.Master, cluster.Backup, cluster.Master}, two: {cluster.Master, cluster.Backup},
	} {
		moves, err := h.Moves()
		if err != nil {
			t.Fatal(err)
		}
		var have []cluster.Role
		for i, m := range moves {
			have = append(have, m.Role)
			if i > 0 && m.Time.Before(moves[i-1].Time) {
				t.Errorf("the journal of %s goes back in time: %v", h.Name, moves)
			}
		}
		if !slices.Equal(have, want) {
			t.Errorf("the journal of %s has %v, want %v", h.Name, have, want)
		}
	}
}

const toBeKilledEnv = "CERTSYNC_LAB_PAIR_TO_BE_KILLED"

// TestAKilledTestLeavesNoNamespaceBehind runs this test program once more, has it boot a pair, and kills it.
func TestAKilledTestLeavesNoNamespaceBehind(t *testing.T) {
	if os.Getenv(toBeKilledEnv) == "1" {
		bePairToBeKilled(t)
	}
	t.Parallel()
	needSegment(t, CanSegment())
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "ct-") // short, for the paths of sockets: see maxRoot
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	cmd := exec.CommandContext(ctx, program, "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), toBeKilledEnv+"=1", "TMPDIR="+dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	told, err := readUntil(stdout, "booted\n")
	spaces := strings.Fields(strings.TrimSuffix(told, "booted\n"))
	if err != nil || len(spaces) != 4 {
		_ = cmd.Process.Kill()
		t.Fatalf("it told %q: %v\n%s", told, err, stderr.Bytes())
	}
	if !inUse(spaces) {
		t.Error("no process is in the namespaces: it proves nothing")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	await(t, "the namespaces to be empty", func() bool { return !inUse(spaces) })
}

// bePairToBeKilled boots a pair, tells its namespaces, and waits for the end.
func bePairToBeKilled(t *testing.T) {
	p, err := NewPair(t.Context(), PairOptions{Options: Options{Binary: "/bin/false"}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	spaces := []*namespace{p.Segment.fabric}
	for _, st := range p.Segment.stations {
		spaces = append(spaces, st.ns)
	}
	for _, ns := range spaces {
		link, err := os.Readlink(ns.path())
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(link)
	}
	fmt.Println("booted")
	time.Sleep(2 * time.Minute)
	os.Exit(1)
}

func readUntil(r io.Reader, end string) (string, error) {
	var all []byte
	buf := make([]byte, 1<<10)
	for !strings.HasSuffix(string(all), end) {
		n, err := r.Read(buf)
		all = append(all, buf[:n]...)
		if err != nil {
			return string(all), err
		}
	}
	return string(all), nil
}

// inUse tells whether any thread of the machine is in one of the namespaces or holds it open, which is what keeps it.
func inUse(spaces []string) bool {
	for _, pattern := range []string{"/proc/[0-9]*/task/*/ns/net", "/proc/[0-9]*/fd/*"} {
		links, _ := filepath.Glob(pattern)
		if slices.ContainsFunc(links, func(l string) bool {
			at, err := os.Readlink(l)
			return err == nil && slices.Contains(spaces, at)
		}) {
			return true
		}
	}
	return false
}
