package cluster

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
)

// Secret holds bytes that may be stored and sent to a peer, but never printed: every way of formatting or logging it
// says "[redacted]". JSON is how state is stored and sent, so MarshalJSON does give the bytes (base64).
// Two things to keep to: a struct holds a Secret in an exported field (fmt and slog do not ask an unexported one), and a
// slog handler that writes JSON is given the nouns of this package or a Secret by itself, not a map or slice of them.
type Secret []byte

// String implements fmt.Stringer without the bytes.
func (Secret) String() string { return "[redacted]" }

// Format covers every verb of fmt, %x and %#v too.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[redacted]") }

// LogValue covers slog.
func (Secret) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// MarshalJSON is base64, as for any bytes.
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal([]byte(s)) }

// UnmarshalJSON reads what MarshalJSON wrote.
func (s *Secret) UnmarshalJSON(data []byte) error {
	var b []byte
	if err := json.Unmarshal(data, &b); err != nil {
		// The cause could quote the input.
		return fmt.Errorf("secret of %d bytes is not base64", len(data))
	}
	*s = b
	return nil
}
