package store

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// maxName leaves room for a suffix under the 255 bytes that a file system allows.
const maxName = 200

// safeName tells whether name, which a peer may have chosen, is fit to be one element of a path.
func safeName(name string) bool {
	if name == "" || len(name) > maxName || name[0] == '.' {
		return false
	}
	for i := range len(name) {
		if !safeByte(name[i]) {
			return false
		}
	}
	return true
}

func safeByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-'
}

// printable is name, which anybody may have chosen, fit for a message and a file name.
func printable(name string) string {
	out := []byte(name)
	for i, c := range out {
		if !safeByte(c) && c != ' ' {
			out[i] = '_'
		}
	}
	return string(out[:min(len(out), 100)])
}

// checkSlot refuses a slot that is no place in the store.
func checkSlot(slot cert.Slot) error {
	if !safeName(slot.Name) {
		return fmt.Errorf("certificate name %.60q: only A-Z a-z 0-9 . _ - are allowed, at most %d, and no leading dot", slot.Name, maxName)
	}
	if slot.Algorithm != cert.ECDSA && slot.Algorithm != cert.RSA {
		return fmt.Errorf("certificate %s: algorithm %.20q is not %s or %s", slot.Name, string(slot.Algorithm), cert.ECDSA, cert.RSA)
	}
	return nil
}

// slotFolder is the folder of a slot that checkSlot took.
func slotFolder(slot cert.Slot) string {
	return filepath.Join(generationsName, slot.Name, string(slot.Algorithm))
}

// fileTime is how a file's name gives an instant, UTC.
const fileTime = "20060102T150405Z"

const bundleSuffix = ".pem"

// bundleFile is the name of a generation's file in its slot's folder: everything that a cert.Generation says besides
// the slot.
func bundleFile(g cert.Generation) string {
	return fmt.Sprintf("%020d-%s-%s-%s%s", g.Sequence, g.NotBefore.UTC().Format(fileTime), g.NotAfter.UTC().Format(fileTime),
		g.Fingerprint, bundleSuffix)
}

func bundlePath(g cert.Generation) string { return filepath.Join(slotFolder(g.Slot), bundleFile(g)) }

// parseBundleFile reads what bundleFile wrote; ok is false for any other name.
func parseBundleFile(slot cert.Slot, name string) (g cert.Generation, ok bool) {
	parts := strings.Split(strings.TrimSuffix(name, bundleSuffix), "-")
	if len(parts) != 4 {
		return cert.Generation{}, false
	}
	sequence, err := strconv.ParseUint(parts[0], 10, 64)
	if err != nil {
		return cert.Generation{}, false
	}
	notBefore, err := time.Parse(fileTime, parts[1])
	if err != nil {
		return cert.Generation{}, false
	}
	notAfter, err := time.Parse(fileTime, parts[2])
	if err != nil {
		return cert.Generation{}, false
	}
	g = cert.Generation{Slot: slot, Sequence: sequence, NotBefore: notBefore, NotAfter: notAfter}
	if err := g.Fingerprint.UnmarshalText([]byte(parts[3])); err != nil || g.IsZero() {
		return cert.Generation{}, false
	}
	// There is one spelling only: two files must not be one generation.
	return g, bundleFile(g) == name
}

const jsonSuffix = ".json"

func orderFile(o cluster.Order) string { return o.ID + jsonSuffix }

// accountFile has the directory in it, because one key may have accounts at several CAs.
func accountFile(a cluster.Account) string {
	sum := sha256.Sum256([]byte(a.Directory))
	return a.Thumbprint + "-" + hex.EncodeToString(sum[:8]) + jsonSuffix
}
