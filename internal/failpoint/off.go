//go:build !failpoint

package failpoint

// Hit does nothing in builds without the tag "failpoint".
func Hit(string) {}
