// Package sysfile reads and edits the system files of a FreeBSD host: rc.conf(5), loader.conf(5), sysctl.conf(5), and
// whatever else lies in its tree, which need not be the running host's: an image under a folder will do. It stands on
// floor 2 of the house, below bootstrap, which decides what is to be in those files.
//
// A Tree does what is done to files: it never leaves its root, replaces a file by rename or not at all, keeps mode,
// owner and links, keeps a backup of what was there before the first edit, and tells what was there before, so that it
// can be put back. It knows nothing of what is in them.
//
// A File is the parsed content of one file. It changes the one line that it was asked to change, and gives an Edit that
// undoes exactly that. What the file's own reader would have to compute (a command, a variable, a condition, a file read
// by another) is never guessed: the Found of a key that depends on it has a Doubt.
//
// A View is what the system ends up with from all the files that it reads, in its order.
//
// Under the build tag "failpoint" a write can be killed at sysfile.temp (the temporary file is empty), sysfile.written
// (not yet fsynced), sysfile.backup (the backup is not yet linked), sysfile.rename (fsynced, not yet renamed) and
// sysfile.renamed (the folder is not yet fsynced).
package sysfile
