package e2e

import (
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"certsync/internal/cluster"
	"certsync/internal/lab"
)

// TestPeerDown: a peer that cannot be reached is a line in the report and holds nothing up; when it is back, the next
// run brings it in line without an order.
func TestPeerDown(t *testing.T) {
	onEachHAProxy(t, func(t *testing.T, haproxy string) {
		l := newLab(t, lab.Options{HAProxy: haproxy})
		master, backup := l.Nodes[0], l.Nodes[1]
		backup.StopSSH()
		r := issue(t, master, 4)
		if s := nodeIn(t, r, backup); s.Reachable || s.Error == "" {
			t.Errorf("%s is down, the report says: %s", backup.Name, asJSON(s))
		}
		wantServed(t, newest(t, l), master)
		wantServed(t, l.Old[name].Fingerprint(), backup)

		if err := backup.StartSSH(t.Context()); err != nil {
			t.Fatal(err)
		}
		reconcile(t, master)
		wantOrders(t, l, 1)
		wantServed(t, newest(t, l), master, backup)
		wantSound(t, master, backup)
	})
}

// TestPeerThatNeverAnswers: a peer whose host is up but whose sshd hangs is given up at its deadline.
func TestPeerThatNeverAnswers(t *testing.T) {
	l := newLab(t, lab.Options{})
	master, backup := l.Nodes[0], l.Nodes[1]
	if err := backup.HangSSH(t.Context()); err != nil {
		t.Fatal(err)
	}
	issue(t, master, 4)
	wantServed(t, newest(t, l), master)
	wantServed(t, l.Old[name].Fingerprint(), backup)
}

// TestPeersDiskIsFull: what the peer cannot store it does not serve; it keeps what it has, whole.
func TestPeersDiskIsFull(t *testing.T) {
	if os.Geteuid() != 0 {
		missing(t, os.ErrPermission)
	}
	l := newLab(t, lab.Options{})
	master, backup := l.Nodes[0], l.Nodes[1]
	fill := mountSmall(t, backup.StateDir)
	fill()
	r := issue(t, master, 4)
	if s := nodeIn(t, r, backup); !strings.Contains(asJSON(s), "no space left") {
		t.Errorf("the report does not say that %s's disk is full: %s", backup.Name, asJSON(s))
	}
	wantServed(t, newest(t, l), master)
	wantServed(t, l.Old[name].Fingerprint(), backup)
	wantSound(t, master, backup)

	if err := os.Remove(backup.StateDir + "/filler"); err != nil {
		t.Fatal(err)
	}
	reconcile(t, master)
	wantOrders(t, l, 1)
	wantServed(t, newest(t, l), master, backup)
}

// TestMastersDiskIsFull: what cannot be recorded is not begun, so that the CA is not even asked.
func TestMastersDiskIsFull(t *testing.T) {
	if os.Geteuid() != 0 {
		missing(t, os.ErrPermission)
	}
	l := newLab(t, lab.Options{})
	master, backup := l.Nodes[0], l.Nodes[1]
	mountSmall(t, master.StateDir)()
	r, err := master.Certsync(t.Context(), "issue", name)
	if err == nil {
		err = r.Err(1)
	}
	if err != nil {
		t.Fatal(err)
	}
	wantOrders(t, l, 0)
	wantServed(t, l.Old[name].Fingerprint(), master, backup)

	if err := os.Remove(master.StateDir + "/filler"); err != nil {
		t.Fatal(err)
	}
	issue(t, master)
	wantServed(t, newest(t, l), master, backup)
}

// mountSmall puts an empty file system of 1 MiB over dir, and gives the function that fills it up.
func mountSmall(t *testing.T, dir string) (fill func()) {
	t.Helper()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", dir).CombinedOutput(); err != nil {
		missing(t, &os.PathError{Op: "mount a small tmpfs", Path: dir, Err: errText(out)})
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %s", dir, out)
		}
	})
	return func() {
		f, err := os.Create(dir + "/filler")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		block := make([]byte, 4096)
		for {
			if _, err := f.Write(block); err != nil {
				return
			}
		}
	}
}

type errText []byte

func (e errText) Error() string { return strings.TrimSpace(string(e)) }

// TestHAProxyIsDown: the bundle waits on disk, the exit code and the hint say so, and HAProxy serves it once started.
func TestHAProxyIsDown(t *testing.T) {
	onEachHAProxy(t, func(t *testing.T, haproxy string) {
		for i, who := range []string{"on_the_MASTER", "on_the_BACKUP"} {
			t.Run(who, func(t *testing.T) {
				l := newLab(t, lab.Options{HAProxy: haproxy})
				down, up := l.Nodes[i], l.Nodes[1-i]
				down.KillHAProxy()
				r := issue(t, l.Nodes[0], 4)
				s := nodeIn(t, r, down)
				if len(s.Placements) == 0 || s.Placements[0].Outcome != cluster.DiskOnly || s.Placements[0].Hint == "" {
					t.Errorf("want the outcome %s and a hint for %s: %s", cluster.DiskOnly, down.Name, asJSON(s))
				}
				wantServed(t, newest(t, l), up)
				wantSound(t, l.Nodes...)
				if err := down.StartHAProxy(t.Context()); err != nil {
					t.Fatal(err)
				}
				wantServed(t, newest(t, l), l.Nodes...)
				reconcile(t, l.Nodes[0])
				wantOrders(t, l, 1)
			})
		}
	})
}

