package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"certsync/internal/lab"
)

func TestMedianIsTheMiddle(t *testing.T) {
	if got := median([]time.Duration{9, 1, 5}); got != 5 {
		t.Errorf("median of 9 1 5: %d", got)
	}
	if got := median([]float64{4, 1, 2, 3}); got != 2 {
		t.Errorf("median of 4 1 2 3: %v, want the lower of the two in the middle", got)
	}
}

func TestRatiosArePairedByRound(t *testing.T) {
	contenders := []contender{named("first"), named("second")}
	took := [][]time.Duration{{100, 200, 400}, {300, 400, 2000}}
	var out bytes.Buffer
	print(&out, contenders, took)
	// 3, 2 and 5 in the rounds: the median is 3, where that of the medians would be 2.
	if line := lineWith(out.String(), "second"); !strings.HasSuffix(line, " 3.0") {
		t.Errorf("got %q", line)
	}
}

func lineWith(text, word string) string {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, word) {
			return strings.TrimRight(line, "\n")
		}
	}
	return ""
}

// named is a contender that has a name only.
type named string

func (n named) name() string                { return string(n) }
func (named) prepare(context.Context) error { return nil }
func (named) renew(context.Context) error   { return nil }
func (named) lab() *lab.Lab                 { return nil }
func (named) close() error                  { return nil }
