// Hit passes the places that its arguments name, and prints each one behind it.
package main

import (
	"fmt"
	"os"

	"certsync/internal/failpoint"
)

func main() {
	for _, name := range os.Args[1:] {
		failpoint.Hit(name)
		fmt.Println(name)
	}
}
