// Package acme obtains certificates from an ACME CA (RFC 8555) by DNS-01. It is the only package that imports lego,
// of which it uses the wire protocol (acme/api) and the DNS providers, and not the solver: that one waits for seconds
// where nothing needs waiting for, and cannot be stopped, resumed or fenced between two steps.
//
// Use a Client where an account is to be registered, an order driven to its certificate, an order's TXT values removed,
// or the CA asked when a certificate should be renewed (RFC 9773). An order is driven step by step, and before each step that changes something at the CA or in the DNS the
// caller's checkpoint is asked, which stores the order and may end the work. So an order whose driver was killed is
// taken up again, by any node that has its record, and not repeated; it is never finalised with another key than the
// one recorded with it. The package itself stores and logs nothing.
//
// Failpoints (package failpoint) stand after each step's effect and before anything is known of it: acme.registered,
// acme.ordered, acme.presented, acme.answered, acme.finalized, acme.downloaded, acme.cleaned.
//
// Decisions:
//   - The terms of service are agreed to when an account is registered: whoever configures the CA has to have read them.
//   - A certificate request holds the names as SANs, lower-case and sorted, and no CN; a CA that wants one adds it.
//   - A CNAME from _acme-challenge.NAME is followed.
//   - lego keeps its resolvers, and providers read their settings from the environment, in state of the whole process.
//     Both are set under locks, so that certificates with different settings do not disturb each other.
package acme
