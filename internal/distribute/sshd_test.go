package distribute

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"certsync/internal/cluster"
)

// childMode names the variable that makes this test binary behave as the forced command.
const childMode = "CERTSYNC_TEST_CHILD"

func TestMain(m *testing.M) {
	if mode := os.Getenv(childMode); mode != "" {
		os.Exit(child(mode))
	}
	os.Exit(m.Run())
}

// child is what sshd runs: serve-peer as it should be, and as it should not.
func child(mode string) int {
	ctx := context.Background()
	in, out := io.ReadCloser(os.Stdin), io.WriteCloser(os.Stdout)
	socket, node := os.Getenv("CERTSYNC_TEST_SOCKET"), os.Getenv("CERTSYNC_TEST_NODE")
	switch mode {
	case "join":
	case "alone":
		fake := newFake("proxy2")
		if err := ServeConn(ctx, Stdio(in, out), AsNode(node, NewHandler(fake, HandlerOptions{Peers: []string{"proxy1"}}))); err != nil {
			return 1
		}
		return 0
	case "rubbish":
		fmt.Print("Welcome to proxy2!\n\x1b[1mYou have mail.\x1b[0m\n")
	case "other":
		fmt.Print("Tue Nov 24 08:32:30 UTC 2026\n")
		return 0
	case "die":
		fmt.Fprint(os.Stderr, "certsync: error: open /var/db/certsync: \x1b[31mpermission denied\n"+strings.Repeat("x", 100_000)+"\nlast words\n")
		return 3
	case "deaf":
		_, _ = io.Copy(io.Discard, in)
		return 0
	case "stuck":
		time.Sleep(time.Minute) // reads nothing; sshd ends it with the session
		return 0
	case "slow":
		out = slowWriter{out}
	}
	if err := Join(ctx, Stdio(in, out), socket, node); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// slowWriter writes byte by byte.
type slowWriter struct{ io.WriteCloser }

func (s slowWriter) Write(p []byte) (int, error) {
	for i := range p {
		if _, err := s.WriteCloser.Write(p[i : i+1]); err != nil {
			return i, err
		}
		time.Sleep(time.Millisecond)
	}
	return len(p), nil
}

// sshd is a running OpenSSH server.
type sshd struct {
	t                *testing.T
	dir, user        string
	port             int
	log              *lockedBuffer
	ed25519, ecdsa   ssh.Signer
	rsa, ca, another ssh.Signer
	client           ssh.Signer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func needSSHD(t *testing.T) string {
	t.Helper()
	for _, path := range []string{"/usr/sbin/sshd", "/usr/local/sbin/sshd"} {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("sshd is not installed")
	}
	t.Skip("sshd is not installed")
	return ""
}

// startSSHD runs sshd with a configuration of its own; more are lines added to it.
func startSSHD(t *testing.T, more ...string) *sshd {
	t.Helper()
	s := prepareSSHD(t, more...)
	s.run(needSSHD(t))
	return s
}

// prepareSSHD writes the configuration and the keys.
func prepareSSHD(t *testing.T, more ...string) *sshd {
	t.Helper()
	needSSHD(t)
	if os.Geteuid() == 0 {
		// The empty folder that sshd's privilege separation enters; a container may not have it.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	s := &sshd{t: t, dir: t.TempDir(), user: me.Username, log: &lockedBuffer{}}
	ed, ecdsaKey, rsaKey := makeHostKeys(t)
	s.ed25519, s.ecdsa, s.rsa = s.hostKey("ed25519", ed), s.hostKey("ecdsa", ecdsaKey), s.hostKey("rsa", rsaKey)
	s.ca, s.another, s.client = newSigner(t), newSigner(t), newSigner(t)
	s.port = freePort(t)
	config := []string{"Port " + strconv.Itoa(s.port), "ListenAddress 127.0.0.1", "PidFile none", "StrictModes no", "UsePAM no",
		"PasswordAuthentication no", "KbdInteractiveAuthentication no", "PermitRootLogin prohibit-password", "MaxStartups 200", "LogLevel VERBOSE",
		"AuthorizedKeysFile " + s.path("authorized_keys"),
		// The developer's own login files may take seconds, or print something.
		"SetEnv HOME=" + s.dir}
	if !strings.Contains(strings.Join(more, "\n"), "HostKey ") {
		config = append(config, "HostKey "+s.path("ed25519"), "HostKey "+s.path("ecdsa"), "HostKey "+s.path("rsa"))
	}
	for _, line := range more {
		config = append(config, strings.ReplaceAll(line, "DIR", s.dir))
	}
	s.write("sshd_config", strings.Join(config, "\n")+"\n")
	return s
}

// makeHostKeys makes the three kinds once: an RSA key takes its time.
var makeHostKeysOnce = sync.OnceValues(func() ([3]crypto.Signer, error) {
	_, ed, err1 := ed25519.GenerateKey(rand.Reader)
	ec, err2 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	r, err3 := rsa.GenerateKey(rand.Reader, 2048)
	return [3]crypto.Signer{ed, ec, r}, errors.Join(err1, err2, err3)
})

func makeHostKeys(t *testing.T) (ed, ec, r crypto.Signer) {
	t.Helper()
	keys, err := makeHostKeysOnce()
	if err != nil {
		t.Fatal(err)
	}
	return keys[0], keys[1], keys[2]
}

func newSigner(t *testing.T) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

func (s *sshd) path(name string) string { return filepath.Join(s.dir, name) }

func (s *sshd) write(name, content string) string {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return s.path(name)
}

func (s *sshd) hostKey(name string, key crypto.Signer) ssh.Signer {
	s.t.Helper()
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(name, string(pem.EncodeToMemory(block)))
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(name+".pub", string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
	return signer
}

// certify signs the ed25519 host key by the CA and writes the certificate.
func (s *sshd) certify(principal string) string {
	s.t.Helper()
	c := &ssh.Certificate{Key: s.ed25519.PublicKey(), CertType: ssh.HostCert, KeyId: "proxy2", ValidPrincipals: []string{principal},
		ValidBefore: ssh.CertTimeInfinity}
	if err := c.SignCert(rand.Reader, s.ca); err != nil {
		s.t.Fatal(err)
	}
	return s.write("ed25519-cert.pub", string(ssh.MarshalAuthorizedKey(c)))
}

func (s *sshd) run(program string) {
	s.t.Helper()
	cmd := exec.Command(program, "-D", "-e", "-f", s.path("sshd_config"))
	cmd.Stderr = s.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	s.t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-ended
		if s.t.Failed() {
			s.t.Logf("sshd's log:\n%s", s.log)
		}
	})
	for deadline := time.Now().Add(10 * time.Second); ; {
		c, err := net.Dial("tcp", s.address())
		if err == nil {
			_ = c.Close()
			return
		}
		select {
		case err := <-ended:
			ended <- err
			s.t.Fatalf("sshd ended: %v\n%s", err, s.log)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("sshd does not listen: %v\n%s", err, s.log)
		}
	}
}

func (s *sshd) address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// authorize writes authorized_keys: the client's key runs this test binary in a mode.
func (s *sshd) authorize(mode, socket string) {
	s.t.Helper()
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	command := fmt.Sprintf("%s=%s CERTSYNC_TEST_SOCKET=%s CERTSYNC_TEST_NODE=proxy1 exec %s", childMode, mode, socket, self)
	s.write("authorized_keys", fmt.Sprintf("restrict,command=%q %s", command, ssh.MarshalAuthorizedKey(s.client.PublicKey())))
}

// pin writes known_hosts.
func (s *sshd) pin(lines ...string) string {
	return s.write("known_hosts", strings.Join(lines, "\n")+"\n")
}

func (s *sshd) line(key ssh.Signer) string {
	return knownhosts.Line([]string{s.address()}, key.PublicKey())
}

// peer is a client of this server.
func (s *sshd) peer(change ...func(*PeerConfig)) *Peer {
	s.t.Helper()
	cfg := PeerConfig{Name: "proxy2", Node: "proxy1", Address: "127.0.0.1", Port: s.port, User: s.user, Signer: s.client, KnownHosts: s.path("known_hosts")}
	for _, c := range change {
		c(&cfg)
	}
	p := NewPeer(cfg)
	s.t.Cleanup(func() { _ = p.Close() })
	return p
}

// startNode is an sshd whose forced command joins a daemon with a fake node.
func startNode(t *testing.T, mode string) (*sshd, *fakeLocal) {
	t.Helper()
	s := startSSHD(t)
	fake, socket := newFake("proxy2"), filepath.Join(s.dir, "s")
	startDaemon(t, socket, NewHandler(fake, HandlerOptions{Peers: []string{"proxy1"}}))
	s.authorize(mode, socket)
	s.pin(s.line(s.ed25519))
	return s, fake
}

func TestOpenSSH_EveryCallOverOneConnection(t *testing.T) {
	s, fake := startNode(t, "join")
	p := s.peer()
	kept, records := makeKept(t, 5), makeRecords(t)
	if results, err := p.Stage(t.Context(), kept); err != nil || len(results) != 5 {
		t.Fatalf("%v, %v", results, err)
	}
	if err := p.Record(t.Context(), records); err != nil {
		t.Fatal(err)
	}
	var calls sync.WaitGroup
	for range 8 {
		calls.Go(func() {
			if i, err := p.Inventory(t.Context()); err != nil || len(i.Generations) != 5 {
				t.Errorf("inventory: %v, %v", i.Generations, err)
			}
			n := 0
			if err := p.Fetch(t.Context(), generationsOf(kept), func(cluster.Kept) error { n++; return nil }); err != nil || n != 5 {
				t.Errorf("fetched %d, %v", n, err)
			}
		})
	}
	calls.Wait()
	if placements, err := p.Release(t.Context(), []cluster.Release{{Generation: kept[0].Generation, Node: "proxy1"}}); err != nil || len(placements) != 1 {
		t.Errorf("release: %v, %v", placements, err)
	}
	if _, err := p.Status(t.Context()); err != nil {
		t.Error(err)
	}
	if n := strings.Count(s.log.String(), "Accepted publickey"); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
	if !fake.from["proxy1"] || len(fake.from) != 1 {
		t.Errorf("changes came from %v", fake.from)
	}
}

func TestOpenSSH_ServePeerWithoutADaemon(t *testing.T) {
	s := startSSHD(t)
	s.authorize("alone", "")
	s.pin(s.line(s.ed25519))
	if i, err := s.peer().Inventory(t.Context()); err != nil || i.Node != "proxy2" {
		t.Errorf("%+v, %v", i, err)
	}
}

func TestOpenSSH_RefusesEverythingElse(t *testing.T) {
	s, fake := startNode(t, "join")
	tryForbidden(t, s.peer().transport, fake)
}

func TestOpenSSH_HostKeys(t *testing.T) {
	s, _ := startNode(t, "join")
	hashed := knownhosts.HashHostname(knownhosts.Normalize(s.address())) + " "
	keyOf := func(k ssh.Signer) string { return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k.PublicKey()))) }
	plain := func(c *PeerConfig) {}
	alias := func(c *PeerConfig) { c.HostKeyAlias = "proxy2.example.org" }
	for name, tc := range map[string]struct {
		lines  []string
		change func(*PeerConfig)
		want   string // "" is success
		hint   string
	}{
		"ed25519":             {[]string{s.line(s.ed25519)}, plain, "", ""},
		"ecdsa only":          {[]string{s.line(s.ecdsa)}, plain, "", ""},
		"rsa only":            {[]string{s.line(s.rsa)}, plain, "", ""},
		"all three":           {[]string{s.line(s.rsa), s.line(s.ecdsa), s.line(s.ed25519)}, plain, "", ""},
		"hashed":              {[]string{hashed + keyOf(s.ed25519)}, plain, "", ""},
		"hashed rsa":          {[]string{"# comment", hashed + keyOf(s.rsa)}, plain, "", ""},
		"wildcard":            {[]string{"[127.0.0.*]:" + strconv.Itoa(s.port) + " " + keyOf(s.ecdsa)}, plain, "", ""},
		"alias":               {[]string{"proxy2.example.org " + keyOf(s.rsa)}, alias, "", ""},
		"one of two is right": {[]string{s.line(s.another), s.line(s.ed25519)}, plain, "", ""},

		"empty file":       {nil, plain, "is not in", "ssh-keyscan -t "},
		"another host's":   {[]string{knownhosts.Line([]string{"192.0.2.1"}, s.ed25519.PublicKey())}, plain, "is not in", "ssh-keyscan -t "},
		"port 22's":        {[]string{knownhosts.Line([]string{"127.0.0.1"}, s.ed25519.PublicKey())}, plain, "is not in", "-p " + strconv.Itoa(s.port) + " 127.0.0.1"},
		"alias not pinned": {[]string{s.line(s.ed25519)}, alias, "is not in", "proxy2.example.org "},
		"wrong key":        {[]string{s.line(s.another)}, plain, "has changed", "ssh-keygen -R '[127.0.0.1]:" + strconv.Itoa(s.port)},
		"revoked":          {[]string{s.line(s.ed25519), "@revoked * " + keyOf(s.ed25519)}, plain, "is revoked", "new key"},
		"revoked, another right": {[]string{s.line(s.ed25519), s.line(s.ecdsa), "@revoked * " + keyOf(s.ed25519)}, plain, "",
			""},
		"a CA's own key":                     {[]string{s.authority(s.ed25519)}, plain, "has changed", ""},
		"a CA's own key beside a pinned one": {[]string{s.authority(s.ecdsa), s.line(s.rsa)}, plain, "", ""},
		"junk":                               {[]string{"proxy2 ssh-ed25519 ???"}, plain, "known_hosts:1", "mend or remove"},
	} {
		t.Run(name, func(t *testing.T) {
			s.pin(tc.lines...)
			_, err := s.peer(tc.change).Inventory(t.Context())
			checkRefused(t, err, tc.want, tc.hint)
		})
	}
	t.Run("missing file", func(t *testing.T) {
		_, err := s.peer(func(c *PeerConfig) { c.KnownHosts = s.path("none") }).Inventory(t.Context())
		checkRefused(t, err, "is not in", "ssh-keyscan")
	})
	t.Run("following the hint lets the host in", func(t *testing.T) {
		if _, err := exec.LookPath("ssh-keyscan"); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal("ssh-keyscan is not installed")
			}
			t.Skip("ssh-keyscan is not installed")
		}
		s.pin()
		_, err := s.peer().Inventory(t.Context())
		_, command, _ := strings.Cut(cluster.HintOf(err), "run `")
		command, _, _ = strings.Cut(command, "`")
		if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
		if _, err := s.peer().Inventory(t.Context()); err != nil {
			t.Errorf("after %q: %v", command, err)
		}
	})
}

