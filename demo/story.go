package main

import (
	"context"
	"fmt"
	"time"

	"certsync/internal/cert"
	"certsync/internal/lab"
)

// The certificate that the pair serves, and the name that its clients ask for.
const (
	name   = "example.org"
	domain = "www.example.org"
)

// story is the demo's state.
type story struct {
	options       options
	out           *narrator
	lab           *lab.Lab
	load          *lab.Load
	stats         lab.LoadStats
	orders        int
	first, second *lab.Node
}

// tell runs the steps; the error says which one failed and why.
func (s *story) tell(ctx context.Context) error {
	for _, step := range []struct {
		title, why string
		run        func(context.Context) error
	}{
		{"Two hosts, one service", "HAProxy ends TLS on both; CARP moves the address that clients use from one to the other. " +
			"Whatever a client meets after a failover must be as good as before.", s.pair},
		{"Clients arrive, and stay for the whole demo", "They are what a renewal must not disturb.", s.clients},
		{"The MASTER renews", "One command: an ACME order with a DNS-01 challenge, the copy to the peer over SSH, HAProxy updated " +
			"in memory through its runtime API, first on the BACKUP, then on the MASTER, and a TLS handshake with each as proof.", s.issue},
		{"Where every certificate stands", "Asked on the BACKUP, which is where pairs rot unseen: issued, on disk, in HAProxy's " +
			"memory, and what a handshake shows.", s.status},
		{"Two handshakes, not made by certsync", "What is served is what a client sees.", s.handshakes},
		{"Failover: the first host is gone, the other renews", "It holds the ACME account and every certificate, so that it can carry on alone.", s.failover},
		{"The first host comes back and is MASTER again, with an old certificate", "Before anything is ordered it takes over what the other has: " +
			"nothing is issued twice, and no client gets an older certificate than before.", s.comeback},
		{"What the clients noticed", "Counted over all of the above.", s.count},
	} {
		s.out.begin(step.title, step.why)
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("step %d (%s): %w", s.out.step, step.title, err)
		}
	}
	return nil
}

// close ends the clients and the lab, however far the story got.
func (s *story) close() error {
	if s.load != nil {
		s.load.Stop()
	}
	if s.lab == nil {
		return nil
	}
	return s.lab.Close()
}

// summary is the demo's last line.
func (s *story) summary() string {
	return fmt.Sprintf("demo: %d handshakes, %d failed, %d orders, %d requests on open connections, %d connections broken",
		s.stats.Made+s.stats.Failed, s.stats.Failed, s.orders, s.stats.Requests, s.stats.Broken)
}

func (s *story) pair(ctx context.Context) error {
	if s.options.binary == "" {
		s.out.say("(building certsync first: the Go compiler needs a while for it the first time)")
	}
	l, err := lab.New(ctx, lab.Options{Binary: s.options.binary, HAProxy: s.options.haproxy})
	if err != nil {
		return err
	}
	s.lab, s.first, s.second = l, l.Nodes[0], l.Nodes[1]
	old := l.Old[name].Leaf()
	for _, n := range l.Nodes {
		role := "BACKUP"
		if n == l.Master() {
			role = "MASTER"
		}
		version, err := n.HAProxyVersion(ctx)
		if err != nil {
			return err
		}
		s.out.say("%s is %s: HAProxy %s on %s, SSH of its own, certsync's state in a folder of its own", n.Name, role, version, n.TLSAddress)
	}
	s.out.say("Both serve %s and *.%s with the same certificate, %s, which has %d days left.", name, name,
		l.Old[name].Fingerprint().Short(), int(time.Until(old.NotAfter).Round(time.Hour).Hours()/24))
	return nil
}

