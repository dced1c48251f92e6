package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"certsync/internal/acme/providers"
	"certsync/internal/cluster"
	"certsync/internal/config"
)

func (a *app) checkCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "check the configuration file",
		Long: `check reads the configuration file and what it names (the modes of the files that hold secrets, this node's
identity), tells everything that is wrong at once, each with its line, and exits 2; or says that it is sound.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			cfg, self, err := a.load()
			if err != nil {
				return err
			}
			if err := dropPrivileges(cfg.StateDir); err != nil {
				return err
			}
			if err := errors.Join(checkFiles(cfg), cfg.CheckSecrets()); err != nil {
				return &exitError{exitUsage, err}
			}
			var names []string
			for _, c := range cfg.Certificates {
				names = append(names, c.Name)
			}
			fmt.Fprintf(a.stdout, "%s: sound: this node is %s of %d; certificates: %s\n", a.configPath, self.Name, len(cfg.Nodes),
				strings.Join(names, ", "))
			return nil
		},
	}
}

// checkFiles reads what the configuration names, as the service user will: everything that is wrong, joined.
func checkFiles(cfg *config.Config) error {
	var errs []error
	if _, err := roots(cfg.ACME.CAFile); err != nil {
		errs = append(errs, err)
	}
	if err := checkDemotion(cfg); err != nil {
		errs = append(errs, err)
	}
	seen := map[string]bool{}
	for _, c := range cfg.Certificates {
		if !seen[c.DNS.Provider] {
			seen[c.DNS.Provider] = true
			if err := providers.Known(c.DNS.Provider); err != nil {
				errs = append(errs, fmt.Errorf("dns.provider of %s: %w", c.Name, err))
			}
		}
		if env := c.DNS.EnvFile; env != "" && !seen["env "+env] {
			seen["env "+env] = true
			// CheckSecrets tells of files that are missing or readable for others.
			if _, err := config.ReadEnvFile(env); err != nil && readable(env) {
				errs = append(errs, err)
			}
		}
	}
	if files := cfg.NotifyFiles(); len(files) == 0 || !slices.ContainsFunc(files, func(f string) bool { return !readable(f) }) {
		_, err := targets(cfg)
		errs = append(errs, err) // nil where nothing is wrong
	}
	for _, h := range cfg.HAProxy {
		if info, err := os.Stat(h.BundleDir); err != nil || !info.IsDir() {
			errs = append(errs, cluster.WithHint(fmt.Errorf("haproxy.bundle_dir %s: no such folder", h.BundleDir),
				"make it, writable for the service user: install -d -o certsync -m 0755 %s", h.BundleDir))
		}
	}
	return errors.Join(errs...)
}

// readable tells that a file's mode is no reason to refuse it, so that its content is.
func readable(file string) bool {
	info, err := os.Stat(file)
	return err == nil && info.Mode().Perm()&0o037 == 0
}

// load reads the configuration and finds this node in it.
func (a *app) load() (*config.Config, config.Node, error) {
	cfg, err := config.Load(a.configPath)
	if err != nil {
		return nil, config.Node{}, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, config.Node{}, fmt.Errorf("this host's name: %w", err)
	}
	self, err := cfg.Self(host)
	return cfg, self, err
}