// checkRefused wants success for "", else an unreachable peer, with the words and the hint.
func checkRefused(t *testing.T, err error, want, hint string) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Errorf("error %v (%s)", err, cluster.HintOf(err))
		}
		return
	}
	if !errors.Is(err, cluster.ErrUnreachable) || !strings.Contains(err.Error(), want) || !strings.Contains(cluster.HintOf(err), hint) {
		t.Errorf("error %v\nhint %s\nwant unreachable, %q and the hint %q", err, cluster.HintOf(err), want, hint)
	}
	if strings.Contains(err.Error()+cluster.HintOf(err), "PRIVATE") {
		t.Errorf("a private key in %v", err)
	}
}

func TestOpenSSH_AHostWithoutThePinnedKindOfKeyHasChanged(t *testing.T) {
	s := startSSHD(t, "HostKey DIR/rsa")
	s.pin(s.line(s.ed25519))
	_, err := s.peer().Inventory(t.Context())
	checkRefused(t, err, "has changed: it offers", "pin one of them")
}

func TestOpenSSH_HostCertificates(t *testing.T) {
	for name, tc := range map[string]struct {
		principal string
		pinned    func(s *sshd) []string
		want      string
	}{
		"signed for the host":    {"127.0.0.1", func(s *sshd) []string { return []string{s.authority(s.ca)} }, ""},
		"a plain key pinned too": {"127.0.0.1", func(s *sshd) []string { return []string{s.authority(s.ca), s.line(s.rsa)} }, ""},
		"signed for another":     {"proxy3", func(s *sshd) []string { return []string{s.authority(s.ca)} }, "host certificate"},
		"signed by another":      {"127.0.0.1", func(s *sshd) []string { return []string{s.authority(s.another)} }, "host certificate"},
		"authority revoked": {"127.0.0.1", func(s *sshd) []string {
			return []string{s.authority(s.ca), "@revoked * " + string(ssh.MarshalAuthorizedKey(s.ca.PublicKey()))}
		}, "host certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			s := prepareSSHD(t, "HostKey DIR/ed25519", "HostKey DIR/rsa", "HostCertificate DIR/ed25519-cert.pub")
			s.certify(tc.principal)
			s.run(needSSHD(t))
			s.authorize("alone", "")
			s.pin(tc.pinned(s)...)
			_, err := s.peer().Inventory(t.Context())
			checkRefused(t, err, tc.want, "")
		})
	}
}

