package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"certsync/internal/cert"
	"certsync/internal/lab"
)

// sshd is OpenSSH's, which all contenders go through.
const sshd = "/usr/sbin/sshd"

// certsync is certsync.
type certsync struct{ l *lab.Lab }

func newCertsync(ctx context.Context, o options) (contender, error) {
	l, err := lab.New(ctx, lab.Options{Binary: o.certsync, HAProxy: o.haproxy, SSHD: sshd})
	return &certsync{l}, err
}

func (c *certsync) name() string                  { return "certsync issue" }
func (c *certsync) prepare(context.Context) error { return nil }
func (c *certsync) lab() *lab.Lab                 { return c.l }
func (c *certsync) close() error                  { return c.l.Close() }

func (c *certsync) renew(ctx context.Context) error {
	r, err := c.l.Nodes[0].Certsync(ctx, "issue", apex)
	if err != nil {
		return err
	}
	return r.Err()
}

// scripted is what the other contenders share: an ACME client that leaves files, then scp and reloads.
type scripted struct {
	l   *lab.Lab
	dir string
	ssh *exec.Cmd
	// options are those of ssh and scp that reach the peer.
	options []string
	peer    string
}

func newScripted(ctx context.Context, o options) (*scripted, error) {
	// The lab's own SSH servers are not used: a key with a forced command cannot copy.
	l, err := lab.New(ctx, lab.Options{Binary: "/bin/false", HAProxy: o.haproxy, CA: lab.CAOptions{TokensOnly: true}})
	if err != nil {
		return nil, err
	}
	s := &scripted{l: l, dir: filepath.Join(l.Root, "script")}
	if err := s.startSSHD(ctx); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// startSSHD lets a key of its own into this host, which stands for the peer.
func (s *scripted) startSSHD(ctx context.Context) error {
	for _, dir := range []string{s.dir, "/run/sshd"} { // the latter is sshd's privilege separation directory
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	key, err := lab.NewKeyPair()
	if err != nil {
		return err
	}
	host, err := lab.NewKeyPair()
	if err != nil {
		return err
	}
	port, err := lab.FreePort()
	if err != nil {
		return err
	}
	config := fmt.Sprintf("ListenAddress 127.0.0.1:%d\nHostKey %[2]s/host\nAuthorizedKeysFile %[2]s/key.pub\nPidFile none\nUsePAM no\nStrictModes no\n"+
		"PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\nSetEnv HOME=%[2]s\n", port, s.dir)
	known := fmt.Sprintf("[127.0.0.1]:%d %s", port, host.AuthorizedKey())
	err = errors.Join(key.Write(filepath.Join(s.dir, "key")), host.Write(filepath.Join(s.dir, "host")),
		os.WriteFile(filepath.Join(s.dir, "sshd_config"), []byte(config), 0o600), os.WriteFile(filepath.Join(s.dir, "known"), []byte(known), 0o600))
	if err != nil {
		return err
	}
	s.peer = "root@127.0.0.1"
	s.options = []string{"-F", "none", "-i", s.dir + "/key", "-o", "UserKnownHostsFile=" + s.dir + "/known", "-o", fmt.Sprintf("Port=%d", port), "-o", "BatchMode=yes"}
	s.ssh = exec.Command(sshd, "-D", "-f", s.dir+"/sshd_config") //nolint:gosec // our own file
	if err := s.ssh.Start(); err != nil {
		return err
	}
	return awaitPort(ctx, port)
}

func awaitPort(ctx context.Context, port int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			return conn.Close()
		}
		if ctx.Err() != nil {
			return fmt.Errorf("sshd: %w", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (s *scripted) lab() *lab.Lab { return s.l }

func (s *scripted) close() error {
	if s.ssh != nil && s.ssh.Process != nil {
		_ = s.ssh.Process.Kill()
		_ = s.ssh.Wait()
	}
	return s.l.Close()
}

// deploy is the part of the script that follows the ACME client: the bundle for HAProxy, scp, a reload on both.
func (s *scripted) deploy(ctx context.Context, certificate, key string) error {
	var bundle []byte
	for _, path := range []string{certificate, key} {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		bundle = append(bundle, data...)
	}
	if _, err := cert.Parse(bundle); err != nil {
		return err
	}
	here, there := s.l.Nodes[0], s.l.Nodes[1]
	if err := os.WriteFile(here.BundleFile(apex), bundle, 0o600); err != nil {
		return err
	}
	if err := command(ctx, nil, "scp", append(s.options, "-q", here.BundleFile(apex), s.peer+":"+there.BundleFile(apex))...); err != nil {
		return err
	}
	if err := here.ReloadHAProxy(ctx); err != nil {
		return err
	}
	if err := command(ctx, nil, "ssh", append(s.options, s.peer, "true")...); err != nil {
		return err
	}
	return there.ReloadHAProxy(ctx)
}

// command runs a program with more environment; its output is in the error.
func command(ctx context.Context, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// uacme is Debian's uacme with a hook for nsupdate.
type uacme struct{ *scripted }

// uacmeHook publishes and removes a TXT value; uacme gives METHOD TYPE IDENT TOKEN AUTH.
const uacmeHook = `#!/bin/sh
[ "$2" = dns-01 ] || exit 1
case $1 in begin) op=add ;; *) op=delete ;; esac
nsupdate -k %[1]s/tsig <<END
server %[2]s
update $op _acme-challenge.$3 1 TXT "$5"
send
END
`

// uacmeCA is where Debian's libcurl, which uacme uses, has its trusted CAs.
const uacmeCA = "/etc/ssl/certs/ca-certificates.crt"

func newUacme(ctx context.Context, o options) (contender, error) {
	s, err := newScripted(ctx, o)
	return &uacme{s}, err
}

func (u *uacme) name() string { return "uacme + nsupdate + scp + reload" }

func (u *uacme) prepare(ctx context.Context) error {
	env := u.l.DNS.Env()
	tsig := fmt.Sprintf("key %q { algorithm hmac-sha256; secret %q; };\n", env["RFC2136_TSIG_KEY"], env["RFC2136_TSIG_SECRET"])
	server := strings.ReplaceAll(u.l.DNS.Address(), ":", " ")
	err := errors.Join(os.WriteFile(u.dir+"/tsig", []byte(tsig), 0o600),
		os.WriteFile(u.dir+"/hook", fmt.Appendf(nil, uacmeHook, u.dir, server), 0o700)) //nolint:gosec // it is a script
	if err != nil {
		return err
	}
	return u.run(ctx, "-y", "new", "ops@example.org")
}

func (u *uacme) run(ctx context.Context, args ...string) error {
	inside := fmt.Sprintf(`mount --bind %s %s && exec uacme -a %s -c %s/uacme "$@"`, u.l.CA.CAFile(), uacmeCA, u.l.CA.Directory(), u.dir)
	return command(ctx, nil, "unshare", append([]string{"-m", "sh", "-c", inside, "uacme"}, args...)...)
}

func (u *uacme) renew(ctx context.Context) error {
	if err := u.run(ctx, "-h", u.dir+"/hook", "-t", "EC", "-b", "256", "-f", "issue", apex, wildcard); err != nil {
		return err
	}
	return u.deploy(ctx, u.dir+"/uacme/"+apex+"/cert.pem", u.dir+"/uacme/private/"+apex+"/key.pem")
}

// lego is lego's own command, with every wait that it lets a user tune at its least.
type lego struct {
	*scripted
	program string
}

func newLego(ctx context.Context, o options) (contender, error) {
	s, err := newScripted(ctx, o)
	program := o.lego
	if program == "" {
		program = "lego"
	}
	return &lego{s, program}, err
}

func (l *lego) name() string                  { return "lego (waits tuned) + scp + reload" }
func (l *lego) prepare(context.Context) error { return nil }

func (l *lego) renew(ctx context.Context) error {
	env := []string{"LEGO_CA_CERTIFICATES=" + l.l.CA.CAFile(), "RFC2136_POLLING_INTERVAL=1", "RFC2136_SEQUENCE_INTERVAL=1", "RFC2136_PROPAGATION_TIMEOUT=20"}
	for k, v := range l.l.DNS.Env() {
		env = append(env, k+"="+v)
	}
	err := command(ctx, env, l.program, "--server", l.l.CA.Directory(), "--accept-tos", "--email", "ops@example.org", "--path", l.dir+"/lego",
		"--key-type", "ec256", "--dns", "rfc2136", "--dns.resolvers", l.l.DNS.Address(), "--dns.propagation-disable-ans",
		"--domains", apex, "--domains", wildcard, "run")
	if err != nil {
		return err
	}
	return l.deploy(ctx, l.dir+"/lego/certificates/"+apex+".crt", l.dir+"/lego/certificates/"+apex+".key")
}
