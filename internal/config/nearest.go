package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// keysOf are the keys of a mapping and the types of their values.
func keysOf(t reflect.Type) map[string]reflect.Type {
	keys := map[string]reflect.Type{}
	for i := range t.NumField() {
		if key := t.Field(i).Tag.Get("yaml"); key != "" {
			keys[key] = t.Field(i).Type
		}
	}
	return keys
}

// Keys lists every option of the schema, sorted: nodes[].name, acme.eab.key_id and so on.
func Keys() []string {
	var out []string
	walkKeys(reflect.TypeFor[Config](), "", func(path string) { out = append(out, path) })
	slices.Sort(out)
	return out
}

func walkKeys(t reflect.Type, path string, each func(path string)) {
	for key, value := range keysOf(t) {
		at := join(path, key)
		each(at)
		if value.Kind() == reflect.Slice {
			value, at = value.Elem(), at+"[]"
		}
		if value.Kind() == reflect.Struct && !isScalar(value) {
			walkKeys(value, at, each)
		}
	}
}

// nearest is the end of a message on an unknown key of t: the key of t that was probably meant, else the place where
// such a key does stand, else all keys of t.
func nearest(key string, t reflect.Type) string {
	best, distance := "", 0
	known := make([]string, 0, t.NumField())
	for k := range keysOf(t) {
		known = append(known, k)
	}
	slices.Sort(known)
	for _, k := range known {
		if n := editDistance(strings.ToLower(key), k); best == "" || n < distance {
			best, distance = k, n
		}
	}
	if distance <= max(2, len(key)/3) {
		return fmt.Sprintf("; the nearest is %q", best)
	}
	if elsewhere := slices.DeleteFunc(Keys(), func(path string) bool { return !strings.HasSuffix(path, "."+key) }); len(elsewhere) > 0 {
		return fmt.Sprintf("; did you mean %s?", strings.Join(elsewhere, " or "))
	}
	return fmt.Sprintf("; the nearest is %q (known here: %s)", best, strings.Join(known, ", "))
}

// editDistance is the number of letters to add, drop, exchange, or swap with the next one, to make b of a (the optimal
// string alignment distance). Only the first 80 bytes count: no key is that long.
func editDistance(a, b string) int {
	a, b = a[:min(len(a), 80)], b[:min(len(b), 80)]
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := last[j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			row[j] = min(last[j]+1, row[j-1]+1, change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
