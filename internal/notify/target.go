package notify

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/nicholas-fedor/shoutrrr/pkg/router"
	"github.com/nicholas-fedor/shoutrrr/pkg/types"

	"certsync/internal/cluster"
)

// maxLeft is how many sends of a target may go on after they were given up.
const maxLeft = 3

// refused are services of the library that reach nobody.
var refused = map[string]bool{"logger": true}

// hosted are the services whose URL names a server: its host is no secret, and tells two targets apart. With the others
// it is a key, a token or the ID of a webhook.
var hosted = map[string]bool{"bark": true, "generic": true, "gotify": true, "lark": true, "matrix": true, "mattermost": true, "ntfy": true,
	"rocketchat": true, "signal": true, "smtp": true}

// online are the services with which the library logs in as soon as it reads the URL: that is left to each send, for a
// configuration is read without a network, and in no time.
var online = map[string]bool{"matrix": true}

// untitled are the services that show no title, or refuse one: there the subject is the first line of the text.
var untitled = map[string]bool{"generic": true, "googlechat": true, "hangouts": true, "mattermost": true, "pagerduty": true, "rocketchat": true,
	"signal": true, "wecom": true}

// Services are those that a Target can be made for, sorted: the scheme of a URL, as far as a + in it.
func Services() []string {
	all := slices.DeleteFunc((&router.ServiceRouter{}).ListServices(), func(s string) bool { return refused[s] })
	slices.Sort(all)
	return all
}

// Target is where messages are sent to. It is safe for concurrent use.
type Target struct {
	name, key string
	service   string
	// sender is nil where each send makes its own, from raw.
	sender types.Sender
	raw    cluster.Secret
	scrub  scrubber
	// left holds a place for each send under way, also for those that were given up.
	left chan struct{}
}

// New makes the target of a URL. An error is cluster.ErrUsage and quotes nothing of the URL but its service.
func New(raw string) (*Target, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme == "" {
		return nil, cluster.Usage(errors.New("not a URL"))
	}
	service, _, _ := strings.Cut(strings.ToLower(u.Scheme), "+")
	if !slices.Contains(Services(), service) {
		return nil, cluster.Usage(errors.New("its scheme is none of the notification services"))
	}
	t := &Target{name: nameOf(service, u), key: fmt.Sprintf("%x", sha256.Sum256([]byte(raw))), service: service, scrub: newScrubber(raw, u),
		left: make(chan struct{}, maxLeft), raw: cluster.Secret(raw)}
	if online[service] {
		return t, nil
	}
	err = t.safely(func() error {
		t.sender, err = t.locate()
		return err
	})
	if err != nil {
		return nil, cluster.WithHint(cluster.Usage(fmt.Errorf("%s: %w", t.name, err)), "see docs/notifications.md for the form of its URL")
	}
	return t, nil
}

// nameOf names a target without a secret.
func nameOf(service string, u *url.URL) string {
	if hosted[service] && u.Hostname() != "" {
		return service + " at " + u.Host
	}
	return service
}

// locate has the library read the URL.
func (t *Target) locate() (types.Sender, error) {
	return (&router.ServiceRouter{}).Locate(string(t.raw))
}

// Name is fit for a log: the service, and its server where it has one.
func (t *Target) Name() string { return t.name }

// Key is the same for the same URL, and tells nothing of it.
func (t *Target) Key() string { return t.key }

// String is Name, so that no way of printing a target shows its URL.
func (t *Target) String() string { return t.name }

// Format prints Name for every verb: %+v would show the fields.
func (t *Target) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(t.name)) }

// safely makes a panic of the library an error, and takes the URL's parts out of what it says.
func (t *Target) safely(do func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = t.scrub.clean(fmt.Errorf("mistake in the notification library: %v", v))
		}
	}()
	return t.scrub.clean(do())
}
