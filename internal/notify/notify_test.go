package notify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"certsync/internal/cluster"
)

// hook is a webhook, and what it was sent.
type hook struct {
	*httptest.Server
	mu   sync.Mutex
	got  []string
	code int
}

func newHook(t *testing.T, wait <-chan struct{}) *hook {
	h := &hook{code: http.StatusOK}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		h.mu.Lock()
		h.got = append(h.got, string(body))
		code := h.code
		h.mu.Unlock()
		if wait != nil {
			<-wait
		}
		w.WriteHeader(code)
		fmt.Fprintf(w, "no entry for %s", r.URL) // as some services answer
	}))
	t.Cleanup(h.Close)
	return h
}

// target is the webhook with a secret in its path.
func (h *hook) target(t *testing.T, query string) *Target {
	t.Helper()
	return mustNew(t, "generic://"+h.Listener.Addr().String()+"/t0psecret/path?disabletls=yes"+query)
}

func mustNew(t *testing.T, raw string) *Target {
	t.Helper()
	target, err := New(raw)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func TestAMessageReachesAWebhook(t *testing.T) {
	h := newHook(t, nil)
	plain, asJSON := h.target(t, ""), h.target(t, "&template=json")
	for _, target := range []*Target{plain, asJSON} {
		if err := target.Send(t.Context(), "certsync on a: 1 urgent", "New:\n- ä & <b>\n"); err != nil {
			t.Fatal(err)
		}
	}
	if want := "certsync on a: 1 urgent\n\nNew:\n- ä & <b>\n"; h.got[0] != want {
		t.Errorf("plain text: %q, want %q", h.got[0], want)
	}
	if !strings.Contains(h.got[1], `"title":"certsync on a: 1 urgent"`) || !strings.Contains(h.got[1], `"message":"certsync on a`) {
		t.Errorf("JSON: %s", h.got[1])
	}
	if want := "generic at " + h.Listener.Addr().String(); plain.Name() != want {
		t.Errorf("name %q, want %q", plain.Name(), want)
	}
	if plain.Key() == asJSON.Key() || plain.Key() != h.target(t, "").Key() {
		t.Error("the keys do not tell the targets apart")
	}
}

func TestAServiceThatRefusesIsAnErrorWithoutTheURL(t *testing.T) {
	h := newHook(t, nil)
	h.code = http.StatusInternalServerError
	err := h.target(t, "").Send(t.Context(), "s", "t")
	if err == nil || !strings.Contains(err.Error(), "500") || !strings.HasPrefix(err.Error(), "notify generic at 127.0.0.1:") {
		t.Errorf("error: %v", err)
	}
	if cluster.HintOf(err) == "" {
		t.Error("no hint")
	}
	noSecret(t, err)
}

func noSecret(t *testing.T, shown any) {
	t.Helper()
	for _, text := range []string{fmt.Sprint(shown), fmt.Sprintf("%+v", shown), fmt.Sprintf("%#v", shown)} {
		for _, secret := range []string{"t0psecret", "t0pSecret", "T0PSECRET", "dDBwc2VjcmV0"} {
			if strings.Contains(text, secret) {
				t.Errorf("a secret is shown: %s", text)
			}
		}
	}
}

func TestAServiceThatIsNotThereIsAnErrorWithoutTheURL(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	for _, raw := range []string{
		"generic://" + address + "/t0psecret?disabletls=yes&@Authorization=t0psecret",
		"gotify://" + address + "/At0psecret12345?disabletls=yes",
		"ntfy://me:t0psecret@" + address + "/t0psecret?scheme=http",
		"smtp://me:t0psecret@" + address + "/?from=a@example.org&to=t0psecret@example.org&encryption=None&usestarttls=no",
		"mattermost://me@" + address + "/t0psecret?disabletls=yes",
	} {
		target := mustNew(t, raw)
		err := target.Send(t.Context(), "s", "t")
		if err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: %v", target.Name(), err)
		}
		noSecret(t, err)
		noSecret(t, target)
		noSecret(t, *target)
	}
}

