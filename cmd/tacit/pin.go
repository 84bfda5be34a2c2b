package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"tacit/config"
	"tacit/control"
	"tacit/dnssec"
)

// pinCommand is `tacit pin`.
func pinCommand(f *flags) *cobra.Command {
	var remove, asJSON bool
	c := &cobra.Command{
		Use:   "pin [NAME|ADDRESS [FINGERPRINT]]",
		Short: "Say which key a host must prove, or list what was said",
		Long: `From now on the host that goes by NAME, or is at ADDRESS, must prove the key with FINGERPRINT, whatever DNS says, as with [[peer]] and pin in the
configuration. Several keys may be pinned to one host: it proves one of them. The fingerprint must be given, as tacit key show prints it on
the host itself: what tacit lookup and tacit status print here is what others say. Pins last until they are removed.

Without arguments all pins are listed, also those of the configuration.`,
		Args: cobra.MaximumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			conf, err := f.load()
			if err != nil {
				return err
			}
			switch {
			case len(args) == 0 && !remove:
				return listPins(c.OutOrStdout(), conf, f.config, asJSON)
			case len(args) == 0:
				return usageErrorf("pin --remove: want a name or an address")
			case len(args) == 1 && !remove:
				return usageErrorf("pin: want the fingerprint too, as `tacit key show` prints it on that host")
			}
			return changePins(c, f, conf, args, remove)
		},
	}
	c.Flags().BoolVar(&remove, "remove", false, "remove the pin, or without FINGERPRINT all of the host's")
	c.Flags().BoolVar(&asJSON, "json", false, "list as JSON")
	return c
}

// pin is one that `tacit pin` lists.
type pin struct {
	Of    string `json:"of"`     // a name without the final dot, or an address
	KeyID string `json:"key_id"` // a fingerprint
	By    string `json:"by"`     // "tacit pin", or file:line
}

// pinsOf are all pins, those of the configuration in file last.
func pinsOf(conf *config.Config, file string) []pin {
	pins := []pin{}
	for _, subject := range conf.Pins.Subjects() {
		for _, key := range conf.Pins[subject] {
			pins = append(pins, pin{config.ShowSubject(subject), key, "tacit pin"})
		}
	}
	for _, p := range conf.Peer {
		of := config.ShowSubject(p.Name)
		if p.Address.IsValid() {
			of += " " + p.Address.String()
		}
		for _, key := range p.Pin {
			pins = append(pins, pin{of, key, fmt.Sprintf("%s:%d", file, p.Line)})
		}
	}
	return pins
}

func listPins(w io.Writer, conf *config.Config, file string, asJSON bool) error {
	pins := pinsOf(conf, file)
	if asJSON {
		return writeJSON(w, pins)
	}
	var rows [][]string
	for _, p := range pins {
		rows = append(rows, []string{p.KeyID, p.By, p.Of})
	}
	return table(w, rows)
}

// changePins writes the file anew and has a running daemon read it.
func changePins(c *cobra.Command, f *flags, conf *config.Config, args []string, remove bool) error {
	subject, err := config.Subject(args[0])
	if err != nil {
		return usageError{err}
	}
	path := conf.PinsPath()
	err = editPins(path, func(pins config.Pins) error {
		switch {
		case !remove:
			return pins.Add(subject, args[1])
		case len(args) == 1:
			return pins.Remove(subject, "")
		}
		return pins.Remove(subject, args[1])
	})
	if err != nil {
		return err
	}
	client, err := f.client()
	if err != nil {
		return err
	}
	switch err := client.Reload(c.Context()); {
	case errors.Is(err, control.ErrNotRunning):
		say(c.ErrOrStderr(), "%s is written; no daemon runs, so it counts from the next start on", path)
	case err != nil:
		return fmt.Errorf("%s is written, but the daemon has not read it: %w", path, err)
	default:
		say(c.ErrOrStderr(), "%s is in force", path)
	}
	return nil
}

// editPins changes the file in one step, and alone: of two at once none is lost.
func editPins(path string, edit func(config.Pins) error) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	lock, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	pins, err := config.LoadPins(path)
	if err != nil {
		return err
	}
	old := pins.Marshal()
	if err := edit(pins); err != nil {
		return err
	}
	if slices.Equal(old, pins.Marshal()) {
		return nil
	}
	return dnssec.SaveFile(path, 0o644)(pins.Marshal())
}
