package acme

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/go-acme/lego/v4/acme"

	"certsync/internal/cluster"
)

// maxExplanation is the longest URL that is passed on as the CA's explanation, in bytes.
const maxExplanation = 1000

// RenewalInfo asks the CA when the certificate with the identifier certID (RFC 9773 section 4.1; cert.Bundle.RenewalID)
// should be renewed. The request is a GET without an account (section 4.3). Where the CA's directory has no renewalInfo
// the error is errors.ErrUnsupported; else it is a *cluster.IssueError, Dead where the CA said that it has no answer for
// this certificate. A window that ends where it begins, or before, is no answer (section 4.2).
func (c *Client) RenewalInfo(ctx context.Context, certID string) (cluster.Suggestion, error) {
	const op = "renewal information"
	dir, err := c.fetchDirectory(ctx)
	if err != nil {
		return cluster.Suggestion{}, err
	}
	if dir.RenewalInfo == "" {
		return cluster.Suggestion{}, fmt.Errorf("%s: the directory %s has no renewalInfo: %w", op, c.cfg.Directory, errors.ErrUnsupported)
	}
	if u, err := url.Parse(dir.RenewalInfo); err != nil || u.Scheme != "https" || u.Host == "" {
		return cluster.Suggestion{}, malformedDirectory(c.cfg.Directory, "renewalInfo is %.80q, not an https URL", dir.RenewalInfo)
	}
	now := c.cfg.Now()
	body, header, err := c.get(ctx, op, strings.TrimSuffix(dir.RenewalInfo, "/")+"/"+url.PathEscape(certID), now)
	if err != nil {
		if issue, ok := errors.AsType[*cluster.IssueError](err); ok {
			issue.Dead = permanent(err)
		}
		return cluster.Suggestion{}, err
	}
	s, err := parseSuggestion(body)
	if err != nil {
		return cluster.Suggestion{}, issueError(op+": "+err.Error(), err, "")
	}
	if at := parseRetryAfter(header.Get("Retry-After"), now); !at.IsZero() {
		s.RetryAfter = at.Sub(now)
	}
	return s, nil
}

// parseSuggestion reads a RenewalInfo object (RFC 9773 section 4.2).
func parseSuggestion(body []byte) (cluster.Suggestion, error) {
	var info acme.RenewalInfoResponse
	if json.Unmarshal(body, &info) != nil {
		return cluster.Suggestion{}, errors.New("the CA's answer is no JSON object with a window")
	}
	s := cluster.Suggestion{Start: info.SuggestedWindow.Start.UTC(), End: info.SuggestedWindow.End.UTC()}
	if s.Start.IsZero() || !s.Start.Before(s.End) {
		return cluster.Suggestion{}, fmt.Errorf("the CA suggests the window from %s to %s, which is none", s.Start.Format(time.RFC3339), s.End.Format(time.RFC3339))
	}
	if u, err := url.Parse(info.ExplanationURL); err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" &&
		len(info.ExplanationURL) <= maxExplanation && oneLine(info.ExplanationURL) == info.ExplanationURL {
		s.Explanation = info.ExplanationURL
	}
	return s, nil
}
