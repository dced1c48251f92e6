package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// opensshServer is OpenSSH's sshd with a configuration of its own.
type opensshServer struct{ process *process }

// Close ends it, with the sessions that are still open.
func (s *opensshServer) Close() error {
	s.process.kill()
	return nil
}

// sshdConfig lets in the keys of the authorized_keys file only, each with its forced command. HOME is the node's folder,
// so that the developer's own shell start-up files, which bash reads for sshd, are not run.
const sshdConfig = `ListenAddress %[1]s
HostKey %[2]s/host_key
AuthorizedKeysFile %[2]s/authorized_keys
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin forced-commands-only
PrintMotd no
SetEnv HOME=%[2]s
`

// startOpenSSH starts sshd (path) in the foreground and waits until it listens.
func (n *Node) startOpenSSH(ctx context.Context, path string) (sshServer, error) {
	// The privilege separation directory that Debian's sshd is built with; its service makes it at boot.
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		return nil, err
	}
	if err := n.writeOpenSSH(); err != nil {
		return nil, err
	}
	p, err := startProcess(path, []string{"-D", "-e", "-f", filepath.Join(n.Dir, "sshd_config")}, baseEnv(), nil)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", loopback(n.sshPort))
		if err == nil {
			return &opensshServer{process: p}, conn.Close()
		}
		select {
		case <-p.done:
			return nil, fmt.Errorf("sshd ended: %w\n%s", p.err, p.output)
		case <-ctx.Done():
			p.kill()
			return nil, fmt.Errorf("sshd: %w\n%s", err, p.output)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// writeOpenSSH writes sshd's configuration, host key and authorized_keys: for each peer its key and what it may run.
func (n *Node) writeOpenSSH() error {
	var keys strings.Builder
	for _, peer := range n.peers() {
		fmt.Fprintf(&keys, "restrict,command=%q %s\n", n.forcedCommandLine(peer), strings.TrimSpace(peer.key.AuthorizedKey()))
	}
	for name, data := range map[string]string{
		"sshd_config":     fmt.Sprintf(sshdConfig, loopback(n.sshPort), n.Dir),
		"host_key":        string(n.hostKey.PEM()),
		"authorized_keys": keys.String(),
	} {
		if err := os.WriteFile(filepath.Join(n.Dir, name), []byte(data), 0o600); err != nil {
			return err
		}
	}
	return nil
}
