//go:build failpoint

package failpoint

import (
	"os"
	"syscall"
)

// Hit kills this process with SIGKILL where the environment variable CERTSYNC_FAILPOINT names the place: nothing is
// flushed, no deferred call runs, as in a power cut.
func Hit(name string) {
	if os.Getenv("CERTSYNC_FAILPOINT") == name {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
