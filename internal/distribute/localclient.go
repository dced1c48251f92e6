package distribute

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"

	"certsync/internal/cluster"
)

// silenceTime is how long a daemon that does a job may send nothing: it says every 5 s that it lives.
const silenceTime = 30 * time.Second

// LocalClient asks the daemon of this host.
type LocalClient struct {
	socket  string
	silence time.Duration
}

// NewLocalClient asks the daemon that listens on socket. It connects at each call.
func NewLocalClient(socket string) *LocalClient { return &LocalClient{socket, silenceTime} }

// Do has the daemon do a job, tells its progress, and gives the report. Errors keep their sentinel and their hint.
// ErrNoDaemon tells that nobody listens. Where ctx ends, a pass that has begun goes on in the daemon.
func (c *LocalClient) Do(ctx context.Context, job Job, progress func(cluster.Progress)) (cluster.Report, error) {
	body, err := json.Marshal(job)
	if err != nil {
		return cluster.Report{}, fmt.Errorf("ask the daemon: %w", err)
	}
	reply, err := c.ask(ctx, http.MethodPost, pathJobs+string(job.Kind), body)
	if err != nil {
		return cluster.Report{}, err
	}
	defer reply.Body.Close()
	for lines := json.NewDecoder(reply.Body); ; {
		var line streamLine
		if err := lines.Decode(&line); err != nil {
			return cluster.Report{}, c.broken(ctx, err)
		}
		switch {
		case line.Report != nil:
			return *line.Report, nil
		case line.Failure != nil:
			return cluster.Report{}, line.Failure.toError(0)
		case line.Progress != nil && progress != nil:
			progress(*line.Progress)
		}
	}
}

// Status asks the daemon what it is doing, and where every node stands.
func (c *LocalClient) Status(ctx context.Context) (LocalStatus, error) {
	var status LocalStatus
	reply, err := c.ask(ctx, http.MethodGet, pathStatus, nil)
	if err != nil {
		return status, err
	}
	defer reply.Body.Close()
	if err := json.NewDecoder(reply.Body).Decode(&status); err != nil {
		return status, c.broken(ctx, err)
	}
	return status, nil
}

// broken is the error of an answer that ended before its end.
func (c *LocalClient) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
		err = errors.New("it ended before it was done")
	}
	return cluster.WithHint(fmt.Errorf("the daemon on %s: %w", c.socket, err), "see its log; certsync status tells where every node stands")
}

func (c *LocalClient) ask(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := (&net.Dialer{Timeout: socketTime}).DialContext(ctx, "unix", c.socket)
		if err != nil {
			return nil, err
		}
		return &impatient{conn, c.silence}, nil
	}}
	request, err := http.NewRequestWithContext(ctx, method, "http://certsync"+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("ask the daemon: %w", err)
	}
	reply, err := transport.RoundTrip(request)
	switch {
	case err == nil && reply.StatusCode/100 != 2:
		defer reply.Body.Close()
		return nil, readError(reply)
	case err == nil:
		return reply, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("ask the daemon on %s: %w", c.socket, ErrNoDaemon)
	case errors.Is(err, fs.ErrPermission):
		return nil, cluster.WithHint(fmt.Errorf("ask the daemon: %w", err), "run it as root, or as a user who may write %s", c.socket)
	}
	return nil, fmt.Errorf("ask the daemon: %w", err)
}

// impatient is a connection on which a read that waits for longer than most fails.
type impatient struct {
	net.Conn
	most time.Duration
}

// Read implements net.Conn.
func (i *impatient) Read(p []byte) (int, error) {
	if err := i.SetReadDeadline(time.Now().Add(i.most)); err != nil {
		return 0, err
	}
	return i.Conn.Read(p)
}
