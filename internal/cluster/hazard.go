package cluster

// Hazard is something on a node that is in nobody's way now and will be: at HAProxy's next start, or at the next change
// of a certificate. Certsync does not touch what is not its own: a person must.
type Hazard struct {
	// Proxy names the HAProxy that it concerns.
	Proxy string `json:"proxy"`
	// Path is the file or folder, "" where it is neither.
	Path string `json:"path,omitempty"`
	// Problem says what will go wrong and why; Hint is the mend.
	Problem string `json:"problem"`
	Hint    string `json:"hint,omitempty"`
}

// String is one line for a person, with the mend at its end.
func (h Hazard) String() string {
	s := h.Problem
	if h.Path != "" {
		s = h.Path + ": " + s
	}
	if h.Hint != "" {
		s += ": " + h.Hint
	}
	return s
}
