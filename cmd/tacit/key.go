package main

import (
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"tacit/ipseckey"
)

// keyCommand is `tacit key`, which has one verb so far.
func keyCommand(f *flags) *cobra.Command {
	c := &cobra.Command{
		Use:   "key",
		Short: "This host's key",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return usageErrorf("key: want a verb: show") },
	}
	c.AddCommand(&cobra.Command{
		Use:   "show",
		Short: "Print the records that publish this host's key",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return showKey(c, f) },
	})
	return c
}

// showKey prints the public half only.
func showKey(c *cobra.Command, f *flags) error {
	conf, err := f.load()
	if err != nil {
		return err
	}
	key, err := readKey(conf.Identity)
	if err != nil {
		return err
	}
	owner := conf.Name + "."
	if conf.Name == "" {
		say(c.ErrOrStderr(), "%s sets no name: the records are for the zone's own name (@)", f.config)
		owner = "@"
	}
	say(c.ErrOrStderr(), "the key in %s has the fingerprint %s", conf.Identity, ipseckey.Fingerprint(key.Public()))
	return writeRecords(c.OutOrStdout(), owner, key.Public())
}

// readKey reads our private key. A file that others may read is refused: the key is not ours alone then.
func readKey(path string) (crypto.Signer, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: there is no key; make one with: tacit init", path)
	}
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: mode %04o lets others read the private key; it must be 0600", path, st.Mode().Perm())
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key, err := ipseckey.ParseIdentity(pem)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}
