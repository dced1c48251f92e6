package lab

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// FingerprintOf is that of a certificate, such as one of CA.Leaves.
func FingerprintOf(c *x509.Certificate) cert.Fingerprint { return sha256.Sum256(c.Raw) }

// ParseReport finds the report in what `certsync issue --json` printed: JSON lines, the report last.
func ParseReport(stdout []byte) (cluster.Report, error) {
	lines := bytes.Split(bytes.TrimSpace(stdout), []byte("\n"))
	var last struct {
		Type   string
		Report cluster.Report
	}
	if err := json.Unmarshal(lines[len(lines)-1], &last); err != nil {
		return cluster.Report{}, fmt.Errorf("report: %w", err)
	}
	if last.Type != "report" {
		return cluster.Report{}, errors.New("report: the last line is none")
	}
	return last.Report, nil
}

// ParseStatus reads what `certsync status --json` printed.
func ParseStatus(stdout []byte) ([]cluster.NodeStatus, error) {
	var status struct{ Nodes []cluster.NodeStatus }
	if err := json.Unmarshal(stdout, &status); err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	return status.Nodes, nil
}