// TestCanary: a BACKUP whose HAProxy says Success and goes on serving another certificate (another bundle for the same
// names comes first on its bind) keeps the MASTER on the old one, so that what is wrong takes one node at most.
func TestCanary(t *testing.T) {
	onEachHAProxy(t, func(t *testing.T, haproxy string) {
		l := newLab(t, lab.Options{HAProxy: haproxy, Nodes: []lab.NodeOptions{{}, {HideBundle: true}}, OldLeft: 60 * 24 * time.Hour})
		master, backup := l.Nodes[0], l.Nodes[1]
		load := lab.StartLoad(t.Context(), lab.LoadOptions{Addresses: l.TLSAddresses(), ServerName: domain, Rate: 20, KeepAlive: 1, Timeout: patience})
		r := issue(t, master, 1, 4)
		if err := load.Stop().Err(); err != nil {
			t.Errorf("clients noticed: %v", err)
		}
		wantServed(t, l.Old[name].Fingerprint(), master, backup)
		row := r.Certificates[0]
		if row.Outcome == cluster.Done || !strings.Contains(row.Error, backup.Name) || row.Hint == "" {
			t.Errorf("the report does not say who holds it up and what to do: %s", asJSON(row))
		}
		wantSound(t, master, backup)
		// Another run orders nothing: what is wrong is HAProxy's, not the CA's.
		reconcile(t, master, 1, 4)
		wantOrders(t, l, 1)
		wantServed(t, l.Old[name].Fingerprint(), master, backup)
	})
}

// TestMasterDoesNotWaitWithLittleLifeLeft: what the MASTER serves is about to expire, so that waiting for the BACKUP's
// mend would cost more than a bad activation.
func TestMasterDoesNotWaitWithLittleLifeLeft(t *testing.T) {
	l := newLab(t, lab.Options{Nodes: []lab.NodeOptions{{}, {HideBundle: true}}, OldLeft: 24 * time.Hour})
	issue(t, l.Nodes[0], 1, 4)
	wantServed(t, newest(t, l), l.Nodes[0])
	wantServed(t, l.Old[name].Fingerprint(), l.Nodes[1])
}

// TestBackupWhoseSocketRefusesChanges: the runtime socket has not the level admin. The BACKUP gets the bundle on disk and
// serves what it had; that speaks of the node and not of the certificate, so the MASTER goes on (docs/decisions/0010).
// The report says what to mend, and after the mend the next run finds it in line, without an order.
func TestBackupWhoseSocketRefusesChanges(t *testing.T) {
	onEachHAProxy(t, func(t *testing.T, haproxy string) {
		l := newLab(t, lab.Options{HAProxy: haproxy, Nodes: []lab.NodeOptions{{}, {StatsLevel: "operator"}}})
		master, backup := l.Nodes[0], l.Nodes[1]
		r := issue(t, master, 1, 4)
		if s := nodeIn(t, r, backup); len(s.Placements) == 0 || !strings.Contains(s.Placements[0].Hint, "level admin") {
			t.Errorf("the mend is not told: %s", asJSON(s))
		}
		wantServed(t, newest(t, l), master)
		wantServed(t, l.Old[name].Fingerprint(), backup)
		wantSound(t, backup)

		backup.StopHAProxy()
		if err := backup.SetStatsLevel("admin"); err != nil {
			t.Fatal(err)
		}
		if err := backup.StartHAProxy(t.Context()); err != nil {
			t.Fatal(err)
		}
		reconcile(t, master)
		wantOrders(t, l, 1)
		wantServed(t, newest(t, l), master, backup)
	})
}

