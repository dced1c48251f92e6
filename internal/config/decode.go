package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// maxValues bounds what aliases can blow a small file up to.
const maxValues = 200_000

// decoder walks a YAML tree beside the structs of this package, whose yaml tags are the schema.
type decoder struct {
	file   string
	config *Config
	errs   Errors
	// lines has the line of each option that the file has; bad those already told to be wrong.
	lines   map[string]int
	bad     map[string]bool
	dropped bool
	values  int
}

// document gives the root of the one YAML document in data, or nil after an error.
func (d *decoder) document(data []byte) *yaml.Node {
	if len(data) > MaxSize {
		d.failAt(0, "", "larger than %d KiB", MaxSize>>10)
		return nil
	}
	if line := notText(data); line > 0 {
		d.failAt(line, "", "not UTF-8 text")
		return nil
	}
	in := yaml.NewDecoder(bytes.NewReader(data))
	var first, second yaml.Node
	if err := in.Decode(&first); err != nil && !errors.Is(err, io.EOF) {
		d.syntax(err, data)
		return nil
	}
	if len(first.Content) == 0 || isNull(first.Content[0]) {
		d.failAt(1, "", "empty: configs/certsync.yaml explains every option")
		return nil
	}
	switch err := in.Decode(&second); {
	case errors.Is(err, io.EOF):
		return first.Content[0]
	case err != nil:
		d.syntax(err, data)
	default:
		d.failAt(second.Line, "", "a second YAML document (after `---`): the configuration is one")
	}
	return nil
}

// notText is the line of the first byte that is not UTF-8, or is a control character, or 0. The parser finds them too,
// but does not say where.
func notText(data []byte) int {
	line := 1
	for len(data) > 0 {
		r, size := utf8.DecodeRune(data)
		switch {
		case r == utf8.RuneError && size == 1, r < ' ' && r != '\t' && r != '\r' && r != '\n', r == 0x7f:
			return line
		case r == '\n':
			line++
		}
		data = data[size:]
	}
	return 0
}

var (
	yamlLine   = regexp.MustCompile(`^line (\d+): `)
	yamlAnchor = regexp.MustCompile(`^unknown anchor '([A-Za-z0-9_-]+)' referenced`)
	// yamlParser are the errors of the library's parser. It counts their lines from 0, and those of its scanner from 1.
	yamlParser = regexp.MustCompile(`^(did not find expected ('|<|key|node content)|found (duplicate %|incompatible|undefined))`)
)

// syntax tells an error of the YAML library in our form.
func (d *decoder) syntax(err error, data []byte) {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1 // the library leaves out its line 0
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		text = text[len(m[0]):]
		if yamlParser.MatchString(text) {
			line++
		}
	} else if m := yamlAnchor.FindStringSubmatch(text); m != nil {
		before, _, _ := bytes.Cut(data, []byte("*"+m[1]))
		line += bytes.Count(before, []byte("\n"))
	}
	d.failAt(line, "", "not YAML: %s", text)
}

// value reads n, the option at path, which begins on line, into v, which holds the default.
func (d *decoder) value(n *yaml.Node, line int, path string, v reflect.Value) {
	if d.values++; d.values > maxValues {
		if d.values == maxValues+1 {
			d.failAt(line, path, "more than %d values: aliases that multiply", maxValues)
		}
		return
	}
	d.lines[path] = line
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return // `key:` with nothing after it: the default
	}
	switch kind := v.Kind(); {
	case kind == reflect.Struct && !isScalar(v.Type()):
		d.mapping(n, path, v)
	case kind == reflect.Map:
		d.names(n, path, v)
	case kind == reflect.Slice:
		d.sequence(n, path, v)
	default:
		d.scalar(n, path, v)
	}
}

func (d *decoder) mapping(n *yaml.Node, path string, v reflect.Value) {
	if n.Kind != yaml.MappingNode {
		d.failf(path, "want keys with values, found %s", kindOf(n))
		return
	}
	known := keysOf(v.Type())
	type pair struct{ key, value *yaml.Node }
	given := map[string]pair{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if d.dropped {
			return
		}
		key, value := n.Content[i], n.Content[i+1]
		first, twice := given[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode:
			d.failAt(key.Line, path, "want a plain key, found %s", kindOf(key))
		case key.Tag == "!!merge":
			d.failAt(key.Line, path, "merge keys (<<) are not read: write the values out")
		case known[key.Value] == nil:
			d.failAt(key.Line, path, "unknown key %.80q%s", key.Value, nearest(key.Value, v.Type()))
		case twice:
			d.failAt(key.Line, join(path, key.Value), "given twice, first on line %d", first.key.Line)
		default:
			given[key.Value] = pair{key, value}
		}
	}
	// In the order of the struct and not of the file: certificates take their defaults from acme and dns.
	for i := range v.NumField() {
		key := v.Type().Field(i).Tag.Get("yaml")
		if p, ok := given[key]; ok {
			d.value(p.value, p.key.Line, join(path, key), v.Field(i))
		}
	}
}

