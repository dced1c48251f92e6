package config

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"certsync/internal/cluster"
)

func TestNotifyURLsComeFromTheConfigurationAndFromFiles(t *testing.T) {
	file := writeMode(t, filepath.Join(t.TempDir(), "notify"), "# mail\n\n  smtp://mail.example.org/?from=a@example.org&to=b@example.org \r\nntfy://ntfy.sh/t0psecret\n", 0o640)
	c := Default()
	c.Notify = []string{"ntfy://ntfy.sh/t0psecret", "file:" + file, "file:" + file}
	urls, err := c.NotifyURLs()
	want := []string{"ntfy://ntfy.sh/t0psecret", "smtp://mail.example.org/?from=a@example.org&to=b@example.org"}
	if err != nil || !slices.Equal(urls, want) {
		t.Errorf("URLs %q (%v), want %q", urls, err, want)
	}
	if files := c.NotifyFiles(); !slices.Equal(files, []string{file}) {
		t.Errorf("files: %q", files)
	}
}

func TestAFileOfNotifyURLsIsRefusedWithoutShowingThem(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		file, want string
	}{
		"that others can read": {writeMode(t, filepath.Join(dir, "open"), "ntfy://ntfy.sh/t0psecret\n", 0o644), "mode 0644"},
		"with a bad line":      {writeMode(t, filepath.Join(dir, "bad"), "ntfy://ntfy.sh/t0psecret\nhttps://t0psecret\n", 0o600), "bad:2: https is none"},
		"that names another":   {writeMode(t, filepath.Join(dir, "other"), "file:/t0psecret\n", 0o600), "other:1: its scheme is none"},
		"that is not there":    {filepath.Join(dir, "none"), "no such file"},
	} {
		conf := Default()
		conf.Notify = []string{"file:" + c.file}
		_, err := conf.NotifyURLs()
		if err == nil || !errors.Is(err, cluster.ErrUsage) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "t0psecret") {
			t.Errorf("a file %s: %v", name, err)
		}
	}
	conf := Default()
	conf.Notify = []string{"file:" + filepath.Join(dir, "open")}
	if err := conf.CheckSecrets(); err == nil || !strings.Contains(err.Error(), "notify: "+filepath.Join(dir, "open")) {
		t.Errorf("CheckSecrets: %v", err)
	}
}
