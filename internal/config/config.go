package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"syscall"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

// DefaultPath is where the configuration is looked for when no -c is given.
const DefaultPath = "/usr/local/etc/certsync/certsync.yaml"

// MaxSize is the largest configuration file that is read, in bytes: room for tens of thousands of certificates.
const MaxSize = 4 << 20

// Config is a configuration that was found sound: defaults are filled in, domains and host names are lower-case, paths
// are absolute and clean. It is the same on every node.
type Config struct {
	// Node names this node; "" means the entry of Nodes that has this host's name (see Self).
	Node  string `yaml:"node"`
	Nodes []Node `yaml:"nodes"`
	ACME  ACME   `yaml:"acme"`
	DNS   DNS    `yaml:"dns"`
	// Certificates has at least one entry.
	Certificates []Certificate `yaml:"certificates"`
	// HAProxy has one entry for each HAProxy of a node, and at least one.
	HAProxy []HAProxy `yaml:"haproxy"`
	CARP    CARP      `yaml:"carp"`
	SSH     SSH       `yaml:"ssh"`
	Renew   Renew     `yaml:"renew"`
	// Listen is the loopback address and port of the status page, the metrics and /healthz; "" for none.
	Listen string `yaml:"listen"`
	// StateDir holds the durable state of this node.
	StateDir string `yaml:"state_dir"`
	// RunDir holds the two sockets.
	RunDir string `yaml:"run_dir"`
	// Notify are URLs of notification services, which are secrets, and file:PATH for files of such; NotifyURLs gives all.
	Notify []string `yaml:"notify"`

	file string
}

// Node is a host of the pair.
type Node struct {
	Name string `yaml:"name"`
	// Address is an IP address or a host name, without a port.
	Address string `yaml:"address"`
	// Port is that of the node's SSH server.
	Port int `yaml:"port"`
	// AdvSkew is the node's place in the order of succession, 0 to 254, in 1/256 seconds: the lowest is MASTER.
	AdvSkew int `yaml:"advskew"`
	// Interfaces gives the node's own names of the interfaces in carp.vhids, where they differ.
	Interfaces map[string]string `yaml:"interfaces"`
}

// ACME is the CA and the account with it.
type ACME struct {
	// Directory is a name that DirectoryURL knows, or an https URL.
	Directory string `yaml:"directory"`
	// Staging is the same for --dry-run; "" where no staging directory is known.
	Staging string `yaml:"staging"`
	Email   string `yaml:"email"`
	// KeyTypes has at most one of each Algorithm.
	KeyTypes []cert.KeyType `yaml:"key_types"`
	Profile  string         `yaml:"profile"`
	// CAFile holds the roots, in PEM, that a private CA's server and chains lead to, beside the system's; "" means the
	// system's alone.
	CAFile string `yaml:"ca_file"`
	EAB    EAB    `yaml:"eab"`
}

// EAB is an external account binding (RFC 8555 section 7.3.4): both fields are set, or none.
type EAB struct {
	KeyID string `yaml:"key_id"`
	// HMACKeyFile holds the key in base64url; ReadSecret reads it.
	HMACKeyFile string `yaml:"hmac_key_file"`
}

// DNS is where TXT records are written.
type DNS struct {
	// Provider is the name of one of lego's providers.
	Provider string `yaml:"provider"`
	// EnvFile holds the provider's settings and credentials; ReadEnvFile reads it. "" means that it needs none.
	EnvFile string `yaml:"env_file"`
	// Resolvers are asked by the propagation check, as host:port; none means the zone's own name servers.
	Resolvers   []string    `yaml:"resolvers"`
	Propagation Propagation `yaml:"propagation"`
}

// Propagation is the wait for a TXT record to be seen.
type Propagation struct {
	// Check turns the check on.
	Check    bool          `yaml:"check"`
	Timeout  time.Duration `yaml:"timeout"`
	Interval time.Duration `yaml:"interval"`
	// Sequence is waited between two values at one name, for a provider that can hold only one value there.
	Sequence time.Duration `yaml:"sequence"`
}

// Certificate is one to be obtained and served.
type Certificate struct {
	// Name is that of its files, unique also where case is ignored.
	Name string `yaml:"name"`
	// Domains are lower-case, without a trailing dot, in the order of the file.
	Domains []string `yaml:"domains"`
	// KeyTypes has at most one of each Algorithm; one bundle is made for each.
	KeyTypes []cert.KeyType `yaml:"key_types"`
	// Bundle is a path of its own for the bundle; "" means NAME.pem in the bundle folder.
	Bundle string `yaml:"bundle"`
	// DNS is the file's `dns` with what the certificate has of its own.
	DNS DNS `yaml:"dns"`
}

// Both tells that the certificate has both families of keys, so that its files end in .ecdsa and .rsa.
func (c Certificate) Both() bool { return len(c.KeyTypes) > 1 }

// Slots are the places of the certificate's bundles, one for each key type, in the order of KeyTypes.
func (c Certificate) Slots() []cert.Slot {
	out := make([]cert.Slot, 0, len(c.KeyTypes))
	for _, k := range c.KeyTypes {
		out = append(out, cert.Slot{Name: c.Name, Algorithm: k.Algorithm()})
	}
	return out
}

