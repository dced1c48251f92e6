package reconcile

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"

	"certsync/internal/cluster"
)

// errMistake is a panic: a mistake in certsync or in a library. It is one certificate's, one peer's or one HAProxy's
// failure, and ends neither the pass nor the daemon.
var errMistake = errors.New("mistake in certsync")

// safely calls do; a panic in it is an error.
func safely(do func()) (err error) {
	defer rescue(&err)
	do()
	return nil
}

// rescue, deferred, makes a panic the error of the function that it is deferred in.
func rescue(err *error) {
	if v := recover(); v != nil {
		*err = cluster.WithHint(fmt.Errorf("%w: panic at %s: %s", errMistake, panickedAt(), panicText(v)),
			"report it: this message says where it happened")
	}
}

// panicText is what a panic says. A value that is no text is not shown: it could hold anything, a key too.
func panicText(v any) string {
	switch v := v.(type) {
	case error:
		return oneLine(v.Error())
	case string:
		return oneLine(v)
	}
	return fmt.Sprintf("a %T", v)
}

// panickedAt is the file and line of the panic that is being recovered: the first frame below the runtime's own.
func panickedAt() string {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(0, pcs)])
	for below := false; ; {
		f, more := frames.Next()
		if f.Function == "runtime.gopanic" {
			below = true
		} else if below && !strings.HasPrefix(f.Function, "runtime.") {
			return fmt.Sprintf("%s:%d", filepath.Base(f.File), f.Line)
		}
		if !more {
			return "a place that is not known"
		}
	}
}
