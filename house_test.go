// Package certsync_test holds the rule of the house: imports run downward only, and adapters never import one another.
package certsync_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// floors says on which floor each package stands; a package that is not listed here fails the test, so that a new one
// gets its place. A test helper of a package (…test) stands on its floor.
var floors = map[string]int{
	"internal/cert": 0, "internal/cert/certtest": 0, "internal/cluster": 0, "internal/failpoint": 0, "internal/fileid": 0,
	"internal/acme": 1, "internal/acme/providers": 1, "internal/store": 1, "internal/haproxy": 1, "internal/haproxy/haconf": 1, "internal/haproxy/haproxytest": 1,
	"internal/distribute": 1, "internal/carp": 1, "internal/config": 1, "internal/notify": 1,
	"internal/reconcile": 2, "internal/alarm": 2, "internal/bootstrap": 2, "internal/bootstrap/bootstraptest": 2, "internal/bootstrap/sysfile": 2,
	"internal/daemon": 3,
	"internal/lab":    4,
	"internal/web":    1,
	"demo":            5, "e2e": 5, "bench": 5, "cmd/certsync": 5,
	"configs": 5,
}

// labUsers are the packages that may import the lab outside tests.
var labUsers = map[string]bool{"demo": true, "e2e": true, "bench": true}

type listed struct {
	ImportPath string
	Imports    []string
}

func TestImportsRunDownwardOnly(t *testing.T) {
	for _, p := range goList(t) {
		from := strings.TrimPrefix(p.ImportPath, "certsync/")
		if p.ImportPath == "certsync" {
			continue
		}
		floor, ok := floors[from]
		if !ok {
			t.Errorf("%s has no floor: give it its place in floors, and in docs/architecture.md", from)
			continue
		}
		for _, imported := range p.Imports {
			to, ours := strings.CutPrefix(imported, "certsync/")
			if !ours || sameHouse(from, to) {
				continue
			}
			switch {
			case floors[to] > floor:
				t.Errorf("%s (floor %d) imports %s (floor %d): imports run downward only", from, floor, to, floors[to])
			case floors[to] == floor && floor == 1:
				t.Errorf("%s imports %s: adapters never import one another", from, to)
			case to == "internal/lab" && !labUsers[from]:
				t.Errorf("%s imports the lab: only demo, e2e, bench and tests may", from)
			}
		}
	}
}

// sameHouse tells that one package lies in the other's folder, as internal/acme/providers in internal/acme.
func sameHouse(a, b string) bool {
	return strings.HasPrefix(a, b+"/") || strings.HasPrefix(b, a+"/")
}

func TestOnlyAcmeImportsLego(t *testing.T) {
	for _, p := range goList(t) {
		for _, imported := range p.Imports {
			if strings.HasPrefix(imported, "github.com/go-acme/lego/") && !strings.HasPrefix(p.ImportPath, "certsync/internal/acme") {
				t.Errorf("%s imports %s: only internal/acme may, so that the move to its next version is one package", p.ImportPath, imported)
			}
		}
	}
}

func goList(t *testing.T) []listed {
	t.Helper()
	out, err := exec.Command("go", "list", "-tags", "fewproviders", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	var all []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		all = append(all, p)
	}
	if len(all) < 10 {
		t.Fatalf("go list found %d packages: it looked in the wrong place", len(all))
	}
	return all
}
