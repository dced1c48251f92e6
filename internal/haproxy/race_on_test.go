//go:build race

package haproxy_test

// raced tells that the race detector is on: handshakes then take ten times as long.
const raced = true
