// Child writes a file of a tree in another process, for the tests of package sysfile. Built with the tag "failpoint" it
// can be killed in the middle.
//
//	child ROOT PATH DATA
//	child ROOT PATH -       writes 0, 1, 2, ... for ever, each as many lines as fill 64 KiB, and says each first
package main

import (
	"fmt"
	"os"
	"strings"

	"certsync/internal/bootstrap/sysfile"
)

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(root, path, data string) error {
	tree := sysfile.Tree{Root: root}
	if data != "-" {
		_, err := tree.Write(path, []byte(data), sysfile.How{})
		return err
	}
	for i := 0; ; i++ {
		line := fmt.Sprintf("n=%06d\n", i)
		fmt.Print(line)
		if _, err := tree.Write(path, []byte(strings.Repeat(line, 1<<16/len(line))), sysfile.How{}); err != nil {
			return err
		}
	}
}
