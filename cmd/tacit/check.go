package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"tacit/config"
	"tacit/dnssec"
	"tacit/upstream"
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
			anchors, err := trustAnchors(conf)
			if err != nil {
				return err
			}
			if _, err := trustPoint(conf, anchors); err != nil {
				return err
			}
			if _, err := router(conf, anchors); err != nil {
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

// rootHints are the servers of the root that are configured; nil: the Internet's.
func rootHints(conf *config.Config) ([]upstream.Hint, error) {
	if conf.DNS.RootHints == "" {
		return nil, nil
	}
	text, err := os.ReadFile(conf.DNS.RootHints)
	if err != nil {
		return nil, err
	}
	return upstream.ParseHints(text, conf.DNS.RootHints)
}

// router is the ways to the DNS as the configuration says, for verbs that need no daemon.
func router(conf *config.Config, anchors *dnssec.Anchors) (*upstream.Router, error) {
	hints, err := rootHints(conf)
	if err != nil {
		return nil, err
	}
	r, err := upstream.New(upstream.Config{Servers: conf.DNS.Upstream, Iterate: conf.DNS.Iterate && !conf.DNS.TrustAD, TrustAD: conf.DNS.TrustAD, Hints: hints, Probed: anchors.Top()})
	if err != nil {
		return nil, fmt.Errorf("dns.upstream: %w", err)
	}
	return r, nil
}

// trustPoint is the state of the trust anchors that roll over, or the anchors to begin with. Nil if they do not roll over.
func trustPoint(conf *config.Config, anchors *dnssec.Anchors) (*dnssec.TrustPoint, error) {
	path := conf.DNS.TrustAnchorState
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	switch {
	case err == nil:
		return dnssec.ParseTrustPoint(text, path)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	p := anchors.TrustPoint(".")
	if p == nil {
		return nil, errors.New("dns.trust-anchor-state: there is no trust anchor of the root to follow")
	}
	return p, nil
}
