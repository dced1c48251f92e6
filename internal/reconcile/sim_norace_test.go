//go:build !race

package reconcile

// raceDetector tells that the test runs with the race detector, many times slower.
const raceDetector = false
