package main

import (
	"github.com/spf13/cobra"
)

// reloadCommand is `tacit reload`.
func reloadCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Have the daemon read its rules again",
		Long: `The daemon reads its configuration again and puts the rules and "identify" in force, all at once. If something is wrong, or differs that only a
restart can change, nothing changes, and the error says what. SAs whose rule says the same as before are not touched. SIGHUP does the same.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := f.client()
			if err != nil {
				return err
			}
			if err := client.Reload(c.Context()); err != nil {
				return err
			}
			say(c.ErrOrStderr(), "reloaded")
			return nil
		},
	}
}
