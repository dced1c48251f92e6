// Package haproxytest gives tests a HAProxy: the real ones that scripts/deps.sh installs, and a stateful fake that reads
// the same configuration, answers on the same runtime socket and serves TLS from the same memory. Use the fake for what
// a real HAProxy will not do on demand, and both for everything else.
package haproxytest