// authority pins a CA for the server's address.
func (s *sshd) authority(ca ssh.Signer) string { return "@cert-authority " + s.line(ca) }

func TestOpenSSH_Keys(t *testing.T) {
	s, _ := startNode(t, "join")
	_, err := s.peer(func(c *PeerConfig) { c.Signer = s.another }).Inventory(t.Context())
	checkRefused(t, err, "refused the key ssh-ed25519 SHA256:", AuthorizedKey("", "proxy1", s.another.PublicKey()))
	_, err = s.peer(func(c *PeerConfig) { c.User = "nobody-there" }).Inventory(t.Context())
	checkRefused(t, err, "refused the key", "authorized_keys of nobody-there on proxy2")
	if _, err := s.peer().Inventory(t.Context()); err != nil {
		t.Errorf("the right key: %v", err)
	}
}

func TestOpenSSH_AnRSAClientKeyWorks(t *testing.T) {
	s, _ := startNode(t, "join")
	s.client = s.rsa // any RSA key
	s.authorize("join", filepath.Join(s.dir, "s"))
	if _, err := s.peer().Inventory(t.Context()); err != nil {
		t.Error(err)
	}
}

// What the remote side may do instead of answering, and what the user is told.
func TestOpenSSH_RemoteSidesThatAreNotServePeer(t *testing.T) {
	for mode, want := range map[string]string{
		"rubbish": `answered "Welcome to proxy2!" instead of HTTP`,
		"other":   `answered "Tue Nov 24 08:32:30 UTC 2026" instead of HTTP`,
		"die":     "exit status 3: certsync: error: open /var/db/certsync: ?[31mpermission denied",
		"deaf":    "no answer within 2s",
		"stuck":   "no answer within 2s",
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s, fake := startNode(t, mode)
			silent := strings.HasPrefix(want, "no answer")
			p := s.peer(func(c *PeerConfig) {
				// Who answers, and SSH, get the time that a busy machine needs.
				if c.Timeouts = (Timeouts{Stall: 10 * time.Second}); silent {
					c.Timeouts = Timeouts{Request: 2 * time.Second, Transfer: 30 * time.Second, Stall: time.Second}
				}
			})
			_, err := p.Inventory(t.Context())
			checkRefused(t, err, want, "")
			if mode == "die" && (!strings.HasSuffix(err.Error(), "last words") || len(err.Error()) > 3000) {
				t.Errorf("error of %d bytes: %v", len(err.Error()), err)
			}
			if errors.Is(err, context.DeadlineExceeded) != silent {
				t.Errorf("deadline exceeded: %v", err)
			}
			// Writes: more than the windows of SSH and the pipes take.
			offered := manyKept(t, 2000)
			_, err = p.Stage(t.Context(), offered)
			if !errors.Is(err, cluster.ErrUnreachable) {
				t.Errorf("stage: %v, want unreachable", err)
			}
			if mode == "stuck" && !strings.Contains(err.Error(), "stood still for 1s") {
				t.Errorf("stage: %v", err)
			}
			// Behind the rubbish is a node that took what arrived before the client saw the rubbish.
			if mode != "rubbish" {
				fake.checkWhole(t, nil)
			}
		})
	}
}

