// Package carp tells the role of this node, and knows the calls that CARP is set up with. It is floor 1 of the house;
// reconcile's interface Roles is what it implements, and a role that cannot be told is cluster.Unknown with an error
// that says what to run, never MASTER.
//
// The role comes from one of three places. Auto reads it: on FreeBSD from the kernel, through a Kernel, and on Linux
// from who has the virtual addresses, as keepalived and ucarp leave them. It re-reads at every event and every second,
// and believes a MASTER only after the settle time. Static is what the configuration states, `carp.role: static:NODE`,
// for a single host, a test, or a failover by hand. On any other system there is none: errors.ErrUnsupported.
//
// # How FreeBSD is asked
//
// One vhid at a time, by generic netlink (family "carp", FreeBSD 14 and later), or by the ioctl SIOCGVH where the
// kernel has no netlink for carp (10 to 15). Never all at once: an unprivileged SIOCGVH of vhid 0 panics 13.2. An
// answer counts when it is whole, is for the vhid that was asked for, and tells one of the three states that carp(4)
// has. Reading needs no privilege; only root is told the password. The addresses of a vhid are in the routing table's
// list of interfaces (NET_RT_IFLISTL). ErrNoModule, ErrNoInterface, ErrNoCARP and fs.ErrNotExist (the interface has no
// such vhid) tell what is missing.
//
// A file with _freebsd or _linux in its name holds sockets and calls, bytes in and bytes out. All that decodes bytes
// or decides is portable, and tested on what kernels of 13.2 and 15.1 sent: testdata holds their answers with what
// they mean.
package carp
