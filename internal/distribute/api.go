package distribute

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"certsync/internal/cluster"
)

// The paths of the API. The path's version changes with its layout; Certsync-Api counts the additions.
const (
	pathInventory   = "/v1/inventory"
	pathFetch       = "/v1/generations/fetch"
	pathGenerations = "/v1/generations"
	pathRecords     = "/v1/records"
	pathRelease     = "/v1/release"
	pathStatus      = "/v1/status"
	pathCARP        = "/v1/carp"
)

const (
	// headerNode names the calling node; serve-peer sets it from the SSH key, whatever the peer sent.
	headerNode = "Certsync-Node"
	// headerAPI is the speaker's API version, in requests and in replies.
	headerAPI = "Certsync-Api"

	typeJSON = "application/json"
	typeTar  = "application/x-tar"
)

// The limits of what a peer may send. A pair of nodes with 10,000 certificates stays below a tenth of each.
const (
	// maxJSON is the size of a JSON body, in bytes.
	maxJSON = 64 << 20
	// maxEntries counts the entries of all lists of a JSON body, inner lists too.
	maxEntries = 500_000
	// maxEntry is the size of one entry of a list, in bytes.
	maxEntry = 1 << 20
	// maxGenerations is the number of bundles in one transfer, maxTransfer its size in bytes.
	maxGenerations = 50_000
	maxTransfer    = 1 << 30
	// maxError is the size of an error's body, in bytes; maxText that of one text in it.
	maxError = 64 << 10
	maxText  = 2 << 10
)

// stageBatch is how many bundles are handed to Local.Stage at a time.
const stageBatch = 64

// ErrForm is what was sent not being what the API asks for: damaged, hostile, or from a certsync with a mistake.
var ErrForm = errors.New("malformed")

// Errors that only travel as kinds.
var (
	errTooLarge  = errors.New("too large")
	errNotPeer   = errors.New("not a peer")
	errNotServed = errors.New("not part of the peer API")
	errGone      = errors.New("certsync of this node has just stopped or started")
)

// kinds are the errors that keep their identity between nodes, with their HTTP status. The order matters where an error
// wraps two: the first found is the kind. ErrUnreachable is not among them: a peer that answers was reached.
var kinds = []struct {
	name   string
	err    error
	status int
}{
	{"newer_format", cluster.ErrNewerFormat, http.StatusConflict},
	{"revoked", cluster.ErrRevoked, http.StatusConflict},
	{"jump", cluster.ErrJump, http.StatusConflict},
	{"stale", cluster.ErrStale, http.StatusConflict},
	{"busy", cluster.ErrBusy, http.StatusConflict},
	{"not_master", cluster.ErrNotMaster, http.StatusConflict},
	{"order_taken", cluster.ErrOrderTaken, http.StatusConflict},
	{"unproven", cluster.ErrUnproven, http.StatusConflict},
	{"rejected", cluster.ErrRejected, http.StatusUnprocessableEntity},
	{"not_running", cluster.ErrNotRunning, http.StatusServiceUnavailable},
	{"usage", cluster.ErrUsage, http.StatusBadRequest},
	{"too_large", errTooLarge, http.StatusRequestEntityTooLarge},
	{"not_a_peer", errNotPeer, http.StatusForbidden},
	{"gone", errGone, http.StatusServiceUnavailable},
	{"malformed", ErrForm, http.StatusBadRequest},
	{"timeout", context.DeadlineExceeded, http.StatusGatewayTimeout},
	{"timeout", os.ErrDeadlineExceeded, http.StatusGatewayTimeout},
}

// wireError is an error on its way between nodes.
type wireError struct {
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`
	Kind  string `json:"kind,omitempty"`
}

func toWire(err error) (wireError, int) {
	w := wireError{Error: cleanText(err.Error(), maxText), Hint: cleanText(cluster.HintOf(err), maxText)}
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			w.Kind = k.name
			return w, k.status
		}
	}
	return w, http.StatusInternalServerError
}

// RemoteError is an error that a peer answered with. It unwraps to the sentinel of package cluster that it was there.
type RemoteError struct {
	// Status is that of the HTTP reply; 0 where the error ended a stream.
	Status  int
	Message string
	// Kind is the name of the sentinel, or "".
	Kind     string
	sentinel error
}

func (e *RemoteError) Error() string { return e.Message }

// Unwrap gives the sentinel, or nil.
func (e *RemoteError) Unwrap() error { return e.sentinel }

func (w wireError) toError(status int) error {
	e := &RemoteError{Status: status, Message: cleanText(w.Error, maxText), Kind: cleanText(w.Kind, 40)}
	if e.Message == "" {
		e.Message = fmt.Sprintf("HTTP status %d", status)
	}
	for _, k := range kinds {
		if k.name == w.Kind {
			e.sentinel = k.err
			break
		}
	}
	if hint := cleanText(w.Hint, maxText); hint != "" {
		return cluster.WithHint(e, "%s", hint)
	}
	return e
}

// readError reads the body of a reply that is not a success.
func readError(resp *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxError))
	if err != nil {
		return fmt.Errorf("HTTP status %d: %w", resp.StatusCode, err)
	}
	var w wireError
	if json.Unmarshal(body, &w) != nil || w.Error == "" {
		return fmt.Errorf("%w answer: HTTP status %d: %.200q", ErrForm, resp.StatusCode, cleanText(string(body), 200))
	}
	return w.toError(resp.StatusCode)
}

// checkAPI refuses a version that is more than one away from ours. side names who speaks it.
func checkAPI(header, side string, ours int) (int, error) {
	theirs, err := strconv.Atoi(header)
	if err != nil || theirs < 0 {
		return 0, fmt.Errorf("%w header %s: %.20q is no version of the peer API", ErrForm, headerAPI, header)
	}
	switch {
	case theirs > ours+1:
		err = fmt.Errorf("%s speaks version %d of the peer API, this is version %d: %w", side, theirs, ours, cluster.ErrNewerFormat)
		return theirs, cluster.WithHint(err, "bring both nodes to the same release of certsync; at most one version of the peer API may lie between them")
	case theirs < ours-1:
		err = fmt.Errorf("%s speaks version %d of the peer API, which is too old for version %d", side, theirs, ours)
		return theirs, cluster.WithHint(err, "upgrade certsync on %s", side)
	}
	return theirs, nil
}

// cleanText makes text of another host fit for a terminal and a log: one line, no control characters, at most limit
// bytes.
func cleanText(text string, limit int) string {
	text = strings.ToValidUTF8(strings.TrimSpace(text), "?")
	var b strings.Builder
	for _, r := range text {
		switch {
		case r == '\n' || r == '\r' || r == '\t':
			r = ' '
		case !unicode.IsPrint(r):
			// Escape sequences, and characters that reorder or hide text.
			r = '?'
		}
		if b.Len()+utf8.RuneLen(r) > limit {
			b.WriteString("...")
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}
