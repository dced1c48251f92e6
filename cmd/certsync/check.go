package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

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
			if err := cfg.CheckSecrets(); err != nil {
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
