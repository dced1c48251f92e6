package acme

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-acme/lego/v4/acme"
)

// maxBody is the most that is read of a CA's answer, in bytes.
const maxBody = 1 << 20

// boundTransport binds requests to a context and a deadline, keeps what lego's API hides (Retry-After), and turns
// whatever a broken server or a proxy between sends as an error into a problem document.
type boundTransport struct {
	ctx     context.Context
	base    http.RoundTripper
	timeout time.Duration
	// directory is answered with body, which was fetched before.
	directory string
	body      []byte
	// hear is told of each answer; it may be nil.
	hear func(*http.Response)
	// replaced tells that the CA answered alreadyReplaced.
	replaced atomic.Bool

	mu      sync.Mutex
	results map[string]result // by URL
}

// result is how the last request for a URL ended.
type result struct {
	retryAfter string
	problem    *acme.ProblemDetails
	err        error
}

// RoundTrip implements http.RoundTripper. The body is read in full before it returns.
func (t *boundTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	url := r.URL.String()
	if r.Method == http.MethodGet && url == t.directory {
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(t.body)), Request: r}, nil
	}
	response, err := t.exchange(r)
	res := result{err: err}
	if err == nil {
		if t.hear != nil {
			t.hear(response)
		}
		res.retryAfter = response.Header.Get("Retry-After")
		if response.StatusCode >= http.StatusBadRequest {
			res.problem, err = normalProblem(response)
			res.err = err
			if err == nil && res.problem.Type == alreadyReplaced {
				t.replaced.Store(true)
			}
		}
	}
	t.mu.Lock()
	t.results[url] = res
	t.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return response, nil
}

func (t *boundTransport) exchange(r *http.Request) (*http.Response, error) {
	return readWithin(t.ctx, t.timeout, func(ctx context.Context) (*http.Response, error) {
		return t.base.RoundTrip(r.Clone(ctx))
	})
}

// readWithin sends a request and reads its whole answer within timeout.
func readWithin(ctx context.Context, timeout time.Duration, send func(context.Context) (*http.Response, error)) (*http.Response, error) {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	response, err := send(limited)
	var body []byte
	if err == nil {
		body, err = io.ReadAll(io.LimitReader(response.Body, maxBody+1))
		_ = response.Body.Close()
	}
	switch {
	case err == nil && len(body) > maxBody:
		return nil, fmt.Errorf("an answer of more than %d bytes", maxBody)
	case err == nil:
		response.Body = io.NopCloser(bytes.NewReader(body))
		return response, nil
	case ctx.Err() == nil && errors.Is(limited.Err(), context.DeadlineExceeded):
		return nil, fmt.Errorf("no answer within %s", timeout)
	}
	return nil, err
}

// refusedNonce is what badNonce is called towards lego, which would wait 200 ms and more before it repeats the request,
// without looking at any context; call repeats it.
const refusedNonce = "certsync:badNonce"

// normalProblem reads an error answer as a problem document, or makes one of its status, and puts it in the place of
// the body.
func normalProblem(response *http.Response) (*acme.ProblemDetails, error) {
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	problem := &acme.ProblemDetails{}
	if json.Unmarshal(body, problem) != nil || problem.Type == "" && problem.Detail == "" {
		problem = &acme.ProblemDetails{Type: "about:blank", Detail: "the server answered " + statusText(response.StatusCode)}
	}
	problem.HTTPStatus = response.StatusCode
	shown := *problem
	if shown.Type == badNonce {
		shown.Type = refusedNonce
	}
	body, err = json.Marshal(shown)
	if err != nil {
		return nil, err
	}
	response.Body = io.NopCloser(bytes.NewReader(body))
	return problem, nil
}

func statusText(code int) string {
	return fmt.Sprintf("HTTP %d %s", code, http.StatusText(code))
}

func (t *boundTransport) forget(url string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.results, url)
}

func (t *boundTransport) result(url string) result {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.results[url]
}

// parseRetryAfter reads a Retry-After header: seconds or a date (RFC 9110 section 10.2.3). Zero: there is none.
func parseRetryAfter(value string, now time.Time) time.Time {
	if seconds, err := strconv.ParseInt(value, 10, 32); err == nil && seconds > 0 {
		return now.Add(time.Duration(seconds) * time.Second)
	}
	if at, err := http.ParseTime(value); err == nil && at.After(now) {
		return at
	}
	return time.Time{}
}
