package lab

import "testing"

// While the validator changes failed orders no request is served; validations that fail at once share the turn.
func TestValidatorTakesTheTurnWhileItFailsOrders(t *testing.T) {
	c := &CA{turn: make(chan struct{}, 1)}
	c.turn <- struct{}{}
	line := c.validatorTurn()
	want := func(free bool, when string) {
		t.Helper()
		if got := len(c.turn) == 1; got != free {
			t.Errorf("%s: the turn is free: %t, want %t", when, got, free)
		}
	}
	line("Starting 3 validations.")
	want(true, "before")
	line("authz a set INVALID by completed challenge c")
	want(false, "one fails")
	line("authz b set INVALID by completed challenge d")
	line("order o set INVALID by invalid authz a")
	want(false, "one of two is done")
	line("order p set INVALID by invalid authz b")
	want(true, "both are done")
}
