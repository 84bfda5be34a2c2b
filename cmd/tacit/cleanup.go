package main

import (
	"github.com/spf13/cobra"
)

// cleanupCommand is `tacit cleanup`.
func cleanupCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cleanup",
		Short: "Remove what a daemon that was killed left in the kernel",
		Long: `Removes the routes, rules, packet filter table, IPsec policies and SAs of a daemon that was killed. Without it they end by themselves, as far as they
touch packets; the rest goes when the daemon starts again. Refused while a daemon runs.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := cleanup(); err != nil {
				return err
			}
			say(c.ErrOrStderr(), "nothing of a dead daemon is left")
			return nil
		},
	}
}
