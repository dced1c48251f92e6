package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh/knownhosts"
)

// sshServer is what stands for a node's sshd: the embedded server, OpenSSH, or one that never answers.
type sshServer interface{ Close() error }

// connectNodes gives every node a key, a host key and a port, lets the nodes know each other, and starts their SSH
// servers.
func (l *Lab) connectNodes(ctx context.Context) error {
	for _, n := range l.Nodes {
		if err := n.makeKeys(); err != nil {
			return fmt.Errorf("node %s: %w", n.Name, err)
		}
	}
	var known strings.Builder
	for _, n := range l.Nodes {
		known.WriteString(knownhosts.Line([]string{loopback(n.sshPort)}, n.hostKey.Signer().PublicKey()) + "\n")
	}
	for _, n := range l.Nodes {
		if err := writeFile(n.KnownHosts, []byte(known.String())); err != nil {
			return fmt.Errorf("node %s: %w", n.Name, err)
		}
		if err := n.StartSSH(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) makeKeys() error {
	var err error
	if n.key, err = NewKeyPair(); err != nil {
		return err
	}
	if n.hostKey, err = NewKeyPair(); err != nil {
		return err
	}
	if n.sshPort, err = FreePort(); err != nil {
		return err
	}
	return n.key.Write(n.KeyFile)
}

// peers are the other nodes.
func (n *Node) peers() []*Node {
	var out []*Node
	for _, o := range n.lab.Nodes {
		if o != n {
			out = append(out, o)
		}
	}
	return out
}

// StartSSH starts the node's SSH server on its port, with the same host key each time.
func (n *Node) StartSSH(ctx context.Context) error {
	n.StopSSH()
	start := n.startEmbeddedSSH
	if n.lab.o.SSHD != "" {
		start = func() (sshServer, error) { return n.startOpenSSH(ctx, n.lab.o.SSHD) }
	}
	server, err := onFreedPort(ctx, start)
	if err != nil {
		return fmt.Errorf("SSH server of %s: %w", n.Name, err)
	}
	n.ssh = server
	return nil
}

// onFreedPort starts a server on a port that we have just given up: a child that is between fork and exec has a copy of
// the old listener for a moment.
func onFreedPort(ctx context.Context, start func() (sshServer, error)) (sshServer, error) {
	for end := time.Now().Add(5 * time.Second); ; sleep(ctx, 10*time.Millisecond) {
		server, err := start()
		if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(end) || ctx.Err() != nil {
			return server, err
		}
	}
}

func (n *Node) startEmbeddedSSH() (sshServer, error) {
	o := SSHOptions{Address: loopback(n.sshPort), HostKey: n.hostKey}
	for _, peer := range n.peers() {
		o.Access = append(o.Access, SSHAccess{Key: peer.key.Signer().PublicKey(), Argv: n.forcedCommand(peer),
			Env: append(n.lab.env(), n.ServeEnv...)})
	}
	return NewSSHServer(o)
}

// StopSSH takes the node's SSH server away, with the sessions that are open: for its peers the host is dead.
func (n *Node) StopSSH() {
	if n.ssh != nil {
		_ = n.ssh.Close()
		n.ssh = nil
	}
}

// HangSSH has the node's SSH port accept connections and never say a word, as a host does whose disk or memory hangs.
func (n *Node) HangSSH(ctx context.Context) error {
	n.StopSSH()
	server, err := onFreedPort(ctx, func() (sshServer, error) {
		listener, err := net.Listen("tcp", loopback(n.sshPort))
		if err != nil {
			return nil, err
		}
		s := &silentServer{listener: listener}
		s.wait.Go(s.accept)
		return s, nil
	})
	if err != nil {
		return fmt.Errorf("hanging SSH server of %s: %w", n.Name, err)
	}
	n.ssh = server
	return nil
}

// silentServer keeps the connections that it takes open until its end.
type silentServer struct {
	listener net.Listener
	wait     sync.WaitGroup
	conns    []net.Conn // accept's, until it returned
}

func (s *silentServer) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.conns = append(s.conns, conn)
	}
}

// Close ends the server and its connections.
func (s *silentServer) Close() error {
	err := s.listener.Close()
	s.wait.Wait()
	for _, conn := range s.conns {
		_ = conn.Close()
	}
	return err
}
