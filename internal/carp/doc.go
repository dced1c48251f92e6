// Package carp tells the role of this node. It is floor 1 of the house; reconcile's interface Roles is what it
// implements, and a role that cannot be told is cluster.Unknown with an error, never MASTER.
//
// So far it knows the role that the configuration states, `carp.role: static:NODE`, for a single host, a test, or a
// failover by hand. Reading CARP itself is not in it yet.
package carp
