package lab

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// KeyPair is an SSH key, ed25519.
type KeyPair struct {
	signer  ssh.Signer
	private []byte
}

// NewKeyPair makes a key.
func NewKeyPair() (*KeyPair, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make an SSH key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(private, "certsync lab")
	if err != nil {
		return nil, fmt.Errorf("make an SSH key: %w", err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return nil, fmt.Errorf("make an SSH key: %w", err)
	}
	return &KeyPair{signer: signer, private: pem.EncodeToMemory(block)}, nil
}

// Signer signs with the key.
func (k *KeyPair) Signer() ssh.Signer { return k.signer }

// PEM is the private key as ssh-keygen(1) writes it.
func (k *KeyPair) PEM() []byte { return bytes.Clone(k.private) }

// AuthorizedKey is the public key as a line of authorized_keys, with its newline.
func (k *KeyPair) AuthorizedKey() string {
	return string(ssh.MarshalAuthorizedKey(k.signer.PublicKey()))
}

// Write writes the private key to path (0600) and the public one to path.pub.
func (k *KeyPair) Write(path string) error {
	if err := os.WriteFile(path, k.private, 0o600); err != nil {
		return fmt.Errorf("write an SSH key: %w", err)
	}
	if err := os.WriteFile(path+".pub", []byte(k.AuthorizedKey()), 0o644); err != nil {
		return fmt.Errorf("write an SSH key: %w", err)
	}
	return nil
}

// SSHAccess lets the owner of a key run one command, whatever it asks for, as authorized_keys does by
// restrict,command="...".
type SSHAccess struct {
	Key ssh.PublicKey
	// Argv is the command, not run through a shell.
	Argv []string
	// Env is its environment; nil is the lab's own. SSH_ORIGINAL_COMMAND is added.
	Env []string
}

// SSHOptions say what an SSHServer is to be.
type SSHOptions struct {
	// Address is where it listens; "" is a free port on loopback.
	Address string
	// HostKey is the server's; nil is a new one.
	HostKey *KeyPair
	Access  []SSHAccess
}

// SSHServer is a small SSH server with forced commands in place of a host's sshd, for a demo that needs neither root
// nor OpenSSH. It is not OpenSSH: what must hold with the real one is tested with the real one.
type SSHServer struct {
	listener net.Listener
	hostKey  *KeyPair
	access   []SSHAccess
	ctx      context.Context
	cancel   context.CancelFunc
	wait     sync.WaitGroup
}

// NewSSHServer starts one.
func NewSSHServer(o SSHOptions) (*SSHServer, error) {
	if o.Address == "" {
		o.Address = "127.0.0.1:0"
	}
	if o.HostKey == nil {
		key, err := NewKeyPair()
		if err != nil {
			return nil, err
		}
		o.HostKey = key
	}
	listener, err := net.Listen("tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("SSH server: %w", err)
	}
	s := &SSHServer{listener: listener, hostKey: o.HostKey, access: o.Access}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wait.Go(s.accept)
	return s, nil
}

// Address is where it listens, host:port.
func (s *SSHServer) Address() string { return s.listener.Addr().String() }

// Port is that of Address.
func (s *SSHServer) Port() int { return s.listener.Addr().(*net.TCPAddr).Port }

// HostKey is the server's key.
func (s *SSHServer) HostKey() ssh.PublicKey { return s.hostKey.signer.PublicKey() }

// KnownHostsLine pins the server's key, with its newline.
func (s *SSHServer) KnownHostsLine() string {
	return knownhosts.Line([]string{s.Address()}, s.HostKey()) + "\n"
}

// Close ends the server, its connections and the commands that run, and waits until they are gone.
func (s *SSHServer) Close() error {
	s.cancel()
	err := s.listener.Close()
	s.wait.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (s *SSHServer) accept() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.wait.Go(func() { s.connection(c) })
	}
}

