package store

import (
	"fmt"
	"os"
	"testing"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cert/certtest"
	"certsync/internal/cluster"
)

// many is how many certificates the benchmarks are about.
const many = 10000

// BenchmarkGenerations lists 10,000 slots of one generation each.
func BenchmarkGenerations(b *testing.B) {
	s := fresh(b)
	pem := []byte("not read")
	bundle := testCA().Issue(b, certtest.Options{})
	for i := range many {
		g := bundle.Generation(fmt.Sprintf("n%d.example.org", i), 1)
		if err := os.MkdirAll(s.path(slotFolder(g.Slot)), 0o700); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(s.path(bundlePath(g)), pem, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if n := len(generations(b, s)); n != many {
			b.Fatal(n)
		}
	}
}

// BenchmarkMergeIntoALargeLedger adds one attempt to a ledger of 10,000.
func BenchmarkMergeIntoALargeLedger(b *testing.B) {
	s := fresh(b)
	merge(b, s, cluster.Records{Ledger: largeLedger()})
	i := 0
	for b.Loop() {
		a := newAttempt(fmt.Sprint("new", i%100), "example.org")
		a.Problem = fmt.Sprint(i)
		merge(b, s, cluster.Records{Ledger: []cluster.Attempt{a}})
		i++
	}
}

// BenchmarkRecordsWithALargeLedger reads a ledger of 10,000.
func BenchmarkRecordsWithALargeLedger(b *testing.B) {
	s := fresh(b)
	merge(b, s, cluster.Records{Ledger: largeLedger()})
	for b.Loop() {
		if n := len(records(b, s).Ledger); n != many {
			b.Fatal(n)
		}
	}
}

func largeLedger() []cluster.Attempt {
	var out []cluster.Attempt
	for i := range many {
		name := fmt.Sprintf("n%d.example.org", i)
		out = append(out, cluster.Attempt{ID: fmt.Sprint("id", i), Node: "proxy1", Slot: cert.Slot{Name: name, Algorithm: cert.ECDSA},
			Directory: "https://ca.test/directory", Domains: []string{name, "*." + name}, Order: fmt.Sprint("order", i), Time: testNow,
			End: cluster.Failed, Problem: "no answer from the name server", NextTry: testNow.Add(time.Hour)})
	}
	return out
}