// manyKept repeats one bundle under many sequences: the size counts here.
func manyKept(t *testing.T, n int) []cluster.Kept {
	t.Helper()
	k := makeKept(t, 1)[0]
	var out []cluster.Kept
	for i := range n {
		k.Generation.Sequence = uint64(i + 1)
		out = append(out, k)
	}
	return out
}

func TestOpenSSH_ASlowPeerIsOnlySlow(t *testing.T) {
	s, fake := startNode(t, "slow")
	fake.kept = makeKept(t, 1)
	p := s.peer(func(c *PeerConfig) { c.Timeouts = Timeouts{Stall: 2 * time.Second} })
	n := 0
	if err := p.Fetch(t.Context(), generationsOf(fake.kept), func(cluster.Kept) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("fetched %d, %v", n, err)
	}
}

func TestOpenSSH_ALargeTransfer(t *testing.T) {
	s, fake := startNode(t, "join")
	p := s.peer()
	kept := manyKept(t, 300)
	if results, err := p.Stage(t.Context(), kept); err != nil || len(results) != 300 {
		t.Fatalf("%d results, %v", len(results), err)
	}
	n := 0
	if err := p.Fetch(t.Context(), generationsOf(kept), func(cluster.Kept) error { n++; return nil }); err != nil || n != 300 {
		t.Errorf("fetched %d, %v", n, err)
	}
	if got := fake.checkWhole(t, kept); got != 300 {
		t.Errorf("%d kept", got)
	}
}

