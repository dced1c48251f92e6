// Package lab is what certsync is tried on, without a network and without a host of its own: two nodes with real
// HAProxies and SSH servers, a name server and a CA, all on loopback. The demo, the end-to-end tests, the benchmarks
// and the tests of the adapters use it; nothing that is shipped does. Floor 4.
//
// DNS is an authoritative server whose TXT records are set by RFC 2136 updates, so that the provider that runs is
// lego's real one. CA is an embedded Pebble that hands a pending order out again, as Let's Encrypt does, counts what
// it was asked for, and can be made to hang, to refuse and to answer nonsense:
//
//	names, err := lab.NewDNS(lab.DNSOptions{Zones: []string{"example.org"}})
//	ca, err := lab.NewCA(lab.CAOptions{DNS: names.Address(), Dir: dir})
//	// acme.directory: ca.Directory(), acme.ca_file: ca.CAFile()
//	// dns.provider: rfc2136, dns.env_file with names.EnvFile(), dns.resolvers: [names.Address()]
//	ca.SetHook(func(w http.ResponseWriter, r *http.Request) bool {
//		if lab.EndpointOf(r) != lab.EndpointNewOrder {
//			return false
//		}
//		w.Header().Set("Retry-After", "3600")
//		lab.Problem(w, http.StatusTooManyRequests, "rateLimited", "too many certificates")
//		return true
//	})
//
// On Linux a Pair is two hosts with real CARP (ucarp) on a Segment: network namespaces on a bridge, which the kernel
// takes away with the process that made them. It needs root, ip(8) and ucarp; CanSegment says what is missing.
package lab
