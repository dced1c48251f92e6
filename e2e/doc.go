// Package e2e holds the end-to-end tests: the real certsync binary on the lab's two nodes, with real HAProxies of each
// supported branch, an SSH server, an embedded CA and DNS server, and clients that must notice nothing. Its tests kill
// certsync at every step, take nodes, disks and servers away, and count what reached the CA.
//
// The CARP tests run two hosts in network namespaces with ucarp: failovers, a split brain, an address that lingers.
//
// HAProxy 2.6 is the system's on Debian 12; scripts/deps.sh unpacks 3.0 and 3.2. What is missing is skipped, and is a
// failure where CI=true. CERTSYNC_TEST_FULL=1 runs the full figures: 500 handshakes a second through 20 renewals, and
// every kill, 50 failovers.
package e2e
