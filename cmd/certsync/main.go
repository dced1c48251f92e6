// Command certsync is the ACME certificate manager of a pair of HAProxy hosts behind CARP: see docs/architecture.md.
package main

import "os"

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