// cutter forwards TCP to target and cuts each connection after so many bytes of one direction; 0 is never.
type cutter struct {
	net.Listener
	target   string
	up, down int64
	total    [2]int64
	mu       sync.Mutex
}

func newCutter(t *testing.T, target string, up, down int64) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{Listener: l, target: target, up: up, down: down}
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			wait.Go(func() { c.forward(in) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); wait.Wait() })
	return c
}

func (c *cutter) port() int { return c.Addr().(*net.TCPAddr).Port }

func (c *cutter) forward(in net.Conn) {
	defer in.Close()
	out, err := net.Dial("tcp", c.target)
	if err != nil {
		return
	}
	defer out.Close()
	var wait sync.WaitGroup
	copyUntil := func(to, from net.Conn, limit int64, total *int64) {
		var r io.Reader = from
		if limit > 0 {
			r = io.LimitReader(from, limit)
		}
		n, _ := io.Copy(to, r)
		_, _ = in.Close(), out.Close()
		c.mu.Lock()
		defer c.mu.Unlock()
		*total += n
	}
	wait.Go(func() { copyUntil(out, in, c.up, &c.total[0]) })
	wait.Go(func() { copyUntil(in, out, c.down, &c.total[1]) })
	wait.Wait()
}

// The connection is cut at every KiB, in both directions, of both transfers: what is stored is whole, the error says
// that the peer was not reached, and the next try succeeds.
func TestOpenSSH_CutAtEveryKiB(t *testing.T) {
	s, fake := startNode(t, "join")
	s.pin("proxy2 " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.ed25519.PublicKey()))))
	kept := makeKept(t, 8)
	through := func(port int) *Peer {
		return NewPeer(PeerConfig{Name: "proxy2", Node: "proxy1", Address: "127.0.0.1", Port: port, User: s.user, Signer: s.client,
			KnownHosts: s.path("known_hosts"), HostKeyAlias: "proxy2", Timeouts: Timeouts{Stall: 5 * time.Second}})
	}
	direct := through(s.port)
	defer direct.Close()
	stage := func(p *Peer) (int, error) {
		results, err := p.Stage(t.Context(), kept)
		for _, r := range results {
			if r.Error != "" {
				t.Errorf("result %+v", r)
			}
		}
		return len(results), err
	}
	fetch := func(p *Peer) (int, error) {
		n := 0
		err := p.Fetch(t.Context(), generationsOf(kept), func(k cluster.Kept) error {
			n++
			return checkKept(k)
		})
		return n, err
	}
	for name, tc := range map[string]struct {
		call  func(*Peer) (int, error)
		limit func(n int64) (up, down int64)
		ready func()
	}{
		"stage up":   {stage, func(n int64) (int64, int64) { return n, 0 }, fake.reset},
		"stage down": {stage, func(n int64) (int64, int64) { return 0, n }, fake.reset},
		"fetch up":   {fetch, func(n int64) (int64, int64) { return n, 0 }, func() {}},
		"fetch down": {fetch, func(n int64) (int64, int64) { return 0, n }, func() {}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := stage(direct); err != nil {
				t.Fatal(err)
			}
			cuts := 0
			for n := int64(1024); ; n += 1024 {
				tc.ready()
				up, down := tc.limit(n)
				c := newCutter(t, s.address(), up, down)
				p := through(c.port())
				got, err := tc.call(p)
				_ = p.Close()
				if err == nil {
					if got != len(kept) {
						t.Fatalf("cut at %d: no error, and %d of %d", n, got, len(kept))
					}
					break
				}
				if cuts++; !errors.Is(err, cluster.ErrUnreachable) {
					t.Fatalf("cut at %d: %v, want unreachable", n, err)
				}
				fake.checkWhole(t, kept)
				if got, err := tc.call(direct); err != nil || got != len(kept) {
					t.Fatalf("cut at %d, tried again: %d of %d, %v", n, got, len(kept), err)
				}
				if got := fake.checkWhole(t, kept); got != len(kept) {
					t.Fatalf("cut at %d, tried again: %d kept", n, got)
				}
			}
			if cuts < 3 {
				t.Errorf("only %d cuts", cuts)
			}
			t.Logf("%d cuts", cuts)
		})
	}
}

