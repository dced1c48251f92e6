package cluster

import "fmt"

// Role is what CARP says of a node. Only Master may issue.
type Role int

// The roles. Unknown is the zero value: what is not known is never MASTER.
const (
	Unknown Role = iota
	Init
	Backup
	Master
)

var roleNames = [...]string{"UNKNOWN", "INIT", "BACKUP", "MASTER"}

// String is the field's spelling: MASTER, BACKUP, INIT or UNKNOWN.
func (r Role) String() string {
	if r < 0 || int(r) >= len(roleNames) {
		return roleNames[Unknown]
	}
	return roleNames[r]
}

// MarshalText implements encoding.TextMarshaler.
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (r *Role) UnmarshalText(text []byte) error {
	for i, name := range roleNames {
		if name == string(text) {
			*r = Role(i)
			return nil
		}
	}
	return fmt.Errorf("role %.20q: not MASTER, BACKUP, INIT or UNKNOWN", text)
}

// Seen is one reading of the role.
type Seen struct {
	Role Role `json:"role"`
	// Master names the node that is MASTER, where the source knows it ("" where it does not).
	Master string `json:"master,omitempty"`
}
