package lab

import (
	"strings"
	"testing"
)

func TestTokensOnlyDropsTheChallengesWithoutOne(t *testing.T) {
	r := newCAReply()
	r.body.WriteString(`{"status":"pending","identifier":{"type":"dns","value":"example.org"},` +
		`"challenges":[{"type":"dns-persist-01","url":"a"},{"type":"dns-01","url":"b","token":"t"}]}`)
	r.tokensOnly()
	got := r.body.String()
	if strings.Contains(got, "dns-persist-01") || !strings.Contains(got, `"token":"t"`) || !strings.Contains(got, `"value":"example.org"`) {
		t.Errorf("got %s", got)
	}
	problem := newCAReply()
	problem.body.WriteString(`{"type":"urn:ietf:params:acme:error:malformed"}`)
	problem.tokensOnly()
	if got := problem.body.String(); !strings.Contains(got, "malformed") {
		t.Errorf("a problem document became %s", got)
	}
}
