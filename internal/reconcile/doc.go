// Package reconcile is the flow: adopt, due, fence, obtain, keep, stage, activate, report. It decides; the adapters
// behind the interfaces of ports.go do. It implements the Local side of the peer API for its own node. Floor 2.
package reconcile
