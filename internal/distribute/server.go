package distribute

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"certsync/internal/cluster"
)

// HandlerOptions are what NewHandler needs to know of the cluster.
type HandlerOptions struct {
	// Peers are the nodes that may call, by their names in the configuration.
	Peers []string
	// API is the version spoken; 0 is cluster.API.
	API      int
	Timeouts Timeouts
}

// server answers the peer API from a Local.
type server struct {
	local    Local
	peers    []string
	api      int
	timeouts Timeouts
	routes   map[string]route
}

type route struct {
	method string
	limit  time.Duration
	serve  func(ctx context.Context, w http.ResponseWriter, r *http.Request) error
}

// NewHandler answers the peer API: the seven calls of the package comment and nothing else. It trusts the header
// Certsync-Node, so it belongs behind AsNode, or on a socket that only serve-peer may open (Listen).
func NewHandler(local Local, opts HandlerOptions) http.Handler {
	t := opts.Timeouts.withDefaults()
	s := &server{local: local, peers: slices.Clone(opts.Peers), api: opts.API, timeouts: t}
	if s.api == 0 {
		s.api = cluster.API
	}
	s.routes = map[string]route{
		pathInventory:   {http.MethodGet, t.Request, s.inventory},
		pathFetch:       {http.MethodPost, t.Transfer, s.fetch},
		pathGenerations: {http.MethodPut, t.Transfer, s.stage},
		pathRecords:     {http.MethodPut, t.Request, s.records},
		pathRelease:     {http.MethodPost, t.Release, s.release},
		pathStatus:      {http.MethodGet, t.Request, s.status},
		pathCARP:        {http.MethodGet, t.Request, s.carp},
	}
	return s
}

// ServeHTTP implements http.Handler.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(headerAPI, fmt.Sprint(s.api))
	w.Header().Set("Cache-Control", "no-store")
	route, known := s.routes[r.URL.Path]
	switch {
	case !known:
		refuse(w, r, fmt.Errorf("path %.80q: %w", r.URL.Path, errNotServed), http.StatusNotFound)
		return
	case r.Method != route.method:
		w.Header().Set("Allow", route.method)
		refuse(w, r, fmt.Errorf("method %.20q of %s: %w", r.Method, r.URL.Path, errNotServed), http.StatusMethodNotAllowed)
		return
	}
	if err := s.admit(r); err != nil {
		refuse(w, r, err, 0)
		return
	}
	s.call(w, r, route)
}

// admit checks who calls, and its version.
func (s *server) admit(r *http.Request) error {
	node := r.Header.Get(headerNode)
	if !slices.Contains(s.peers, node) || len(r.Header.Values(headerNode)) != 1 {
		err := fmt.Errorf("node %.40q: %w", node, errNotPeer)
		return cluster.WithHint(err, "name a node of the configuration other than this one in --node of its forced command")
	}
	_, err := checkAPI(r.Header.Get(headerAPI), node, s.api)
	return err
}

func (s *server) call(w http.ResponseWriter, r *http.Request, route route) {
	ctx, cancel := context.WithTimeoutCause(r.Context(), route.limit, &waitedError{"not done", route.limit})
	defer cancel()
	answer := &reply{ResponseWriter: w, control: http.NewResponseController(w), stall: s.timeouts.Stall}
	limited := &bounded{r: r.Body, left: maxJSON, progress: answer.readDeadline}
	if r.URL.Path == pathGenerations {
		limited.left = maxTransfer
	}
	r.Body = &body{limited, r.Body}
	err := route.serve(ctx, answer, r)
	if err == nil {
		return
	}
	if answer.started {
		// Half a reply is out: only breaking the connection can tell.
		panic(http.ErrAbortHandler)
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = context.Cause(ctx)
	}
	if theirs, _ := checkAPI(r.Header.Get(headerAPI), "", s.api); theirs > s.api && errors.Is(err, ErrForm) {
		err = fmt.Errorf("%w: %w", err, cluster.ErrNewerFormat)
	}
	refuse(answer, r, err, 0)
}

func (s *server) inventory(ctx context.Context, w http.ResponseWriter, _ *http.Request) error {
	inventory, err := s.local.Inventory(ctx)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, inventory)
}

func (s *server) status(ctx context.Context, w http.ResponseWriter, _ *http.Request) error {
	status, err := s.local.Status(ctx)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, status)
}

func (s *server) carp(ctx context.Context, w http.ResponseWriter, _ *http.Request) error {
	carp, err := s.local.CARP(ctx)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, carp)
}

