package lab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// loopbackAddress is where everything listens. Other addresses of 127/8 exist on Linux, but not on FreeBSD.
const loopbackAddress = "127.0.0.1"

func loopback(port int) string { return net.JoinHostPort(loopbackAddress, strconv.Itoa(port)) }

// The ports of servers that stop and start again lie below the range that Linux takes the ports of outgoing
// connections from (ip_local_port_range, from 32768): else a client of the load could hold the port meanwhile.
const (
	firstPort = 20000
	lastPort  = 30000
)

var ports struct {
	sync.Mutex
	given map[int]bool
}

// FreePort is a port that nothing listens on and that this process has not been given before. Other processes that
// pick one at the same time choose at random from so many that they hardly meet.
func FreePort() (int, error) {
	ports.Lock()
	defer ports.Unlock()
	if ports.given == nil {
		ports.given = map[int]bool{}
	}
	var errs []error
	for range 50 {
		port := firstPort + rand.IntN(lastPort-firstPort) //nolint:gosec // not a secret
		if ports.given[port] {
			continue
		}
		l, err := net.Listen("tcp", loopback(port))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		ports.given[port] = true
		return port, l.Close()
	}
	return 0, fmt.Errorf("no free port: %w", errors.Join(errs...))
}
