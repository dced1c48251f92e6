package carp

// What the writing calls give besides the numbers that the readers know (sys/errno.h).
const (
	eintr       errno = 4
	enoprotoopt errno = 42
	enetdown    errno = 50
)
