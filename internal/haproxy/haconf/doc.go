// Package haconf reads HAProxy's configuration as far as its certificates go: the ssl binds with their addresses and with
// what they load (`crt`, `crt-list`, crt-store), the stats sockets, and the few settings that change what those mean. Use
// it to learn which binds serve a file, and how they can be reached from this host.
//
// It follows the Configuration Manual (2.2 quoting and escaping, 2.3 environment variables, 2.4 conditional blocks, 5.1
// bind options, 11 address formats, and the section about crt-store) and, where the manual is silent, HAProxy's parser.
// It only reads files. What it cannot read or tell is a Problem, and the rest is read all the same: HAProxy judges its
// configuration, this package does not.
//
// HAProxy has no continuation of lines: a backslash at the end of a line stands for itself.
package haconf
