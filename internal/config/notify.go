package config

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
)

// notifyFile stands before the path of a file with the URLs of notifications.
const notifyFile = "file:"

// notifyServices are the services that can be notified: what stands in a URL's scheme, as far as a + in it.
var notifyServices = []string{"bark", "discord", "generic", "googlechat", "gotify", "hangouts", "ifttt", "join", "lark", "matrix", "mattermost",
	"notifiarr", "ntfy", "opsgenie", "pagerduty", "pushbullet", "pushover", "rocketchat", "signal", "slack", "smtp", "teams", "telegram", "wecom", "zulip"}

// NotifyServices are the services of the URLs that `notify` takes, sorted.
func NotifyServices() []string { return slices.Clone(notifyServices) }

// notify checks the form of each entry. What is wrong is not quoted: such a URL is a secret.
func (d *decoder) notify(c *Config) {
	for i, entry := range c.Notify {
		at := fmt.Sprintf("notify[%d]", i)
		file, ok := strings.CutPrefix(entry, notifyFile)
		switch {
		case !ok:
			d.check(at, checkNotifyURL(entry))
		case !filepath.IsAbs(file) || !printable(file):
			d.failf(at, "file: wants the absolute path of a file, as in file:/usr/local/etc/certsync/notify")
		default:
			c.Notify[i] = notifyFile + filepath.Clean(file)
		}
	}
}

func checkNotifyURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme == "" || !printable(text) {
		return errors.New("not a URL such as ntfy://ntfy.sh/TOPIC, or file:PATH")
	}
	service, _, _ := strings.Cut(u.Scheme, "+")
	switch {
	case slices.Contains(notifyServices, service):
		return nil
	case service == "http" || service == "https":
		return fmt.Errorf("%s is none of the notification services; a webhook is generic+%s://HOST/PATH", service, service)
	}
	return fmt.Errorf("its scheme is none of the notification services: %s", strings.Join(notifyServices, ", "))
}

// NotifyFiles are the files that `notify` names, each once.
func (c *Config) NotifyFiles() []string {
	var files []string
	for _, entry := range c.Notify {
		if file, ok := strings.CutPrefix(entry, notifyFile); ok && !slices.Contains(files, file) {
			files = append(files, file)
		}
	}
	return files
}

// NotifyURLs are those of `notify` and of the files that it names, each once. The files may be read by their owner and
// their group. Errors name the line and never show a URL; they are cluster.ErrUsage.
func (c *Config) NotifyURLs() ([]string, error) {
	var urls []string
	add := func(more ...string) {
		for _, u := range more {
			if !slices.Contains(urls, u) {
				urls = append(urls, u)
			}
		}
	}
	for _, entry := range c.Notify {
		file, ok := strings.CutPrefix(entry, notifyFile)
		if !ok {
			add(entry)
			continue
		}
		data, err := readSecret(file, ownerAndGroup)
		if err != nil {
			return nil, err
		}
		lines, err := parseNotify(file, string(data))
		if err != nil {
			return nil, err
		}
		add(lines...)
	}
	return urls, nil
}

// parseNotify reads a URL a line. Blank lines and those that begin with # are passed over.
func parseNotify(name, text string) ([]string, error) {
	var urls []string
	var errs Errors
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if err := checkNotifyURL(line); err != nil && len(errs) < maxErrors {
			errs = append(errs, &Error{File: name, Line: i + 1, Reason: err.Error()})
		}
		urls = append(urls, line)
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return urls, nil
}