// TestStaleMasterAdopts: the first node is off while the other renews; back as MASTER with an old certificate, it takes
// what the other has, orders nothing, and no client is taken back.
func TestStaleMasterAdopts(t *testing.T) {
	onEachHAProxy(t, func(t *testing.T, haproxy string) {
		l := newLab(t, lab.Options{HAProxy: haproxy})
		first, second := l.Nodes[0], l.Nodes[1]
		issue(t, first)
		first.StopSSH()
		if err := l.SetMaster(t.Context(), second); err != nil {
			t.Fatal(err)
		}
		issue(t, second, 4)
		renewed := newest(t, l)
		wantServed(t, renewed, second)

		if err := first.StartSSH(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := l.SetMaster(t.Context(), first); err != nil {
			t.Fatal(err)
		}
		load := lab.StartLoad(t.Context(), lab.LoadOptions{Addresses: l.TLSAddresses(), ServerName: domain, Rate: 50, KeepAlive: 2, Timeout: patience})
		reconcile(t, first)
		if err := load.Stop().Err(); err != nil {
			t.Errorf("clients noticed: %v", err)
		}
		wantServed(t, renewed, first, second)
		wantOrders(t, l, 2)
		if n := l.CA.Counts().NewAccounts; n != 1 {
			t.Errorf("the CA made %d accounts, want 1 for both nodes", n)
		}
	})
}

// TestOnlyTheMasterIssues: a BACKUP refuses, says who is MASTER, and the CA is not asked.
func TestOnlyTheMasterIssues(t *testing.T) {
	l := newLab(t, lab.Options{})
	r := certsync(t, l.Nodes[1], []string{"issue", name}, 3)
	if !strings.Contains(string(r.Stderr), l.Nodes[0].Name) {
		t.Errorf("the MASTER's name is not in: %s", r.Stderr)
	}
	if c := l.CA.Counts(); len(c.Requests) != 0 {
		t.Errorf("the CA was asked: %v", c.Requests)
	}
}

// TestDemotionInTheMiddleOfAnOrder: the role is lost while the CA is thinking; the work ends, nothing is distributed,
// and the new MASTER takes the order up.
func TestDemotionInTheMiddleOfAnOrder(t *testing.T) {
	l := newLab(t, lab.Options{})
	first, second := l.Nodes[0], l.Nodes[1]
	demoted := make(chan error, 1)
	var once sync.Once
	l.CA.SetHook(func(_ http.ResponseWriter, r *http.Request) bool {
		if lab.EndpointOf(r) == lab.EndpointFinalize {
			once.Do(func() { demoted <- l.SetMaster(t.Context(), second) })
		}
		return false
	})
	r, err := first.Certsync(t.Context(), "issue", name)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-demoted; err != nil {
		t.Fatal(err)
	}
	if r.Code == 0 || r.Code == 4 {
		t.Errorf("exit code %d after the role was lost\n%s", r.Code, r.Stderr)
	}
	wantServed(t, l.Old[name].Fingerprint(), first, second)
	l.CA.SetHook(nil)
	issue(t, second)
	wantOrders(t, l, 1)
	wantServed(t, newest(t, l), first, second)
}

// TestInterrupted: SIGTERM in the middle of an order ends it soon, the TXT values are cleaned up or recorded, and the
// next run takes it up.
func TestInterrupted(t *testing.T) {
	l := newLab(t, lab.Options{})
	master := l.Nodes[0]
	asked := make(chan struct{})
	var once sync.Once
	l.CA.SetHook(func(_ http.ResponseWriter, r *http.Request) bool {
		if lab.EndpointOf(r) != lab.EndpointChallenge {
			return false
		}
		once.Do(func() { close(asked) })
		<-r.Context().Done()
		return true
	})
	running, err := master.StartCertsync("issue", name)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-asked:
	case <-time.After(30 * time.Second):
		running.Signal(syscall.SIGKILL)
		t.Fatal("the CA was never asked for a challenge")
	}
	running.Signal(syscall.SIGTERM)
	if r := running.Wait(); r.Signal != 0 || r.Code == 0 {
		t.Errorf("after SIGTERM it ended with code %d, signal %v\n%s", r.Code, r.Signal, r.Stderr)
	}
	l.CA.SetHook(nil)
	issue(t, master)
	wantOrders(t, l, 1)
	wantNoTXT(t, l)
	wantServed(t, newest(t, l), l.Nodes...)
}

// TestOverOpenSSH runs the renewal over the system's sshd with the forced command in authorized_keys, as on a real
// pair.
func TestOverOpenSSH(t *testing.T) {
	const sshd = "/usr/sbin/sshd"
	if _, err := os.Stat(sshd); err != nil {
		missing(t, err)
	}
	if os.Geteuid() != 0 {
		missing(t, os.ErrPermission)
	}
	l := newLab(t, lab.Options{SSHD: sshd})
	issue(t, l.Nodes[0])
	wantServed(t, newest(t, l), l.Nodes...)
	l.Nodes[1].StopSSH()
	issue(t, l.Nodes[0], 4)
	if err := l.Nodes[1].StartSSH(t.Context()); err != nil {
		t.Fatal(err)
	}
	reconcile(t, l.Nodes[0])
	wantOrders(t, l, 2)
	wantServed(t, newest(t, l), l.Nodes...)
}

// TestTwoAtOnce: one actor a machine: of two that are started together one does it, the other waits or says that it is
// busy, and there is one order.
func TestTwoAtOnce(t *testing.T) {
	l := newLab(t, lab.Options{})
	one, err := l.Nodes[0].StartCertsync("issue", name)
	if err != nil {
		t.Fatal(err)
	}
	two, err := l.Nodes[0].StartCertsync("issue", name)
	if err != nil {
		t.Fatal(err)
	}
	a, b := one.Wait(), two.Wait()
	if a.Code != 0 && b.Code != 0 {
		t.Errorf("neither did it:\n%s%s", a.Stderr, b.Stderr)
	}
	wantServed(t, newest(t, l), l.Nodes...)
	if n := l.CA.Counts(); n.Orders > 2 || n.Orders != n.Certificates {
		t.Errorf("%d orders for %d certificates", n.Orders, n.Certificates)
	}
	wantNoTXT(t, l)
}
