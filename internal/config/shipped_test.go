package config

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

const shippedPath = "../../configs/certsync.yaml"

// shippedKeys reads the shipped file as YAML and gives the node of each key by its path, list indexes as "[]"; of a
// list, the first entry in which the key stands.
func shippedKeys(t *testing.T) map[string]*yaml.Node {
	t.Helper()
	data, err := os.ReadFile(shippedPath)
	if err != nil {
		t.Fatal(err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	out := map[string]*yaml.Node{}
	collectKeys(doc.Content[0], "", out)
	return out
}

func collectKeys(n *yaml.Node, path string, out map[string]*yaml.Node) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i < len(n.Content); i += 2 {
			at := join(path, n.Content[i].Value)
			if out[at] == nil {
				out[at] = n.Content[i]
			}
			collectKeys(n.Content[i+1], at, out)
		}
	case yaml.SequenceNode:
		for _, item := range n.Content {
			collectKeys(item, path+"[]", out)
		}
	}
}

func TestShippedConfigurationIsValid(t *testing.T) {
	c, err := Load(shippedPath)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.VHIDsOf(c.Nodes[1]); len(got) != 2 || got[0].Interface != "igb0" || got[1].ID != 2 {
		t.Errorf("vhids of the second node: %+v", got)
	}
	if got := c.Certificates[1].DNS.Resolvers; !slices.Equal(got, []string{"192.0.2.53:53", "[2001:db8::53]:53"}) {
		t.Errorf("resolvers of the second certificate: %q", got)
	}
}

func TestShippedConfigurationHasEveryKey(t *testing.T) {
	shipped := shippedKeys(t)
	for _, key := range Keys() {
		if shipped[key] == nil {
			t.Errorf("%s is not in %s", key, shippedPath)
		}
	}
	if len(Keys()) < 40 {
		t.Errorf("the schema has only %d keys: %q", len(Keys()), Keys())
	}
}

var statedDefault = regexp.MustCompile(`(?m)^# Default: (.+?)(?: \(.*\))?$`)

func TestShippedConfigurationStatesTheDefaultsOfTheCode(t *testing.T) {
	defaults := map[string]string{}
	flatten("", reflect.ValueOf(*Default()), defaults)
	flatten("nodes[]", reflect.ValueOf(defaultNode()), defaults)
	flatten("carp.vhids[]", reflect.ValueOf(defaultVHID()), defaults)
	flatten("certificates[]", reflect.ValueOf(Certificate{}), defaults)
	flatten("haproxy[]", reflect.ValueOf(defaultHAProxy()), defaults)
	required := []string{"nodes[].name", "nodes[].address", "dns.provider", "certificates[].name", "certificates[].domains",
		"carp.vhids[].interface", "carp.vhids[].vhid", "carp.vhids[].addresses"}

	shipped := shippedKeys(t)
	for key, want := range defaults {
		if strings.HasPrefix(key, "certificates[].dns.") {
			continue // those of dns
		}
		comment := shipped[key].HeadComment
		stated := statedDefault.FindStringSubmatch(comment)
		switch isRequired := strings.Contains(comment, "\n# Required") || strings.HasPrefix(comment, "# Required"); {
		case slices.Contains(required, key):
			if !isRequired || stated != nil {
				t.Errorf("%s is required, but its comment is %q", key, comment)
			}
		case stated == nil || isRequired:
			t.Errorf("%s has a default, but its comment is %q", key, comment)
		default:
			if got := flatYAML(t, stated[1]); got != want {
				t.Errorf("%s: the comment says that the default is %s, the code %s", key, got, want)
			}
		}
	}
}

// flatYAML gives the value that a comment states in the form of flatten.
func flatYAML(t *testing.T, text string) string {
	t.Helper()
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatalf("stated default %q: %v", text, err)
	}
	var value any = doc.Content[0].Value
	if n := doc.Content[0]; n.Kind == yaml.SequenceNode {
		list := []string{}
		for _, item := range n.Content {
			list = append(list, item.Value)
		}
		value = list
	} else if n.Kind == yaml.MappingNode && len(n.Content) == 0 {
		value = map[string]string{}
	} else if duration, err := time.ParseDuration(text); err == nil && text != "0" {
		value = duration // 2m is 2m0s to the code
	}
	out := map[string]string{}
	flatten("", reflect.ValueOf(value), out)
	return out[""]
}
