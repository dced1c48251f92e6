// Package haproxy puts bundles in service in one running HAProxy without a reload: the bundle file, HAProxy's memory
// through its runtime API, and a fresh TLS handshake that shows the new certificate; undone in reverse where one of them
// fails. Use it wherever a certificate is to be served, or to tell what a HAProxy has on disk, in memory, and serves.
//
// What HAProxy answers differs little from 2.6 to 3.2, and what it does differs more, so that this package takes nothing
// on trust: an answer counts only where it is the known text and names exactly the certificate that was meant; what was
// loaded is compared by fingerprint before it is committed and after; and only a handshake proves that it is served.
// Where to make that handshake is read from HAProxy's own configuration (package haconf), and a virtual address of CARP is
// never connected to on a node that is not MASTER, because the MASTER would answer.
// The contract suite in this package runs on haproxytest's fake and on every HAProxy that scripts/deps.sh installs.
//
// It is floor 1 of the house: it satisfies reconcile.Proxy and imports cert, cluster and failpoint only.
package haproxy
