package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"tacit/config"
	"tacit/dnssec"
)

// checkConfigCommand is `tacit check-config`.
func checkConfigCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:   "check-config",
		Short: "Check the configuration and the files that it names",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			conf, err := f.load()
			if err != nil {
				return err
			}
			// A daemon would fail on these as it fails on the configuration: so do we.
			if _, err := trustAnchors(conf); err != nil {
				return err
			}
			if _, err := readKey(conf.Identity); err != nil && conf.Name != "" {
				return fmt.Errorf("name is set, and its key cannot be used: %w", err)
			}
			say(c.ErrOrStderr(), "%s is good", f.config)
			return nil
		},
	}
}

// trustAnchors reads the trust anchors that the configuration names.
func trustAnchors(conf *config.Config) (*dnssec.Anchors, error) {
	if conf.DNS.TrustAnchors == "" {
		return dnssec.RootAnchors(), nil
	}
	text, err := os.ReadFile(conf.DNS.TrustAnchors)
	if err != nil {
		return nil, err
	}
	return dnssec.ParseAnchors(text, conf.DNS.TrustAnchors)
}