// A connection that broke is made anew, once for all callers.
func TestOpenSSH_ABrokenConnectionIsMadeAnew(t *testing.T) {
	s, _ := startNode(t, "join")
	p := s.peer()
	if _, err := p.Inventory(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		p.ssh.mu.Lock()
		l := p.ssh.current
		p.ssh.mu.Unlock()
		l.close()
		<-l.dead
		p.transport.CloseIdleConnections()
		var calls sync.WaitGroup
		for range 6 {
			calls.Go(func() {
				if _, err := p.Inventory(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		calls.Wait()
	}
	if n := strings.Count(s.log.String(), "Accepted publickey"); n != 4 {
		t.Errorf("%d connections, want 4", n)
	}
}

// A host that is frozen, not closed: keepalives notice, and a later call gets a new connection.
func TestOpenSSH_ASilentConnectionIsDropped(t *testing.T) {
	s, _ := startNode(t, "join")
	gate := newGate(t, s.address())
	s.pin("proxy2 " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.ed25519.PublicKey()))))
	p := s.peer(func(c *PeerConfig) {
		c.Port, c.HostKeyAlias = gate.port(), "proxy2"
		c.Timeouts = Timeouts{KeepAlive: 100 * time.Millisecond}
	})
	if _, err := p.Inventory(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.ssh.mu.Lock()
	l := p.ssh.current
	p.ssh.mu.Unlock()
	gate.shut()
	select {
	case <-l.dead:
	case <-time.After(10 * time.Second):
		t.Fatal("a silent connection is kept")
	}
	gate.open()
	if _, err := p.Inventory(t.Context()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// gate forwards TCP, and holds back what comes from the target while it is shut.
type gate struct {
	net.Listener
	mu sync.Mutex
}

func newGate(t *testing.T, target string) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{Listener: l}
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				_ = in.Close()
				return
			}
			wait.Go(func() { _, _ = io.Copy(out, in); _, _ = in.Close(), out.Close() })
			wait.Go(func() { _, _ = io.Copy(gated{in, &g.mu}, out); _, _ = in.Close(), out.Close() })
		}
	})
	t.Cleanup(func() { _ = l.Close(); wait.Wait() })
	return g
}