// fetch streams what is asked for. A failure after the first bundle goes out in the stream's end.
func (s *server) fetch(ctx context.Context, w http.ResponseWriter, r *http.Request) error {
	wanted, err := decodeList(r.Body, "generations", checkGeneration)
	if err != nil {
		return err
	}
	if len(wanted) > maxGenerations {
		return fmt.Errorf("%d generations, at most %d: %w", len(wanted), maxGenerations, errTooLarge)
	}
	w.Header().Set("Content-Type", typeTar)
	stream := newTarWriter(w)
	err = s.local.Fetch(ctx, wanted, stream.write)
	if err != nil && stream.n == 0 {
		return err
	}
	return stream.end(err)
}

// stage hands over what arrives batch by batch: a node with a full disk says so for each, and a cut stream leaves whole
// generations only.
func (s *server) stage(ctx context.Context, w http.ResponseWriter, r *http.Request) error {
	from := r.Header.Get(headerNode)
	results := []cluster.StageResult{}
	var batch []cluster.Kept
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		got, err := s.local.Stage(ctx, from, batch)
		results, batch = append(results, got...), batch[:0:0]
		return err
	}
	err := readTar(r.Body, func(k cluster.Kept) error {
		if batch = append(batch, k); len(batch) < stageBatch {
			return nil
		}
		return flush()
	})
	if err := firstThen(err, flush); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, stageReply{Results: results})
}

func (s *server) records(ctx context.Context, w http.ResponseWriter, r *http.Request) error {
	records, err := decodeRecords(r.Body)
	if err != nil {
		return err
	}
	if err := s.local.Record(ctx, r.Header.Get(headerNode), records); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, struct{}{})
}

func (s *server) release(ctx context.Context, w http.ResponseWriter, r *http.Request) error {
	releases, err := decodeList(r.Body, "releases", checkRelease)
	if err != nil {
		return err
	}
	placements, err := s.local.Release(ctx, r.Header.Get(headerNode), releases)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, releaseReply{Placements: placements})
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("reply: %w", err)
	}
	w.Header().Set("Content-Type", typeJSON)
	w.WriteHeader(status)
	_, err = w.Write(body)
	return err
}

// refuse answers with err, once it has read what the caller is still sending: a caller whose writing fails may never
// come to read the answer.
func refuse(w http.ResponseWriter, r *http.Request, err error, status int) {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(drainTime))
	if b, ok := r.Body.(*body); ok {
		b.progress = nil // its deadline would begin anew with each read
	}
	_, _ = io.CopyN(io.Discard, r.Body, maxJSON)
	_ = control.SetReadDeadline(time.Time{})
	writeError(w, err, status)
}

// body is a request's, bounded.
type body struct {
	*bounded
	io.Closer
}

// writeError answers with err; status 0 is that of its kind.
func writeError(w http.ResponseWriter, err error, status int) {
	body, kindStatus := toWire(err)
	if status == 0 {
		status = kindStatus
	}
	_ = writeJSON(w, status, body) // a caller that has gone learns nothing anyway
}

// reply sets a deadline before each read and write of a call, so that a peer may be slow and may not stand still.
type reply struct {
	http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration
	started bool
}

// Write implements io.Writer.
func (r *reply) Write(p []byte) (int, error) {
	r.started = true
	_ = r.control.SetWriteDeadline(time.Now().Add(r.stall)) // not supported by recorders in tests
	return r.ResponseWriter.Write(p)
}

// WriteHeader implements http.ResponseWriter.
func (r *reply) WriteHeader(status int) {
	r.started = true
	r.ResponseWriter.WriteHeader(status)
}

// Unwrap serves http.ResponseController.
func (r *reply) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// readDeadline bounds one read of the body. It is lifted afterwards: net/http watches the connection while a call
// works, and takes a passed deadline for a caller that hung up.
func (r *reply) readDeadline() (done func()) {
	_ = r.control.SetReadDeadline(time.Now().Add(r.stall))
	return func() { _ = r.control.SetReadDeadline(time.Time{}) }
}

// AsNode answers as if node called: the header that names the caller is what the SSH key says, not what the peer sent.
func AsNode(node string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r = r.Clone(r.Context())
		setNode(r.Header, node)
		next.ServeHTTP(w, r)
	})
}

func setNode(h http.Header, node string) {
	for name := range h {
		if strings.EqualFold(name, headerNode) {
			delete(h, name)
		}
	}
	h[headerNode] = []string{node}
}

// waitedError is a deadline that passed.
type waitedError struct {
	what  string
	limit time.Duration
}

func (e *waitedError) Error() string { return fmt.Sprintf("%s within %s", e.what, e.limit) }

// Unwrap gives context.DeadlineExceeded.
func (e *waitedError) Unwrap() error { return context.DeadlineExceeded }

// Timeout implements net.Error's.
func (e *waitedError) Timeout() bool { return true }
