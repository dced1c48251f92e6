package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// record is the form of every JSON file of the store.
type record[T any] struct {
	Format int `json:"format"`
	Data   T   `json:"data"`
}

// encode is the one way of writing a value, so that equal bytes mean that nothing changed.
func encode(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return append(data, '\n'), nil
}

func encodeRecord[T any](v T) ([]byte, error) { return encode(record[T]{Format: Format, Data: v}) }

// errTorn is the cause where a file is no record.
var errTorn = errors.New("no whole record")

// errNewer is the cause where a file has what only a newer certsync can have written.
var errNewer = errors.New("a field that this certsync does not know")

// formatOf reads the format number of a JSON file.
func formatOf(data []byte) (int, error) {
	var f formatFile
	if err := json.Unmarshal(data, &f); err != nil {
		return 0, fmt.Errorf("%w: %s", errTorn, jsonCause(err))
	}
	if f.Format < 1 {
		return 0, fmt.Errorf("%w: no format number", errTorn)
	}
	return f.Format, nil
}

// decodeRecord reads what encodeRecord wrote, and tells the format of what another certsync wrote. A field that is not
// known is errNewer, and not passed over: it would be lost at the next write.
func decodeRecord[T any](data []byte) (v T, format int, err error) {
	var r record[T]
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	err = d.Decode(&r)
	if err == nil && r.Format == Format && len(bytes.TrimSpace(data[d.InputOffset():])) == 0 {
		return r.Data, Format, nil
	}
	if format, e := formatOf(data); e != nil || format > Format {
		return v, format, e
	}
	if err != nil && strings.HasPrefix(err.Error(), "json: unknown field ") {
		return v, Format, errNewer
	}
	return v, Format, fmt.Errorf("%w: %s", errTorn, jsonCause(err))
}

// jsonCause says what is wrong with a file without any of its bytes, which may be a key's.
func jsonCause(err error) string {
	if e, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Sprintf("broken JSON at byte %d", e.Offset)
	}
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Sprintf("field %q has the wrong type", e.Field)
	}
	return "a value that cannot be read"
}
