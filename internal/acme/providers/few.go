//go:build fewproviders

package providers

import (
	"errors"

	"github.com/go-acme/lego/v4/challenge"
	"github.com/go-acme/lego/v4/providers/dns/exec"
	"github.com/go-acme/lego/v4/providers/dns/httpreq"
	"github.com/go-acme/lego/v4/providers/dns/rfc2136"
)

// errNotBuilt: the provider exists and was left out of this binary.
var errNotBuilt = errors.New("not in this binary, which was built with the tag fewproviders")

// byName makes one of the providers that speak a standard or leave the work to a program.
func byName(name string) (challenge.Provider, error) {
	switch name {
	case "exec":
		return exec.NewDNSProvider()
	case "httpreq":
		return httpreq.NewDNSProvider()
	case "rfc2136", "dnsupdate":
		return rfc2136.NewDNSProvider()
	}
	return nil, errNotBuilt
}
