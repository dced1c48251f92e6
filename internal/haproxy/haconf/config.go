package haconf

import (
	"fmt"
	"net/netip"
	"strings"
)

// Config is what was read.
type Config struct {
	// Files are the configuration files in the order in which HAProxy reads them, folders expanded.
	Files []string
	// Sources are all files and folders that were read, or that could not be: where none of them changed, to read again
	// gives the same.
	Sources []string
	// Binds are the bind lines of all sections, in order.
	Binds []*Bind
	// Lists are the crt-lists that binds name.
	Lists []*List
	// Stored are the certificates of the crt-stores.
	Stored []Stored
	// Sockets are the stats sockets of the global sections.
	Sockets []Socket
	// Chroot is where HAProxy shuts itself in once it has started, "" for nowhere. Files and sockets are opened before.
	Chroot string
	// MasterWorker tells that the configuration asks for the master-worker mode, as -W does.
	MasterWorker bool
	// Bufsize is tune.bufsize in bytes, 0 where it is not set.
	Bufsize int
	// Variables tells that the text has environment variables that it does not set itself.
	Variables bool
	// Problems are what could not be read or told.
	Problems []Problem
}

// Problem is what could not be read or told, and where.
type Problem struct {
	File string `json:"file"`
	// Line is 0 where the whole file is meant.
	Line int    `json:"line,omitempty"`
	Text string `json:"text"`
}

func (p Problem) String() string {
	if p.Line == 0 {
		return p.File + ": " + p.Text
	}
	return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Text)
}

// Section is where a bind line stands.
type Section struct {
	// Kind is frontend, listen, peers, log-forward, ...
	Kind string
	// Name is "" where the section has none.
	Name string
	// Disabled tells that the section, or the defaults that it takes, say so: its binds are not opened.
	Disabled bool
	// Guarded tells that rules of tcp-request may refuse a connection, or expect a PROXY header of it, for reasons that
	// cannot be told from here: where it comes from, how many there are.
	Guarded bool
	// proxied tells that every connection has to begin with a PROXY header: tcp-request connection expect-proxy.
	proxied bool
	binds   []*Bind
}

func (s *Section) String() string { return strings.TrimSpace(s.Kind + " " + s.Name) }

// Bind is a bind line.
type Bind struct {
	*Section
	File      string
	Line      int
	Addresses []Address
	SSL       bool
	// Crts are what `crt` and `default-crt` name, in order.
	Crts []Crt
	// Lists are what `crt-list` names, and the one of the section's ssl-f-use lines.
	Lists []*List
	// AcceptProxy tells that connections must begin with a PROXY header; NetScaler, with one of that other protocol.
	AcceptProxy, NetScaler bool
	// V4V6 tells that `::` takes IPv4 too.
	V4V6 bool
	// Transparent tells that the addresses need not be the host's.
	Transparent bool
	StrictSNI   bool
	// Interface and Namespace, where not "", are the only ones from which it can be reached.
	Interface, Namespace string
	// ClientCertificate is `verify`: "", none, optional or required.
	ClientCertificate string
	// NoTLS12 tells that TLS 1.2 is ruled out, so that the family of the certificate cannot be chosen by the client's suites.
	NoTLS12 bool
	// Maybe tells that the line stands in a conditional block and that the condition is not known.
	Maybe bool
	// Arguments are the words that make a bind show the same certificates: ssl, crt, crt-list, default-crt.
	Arguments []string
}

// Crt is a file, folder or stored certificate that is to be loaded.
type Crt struct {
	// Name is HAProxy's name of it: crt-base is in front of what is relative, and @STORE/ALIAS stands for itself. That of
	// a folder has no slash at its end.
	Name string
	// Path is the file or folder, "" for @STORE/ALIAS; relative where the folder that it begins at is not known.
	Path string
}

// Stored is a certificate of a crt-store.
type Stored struct {
	// Name is what binds call it: @STORE/ALIAS, or the path for one without both.
	Name string
	// Path is the file; relative where the folder that it begins at is not known.
	Path string
}

// Socket is a stats socket.
type Socket struct {
	Address Address
	// Level is user, operator (where none is given) or admin.
	Level string
	// ExposeFD tells that a new process may take over the listening sockets.
	ExposeFD bool
	File     string
	Line     int
}

// Kind is what an address is for.
type Kind string

// The kinds of addresses. Only TCP and Unix can be connected to by any program.
const (
	TCP        Kind = "tcp"
	Unix       Kind = "unix"
	Abstract   Kind = "abns"
	Descriptor Kind = "fd"
	SocketPair Kind = "sockpair"
	QUIC       Kind = "quic"
	Datagram   Kind = "dgram"
	Reverse    Kind = "rhttp"
)

// Address is one of a bind line's.
type Address struct {
	// Text is what is written, environment variables replaced.
	Text string
	Kind Kind
	// IP is unspecified (0.0.0.0 or ::) for all addresses, and invalid where Host is set.
	IP netip.Addr
	// Host is a name that HAProxy looks up at its start.
	Host string
	// Port and LastPort are the range of ports, mostly the same one.
	Port, LastPort int
	// Path is that of a unix socket, with `unix-bind prefix` in front.
	Path string
}

func (a Address) String() string { return a.Text }
