package acme_test

import (
	"fmt"
	"sync"
	"testing"

	"certsync/internal/cert"
)

// BenchmarkObtain is one certificate for an apex and its wildcard at a CA that does not wait, and many at once.
func BenchmarkObtain(b *testing.B) {
	for _, n := range []int{1, 10, 50} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := newWorld(b)
			c := w.registered()
			for round := 0; b.Loop(); round++ {
				var done sync.WaitGroup
				for i := range n {
					name := fmt.Sprintf("n%d-%d.example.org", round, i)
					o := w.order(cert.EC256, name, "*."+name)
					done.Go(func() {
						var j journal
						if _, err := c.Obtain(w.ctx(), w.account, o, j.checkpoint); err != nil {
							b.Error(err)
						}
					})
				}
				done.Wait()
			}
		})
	}
}
