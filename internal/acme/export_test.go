package acme

import "fmt"

// What tests look at from outside.
var (
	ParseRetryAfter = parseRetryAfter
	OneLine         = oneLine
	Redact          = redact
	ZoneServers     = zoneServers
	SystemResolvers = systemResolvers
	EnterResolvers  = legoResolvers.enter
)

// ShowServer is a name server with its addresses, for comparison.
func ShowServer(s nameServer) string { return fmt.Sprintf("{%s %v}", s.name, s.addresses) }
