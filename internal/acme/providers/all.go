//go:build !fewproviders

package providers

import (
	"github.com/go-acme/lego/v4/challenge"
	"github.com/go-acme/lego/v4/providers/dns"
)

// byName makes any of lego's providers.
func byName(name string) (challenge.Provider, error) { return dns.NewDNSChallengeProviderByName(name) }
