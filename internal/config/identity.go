package config

import (
	"fmt"
	"slices"
	"strings"

	"certsync/internal/cluster"
)

// Self is the node that this host is: the one that `node` names, else the entry of nodes with this host's name, or
// with its first label. Case does not count.
func (c *Config) Self(hostname string) (Node, error) {
	if c.Node != "" {
		hostname = c.Node
	}
	short, _, _ := strings.Cut(hostname, ".")
	for _, name := range []string{hostname, short} {
		i := slices.IndexFunc(c.Nodes, func(n Node) bool { return strings.EqualFold(n.Name, name) })
		if i >= 0 {
			return c.Nodes[i], nil
		}
	}
	err := fmt.Errorf("find this node in %s: no entry of nodes (%s) is called %q, as this host is", c.file, c.nodeNames(), hostname)
	return Node{}, cluster.WithHint(&usageError{err}, "give the entry of this host that name, or set node: to one of %s", c.nodeNames())
}

// Peers are the nodes other than self, in the order of the file.
func (c *Config) Peers(self string) []Node {
	return slices.DeleteFunc(slices.Clone(c.Nodes), func(n Node) bool { return n.Name == self })
}
