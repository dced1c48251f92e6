// Package bootstraptest has a kernel that behaves as FreeBSD's does where carp(4) is set up, and the commands that
// change a host beside it, so that bootstrap is tried without FreeBSD and without root. The kernel keeps state as the
// real one does, and counts what costs: every time that a MASTER lost its role because somebody touched its interface.
package bootstraptest
