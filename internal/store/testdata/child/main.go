// Child is another process on the same state_dir, for the tests of package store. Built with the tag "failpoint" it can
// be killed in the middle of a change.
//
//	child DIR keep NAME SEQUENCE BUNDLE.pem     keeps one generation
//	child DIR merge RECORDS.json                merges records
//	child DIR forget NAME                       forgets the ECDSA slot of a name
//	child DIR read                              reads the records, which sets bad files aside
//	child DIR alarms NODE                       keeps a book of alarms in which NODE is MASTER
//	child DIR actor                             takes the actor lock, says "locked", starts a `sleep`, says its pid, waits
//	child DIR storm NAME N BUNDLE.pem...        N merges of one attempt each, named NAME-i, and keeps of the bundles,
//	                                            each announced once it is durable
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
	"certsync/internal/store"
)

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(dir, action string, args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := store.Open(dir, store.Options{})
	if err != nil {
		return err
	}
	switch action {
	case "keep":
		return keep(ctx, s, args[0], args[1], args[2])
	case "merge":
		return merge(ctx, s, args[0])
	case "read":
		_, err := s.Records(ctx)
		return err
	case "forget":
		return s.Forget(ctx, cert.Slot{Name: args[0], Algorithm: cert.ECDSA})
	case "alarms":
		return s.KeepAlarms(ctx, cluster.AlarmBook{Master: args[0]})
	case "actor":
		return actor(ctx, s)
	case "storm":
		return storm(ctx, s, args[0], args[1], args[2:])
	}
	return fmt.Errorf("action %q", action)
}

func keep(ctx context.Context, s *store.Store, name, sequence, file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	b, err := cert.Parse(data)
	if err != nil {
		return err
	}
	n, err := strconv.ParseUint(sequence, 10, 64)
	if err != nil {
		return err
	}
	return s.Keep(ctx, cluster.Kept{Generation: b.Generation(name, n), Bundle: b})
}

func merge(ctx context.Context, s *store.Store, file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var r cluster.Records
	if err := json.Unmarshal(data, &r); err != nil {
		return err
	}
	return s.Merge(ctx, r)
}

func actor(ctx context.Context, s *store.Store) error {
	if _, err := s.LockActor(ctx, "child of a test"); err != nil {
		return err
	}
	// Whatever the holder starts must not hold the lock on after its death.
	sleep := exec.Command("sleep", "60")
	if err := sleep.Start(); err != nil {
		return err
	}
	fmt.Printf("locked %d\n", sleep.Process.Pid)
	<-ctx.Done()
	return ctx.Err()
}

func storm(ctx context.Context, s *store.Store, name, times string, bundles []string) error {
	n, err := strconv.Atoi(times)
	if err != nil {
		return err
	}
	for i := range n {
		a := cluster.Attempt{ID: fmt.Sprintf("%s-%d", name, i), Node: "proxy1", Slot: cert.Slot{Name: name, Algorithm: cert.ECDSA}, Time: time.Now()}
		if err := s.Merge(ctx, cluster.Records{Ledger: []cluster.Attempt{a}}); err != nil {
			return err
		}
		fmt.Println("attempt", a.ID)
		if i < len(bundles) {
			if err := keep(ctx, s, name, strconv.Itoa(i+1), bundles[i]); err != nil {
				return err
			}
			fmt.Println("generation", i+1)
		}
	}
	return nil
}
