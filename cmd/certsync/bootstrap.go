package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"certsync/internal/bootstrap"
	"certsync/internal/carp"
	"certsync/internal/cluster"
	"certsync/internal/config"
)

// bootstrapOptions are the flags of bootstrap.
type bootstrapOptions struct {
	apply, revert, yes, json bool
	root                     string
}

func (a *app) bootstrapCommand() *cobra.Command {
	var o bootstrapOptions
	cmd := &cobra.Command{
		Use:   "bootstrap",
		Short: "CARP, folders, user, privileges and service of a FreeBSD host: the plan, or done",
		Long: `bootstrap compares this host with what the configuration wants of it, and prints a line for each step: what is there
and what would be. It covers carp.ko at boot and now, CARP's sysctls, the virtual addresses now and in rc.conf, the
service user, its folders, its doas or sudo rules, a placeholder in HAProxy's empty folder of certificates, and the
service. It changes nothing, and without root it gives the same steps as commands to copy.

With --apply it does what differs and reads each step back; what is right already is not touched, since giving an
interface an address that it has is a failover. With --revert it undoes exactly what was applied, from the record that
it kept. With --root it does the steps over files on the tree of another system, such as an image.

It exits 0 where nothing is blocked, 1 where something is or a step failed, and 4 where steps are left that have to be
done elsewhere.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.bootstrap(cmd.Context(), o) },
	}
	cmd.Flags().BoolVar(&o.apply, "apply", false, "do it")
	cmd.Flags().BoolVar(&o.revert, "revert", false, "undo what was applied")
	cmd.Flags().StringVar(&o.root, "root", "", "the root folder of another system's tree")
	cmd.Flags().BoolVar(&o.yes, "yes", false, "confirm what touches the interface of this SSH session, or causes a failover")
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

func (a *app) bootstrap(ctx context.Context, o bootstrapOptions) error {
	if o.apply && o.revert {
		return cluster.Usage(errors.New("bootstrap: --apply and --revert exclude each other"))
	}
	host, settings, err := a.bootstrapHost(o.root)
	if err != nil {
		return err
	}
	if o.revert {
		result, err := host.Revert(ctx, o.yes)
		return a.printResult(result, err, "undone", o)
	}
	plan, err := host.Plan(ctx, settings)
	if err != nil {
		return err
	}
	if !o.apply {
		return a.printPlan(plan, o)
	}
	if plan.Err() != nil { // the plan says more than the error that Apply would give
		return a.printPlan(plan, o)
	}
	result, err := host.Apply(ctx, settings, plan, o.yes)
	return a.printResult(result, err, "done", o)
}

// bootstrapHost is the machine to set up, or the tree, and what the configuration wants of it.
func (a *app) bootstrapHost(root string) (*bootstrap.Host, bootstrap.Settings, error) {
	var none bootstrap.Settings
	cfg, err := config.Load(a.configPath)
	if err != nil {
		return nil, none, err
	}
	if root == "" {
		kernel, err := carp.SystemKernel()
		if err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return nil, none, err
		}
		name, err := os.Hostname()
		if err != nil {
			return nil, none, fmt.Errorf("this host's name: %w", err)
		}
		self, err := cfg.Self(name)
		return bootstrap.NewHost(kernel, ""), bootstrap.SettingsOf(cfg, self, a.configPath), err
	}
	if root, err = filepath.Abs(root); err != nil {
		return nil, none, fmt.Errorf("--root: %w", err)
	}
	if info, err := os.Stat(root); err != nil || !info.IsDir() {
		return nil, none, cluster.WithHint(cluster.Usage(fmt.Errorf("--root %s: no such folder", root)), "name the root folder of an unpacked FreeBSD")
	}
	host := bootstrap.NewHost(nil, root)
	name := cfg.Node
	if name == "" {
		if name, err = bootstrap.Hostname(host.Tree); err != nil {
			return nil, none, err
		}
	}
	self, err := cfg.Self(name)
	return host, bootstrap.SettingsOf(cfg, self, pathInTree(a.configPath, root)), err
}

// pathInTree is where the configuration is for the system whose root is a tree: where it lies in the tree, or else where
// certsync looks for it.
func pathInTree(path, root string) string {
	if abs, err := filepath.Abs(path); err == nil {
		if inside, ok := strings.CutPrefix(abs, strings.TrimSuffix(root, "/")+"/"); ok {
			return "/" + inside
		}
	}
	return config.DefaultPath
}

func (a *app) printPlan(plan *bootstrap.Plan, o bootstrapOptions) error {
	if err := a.printBootstrap(plan, o.json, func() error { return plan.Print(a.stdout) }); err != nil {
		return err
	}
	if err := plan.Err(); err != nil {
		return err
	}
	if len(plan.Of(bootstrap.Unsupported)) > 0 {
		return &exitError{code: exitPartly}
	}
	return nil
}

// printResult tells how far it came, also where it failed.
func (a *app) printResult(result *bootstrap.Result, err error, verb string, o bootstrapOptions) error {
	if result == nil {
		return err
	}
	printed := a.printBootstrap(result, o.json, func() error {
		for _, step := range result.Done {
			fmt.Fprintf(a.stdout, "%s: %s\n", verb, step)
		}
		for _, what := range result.Left {
			fmt.Fprintf(a.stdout, "left as it is: %s\n", what)
		}
		for _, step := range result.NotDone {
			fmt.Fprintf(a.stdout, "not %s: %s\n", verb, step)
		}
		if len(result.Done)+len(result.Left)+len(result.NotDone) == 0 && err == nil {
			fmt.Fprintln(a.stdout, "nothing to do")
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case printed != nil:
		return printed
	case len(result.NotDone)+len(result.Left) > 0:
		return &exitError{code: exitPartly}
	}
	return nil
}

func (a *app) printBootstrap(v any, asJSON bool, text func() error) error {
	if !asJSON {
		return text()
	}
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
