// Package certtest makes certificates for tests: a certification authority in memory, and bundles issued by it with
// the names, dates, keys and chains that a test asks for. Nothing in it touches a disk or a network, and it does not
// import package testing, so that the lab and the demo can use it too. Production code never imports it.
package certtest
