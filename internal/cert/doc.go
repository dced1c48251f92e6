// Package cert holds what certsync means by a certificate: bundles (leaf, chain and key as one PEM), their
// fingerprints, and the order of generations. It is floor 0 of the house: it imports nothing of certsync, does no
// input or output, and takes the time as an argument. Use it wherever a bundle is read from, or handed to, something
// that is not trusted: a file, a peer, a CA.
package cert
