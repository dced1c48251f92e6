// Package cluster holds the nouns that the nodes share: roles, orders, the ledger, accounts, releases, what a node
// tells of itself, and the report of a pass, with the rules by which two nodes' records are merged. It is floor 0 of
// the house: pure values and functions, no input or output, the time always an argument. Merges are commutative,
// associative and idempotent, so that any order of arrival gives the same result on every node.
package cluster