func (s *story) clients(ctx context.Context) error {
	const kept = 10
	s.load = lab.StartLoad(ctx, lab.LoadOptions{Addresses: s.lab.TLSAddresses(), ServerName: domain, Rate: s.options.rate, KeepAlive: kept})
	for s.load.Stats().Made < int(s.options.rate) {
		if err := s.load.Stats().Err(); err != nil {
			return err
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	s.out.say("%.0f new connections a second, each with a full handshake and a request, and %d connections on each node that stay open and keep asking.",
		s.options.rate, kept)
	return nil
}

func (s *story) issue(ctx context.Context) error {
	r, err := s.certsync(ctx, s.first, []string{"issue", name}, 0)
	if err != nil {
		return err
	}
	s.out.say("That took %s from the command to both nodes serving it.", r.Took.Round(10*time.Millisecond))
	return nil
}

func (s *story) status(ctx context.Context) error {
	_, err := s.certsync(ctx, s.second, []string{"status"}, 0)
	return err
}

func (s *story) handshakes(ctx context.Context) error {
	return s.bothServe(ctx, s.newest())
}

func (s *story) failover(ctx context.Context) error {
	before := s.newest()
	s.first.StopSSH()
	if err := s.lab.SetMaster(ctx, s.second); err != nil {
		return err
	}
	s.out.say("%s cannot be reached any more, %s has become MASTER.", s.first.Name, s.second.Name)
	// 4: done on some nodes only.
	if _, err := s.certsync(ctx, s.second, []string{"issue", name}, 4); err != nil {
		return err
	}
	s.out.say("Exit code 4: done on some nodes only. The dead peer is a line in the report and delayed nothing.")
	if err := s.serves(ctx, s.second, s.newest()); err != nil {
		return err
	}
	return s.serves(ctx, s.first, before)
}

func (s *story) comeback(ctx context.Context) error {
	orders := s.lab.CA.Counts().Orders
	if err := s.first.StartSSH(ctx); err != nil {
		return err
	}
	if err := s.lab.SetMaster(ctx, s.first); err != nil {
		return err
	}
	if _, err := s.certsync(ctx, s.first, []string{"issue"}, 0); err != nil {
		return err
	}
	if now := s.lab.CA.Counts().Orders; now != orders {
		return fmt.Errorf("the CA was asked for %d more orders, want none", now-orders)
	}
	s.out.say("No order was made: the CA has still seen %d.", orders)
	return s.bothServe(ctx, s.newest())
}

// wantOrders is how many orders the story needs: the MASTER's renewal and that after the failover.
const wantOrders = 2

func (s *story) count(context.Context) error {
	s.stats = s.load.Stop()
	s.orders = s.lab.CA.Counts().Orders
	for _, n := range s.lab.Nodes {
		for _, leaf := range s.stats.Seen[n.TLSAddress] {
			s.out.say("%s showed %s in %d handshakes", n.Name, leaf.Fingerprint.Short(), leaf.Count)
		}
	}
	s.out.say("%d new connections in %s, %d failed; %d requests on connections that were open all the time, %d of these broke; %d orders at the CA, %d account.",
		s.stats.Made+s.stats.Failed, s.stats.Elapsed.Round(100*time.Millisecond), s.stats.Failed, s.stats.Requests, s.stats.Broken,
		s.orders, s.lab.CA.Counts().NewAccounts)
	if err := s.stats.Err(); err != nil {
		return err
	}
	if s.orders != wantOrders {
		return fmt.Errorf("%d orders at the CA, want %d", s.orders, wantOrders)
	}
	return nil
}

// certsync runs it on a node, shows what it said, and wants an exit code.
func (s *story) certsync(ctx context.Context, n *lab.Node, args []string, code int) (lab.Result, error) {
	s.out.command(n.Name, args...)
	r, err := n.Certsync(ctx, args...)
	if err != nil {
		return r, err
	}
	s.out.quote(r.Stderr)
	s.out.quote(r.Stdout)
	if r.Signal != 0 || r.Code != code {
		return r, fmt.Errorf("certsync %v on %s ended with exit code %d, want %d (what it said is above)", args, n.Name, r.Code, code)
	}
	return r, nil
}

// newest is the certificate that the CA issued last.
func (s *story) newest() cert.Fingerprint {
	leaves := s.lab.CA.Leaves()
	if len(leaves) == 0 {
		return cert.Fingerprint{}
	}
	return lab.FingerprintOf(leaves[len(leaves)-1])
}

func (s *story) bothServe(ctx context.Context, want cert.Fingerprint) error {
	for _, n := range s.lab.Nodes {
		if err := s.serves(ctx, n, want); err != nil {
			return err
		}
	}
	return nil
}

// serves makes a handshake with a node and wants it to show a leaf.
func (s *story) serves(ctx context.Context, n *lab.Node, want cert.Fingerprint) error {
	have, err := n.Handshake(ctx, domain)
	if err != nil {
		return err
	}
	s.out.say("handshake with %s for %s: %s", n.Name, domain, have.Short())
	if have != want {
		return fmt.Errorf("%s serves %s, want %s", n.Name, have.Short(), want.Short())
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
