// Package bootstrap sets up what a FreeBSD host needs around certsync: carp.ko at boot and now, the sysctls of CARP,
// the virtual addresses on their interfaces now and in rc.conf, the service user, its folders, its doas or sudo rules,
// a placeholder for HAProxy's empty folder of certificates, and the service itself. It is floor 2 of the house.
//
// Plan looks, and says for each step what is there and what would be; it changes nothing. Apply does the steps that
// differ and reads each back; what is right already is not touched, because giving an interface an address that it has
// is a failover (carp(4) drives the vhid through INIT). Before each change, what was there is written to the record
// at RecordPath, so that Revert undoes exactly what was applied, also after a kill between two steps.
//
// What would do harm is refused before anything is done: a vhid that another host of the segment uses, a password that
// FreeBSD cuts, misreads or evaluates, a mask that does not fit. Passwords are in no command line, no record line that
// is printed, no error and no diff.
package bootstrap
