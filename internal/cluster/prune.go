package cluster

import "certsync/internal/cert"

// Leftover is what is with one HAProxy of a slot that is no longer configured.
type Leftover struct {
	Slot  cert.Slot `json:"slot"`
	Proxy string    `json:"proxy"`
	// File is the bundle's path.
	File string `json:"file"`
	// OnDisk tells that the file is there; Memory are HAProxy's names of the certificate; CrtList is the crt-list file of
	// the configuration where a line of it names the bundle.
	OnDisk  bool     `json:"on_disk"`
	Memory  []string `json:"memory,omitempty"`
	CrtList string   `json:"crt_list,omitempty"`
	// Removed tells that nothing of it is left. Error and Hint say why something is, or would be.
	Removed bool   `json:"removed"`
	Error   string `json:"error,omitempty"`
	Hint    string `json:"hint,omitempty"`
}

// PrunedSlot is a slot that is no longer configured: what there is of it on a node, and what became of that.
type PrunedSlot struct {
	Slot cert.Slot `json:"slot"`
	// Generations are those in the node's store, from the oldest to the newest.
	Generations []cert.Generation `json:"generations,omitempty"`
	Leftovers   []Leftover        `json:"leftovers,omitempty"`
	// Removed tells that nothing of the slot is left on the node.
	Removed bool `json:"removed"`
	// Error and Hint say why something of it stays, where no leftover does.
	Error string `json:"error,omitempty"`
	Hint  string `json:"hint,omitempty"`
}

// Pruning is what is no longer configured on one node.
type Pruning struct {
	Node string `json:"node"`
	// Done tells that it was to be removed, and not only to be told.
	Done  bool         `json:"done"`
	Slots []PrunedSlot `json:"slots"`
}
