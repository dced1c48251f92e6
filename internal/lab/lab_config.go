package lab

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"path/filepath"

	"go.yaml.in/yaml/v3"
)

// The parts of certsync.yaml that the lab sets; package config has the whole, which this package does not import, so
// that the lab proves the file's form and not the code that wrote it.
type (
	configFile struct {
		Node         string              `yaml:"node"`
		Nodes        []configNode        `yaml:"nodes"`
		ACME         configACME          `yaml:"acme"`
		DNS          configDNS           `yaml:"dns"`
		Certificates []configCertificate `yaml:"certificates"`
		HAProxy      []configHAProxy     `yaml:"haproxy"`
		CARP         configCARP          `yaml:"carp"`
		SSH          configSSH           `yaml:"ssh"`
		StateDir     string              `yaml:"state_dir"`
		RunDir       string              `yaml:"run_dir"`
		// Listen stays empty: the nodes of a lab are on one machine, where a port is one's alone.
		Listen string `yaml:"listen"`
	}
	configNode struct {
		Name    string `yaml:"name"`
		Address string `yaml:"address"`
		Port    int    `yaml:"port"`
	}
	configACME struct {
		Directory string `yaml:"directory"`
		Email     string `yaml:"email"`
		CAFile    string `yaml:"ca_file"`
	}
	configDNS struct {
		Provider    string            `yaml:"provider"`
		EnvFile     string            `yaml:"env_file"`
		Resolvers   []string          `yaml:"resolvers"`
		Propagation configPropagation `yaml:"propagation"`
	}
	configPropagation struct {
		Timeout  string `yaml:"timeout"`
		Interval string `yaml:"interval"`
	}
	configCertificate struct {
		Name    string   `yaml:"name"`
		Domains []string `yaml:"domains"`
		Bundle  string   `yaml:"bundle,omitempty"`
	}
	configHAProxy struct {
		Config        string   `yaml:"config"`
		BundleDir     string   `yaml:"bundle_dir"`
		CrtList       string   `yaml:"crt_list,omitempty"`
		RuntimeSocket string   `yaml:"runtime_socket"`
		Verify        []string `yaml:"verify"`
	}
	configCARP struct {
		Role string `yaml:"role"`
	}
	configSSH struct {
		User       string `yaml:"user"`
		KeyFile    string `yaml:"key_file"`
		KnownHosts string `yaml:"known_hosts"`
	}
)

// writeConfigs writes certsync.yaml for every node. On real hosts the file is the same everywhere; here the nodes share
// one file system, so that what is a path or the node's own name differs.
func (l *Lab) writeConfigs(context.Context) error {
	envFile := filepath.Join(l.Root, "dns.env")
	if err := writeFile(envFile, []byte(l.DNS.EnvFile())); err != nil {
		return err
	}
	me, err := user.Current()
	if err != nil {
		return err
	}
	shared := configFile{
		ACME: configACME{Directory: l.CA.Directory(), Email: "ops@example.org", CAFile: l.CA.CAFile()},
		DNS: configDNS{Provider: "rfc2136", EnvFile: envFile, Resolvers: []string{l.DNS.Address()},
			Propagation: configPropagation{Timeout: "20s", Interval: "20ms"}},
		CARP: configCARP{Role: "static:" + l.master},
	}
	for _, n := range l.Nodes {
		shared.Nodes = append(shared.Nodes, configNode{Name: n.Name, Address: loopbackAddress, Port: n.sshPort})
	}
	for _, n := range l.Nodes {
		data, err := yaml.Marshal(n.configFile(shared, me.Username))
		if err != nil {
			return fmt.Errorf("configuration of %s: %w", n.Name, err)
		}
		if err := writeFile(n.Config, data); err != nil {
			return fmt.Errorf("configuration of %s: %w", n.Name, err)
		}
	}
	return nil
}

// configFile is the shared part and what is the node's own.
func (n *Node) configFile(shared configFile, username string) configFile {
	c := shared
	c.Node, c.StateDir, c.RunDir = n.Name, n.StateDir, n.RunDir
	for _, o := range n.lab.o.Certificates {
		if o.Foreign {
			continue
		}
		entry := configCertificate{Name: o.Name, Domains: o.Domains}
		if !o.New {
			// The file is there and is not certsync's; naming it is what allows certsync to replace it.
			entry.Bundle = n.BundleFile(o.Name)
		}
		c.Certificates = append(c.Certificates, entry)
	}
	c.HAProxy = []configHAProxy{{Config: n.HAProxyConfig, BundleDir: n.BundleDir, RuntimeSocket: n.StatsSocket, Verify: []string{n.TLSAddress}}}
	if n.lab.o.CrtList {
		c.HAProxy[0].CrtList = n.crtList()
	}
	c.SSH = configSSH{User: username, KeyFile: n.KeyFile, KnownHosts: n.KnownHosts}
	return c
}

// writeFile replaces a file in one step, so that a certsync that reads it meanwhile has the old or the new one.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	if _, err := f.Write(data); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
