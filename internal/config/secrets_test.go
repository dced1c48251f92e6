package config

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"certsync/internal/cluster"
)

// writeMode writes a file with exactly this mode, whatever the umask.
func writeMode(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSecretsAreRefusedWhenOthersCanReadThem(t *testing.T) {
	for mode := os.FileMode(0o400); mode <= 0o777; mode++ {
		if mode&0o400 == 0 {
			continue
		}
		path := writeMode(t, filepath.Join(t.TempDir(), "f"), "KEY=value\n", mode)
		_, err := ReadSecret(path)
		if want := mode&0o077 == 0; (err == nil) != want {
			t.Errorf("a key of mode %04o: %v", mode, err)
		}
		_, err = ReadEnvFile(path)
		if want := mode&0o037 == 0; (err == nil) != want {
			t.Errorf("an env_file of mode %04o: %v", mode, err)
		}
		if err != nil && (!errors.Is(err, cluster.ErrUsage) || !strings.Contains(cluster.HintOf(err), "chmod 0640 "+path)) {
			t.Errorf("mode %04o: %v, hint %q", mode, err, cluster.HintOf(err))
		}
	}
}

func TestSecretsThatCannotBeReadHaveAMend(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	big := writeMode(t, filepath.Join(dir, "big"), strings.Repeat("#", maxSecret+1), 0o600)
	loop := filepath.Join(dir, "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "none"): "no such file", dir: "not a regular file", fifo: "not a regular file", big: "larger than 64 KiB", loop: "too many levels",
	} {
		if _, err := ReadEnvFile(path); err == nil || !strings.HasPrefix(err.Error(), "read secret "+path+": ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if _, err := ReadSecret(filepath.Join(dir, "none")); !strings.Contains(cluster.HintOf(err), "create it with mode 0600") {
		t.Errorf("hint %q", cluster.HintOf(err))
	}
	if os.Geteuid() == 0 {
		return // root reads everything
	}
	closed := writeMode(t, filepath.Join(dir, "closed"), "", 0)
	if _, err := ReadSecret(closed); !errors.Is(err, os.ErrPermission) || cluster.HintOf(err) == "" {
		t.Errorf("a file that cannot be read: %v, hint %q", err, cluster.HintOf(err))
	}
}

func TestASymbolicLinkIsJudgedByItsTarget(t *testing.T) {
	dir := t.TempDir()
	target := writeMode(t, filepath.Join(dir, "target"), "x", 0o644)
	link := filepath.Join(dir, "link")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSecret(link); err == nil {
		t.Error("a link to a file that all can read was taken")
	}
	writeMode(t, target, "x", 0o600)
	if got, err := ReadSecret(link); err != nil || string(got) != "x" {
		t.Errorf("a link to a good file: %q, %v", got, err)
	}
}

func TestCheckSecretsTellsAllThatIsWrongAtOnce(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	c := mustParse(t, fmt.Sprintf(`
nodes: [{name: a, address: a}, {name: b, address: b}]
acme: {eab: {key_id: x, hmac_key_file: %s}}
dns: {provider: x, env_file: %s}
certificates: [{name: a, domains: [a.org]}, {name: b, domains: [b.org], dns: {env_file: %s}}]
ssh: {key_file: %s}
carp: {role: static:a}
`, at("hmac"), at("dns"), at("own"), at("key")))

	if err := c.CheckSecrets(); err == nil || strings.Count(err.Error(), "no such file") != 4 || !errors.Is(err, cluster.ErrUsage) {
		t.Errorf("nothing there: %v", err)
	}
	writeMode(t, at("hmac"), "", 0o640)
	writeMode(t, at("dns"), "", 0o644)
	writeMode(t, at("own"), "", 0o660)
	writeMode(t, at("key"), "", 0o604)
	err := c.CheckSecrets()
	if err == nil {
		t.Fatal("accepted what others can read")
	}
	want := []string{
		"acme.eab.hmac_key_file: " + at("hmac") + ": mode 0640: others than its owner have access to it",
		"dns.env_file: " + at("dns") + ": mode 0644: everybody has access to it",
		"certificates[1].dns.env_file: " + at("own") + ": mode 0660: its group can do more than read it",
		"ssh.key_file: " + at("key") + ": mode 0604: others than its owner have access to it",
	}
	if err.Error() != strings.Join(want, "\n") {
		t.Errorf("got\n%v\nwant\n%s", err, strings.Join(want, "\n"))
	}
	for _, one := range err.(interface{ Unwrap() []error }).Unwrap() {
		if !strings.HasPrefix(cluster.HintOf(one), "chmod 06") {
			t.Errorf("%v: hint %q", one, cluster.HintOf(one))
		}
	}
	writeMode(t, at("hmac"), "", 0o400)
	writeMode(t, at("dns"), "", 0o640)
	writeMode(t, at("own"), "", 0o600)
	writeMode(t, at("key"), "", 0o600)
	if err := c.CheckSecrets(); err != nil {
		t.Errorf("all in order: %v", err)
	}
	if err := os.Remove(at("key")); err != nil {
		t.Fatal(err)
	}
	c.Nodes = c.Nodes[:1]
	if err := c.CheckSecrets(); err != nil {
		t.Errorf("a single host needs no SSH key: %v", err)
	}
}

func TestEnvFilesAreRead(t *testing.T) {
	text := "\ufeff# the provider's\n\n  \t\nKEY=value\nexport EXPORTED=1\nEMPTY=\r\n _x1 \n"
	if _, err := parseEnv("f", []byte(text)); err == nil {
		t.Error("a line without = was taken")
	}
	got, err := parseEnv("f", []byte("\ufeff# the provider's\n\n  \t\nKEY=value\r\nexport  EXPORTED=1\nexport=2\nEMPTY=\r\n  INDENTED=x  \n"+
		`SINGLE='a "b" $c \d # e'`+"\n"+`DOUBLE="a 'b' \$c \\ \" \d # e"`+"\n"+`NONE=a$b#c\d=e==`+"\nQUOTED=''\n_1='ü'\nLAST=x"))
	want := map[string]string{"KEY": "value", "EXPORTED": "1", "export": "2", "EMPTY": "", "INDENTED": "x", "SINGLE": `a "b" $c \d # e`,
		"DOUBLE": `a 'b' $c \ " \d # e`, "NONE": `a$b#c\d=e==`, "QUOTED": "", "_1": "ü", "LAST": "x"}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("got %q, %v\nwant %q", got, err, want)
	}
}

func TestEnvFilesTellAllMistakesWithoutAValue(t *testing.T) {
	const hush = "hush"
	lines := []struct{ text, want string }{
		{"hush", "f:1: not KEY=VALUE"},
		{"A = hush", "f:2: not KEY=VALUE"},
		{"1A=hush", "f:3: not KEY=VALUE"},
		{"=hush", "f:4: not KEY=VALUE"},
		{"export hush", "f:5: not KEY=VALUE"},
		{"A=hush hush", "f:6: A: blanks or quotes within"},
		{"B=hush # comment", "f:7: B: blanks or quotes within"},
		{`C=hush"hush"`, "f:8: C: blanks or quotes within"},
		{`D="hush`, "f:9: D: the closing quote is missing"},
		{`E='hush'hush`, "f:10: E: text after the closing quote"},
		{`F="hush\"`, "f:11: F: the closing quote is missing"},
		{"G=hush\x00", "f:12: characters that are no text"},
		{"H=hush\xff", "f:13: characters that are no text"},
		{"I=hush", ""},
		{"I=hush", "f:15: I: given twice, first on line 14"},
		{"hush: hush", "f:16: not KEY=VALUE"},
		{`"J"=hush`, "f:17: not KEY=VALUE"},
	}
	var text, want []string
	for _, line := range lines {
		text = append(text, line.text)
		if line.want != "" {
			want = append(want, line.want)
		}
	}
	env, err := parseEnv("f", []byte(strings.Join(text, "\n")))
	if err == nil || env != nil || !errors.Is(err, cluster.ErrUsage) {
		t.Fatalf("%v, %v", env, err)
	}
	if strings.Contains(err.Error(), hush) {
		t.Errorf("a value is shown: %v", err)
	}
	got := strings.Split(err.Error(), "\n")
	if len(got) != len(want) {
		t.Fatalf("%d errors, want %d:\n%v", len(got), len(want), err)
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("got %q, want %q...", got[i], want[i])
		}
	}
}

