// Command demo shows on one machine, in seconds, what certsync is for: a pair of HAProxy hosts whose certificate is
// renewed by `certsync issue` under a steady load of clients, then a failover in the middle of which the other node
// renews, and the return of the first with stale certificates. Everything is real but the hosts and the CA: the certsync
// binary, two HAProxies, an SSH server for each node, an embedded ACME CA and a DNS server that takes RFC 2136 updates.
//
// `make demo` runs it. It ends with 0 only where every step did what it says; what it started is stopped, and what it
// wrote is removed, whether it ends by itself or by a signal.
package main
