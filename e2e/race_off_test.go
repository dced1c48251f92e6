//go:build !race

package e2e

// raced tells that the race detector is on: the clients then cannot make 500 handshakes a second on two cores.
const raced = false