// HAProxy is one HAProxy of each node.
type HAProxy struct {
	Config    string `yaml:"config"`
	BundleDir string `yaml:"bundle_dir"`
	// BundleGroup is the group that may read the bundles; "" means none.
	BundleGroup string `yaml:"bundle_group"`
	// CrtList is a crt-list file that new bundles may be added to, or "".
	CrtList       string `yaml:"crt_list"`
	RuntimeSocket string `yaml:"runtime_socket"`
	// Verify are the addresses to handshake with: host:port, [v6]:port, unix@/path or /path. None means that they are
	// found in HAProxy's configuration.
	Verify []string `yaml:"verify"`
	// ConfigMore are the files and folders that HAProxy is given with further -f, in their order.
	ConfigMore []string `yaml:"config_more"`
	// MasterSocket is the path of `haproxy -W -S PATH`, or "". A reload goes through it where it is set.
	MasterSocket string `yaml:"master_socket"`
	// Reload is a command and its arguments that reload HAProxy; none means that certsync has no such command.
	Reload []string `yaml:"reload"`
	// Check is a command and its arguments that judge the configuration, as `haproxy -c -f FILE` does, which is run where
	// there is none.
	Check []string `yaml:"check"`
}

// Files are all that HAProxy is given with -f.
func (h HAProxy) Files() []string { return append([]string{h.Config}, h.ConfigMore...) }

// SSH is how a node reaches its peers.
type SSH struct {
	User       string `yaml:"user"`
	KeyFile    string `yaml:"key_file"`
	KnownHosts string `yaml:"known_hosts"`
}

// Renew is how renewals run.
type Renew struct {
	// Schedule is when full passes are made, in the form that ParseSchedule reads.
	Schedule string `yaml:"schedule"`
	// Concurrency is how many certificates are handled at a time.
	Concurrency int `yaml:"concurrency"`
}

// Default is the configuration before a file is read. It lacks what a file must say.
func Default() *Config {
	return &Config{
		ACME:     ACME{Directory: "letsencrypt", KeyTypes: []cert.KeyType{cert.EC256}},
		DNS:      DNS{Propagation: Propagation{Check: true, Timeout: 2 * time.Minute, Interval: 2 * time.Second}},
		CARP:     CARP{Role: roleAuto, Settle: 3 * time.Second, Preempt: true},
		SSH:      SSH{User: "certsync", KeyFile: "/usr/local/etc/certsync/id_ed25519", KnownHosts: "/usr/local/etc/certsync/known_hosts"},
		Renew:    Renew{Schedule: "17 */6 * * *", Concurrency: 32},
		Listen:   "127.0.0.1:9180",
		StateDir: "/var/db/certsync",
		RunDir:   "/var/run/certsync",
	}
}

func defaultNode() Node { return Node{Port: 22} }

func defaultHAProxy() HAProxy {
	return HAProxy{
		Config:        "/usr/local/etc/haproxy.conf",
		BundleDir:     "/usr/local/etc/haproxy/certs",
		RuntimeSocket: "/var/run/haproxy.sock",
	}
}

// Load reads the configuration file at path. What is wrong with its text comes as Errors; every error is
// cluster.ErrUsage.
func Load(path string) (*Config, error) {
	data, err := readFile(path, MaxSize, nil)
	if err != nil {
		err = fmt.Errorf("read configuration %s: %w", path, err)
		if errors.Is(err, os.ErrNotExist) {
			err = cluster.WithHint(err, "write one (configs/certsync.yaml explains every option), or name it with -c FILE")
		}
		return nil, &usageError{err}
	}
	return Parse(path, data)
}

// readFile reads a regular file of at most limit bytes whose mode passes check, where there is one.
func readFile(path string, limit int64, check modeCheck) ([]byte, error) {
	f, err := openFile(path, check)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, causeOf(err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("larger than %d KiB", limit>>10)
	}
	return data, nil
}

// openFile opens a regular file. Its mode is checked on the open file, which cannot be exchanged for another between
// the check and the reading.
func openFile(path string, check modeCheck) (*os.File, error) {
	// Without O_NONBLOCK a named pipe would hold us until somebody writes to it.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, causeOf(err)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		err = causeOf(err)
	case !info.Mode().IsRegular():
		err = errors.New("not a regular file")
	case check != nil:
		err = check(info.Mode().Perm())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// causeOf leaves out the operation and the path, which our own messages name already.
func causeOf(err error) error {
	if e, ok := errors.AsType[*os.PathError](err); ok {
		return e.Err
	}
	return err
}

// Parse reads a configuration from YAML; name stands for the file in errors. All that is wrong comes at once, as
// Errors.
func Parse(name string, data []byte) (*Config, error) {
	d := &decoder{file: name, lines: map[string]int{}, bad: map[string]bool{}}
	c := Default()
	c.file = name
	d.config = c
	if root := d.document(data); root != nil {
		d.value(root, root.Line, "", reflect.ValueOf(c).Elem())
		if d.values <= maxValues {
			c.fill()
			d.validate(c)
		}
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	return c, nil
}

// fill completes what depends on other options.
func (c *Config) fill() {
	if len(c.ACME.KeyTypes) == 0 {
		c.ACME.KeyTypes = Default().ACME.KeyTypes
	}
	if c.ACME.Staging == "" {
		c.ACME.Staging, _ = StagingURL(c.ACME.Directory)
	}
	if len(c.HAProxy) == 0 {
		c.HAProxy = []HAProxy{defaultHAProxy()}
	}
	for i := range c.Certificates {
		if len(c.Certificates[i].KeyTypes) == 0 {
			c.Certificates[i].KeyTypes = c.ACME.KeyTypes
		}
	}
}
