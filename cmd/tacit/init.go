package main

import (
	"crypto"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"tacit/config"
	"tacit/ipseckey"
)

// recordTTL is that of the records we print, in seconds.
const recordTTL = 3600

// initCommand is `tacit init`.
func initCommand(f *flags) *cobra.Command {
	var name, identity string
	c := &cobra.Command{
		Use:   "init --name NAME",
		Short: "Make this host's key and configuration, and print the records to publish",
		Long: `Makes an Ed25519 key and writes the configuration. Standard output holds the IPSECKEY record to publish in the zone of NAME,
and the same record in the form of RFC 3597 for servers that do not know IPSECKEY. Nothing that exists is overwritten.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if name == "" {
				return usageErrorf("--name is missing: this host's fully qualified name")
			}
			n, err := config.HostName(name)
			if err != nil {
				return usageErrorf("--name: %w", err)
			}
			return initialise(c, f, n, identity)
		},
	}
	c.Flags().StringVar(&name, "name", "", "this host's fully qualified `NAME`")
	c.Flags().StringVar(&identity, "identity", config.Default().Identity, "`FILE` for the private key")
	return c
}

// initialise makes both files or none.
func initialise(c *cobra.Command, f *flags, name, identity string) error {
	conf, err := filepath.Abs(f.config)
	if err != nil {
		return err
	}
	if identity, err = filepath.Abs(identity); err != nil {
		return err
	}
	socket := f.socket
	if socket != "" {
		if socket, err = filepath.Abs(socket); err != nil {
			return err
		}
	}
	// Look before anything is made. That nothing is overwritten does not hang on this, but on O_EXCL.
	for _, path := range []string{conf, identity} {
		if _, err := os.Lstat(path); err == nil {
			return fmt.Errorf("%s is there already; it is not overwritten", path)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	text := configText(name, identity, socket)
	// What we write must be what we accept, before a key exists for it.
	if _, err := config.Parse([]byte(text), conf); err != nil {
		return err
	}
	key, err := ipseckey.GenerateIdentity()
	if err != nil {
		return err
	}
	pem, err := ipseckey.MarshalIdentity(key)
	if err != nil {
		return err
	}
	if err := writeNew(identity, pem, 0o600, 0o700); err != nil {
		return err
	}
	if err := writeNew(conf, []byte(text), 0o644, 0o755); err != nil {
		return errors.Join(err, os.Remove(identity))
	}
	stderr := c.ErrOrStderr()
	say(stderr, "wrote the key to %s and the configuration to %s", identity, conf)
	say(stderr, "publish one of these records in the zone of %s, which must be signed; the second is for servers that do not know IPSECKEY", name)
	return writeRecords(c.OutOrStdout(), name+".", key.Public())
}

// writeNew writes a file that was not there before, with its directories.
func writeNew(path string, data []byte, mode, dirMode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), dirMode); err != nil {
		return err
	}
	w, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	if err == nil { // a key that DNS knows and the disk does not is worse than none
		err = w.Sync()
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// configText is the configuration that init writes: what must be said, and what most will want to change next.
func configText(name, identity, socket string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# tacit.toml: what is not said here has its default. Check it with: tacit check-config\n\n")
	fmt.Fprintf(&b, "name = %s\nidentity = %s\n", quote(name), quote(identity))
	if socket != "" {
		fmt.Fprintf(&b, "socket = %s\n", quote(socket))
	}
	fmt.Fprintf(&b, `
[dns]
# listen = ["127.0.0.1:53"]
# upstream = ["192.0.2.53"]       # default: the nameservers of /etc/resolv.conf

# [[policy]]
# match = ["*.example.com", "192.0.2.0/24"]
# class = "clear"                 # default: private-or-clear
`)
	return b.String()
}

// quote writes a basic string of TOML.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteRune(c)
		case c < ' ' || c == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, c)
		default:
			b.WriteRune(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// writeRecords writes the record that publishes the key: in presentation form (RFC 4025, 3) and as an unknown type (RFC 3597, 5).
func writeRecords(w io.Writer, owner string, pub crypto.PublicKey) error {
	r, err := ipseckey.NewRecord(pub)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s %d IN IPSECKEY %s\n%s %d IN TYPE%d %s\n",
		owner, recordTTL, r.String(), owner, recordTTL, ipseckey.Type, r.Generic())
	return err
}
