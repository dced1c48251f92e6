package config

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"certsync/internal/cluster"
)

// maxSecret is the largest secret file that is read, in bytes.
const maxSecret = 64 << 10

// secret is a file that the configuration names and others must not read.
type secret struct {
	// path is the option, file its value.
	path, file string
	// group tells that the file's group may read it.
	group bool
}

// secrets lists the files of secrets, each once. The SSH key counts only where there is a peer to reach with it.
func (c *Config) secrets() []secret {
	all := []secret{{path: "acme.eab.hmac_key_file", file: c.ACME.EAB.HMACKeyFile}, {path: "dns.env_file", file: c.DNS.EnvFile, group: true}}
	for i, one := range c.Certificates {
		all = append(all, secret{path: fmt.Sprintf("certificates[%d].dns.env_file", i), file: one.DNS.EnvFile, group: true})
	}
	for _, file := range c.NotifyFiles() {
		all = append(all, secret{path: "notify", file: file, group: true})
	}
	if len(c.Nodes) > 1 {
		all = append(all, secret{path: "ssh.key_file", file: c.SSH.KeyFile})
	}
	seen := map[string]bool{"": true}
	return slices.DeleteFunc(all, func(s secret) bool {
		known := seen[s.file]
		seen[s.file] = true
		return known
	})
}

// CheckSecrets tells which of the files of secrets are missing, cannot be read by this process, or can be read by
// others. It reads none of their contents. All that is wrong comes at once, joined, each with its hint; it is
// cluster.ErrUsage.
func (c *Config) CheckSecrets() error {
	var errs []error
	for _, s := range c.secrets() {
		check := ownerOnly
		if s.group {
			check = ownerAndGroup
		}
		f, err := openFile(s.file, check)
		if err != nil {
			errs = append(errs, &usageError{secretError(fmt.Errorf("%s: %s: %w", s.path, s.file, err), s.file, err)})
			continue
		}
		f.Close()
	}
	return errors.Join(errs...)
}

// ReadSecret reads a file that only its owner may read. Errors never hold what it contains.
func ReadSecret(path string) ([]byte, error) {
	return readSecret(path, ownerOnly)
}

func readSecret(path string, check modeCheck) ([]byte, error) {
	data, err := readFile(path, maxSecret, check)
	if err != nil {
		return nil, &usageError{secretError(fmt.Errorf("read secret %s: %w", path, err), path, err)}
	}
	return data, nil
}

// modeCheck judges the mode of a file.
type modeCheck func(os.FileMode) error

// modeError is a mode with which others can read a secret, or exchange it.
type modeError struct {
	mode os.FileMode
	what string
	mend string
}

func (e *modeError) Error() string { return fmt.Sprintf("mode %04o: %s", e.mode, e.what) }

func ownerOnly(mode os.FileMode) error {
	if mode&0o077 != 0 {
		return &modeError{mode, "others than its owner have access to it", "0600"}
	}
	return nil
}

// ownerAndGroup lets the group read: root:certsync 0640.
func ownerAndGroup(mode os.FileMode) error {
	switch {
	case mode&0o007 != 0:
		return &modeError{mode, "everybody has access to it", "0640"}
	case mode&0o030 != 0:
		return &modeError{mode, "its group can do more than read it", "0640"}
	}
	return nil
}

// secretError adds the mend for cause to err.
func secretError(err error, path string, cause error) error {
	if mode, ok := errors.AsType[*modeError](cause); ok {
		return cluster.WithHint(err, "chmod %s %s, and change the secret if others may have read it", mode.mend, path)
	}
	switch {
	case errors.Is(cause, os.ErrNotExist):
		return cluster.WithHint(err, "create it with mode 0600, or name another file in the configuration")
	case errors.Is(cause, os.ErrPermission):
		return cluster.WithHint(err, "let the user that certsync runs as read it, and nobody else")
	}
	return err
}
