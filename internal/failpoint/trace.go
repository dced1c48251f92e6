//go:build failpoint

package failpoint

import "os"

// trace adds name as a line to the file that CERTSYNC_FAILPOINT_TRACE names, so that a test finds the places that a run
// passes, in order, those too whose names are put together at run time.
func trace(name string) {
	path := os.Getenv("CERTSYNC_FAILPOINT_TRACE")
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	_, _ = f.WriteString(name + "\n")
	_ = f.Close()
}