// FuzzReadEnvFile also holds that no error shows what stands behind a `=`.
func FuzzReadEnvFile(f *testing.F) {
	f.Add([]byte("# x\nexport A=b\nB='c d'\nC=\"e\\\"\"\r\n"))
	f.Add([]byte("A=1\nA=2\nhush\n=x\nB=\"\n\xff=\x00"))
	path := filepath.Join(f.TempDir(), "env")
	f.Fuzz(func(t *testing.T, data []byte) {
		writeMode(t, path, string(data), 0o600)
		env, err := ReadEnvFile(path)
		if err != nil {
			for _, line := range strings.Split(err.Error(), "\n") {
				if len(data) <= maxSecret && !strings.HasPrefix(line, path+":") {
					t.Errorf("an error's line without the file: %q", line)
				}
			}
			return
		}
		var again strings.Builder
		for key, value := range env {
			if key == "" || !onlyRunes(key, letters+digits+"_") || strings.ContainsAny(value, "\n\x00") {
				t.Errorf("accepted %q=%q", key, value)
			}
			fmt.Fprintf(&again, "%s=\"%s\"\n", key, strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`, "`", "\\`").Replace(value))
		}
		back, err := parseEnv("again", []byte(again.String()))
		if err != nil || !maps.Equal(back, env) {
			t.Errorf("written and read again: %q, %v; want %q", back, err, env)
		}
	})
}
