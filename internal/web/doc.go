// Package web renders what the daemon knows for people and monitors: the status page, the metrics in Prometheus' text
// format, and the daemon's health. Use NewHandler with a function that gives a View; the package opens nothing and asks
// nobody, so that a page costs no pass and no session with a peer.
//
// Texts of peers, of the CA and of HAProxy are not trusted: the page escapes them and may load and run nothing, and the
// handler answers only who names the host by an address, since a page of elsewhere could have its own name point here.
package web
