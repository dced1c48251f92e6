package distribute

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"certsync/internal/cluster"
)

// The local API is HTTP on certsync.sock, which the daemon serves to the commands of its own host; who may open the
// socket may use it. A job is answered with lines of JSON as it goes on.
//
//	POST /v1/event   wake the daemon
//	GET  /v1/status  what the daemon is doing, and where every node stands
//	POST /v1/issue   a pass on the MASTER that obtains the certificates named, due or not
//	POST /v1/renew   a pass
//	POST /v1/sync    a pass that orders nothing
//	POST /v1/prune   removes from this node what is no longer configured, of the names given or of all
const (
	pathEvent     = "/v1/event"
	pathJobs      = "/v1/"
	streamType    = "application/jsonl"
	maxJob        = 1 << 20
	aliveInterval = 5 * time.Second
	// waitingLines is how many lines of progress a slow reader may be behind; what comes then it misses.
	waitingLines = 1024
)

// JobKind is what a local command asks for.
type JobKind string

// The kinds, which are also the last part of their paths.
const (
	Issue JobKind = "issue"
	Renew JobKind = "renew"
	Sync  JobKind = "sync"
	Prune JobKind = "prune"
)

// Job is one pass, or a prune, that a local command asks for. The zero Job is a pass that the daemon makes by itself.
type Job struct {
	Kind JobKind `json:"-"`
	// Names are the certificates to obtain whether or not they are due; those to prune, none meaning all.
	Names []string `json:"names,omitempty"`
}

// DaemonStatus is what the daemon tells of itself.
type DaemonStatus struct {
	Node    string       `json:"node"`
	Version string       `json:"version,omitempty"`
	Pid     int          `json:"pid"`
	Role    cluster.Role `json:"role"`
	// Started is when the daemon began.
	Started time.Time `json:"started"`
	// Passing has the reasons of the pass that is under way.
	Passing []string `json:"passing,omitempty"`
	// Last is the report of the last pass, nil before the first has ended; Error why none could be made.
	Last  *cluster.Report `json:"last,omitempty"`
	Error string          `json:"error,omitempty"`
	// Next is when the next pass is made, as far as is known now.
	Next time.Time `json:"next,omitzero"`
	// Configuration tells why the configuration file, as it is now, has not taken over; "" where it has.
	Configuration string `json:"configuration,omitempty"`
	// Alarms are those that stand, the urgent ones first.
	Alarms []cluster.Alarm `json:"alarms,omitempty"`
}

// LocalStatus is the answer to GET /v1/status.
type LocalStatus struct {
	Daemon DaemonStatus         `json:"daemon"`
	Nodes  []cluster.NodeStatus `json:"nodes"`
}

// Actor is the daemon, as the local commands may use it.
type Actor interface {
	// Wake has the role read again, and a pass made.
	Wake(ctx context.Context)
	// Do has a pass made, after the one that is under way. It returns early, with ctx's error, where ctx ends: a pass
	// that has begun goes on. progress is called from several goroutines.
	Do(ctx context.Context, job Job, progress func(cluster.Progress)) (cluster.Report, error)
	// Status tells what the daemon is doing, and asks every node where it stands.
	Status(ctx context.Context) LocalStatus
}

// streamLine is one line of a job's answer. Exactly one of its last three fields is set, or none, where the line only
// shows that the daemon lives.
type streamLine struct {
	Type     string            `json:"type"`
	Progress *cluster.Progress `json:"progress,omitempty"`
	Report   *cluster.Report   `json:"report,omitempty"`
	Failure  *wireError        `json:"failure,omitempty"`
}

// The types of lines.
const (
	lineAlive    = "alive"
	lineProgress = "progress"
	lineReport   = "report"
	lineFailure  = "failure"
)

// NewLocalHandler answers the local API from the daemon.
func NewLocalHandler(actor Actor) http.Handler {
	l := localServer{actor, aliveInterval}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+pathEvent, l.event)
	mux.HandleFunc("GET "+pathStatus, l.status)
	for _, kind := range []JobKind{Issue, Renew, Sync, Prune} {
		mux.HandleFunc("POST "+pathJobs+string(kind), func(w http.ResponseWriter, r *http.Request) { l.job(w, r, kind) })
	}
	return mux
}

type localServer struct {
	actor Actor
	alive time.Duration
}

func (l localServer) event(w http.ResponseWriter, r *http.Request) {
	l.actor.Wake(r.Context())
	w.WriteHeader(http.StatusNoContent)
}

func (l localServer) status(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), Timeouts{}.withDefaults().Request)
	defer cancel()
	_ = writeJSON(w, http.StatusOK, l.actor.Status(ctx)) // a caller that has gone learns nothing anyway
}

// job answers line by line. The pass waits for no reader: one that stands still misses lines, but not the last.
func (l localServer) job(w http.ResponseWriter, r *http.Request, kind JobKind) {
	job := Job{Kind: kind}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxJob)).Decode(&job); err != nil && !errors.Is(err, io.EOF) {
		writeError(w, fmt.Errorf("%w job: %w", ErrForm, err), http.StatusBadRequest)
		return
	}
	lines, last := make(chan streamLine, waitingLines), make(chan streamLine, 1)
	go func() {
		last <- l.do(r.Context(), job, func(p cluster.Progress) {
			select {
			case lines <- streamLine{Type: lineProgress, Progress: &p}:
			default:
			}
		})
	}()
	w.Header().Set("Content-Type", streamType)
	s := stream{json.NewEncoder(w), http.NewResponseController(w)}
	alive := time.NewTicker(l.alive)
	defer alive.Stop()
	err := s.send(streamLine{Type: lineAlive})
	for err == nil {
		select {
		case line := <-lines:
			err = s.send(line)
		case <-alive.C:
			err = s.send(streamLine{Type: lineAlive})
		case line := <-last:
			for len(lines) > 0 && err == nil {
				err = s.send(<-lines)
			}
			if err == nil {
				_ = s.send(line)
			}
			return
		}
	}
}

func (l localServer) do(ctx context.Context, job Job, progress func(cluster.Progress)) streamLine {
	report, err := l.actor.Do(ctx, job, progress)
	if err != nil {
		failure, _ := toWire(err)
		return streamLine{Type: lineFailure, Failure: &failure}
	}
	return streamLine{Type: lineReport, Report: &report}
}

// stream writes lines, each within the time that a reader may stand still.
type stream struct {
	lines   *json.Encoder
	control *http.ResponseController
}

func (s stream) send(line streamLine) error {
	_ = s.control.SetWriteDeadline(time.Now().Add(Timeouts{}.withDefaults().Stall)) // not supported by recorders in tests
	return errors.Join(s.lines.Encode(line), s.control.Flush())
}