func TestASendObeysItsContextAlsoWhereTheServiceHangs(t *testing.T) {
	release := make(chan struct{})
	h := newHook(t, release)
	target := h.target(t, "")
	for range maxLeft {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		err := target.Send(ctx, "s", "t")
		cancel()
		if err == nil || !strings.Contains(err.Error(), "no answer in time") {
			t.Fatalf("a service that hangs: %v", err)
		}
	}
	if err := target.Send(t.Context(), "s", "t"); !errors.Is(err, errBusy) {
		t.Errorf("with %d sends under way: %v", maxLeft, err)
	}
	close(release)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := target.Send(t.Context(), "s", "t")
		if err == nil {
			break
		}
		if !errors.Is(err, errBusy) || time.Now().After(deadline) {
			t.Fatalf("after the service answered: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := target.Send(ctx, "s", "t"); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestAWrongURLIsRefusedWithoutShowingIt(t *testing.T) {
	for _, raw := range []string{
		"", "t0psecret", "hooks.example.org/t0psecret", "t0psecret://x", "https://hooks.example.org/t0psecret", "logger://t0psecret", "ntfy://%t0psecret",
		"telegram://t0psecret@telegram", "telegram://t0psecret", "slack://t0psecret@t0psecret", "pushover://t0psecret", "discord://t0psecret",
		"smtp://me:t0psecret@mail.example.org/?t0psecret=1", "ntfy://ntfy.sh/?t0psecret=t0psecret", "teams://t0psecret",
		"generic+https://%t0psecret", "pushover+https://t0psecret", "opsgenie://t0psecret:xx/", "zulip://t0psecret",
	} {
		target, err := New(raw)
		if err == nil {
			t.Errorf("%q was taken: %s", raw, target.Name())
			continue
		}
		if !errors.Is(err, cluster.ErrUsage) {
			t.Errorf("%q: not a usage error: %v", raw, err)
		}
		noSecret(t, err)
	}
}

func TestANameShowsAHostOnlyWhereItIsNoSecret(t *testing.T) {
	for raw, want := range map[string]string{
		"pushover://shoutrrr:abcdefghijklmnopqrstuvwxyz1234@t0psecrett0psecrett0psecrett0p1": "pushover",
		"discord://t0psecretToken@123456789":                                                 "discord",
		"ntfy://ntfy.sh/t0psecret":                                                           "ntfy at ntfy.sh",
		"pushbullet://o.t0psecretsecretsecretsecretsecre":                                    "pushbullet",
		"generic+https://hooks.example.org:8443/t0psecret":                                   "generic at hooks.example.org:8443",
	} {
		target, err := New(raw)
		if err != nil {
			t.Errorf("%s: %v", want, err)
			continue
		}
		if target.Name() != want {
			t.Errorf("name %q, want %q", target.Name(), want)
		}
		noSecret(t, target)
	}
}

func TestWhatIsSaidOfAURLIsCleaned(t *testing.T) {
	raw := "slack://xoxb:123456789012-1234567890123-t0psecretT0PSECRET@C001CHANNEL?botname=t0psecretbot"
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	s := newScrubber(raw, u)
	for _, text := range []string{
		raw, `Post "https://hooks.slack.com/t0psecret": EOF`, "bad token 123456789012-1234567890123-t0psecretT0PSECRET",
		"BOTNAME T0PSECRETBOT", "line\none\x1b[31m 123456789012-1234567890123-T0PSECRETt0psecret", strings.Repeat("x ", 1000),
	} {
		clean := s.clean(errors.New(text)).Error()
		if strings.Contains(strings.ToLower(clean), "t0psecret") || strings.ContainsAny(clean, "\n\x1b") || len(clean) > maxText+len("…") {
			t.Errorf("%q is cleaned to %q", text, clean)
		}
	}
	if got := s.clean(errors.New("dial tcp 192.0.2.1:443: connection refused")).Error(); got != "dial tcp 192.0.2.1:443: connection refused" {
		t.Errorf("what is no secret was taken out: %q", got)
	}
}

func TestAPanicOfTheLibraryIsAnError(t *testing.T) {
	target := mustNew(t, "ntfy://ntfy.sh/t0psecret")
	target.sender = nil
	err := target.Send(t.Context(), "s", "t")
	if err == nil || !strings.Contains(err.Error(), "mistake in the notification library") {
		t.Errorf("error: %v", err)
	}
}

func TestAServiceThatLogsInIsNotAskedBeforeAMessage(t *testing.T) {
	h := newHook(t, nil)
	h.code = http.StatusForbidden
	target := mustNew(t, "matrix://me:t0psecret@"+h.Listener.Addr().String()+"/?rooms=!a:b&disabletls=yes")
	h.mu.Lock()
	asked := len(h.got)
	h.mu.Unlock()
	if asked != 0 {
		t.Errorf("asked %d times while the configuration was read", asked)
	}
	err := target.Send(t.Context(), "s", "t")
	if err == nil || len(h.got) == 0 {
		t.Errorf("error %v after %d questions", err, len(h.got))
	}
	noSecret(t, err)
}

// TestTheURLsOfTheGuideAreTaken puts something of the right form in each place of the guide's URLs.
func TestTheURLsOfTheGuideAreTaken(t *testing.T) {
	guide, err := os.ReadFile("../../docs/notifications.md")
	if err != nil {
		t.Fatal(err)
	}
	fill := strings.NewReplacer("hook:T.../B.../...", "hook:T00000000-B00000000-XXXXXXXXXXXXXXXXXXXXXXXX", "xoxb:TOKEN@CHANNEL", "xoxb:123456789012-1234567890123-4mt0t4l1YL3g1T5L4cK70k3N@C001CHANNEL",
		"telegram://TOKEN", "telegram://110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw0", "gotify://HOST/TOKEN", "gotify://HOST/Aaa.bbb.ccc.ddd",
		"INTEGRATIONKEY", "0123456789abcdef0123456789abcdef", "HOST", "host.example.org")
	n := 0
	for _, raw := range regexp.MustCompile("`([a-z+]+://[^`]+)`").FindAllStringSubmatch(string(guide), -1) {
		n++
		if _, err := New(fill.Replace(raw[1])); err != nil {
			t.Errorf("%s: %v", raw[1], err)
		}
	}
	if n < 12 {
		t.Errorf("the guide has %d URLs", n)
	}
}