func (g *gate) port() int { return g.Addr().(*net.TCPAddr).Port }
func (g *gate) shut()     { g.mu.Lock() }
func (g *gate) open()     { g.mu.Unlock() }

type gated struct {
	w  io.Writer
	mu *sync.Mutex
}

func (g gated) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.w.Write(p)
}

func TestSSH_HostsThatAreNotThere(t *testing.T) {
	signer := newSigner(t)
	peer := func(port int) *Peer {
		p := NewPeer(PeerConfig{Name: "proxy2", Node: "proxy1", Address: "127.0.0.1", Port: port, Signer: signer, KnownHosts: "/dev/null",
			Timeouts: Timeouts{Handshake: 200 * time.Millisecond}})
		t.Cleanup(func() { _ = p.Close() })
		return p
	}
	_, err := peer(freePort(t)).Inventory(t.Context())
	checkRefused(t, err, "connection refused", "start sshd on proxy2")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // it never accepts: the kernel does
	_, err = peer(l.Addr().(*net.TCPAddr).Port).Inventory(t.Context())
	checkRefused(t, err, "no answer within 200ms", "")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want a deadline", err)
	}
	p := peer(freePort(t))
	_ = p.Close()
	if _, err := p.Inventory(t.Context()); err == nil {
		t.Error("a closed peer answers")
	}
}

