package bootstraptest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Commands are the programs that bootstrap runs: pw(8) on the files of a tree, kldstat(8) and kldunload(8) on a kernel,
// visudo(8). Another is an error.
type Commands struct {
	// Root is the folder of the tree.
	Root   string
	Kernel *Kernel
	// UID and GID are those of a user that is made.
	UID, GID int
	// BuiltIn tells that carp is in the kernel and no file of it.
	BuiltIn bool
	// Calls are the command lines, in order.
	Calls []string
	// Fail makes the command lines that begin with a key end with the error.
	Fail map[string]error
}

// Run is bootstrap's Host.Run.
func (c *Commands) Run(ctx context.Context, argv []string) ([]byte, error) {
	line := strings.Join(argv, " ")
	c.Calls = append(c.Calls, line)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for prefix, err := range c.Fail {
		if strings.HasPrefix(line, prefix) {
			return []byte("it failed"), err
		}
	}
	switch filepath.Base(argv[0]) {
	case "pw":
		return nil, c.pw(argv[1:])
	case "kldstat":
		return []byte(c.kldstat()), nil
	case "kldunload":
		return nil, c.Kernel.Unload()
	case "visudo":
		return nil, c.visudo(argv[len(argv)-1])
	}
	return nil, fmt.Errorf("no such program: %s", argv[0])
}

func (c *Commands) kldstat() string {
	out := "Id Refs Address                Size Name\n 1   12 0xffffffff80200000  1f3e2d0 kernel\n"
	if c.Kernel.Loaded && !c.BuiltIn {
		out += " 2    1 0xffffffff82319000     a4a0 carp.ko\n"
	}
	return out
}

// visudo refuses what is no rule and no comment.
func (c *Commands) visudo(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		if !strings.HasPrefix(line, "#") && !strings.Contains(line, " ALL=(root) NOPASSWD: /") {
			return fmt.Errorf("parse error: %q", line)
		}
	}
	return nil
}

func (c *Commands) pw(argv []string) error {
	option := func(name string) string {
		if i := slices.Index(argv, name); i >= 0 && i+1 < len(argv) {
			return argv[i+1]
		}
		return ""
	}
	switch argv[0] {
	case "useradd":
		return c.useradd(argv[1], option("-d"), option("-s"), option("-g"))
	case "userdel":
		err := c.edit("etc/passwd", func(f []string) []string { return keepUnless(f, f[0] == argv[1]) })
		if err != nil {
			return err
		}
		return c.edit("etc/group", func(f []string) []string { return keepUnless(f, f[0] == argv[1]) })
	case "usermod":
		return c.edit("etc/passwd", func(f []string) []string {
			if f[0] == argv[1] {
				f[6] = option("-s")
			}
			return f
		})
	case "groupmod":
		return c.groupmod(argv[1], option("-m"), option("-d"))
	}
	return fmt.Errorf("pw: no such command: %s", argv[0])
}

func keepUnless(f []string, gone bool) []string {
	if gone {
		return nil
	}
	return f
}

func (c *Commands) useradd(name, home, shell, group string) error {
	exists, gid := false, c.GID
	err := c.edit("etc/passwd", func(f []string) []string {
		exists = exists || f[0] == name
		return f
	})
	if err != nil || exists {
		return fmt.Errorf("pw: login name `%s' already exists (%v)", name, err)
	}
	if group == "" {
		if err := c.add("etc/group", fmt.Sprintf("%s:*:%d:", name, gid)); err != nil {
			return err
		}
	}
	return c.add("etc/passwd", fmt.Sprintf("%s:*:%d:%d:certsync:%s:%s", name, c.UID, gid, home, shell))
}

func (c *Commands) groupmod(name, add, remove string) error {
	return c.edit("etc/group", func(f []string) []string {
		if f[0] != name {
			return f
		}
		members := slices.DeleteFunc(strings.Split(f[3], ","), func(m string) bool { return m == "" || m == remove })
		if add != "" {
			members = append(members, add)
		}
		f[3] = strings.Join(members, ",")
		return f
	})
}

func (c *Commands) add(name, line string) error {
	path := filepath.Join(c.Root, name)
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, line+"\n"...), 0o644)
}

func (c *Commands) edit(name string, how func([]string) []string) error {
	path := filepath.Join(c.Root, name)
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var b strings.Builder
	for line := range strings.Lines(string(data)) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), ":")
		if len(fields) < 4 {
			b.WriteString(line)
		} else if fields = how(fields); fields != nil {
			b.WriteString(strings.Join(fields, ":") + "\n")
		}
	}
	return os.WriteFile(path, []byte(b.String()), 0o644)
}
