//go:build failpoint

package failpoint

import (
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
)

// hits counts the calls at the place that is to kill.
var hits atomic.Int64

// Hit kills this process with SIGKILL where the environment variable CERTSYNC_FAILPOINT names the place, or at the nth
// call there for "place#n": nothing is flushed, no deferred call runs.
func Hit(name string) {
	trace(name)
	want := os.Getenv("CERTSYNC_FAILPOINT")
	if want == name || len(want) > len(name) && want[:len(name)+1] == name+"#" && want == fmt.Sprintf("%s#%d", name, hits.Add(1)) {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
