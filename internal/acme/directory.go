package acme

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-acme/lego/v4/acme"
)

// directoryAge is how long a directory is used without asking again. CAs change theirs by the year.
const directoryAge = 10 * time.Minute

// directoryInfo is a directory as it was fetched.
type directoryInfo struct {
	acme.Directory
	body    []byte
	fetched time.Time
}

// directoryCache holds the last directory. The channel is its lock, so that a caller can stop waiting for another's
// fetch.
type directoryCache struct {
	lock chan struct{}
	last *directoryInfo
}

func newDirectoryCache() directoryCache {
	return directoryCache{lock: make(chan struct{}, 1), last: &directoryInfo{}}
}

func (c *Client) fetchDirectory(ctx context.Context) (directoryInfo, error) {
	select {
	case c.directory.lock <- struct{}{}:
		defer func() { <-c.directory.lock }()
	case <-ctx.Done():
		return directoryInfo{}, fmt.Errorf("acme directory: %w", contextError(ctx))
	}
	now := c.cfg.Now()
	if age := now.Sub(c.directory.last.fetched); c.directory.last.body != nil && age >= 0 && age < directoryAge {
		return *c.directory.last, nil
	}
	info, err := c.readDirectory(ctx, now)
	if err != nil {
		return directoryInfo{}, err
	}
	*c.directory.last = info
	return info, nil
}

func (c *Client) readDirectory(ctx context.Context, now time.Time) (directoryInfo, error) {
	body, header, err := c.get(ctx, "acme directory", c.cfg.Directory, now)
	if err != nil {
		return directoryInfo{}, err
	}
	info := directoryInfo{body: body, fetched: now}
	if json.Unmarshal(body, &info.Directory) != nil {
		return directoryInfo{}, malformedDirectory(c.cfg.Directory, "not a JSON object (Content-Type %.40q)", header.Get("Content-Type"))
	}
	return info, info.check(c.cfg.Directory)
}

// get reads what a CA gives to anybody who asks, without an account. op is a phrase for the error.
func (c *Client) get(ctx context.Context, op, address string, now time.Time) ([]byte, http.Header, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", op, err)
	}
	request.Header.Set("User-Agent", c.cfg.UserAgent)
	response, err := readWithin(ctx, c.cfg.Timeout, func(ctx context.Context) (*http.Response, error) {
		return c.transport.RoundTrip(request.Clone(ctx))
	})
	if err == nil {
		c.hear(response)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, nil, fmt.Errorf("%s: %w", op, contextError(ctx))
	case err != nil:
		return nil, nil, networkFailure(op+" "+address, err)
	case response.StatusCode != http.StatusOK:
		problem, err := normalProblem(response)
		if err != nil {
			return nil, nil, networkFailure(op, err)
		}
		return nil, nil, problemFailure(op+" "+address, problem, response.Header.Get("Retry-After"), now)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, nil, networkFailure(op, err)
	}
	return body, response.Header, nil
}

// check wants the URLs that every order needs.
func (d directoryInfo) check(from string) error {
	for name, value := range map[string]string{"newNonce": d.NewNonceURL, "newAccount": d.NewAccountURL, "newOrder": d.NewOrderURL} {
		u, err := url.Parse(value)
		if err != nil || u.Scheme != "https" || u.Host == "" {
			return malformedDirectory(from, "%s is %.80q, not an https URL", name, value)
		}
	}
	return nil
}

func malformedDirectory(from, format string, args ...any) error {
	return issueError(fmt.Sprintf("acme directory %s: malformed: %s", from, fmt.Sprintf(format, args...)), nil,
		"check that acme.directory is the URL of an ACME directory")
}

// checkProfile wants the CA to offer the profile.
func (d directoryInfo) checkProfile(profile string) error {
	if profile == "" {
		return nil
	}
	if _, ok := d.Meta.Profiles[profile]; ok {
		return nil
	}
	offered := "none"
	if len(d.Meta.Profiles) > 0 {
		offered = strings.Join(slices.Sorted(maps.Keys(d.Meta.Profiles)), ", ")
	}
	err := issueError(fmt.Sprintf("profile %q: the CA does not offer it", profile), nil, "set acme.profile to one that it offers: "+offered)
	err.Dead = true
	return err
}
