// Package store is the node's durable state: the generations, and the records that nodes replicate (accounts, orders,
// ledger, tombstones, releases, renewals, revocations), as files under state_dir that several certsync processes of the machine read and
// change at once. It is floor 1 of the house. Use it through reconcile's interface Store; the daemon and the commands
// that change something also take its actor lock.
//
//	format                      {"format":1}; a higher number belongs to a newer certsync and is refused untouched
//	actor.lock, store.lock      for flock(2); the kernel releases them on death; never unlinked
//	generations/NAME/ALGORITHM/SEQUENCE-NOTBEFORE-NOTAFTER-FINGERPRINT.pem
//	accounts/THUMBPRINT-DIRECTORY.json      DIRECTORY is a hash of the CA's URL
//	orders/ID.json
//	ledger.json, tombstones.json, releases.json, renewals.json, revocations.json
//	alarms.json                 what the daemon remembers of alarms, for this node alone
//	tmp/                        files being written; what a kill left there goes at the next change
//	aside/                      files that were not what they should be, for a person to look at
//
// A file is written under tmp/, fsynced, renamed to its place, and the folder fsynced: at every instant the old one or
// the new one is there, whole. The name of a generation's file says all that is to be known of it short of the bundle,
// so that listing 10,000 of them reads none, and one rename makes one durable.
//
// Reads take no lock. Every change holds store.lock, and no longer than it takes. A file that is torn, unreadable or
// foreign is moved to aside/ and told by Problems for as long as it lies there; it is never trusted, and no reason to
// refuse the rest.
//
// Under the build tag "failpoint" a change can be killed at store.mkdir (a new slot's folder was made), store.temp (the
// temporary file is empty), store.written (not yet fsynced), store.rename (fsynced, not yet renamed), store.renamed (the
// folder is not yet fsynced), store.remove (before a file is dropped), store.aside (before one is set aside) and
// store.alarms (alarms.json is durable).
package store