// isScalar tells the structs that are one value to YAML.
func isScalar(t reflect.Type) bool { return t == reflect.TypeFor[netip.Prefix]() }

// names reads keys that the user chooses, each with a text: a map[string]string.
func (d *decoder) names(n *yaml.Node, path string, v reflect.Value) {
	if n.Kind != yaml.MappingNode {
		d.failf(path, "want keys with values, found %s", kindOf(n))
		return
	}
	out := reflect.MakeMap(v.Type())
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, text := n.Content[i], reflect.New(v.Type().Elem()).Elem()
		at := join(path, key.Value)
		switch {
		case key.Kind != yaml.ScalarNode || key.Tag == "!!merge" || !printable(key.Value):
			d.failAt(key.Line, path, "want a plain key, found %s", kindOf(key))
		case out.MapIndex(reflect.ValueOf(key.Value)).IsValid():
			d.failAt(key.Line, at, "given twice")
		default:
			d.value(n.Content[i+1], key.Line, at, text)
			out.SetMapIndex(reflect.ValueOf(key.Value), text)
		}
	}
	v.Set(out)
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func (d *decoder) sequence(n *yaml.Node, path string, v reflect.Value) {
	if n.Kind != yaml.SequenceNode {
		d.failf(path, "want a list, found %s", kindOf(n))
		return
	}
	out := reflect.MakeSlice(v.Type(), 0, len(n.Content))
	for i, item := range n.Content {
		at := fmt.Sprintf("%s[%d]", path, i)
		element := reflect.New(v.Type().Elem()).Elem()
		d.prefill(element)
		d.value(item, item.Line, at, element)
		if element.Kind() != reflect.Struct && isNull(item) {
			d.failf(at, "nothing there")
		}
		out = reflect.Append(out, element)
		if d.values > maxValues {
			break
		}
	}
	v.Set(out)
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// prefill gives a list's new entry its defaults.
func (d *decoder) prefill(v reflect.Value) {
	switch entry := v.Addr().Interface().(type) {
	case *Node:
		*entry = defaultNode()
	case *HAProxy:
		*entry = defaultHAProxy()
	case *VHID:
		*entry = defaultVHID()
	case *Certificate:
		entry.DNS = d.config.DNS
		entry.DNS.Resolvers = slices.Clone(entry.DNS.Resolvers)
	}
}

func (d *decoder) scalar(n *yaml.Node, path string, v reflect.Value) {
	if n.Kind != yaml.ScalarNode || !setScalar(n, v) {
		d.failf(path, "want %s, found %s", wanted(v), kindOf(n))
	}
}

// wanted names the type of v for a reader.
func wanted(v reflect.Value) string {
	switch v.Addr().Interface().(type) {
	case *time.Duration:
		return "a duration with a unit, such as 90s or 2m"
	case *bool:
		return "true or false"
	case *int:
		return "a whole number"
	case *netip.Prefix:
		return "an address with its prefix length, such as 192.0.2.10/32"
	}
	return "text"
}

// setScalar tells whether the scalar is of the type of v.
func setScalar(n *yaml.Node, v reflect.Value) bool {
	tag := n.ShortTag()
	switch target := v.Addr().Interface().(type) {
	case *time.Duration:
		value, err := time.ParseDuration(n.Value)
		*target = value
		return err == nil
	case *bool:
		*target = strings.EqualFold(n.Value, "true") // YAML has True and TRUE too
		return tag == "!!bool"
	case *int:
		value, err := strconv.Atoi(n.Value)
		*target = value
		return err == nil && tag == "!!int"
	case *netip.Prefix:
		value, err := netip.ParsePrefix(n.Value)
		*target = value
		return err == nil
	}
	// A number or a date is taken as it is written: a key ID may look like one.
	v.SetString(n.Value)
	return tag == "!!str" || tag == "!!int" || tag == "!!float" || tag == "!!timestamp"
}

// kindOf names what stands there without quoting it: it could be a secret in the wrong place.
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "keys with values"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	switch tag := n.ShortTag(); tag {
	case "!!str":
		return "text"
	case "!!bool":
		return "true or false (in quotes it is text)"
	case "!!int", "!!float":
		return "a number"
	case "!!null":
		return "nothing"
	default:
		return fmt.Sprintf("a value with the tag %.40q", tag)
	}
}