// sshHandshakeTime is what a client may take to log in.
const sshHandshakeTime = 10 * time.Second

// accessKey is the permission that says which entry of access a connection logged in by.
const accessKey = "certsync-access"

func (s *SSHServer) connection(c net.Conn) {
	defer c.Close()
	defer context.AfterFunc(s.ctx, func() { _ = c.Close() })()
	config := &ssh.ServerConfig{PublicKeyCallback: s.authorize}
	config.AddHostKey(s.hostKey.signer)
	_ = c.SetDeadline(time.Now().Add(sshHandshakeTime))
	conn, channels, requests, err := ssh.NewServerConn(c, config)
	if err != nil {
		return
	}
	_ = c.SetDeadline(time.Time{})
	go answerKeepAlives(requests)
	access := conn.Permissions.ExtraData[accessKey].(SSHAccess)
	var sessions sync.WaitGroup
	defer sessions.Wait()
	for offered := range channels {
		if offered.ChannelType() != "session" {
			_ = offered.Reject(ssh.Prohibited, "sessions only")
			continue
		}
		channel, requests, err := offered.Accept()
		if err != nil {
			return
		}
		sessions.Go(func() { s.session(channel, requests, access) })
	}
}

func (s *SSHServer) authorize(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
	for _, a := range s.access {
		if bytes.Equal(a.Key.Marshal(), key.Marshal()) {
			return &ssh.Permissions{ExtraData: map[any]any{accessKey: a}}, nil
		}
	}
	return nil, errors.New("key is not authorized")
}

// answerKeepAlives replies as OpenSSH does to what it does not know: with a failure, which is an answer.
func answerKeepAlives(requests <-chan *ssh.Request) {
	for r := range requests {
		if r.WantReply {
			_ = r.Reply(false, nil)
		}
	}
}

// session waits for "exec" (RFC 4254 section 6.5) and runs the forced command.
func (s *SSHServer) session(channel ssh.Channel, requests <-chan *ssh.Request, access SSHAccess) {
	defer channel.Close()
	for r := range requests {
		var m struct{ Command string }
		if r.Type != "exec" || ssh.Unmarshal(r.Payload, &m) != nil {
			_ = r.Reply(false, nil)
			continue
		}
		_ = r.Reply(true, nil)
		status := s.run(channel, requests, access, m.Command)
		_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{status}))
		return
	}
}

// run runs the command until it ends, or kills it when the client closes the channel or the server ends.
func (s *SSHServer) run(channel ssh.Channel, requests <-chan *ssh.Request, access SSHAccess, original string) uint32 {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	go func() {
		answerKeepAlives(requests) // until the channel is closed
		cancel()
	}()
	cmd := exec.CommandContext(ctx, access.Argv[0], access.Argv[1:]...)
	cmd.Env = access.Env
	if cmd.Env == nil {
		cmd.Env = baseEnv()
	}
	cmd.Env = append(cmd.Env[:len(cmd.Env):len(cmd.Env)], "SSH_ORIGINAL_COMMAND="+original)
	cmd.Stdout, cmd.Stderr = channel, channel.Stderr()
	cmd.SysProcAttr = groupAttr()
	cmd.Cancel = func() error {
		signalGroup(cmd.Process.Pid, syscall.SIGKILL)
		return nil
	}
	cmd.WaitDelay = time.Second
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintf(channel.Stderr(), "%s: %v\n", strings.Join(access.Argv, " "), err)
		return 127
	}
	// Not cmd.Stdin: Wait would wait for a client that sends nothing more.
	go func() {
		_, _ = io.Copy(stdin, channel)
		_ = stdin.Close()
	}()
	return exitStatus(cmd.Wait())
}

// exitStatus is 255 for a command that a signal ended.
func exitStatus(err error) uint32 {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() >= 0 {
		return uint32(exit.ExitCode())
	}
	if err != nil {
		return 255
	}
	return 0
}
