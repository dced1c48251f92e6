// Package distribute lets the nodes of the pair talk: one HTTP/JSON API under /v1/, spoken over sessions of the system's
// sshd. It is an adapter (floor 1): use NewPeer to ask another node, NewHandler to answer one, and ServeConn, Join,
// Listen and Serve to put the handler where a peer's SSH session can reach it.
//
// # Who asks, and how
//
// A peer enters by SSH with a key whose forced command is `certsync serve-peer --node NAME`. That process joins the
// session to the daemon's peer.sock (Join), or answers by itself where no daemon runs (ServeConn). Standard input and
// output of the session carry HTTP, one connection a session; there is no framing of our own. The calling node is the
// one that the SSH key belongs to: it stands in the header Certsync-Node, which serve-peer overwrites, whatever the peer
// sent.
//
//	GET  /v1/inventory          what the node holds
//	POST /v1/generations/fetch  a JSON list of generations in, a tar of them out
//	PUT  /v1/generations        a tar of generations in, one result for each out
//	PUT  /v1/records            accounts, orders, ledger, tombstones, releases, renewals to be merged
//	POST /v1/release            activate what is held; where it then stands comes back
//	GET  /v1/status             where the node's certificates stand
//	GET  /v1/carp               what the node sees of its virtual addresses
//
// Nothing else is answered: a peer cannot issue, revoke, roll back or configure.
//
// # Versions
//
// Each side names its API version (cluster.API) in the header Certsync-Api. Versions N and N-1 work together: JSON
// fields that are not known are ignored. A peer further away is refused on both sides before any state is read.
//
// # What is checked here, and what is not
//
// Both sides treat what arrives as hostile: sizes, counts, names, the form of every record and of the tar; each bundle
// is parsed again, its key and chain must belong together, and it must be the generation that it is said to be
// (fingerprint, dates, algorithm). Names in the tar are never used as paths. What needs state or configuration is the
// Local's to check: domains, the chain to a trusted root, the order of generations, jumps of the sequence, tombstones.
package distribute
