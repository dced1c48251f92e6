package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// relay makes an address of our own loopback, of the CA or the name server, one of a station's loopback too. To the
// hosts it is the rest of the world, reached by another way than their segment: what is cut there is not cut here.
type relay struct {
	address  string
	listener net.Listener
	packets  net.PacketConn
	wait     sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]bool
	closed bool
}

// newRelay begins to relay TCP and UDP.
func newRelay(ns *namespace, address string) (*relay, error) {
	r := &relay{address: address, conns: map[net.Conn]bool{}}
	err := ns.do(func() (err error) {
		if r.listener, err = net.Listen("tcp", address); err != nil {
			return err
		}
		if r.packets, err = net.ListenPacket("udp", address); err != nil {
			return errors.Join(err, r.listener.Close())
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("relay to %s: %w", address, err)
	}
	r.wait.Go(r.accept)
	r.wait.Go(r.exchange)
	return r, nil
}

// accept joins each connection to one of ours; this goroutine's thread is in the machine's namespace.
func (r *relay) accept() {
	for {
		inner, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.wait.Go(func() { r.join(inner) })
	}
}

func (r *relay) join(inner net.Conn) {
	defer r.forget(inner)
	if !r.keep(inner) {
		return
	}
	outer, err := net.DialTimeout("tcp", r.address, 10*time.Second)
	if err != nil {
		return
	}
	defer r.forget(outer)
	if !r.keep(outer) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { pour(inner, outer) })
	both.Go(func() { pour(outer, inner) })
	both.Wait()
}

// pour copies until from ends, and passes the end on.
func pour(to, from net.Conn) {
	_, err := io.Copy(to, from)
	if err == nil {
		_ = to.(*net.TCPConn).CloseWrite()
		return
	}
	_ = to.Close()
	_ = from.Close()
}

// keep remembers a connection for Close, and is false after it.
func (r *relay) keep(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns[c] = true
	return !r.closed
}

func (r *relay) forget(c net.Conn) {
	_ = c.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
}

// datagramTime is how long an answer to a datagram is waited for.
const datagramTime = 10 * time.Second

// exchange passes each datagram on, and one answer back, as DNS has it.
func (r *relay) exchange() {
	for {
		query := make([]byte, 64<<10)
		n, from, err := r.packets.ReadFrom(query)
		if err != nil {
			return
		}
		r.wait.Go(func() { r.ask(query[:n], from) })
	}
}

func (r *relay) ask(query []byte, from net.Addr) {
	outer, err := net.Dial("udp", r.address)
	if err != nil {
		return
	}
	defer r.forget(outer)
	if !r.keep(outer) || outer.SetDeadline(time.Now().Add(datagramTime)) != nil {
		return
	}
	if _, err := outer.Write(query); err != nil {
		return
	}
	answer := make([]byte, 64<<10)
	if n, err := outer.Read(answer); err == nil {
		_, _ = r.packets.WriteTo(answer[:n], from)
	}
}

// Close ends the relay and its connections.
func (r *relay) Close() error {
	err := errors.Join(r.listener.Close(), r.packets.Close())
	r.mu.Lock()
	r.closed = true
	for c := range r.conns {
		_ = c.Close()
	}
	r.mu.Unlock()
	r.wait.Wait()
	return err
}
