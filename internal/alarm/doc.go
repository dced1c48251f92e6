// Package alarm decides what a person must be told, and when. It is floor 2 of the house, and pure: it takes a report,
// the clock, and the book of what was told before, and gives the next book and a message.
//
// Step is the whole of it. It judges the report (judge.go): what is wrong, and for how long that must last before it is
// an alarm. It compares that with the book (book.go): what is new, worse, better, over, or still so after a day, and what
// comes and goes. The message (message.go) is that in words.
//
// Every node judges for itself, a BACKUP too: whether a certificate was renewed when it was due, and whether a MASTER can
// be heard. What both see is told by the MASTER that answers, the speaker; the others tell what it did not. Each node's
// book is a part of its inventory, so that a new MASTER goes on with what the one before told, and nothing is told twice
// or left unresolved by a failover.
package alarm
