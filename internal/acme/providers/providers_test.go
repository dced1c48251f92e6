//go:build fewproviders

package providers_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"certsync/internal/acme/providers"
	"certsync/internal/cluster"
)

func rfc2136(secret string) map[string]string {
	return map[string]string{"RFC2136_NAMESERVER": "127.0.0.1:53", "RFC2136_TSIG_KEY": "k.", "RFC2136_TSIG_SECRET": secret,
		"RFC2136_TSIG_ALGORITHM": "hmac-sha256."}
}

// The list is what the hint for a mistyped name and the documentation rest on; "manual" asks a person at a terminal.
func TestNamesAreThoseOfLego(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/go-acme/lego/v4").Output()
	if err != nil {
		t.Fatal("go list:", err)
	}
	source, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "providers/dns/zz_gen_dns_providers.go"))
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, line := range regexp.MustCompile(`(?m)^\tcase .*:$`).FindAllString(string(source), -1) {
		for _, m := range regexp.MustCompile(`"([^"]+)"`).FindAllStringSubmatch(line, -1) {
			want = append(want, m[1])
		}
	}
	want = slices.DeleteFunc(want, func(n string) bool { return n == "manual" })
	slices.Sort(want)
	if len(want) < 190 || !slices.Equal(providers.Names(), want) {
		t.Fatalf("names.txt has %d names, lego %d; it needs a new list", len(providers.Names()), len(want))
	}
}

func TestSettingsAreInTheEnvironmentOnlyWhileTheProviderIsMade(t *testing.T) {
	t.Setenv("RFC2136_TSIG_KEY", "before")
	env := rfc2136("c2VjcmV0")
	if _, err := providers.New("rfc2136", env); err != nil {
		t.Fatal(err)
	}
	if got := os.Getenv("RFC2136_TSIG_KEY"); got != "before" {
		t.Errorf("RFC2136_TSIG_KEY is %q afterwards, want what it was", got)
	}
	if _, ok := os.LookupEnv("RFC2136_TSIG_SECRET"); ok {
		t.Error("RFC2136_TSIG_SECRET is still set afterwards")
	}
}

func TestProvidersWithDifferentSettingsAreMadeSideBySide(t *testing.T) {
	var done sync.WaitGroup
	for range 20 {
		done.Go(func() {
			if _, err := providers.New("rfc2136", rfc2136("c2VjcmV0")); err != nil {
				t.Error(err)
			}
		})
		done.Go(func() {
			// Without a name server it must fail, whatever the others have set.
			if _, err := providers.New("rfc2136", map[string]string{"RFC2136_TSIG_KEY": "k."}); err == nil {
				t.Error("a provider was made with another one's settings")
			}
		})
	}
	done.Wait()
}

func TestUnknownNameNamesTheNearest(t *testing.T) {
	for name, want := range map[string]string{"hetzne": "hetzner", "Cloudflare": "cloudflare", "rfc-2136": "rfc2136", "zzzzqqqq": "https://"} {
		_, err := providers.New(name, nil)
		if !errors.Is(err, providers.ErrUnknown) {
			t.Errorf("%s: %v, want ErrUnknown", name, err)
		}
		if hint := cluster.HintOf(err); !strings.Contains(hint, want) {
			t.Errorf("%s: hint %q, want it to name %s", name, hint, want)
		}
	}
}

func TestMissingSettingIsNamed(t *testing.T) {
	_, err := providers.New("httpreq", nil)
	if err == nil || !strings.Contains(err.Error(), "HTTPREQ_ENDPOINT") {
		t.Errorf("%v, want an error that names HTTPREQ_ENDPOINT", err)
	}
}