func TestReadKey(t *testing.T) {
	dir := t.TempDir()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(block *pem.Block, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(block))
	}
	good := encode(ssh.MarshalPrivateKey(key, ""))
	for name, tc := range map[string]struct {
		content string
		mode    os.FileMode
		want    string
	}{
		"good":             {good, 0o600, ""},
		"read only":        {good, 0o400, ""},
		"group may read":   {good, 0o640, ""},
		"others may read":  {good, 0o644, "has mode 0644"},
		"group may write":  {good, 0o660, "has mode 0660"},
		"encrypted":        {encode(ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte("x"))), 0o600, "is encrypted"},
		"cut":              {good[:len(good)/2], 0o600, "is not a private key"},
		"a public key":     {string(ssh.MarshalAuthorizedKey(newSigner(t).PublicKey())), 0o600, "is not a private key"},
		"empty":            {"", 0o600, "is not a private key"},
		"an endless thing": {strings.Repeat("x", maxKey+1), 0o600, "not a private key"},
	} {
		path := filepath.Join(dir, strings.ReplaceAll(name, " ", "_"))
		if err := os.WriteFile(path, []byte(tc.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, tc.mode); err != nil {
			t.Fatal(err)
		}
		_, err := ReadKey(path)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want %q", name, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), "OPENSSH") {
			t.Errorf("%s: the error quotes the file: %v", name, err)
		}
	}
	if _, err := ReadKey(filepath.Join(dir, "none")); !strings.Contains(cluster.HintOf(err), "ssh-keygen") {
		t.Errorf("missing: %v", err)
	}
	if _, err := ReadKey(dir); err == nil {
		t.Error("a folder is taken for a key")
	}
}
