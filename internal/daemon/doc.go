// Package daemon decides when a pass of the reconciler is run, and keeps this node's sockets: `certsync run`.
//
// A pass is made at the times of renew.schedule, at the instant that the last report names, when the role changes, when
// the configuration, a file that it names, a bundle or HAProxy's socket changes, when a peer that was away answers
// again, when a clock was set, by SIGHUP, and when a local command asks for one. One is made at a time; whatever comes
// meanwhile is remembered and leads to one more. What wakes the daemon is a hint only: the pass itself finds out what
// there is to do.
//
// The decisions are in a state machine without goroutines or a clock of its own (schedule.go). Around it is one loop
// (loop.go) that owns it, and the sources of wake-ups, each a goroutine: the role, the peers, the files (watch.go), the
// two sockets. A Site is all that one configuration leads to; a changed configuration makes a new one, and the old is
// closed when nobody uses it any more.
package daemon
