package notify

import (
	"cmp"
	"encoding/base64"
	"errors"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// maxText bounds what is kept of an error's text, in bytes: some services answer with a page.
const maxText = 300

// redacted stands where something was taken out.
const redacted = "[redacted]"

// anyURL finds URLs in a text: what the library makes of a target's URL holds the same secrets.
var anyURL = regexp.MustCompile(`(?i)[a-z][a-z0-9+.-]*://[^\s"'<>]*`)

// scrubber takes the parts of a URL out of texts.
type scrubber struct{ parts *regexp.Regexp }

// newScrubber is for a URL, given as it was written and as it was read.
func newScrubber(raw string, u *url.URL) scrubber {
	service, _, _ := strings.Cut(u.Scheme, "+")
	parts := []string{raw, u.Opaque, u.Fragment, u.EscapedFragment(), u.RawQuery, u.Path, u.EscapedPath(), u.User.String(), u.User.Username()}
	password, _ := u.User.Password()
	parts = append(parts, password, base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password)))
	if !hosted[strings.ToLower(service)] {
		parts = append(parts, u.Host, u.Hostname(), u.Port())
	}
	for _, values := range u.Query() {
		parts = append(parts, values...)
	}
	for _, p := range slices.Clone(parts) { // tokens are put together of parts: T1/T2/T3, xoxb:1-2-3, ID:TOKEN
		parts = append(parts, strings.FieldsFunc(p, func(r rune) bool { return strings.ContainsRune("/:@?&=,;", r) })...)
		parts = append(parts, url.PathEscape(p), url.QueryEscape(p))
	}
	return scrubber{patternOf(parts)}
}

// patternOf matches each of the parts, the longest first. Very short ones are left out: they are words or numbers that
// everybody uses, and no secret.
func patternOf(parts []string) *regexp.Regexp {
	parts = slices.DeleteFunc(parts, func(p string) bool { return len(p) < 4 })
	slices.SortFunc(parts, func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b)) })
	quoted := make([]string, 0, len(parts))
	for _, p := range slices.Compact(parts) {
		quoted = append(quoted, regexp.QuoteMeta(p))
	}
	if len(quoted) == 0 {
		return nil
	}
	return regexp.MustCompile("(?i)" + strings.Join(quoted, "|"))
}

// clean is err in a line of text without any part of the URL. What it wraps is not kept: it holds the URL still.
func (s scrubber) clean(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	if s.parts != nil {
		text = s.parts.ReplaceAllString(text, redacted)
	}
	text = anyURL.ReplaceAllString(text, redacted)
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return errors.New(text)
}
