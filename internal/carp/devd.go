package carp

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"certsync/internal/cluster"
)

const (
	// devdSocket is where devd hands each event, as a packet of its own, to whoever connects (devd(8)).
	devdSocket = "/var/run/devd.seqpacket.pipe"
	// devdDial bounds connecting, which waits for nothing but devd's backlog.
	devdDial = time.Second
)

// devdSource is devd's socket. Past its limit of clients (10 on 13, 50 on 15; seen) the dial of one more succeeds and
// no event ever comes, and a client that does not read is dropped: the poll is there for both.
func devdSource(path string, first Spec) source {
	if path == "" {
		path = devdSocket
	}
	return source{
		name: "devd",
		open: func(ctx context.Context) (io.ReadCloser, error) {
			conn, err := (&net.Dialer{Timeout: devdDial}).DialContext(ctx, "unixpacket", path)
			return conn, cluster.WithHint(err, "run `service devd onestart`; without devd the state is read every second")
		},
		says: func(packet []byte) notice { return devdSays(packet, first) },
	}
}

// devdSays decodes one packet, such as "!system=CARP subsystem=1@em0 type=MASTER\n". One that is cut (devd drops a
// client that is too slow in the middle of a packet) could have been anything.
func devdSays(packet []byte, first Spec) notice {
	line, whole := bytes.CutSuffix(packet, []byte("\n"))
	if !whole {
		return wake
	}
	event, ok := bytes.CutPrefix(line, []byte("!system=CARP "))
	if !ok {
		return ignored
	}
	ours := fmt.Appendf(nil, "subsystem=%s@%s ", strconv.Itoa(first.VHID), first.Interface)
	if bytes.HasPrefix(event, ours) {
		return moved
	}
	return wake
}
