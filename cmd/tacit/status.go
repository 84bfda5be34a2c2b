package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"tacit/control"
)

// statusCommand is `tacit status`.
func statusCommand(f *flags) *cobra.Command {
	var asJSON, watching bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show what the daemon does: its peers, and how sure it is of them",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := f.client()
			if err != nil {
				return err
			}
			if watching {
				ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
				defer stop()
				return watch(ctx, client, c.OutOrStdout(), asJSON)
			}
			s, err := client.Status(c.Context())
			if errors.Is(err, control.ErrNotRunning) {
				return fmt.Errorf("%w\nstart it with: tacit run --config %s", err, f.config)
			}
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(c.OutOrStdout(), s)
			}
			return writeStatus(c.OutOrStdout(), s, time.Now())
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON, a stable interface")
	c.Flags().BoolVar(&watching, "watch", false, "print a line for each peer, and for whatever happens from then on and why, until interrupted")
	return c
}

// writeStatus is status for people. now is for the ages.
func writeStatus(w io.Writer, s control.Status, now time.Time) error {
	name := s.Name
	if name == "" {
		name = "(anonymous)"
	}
	mode := ""
	if s.Observe {
		mode = ", observing only"
	}
	var listen []string
	for _, a := range s.DNS.Listen {
		listen = append(listen, a.String())
	}
	head := [][]string{
		{"name", name},
		{"version", s.Version + ", up " + age(now.Sub(s.Since)) + mode},
		{"dataplane", s.Dataplane.Kind + ": " + s.Dataplane.Why},
		{"dns", strings.Join(listen, " ") + ", upstream " + strings.Join(s.DNS.Upstream, " ")},
		{"dnssec", "validation: " + s.DNS.Validation},
		{"stub", s.DNS.Stub},
	}
	for _, way := range s.DNS.Ways {
		if !way.OK {
			head = append(head, []string{"dns way", clean(way.Name) + ": " + clean(way.Why)})
		}
	}
	err := table(w, head)
	if err != nil || len(s.Peers) == 0 {
		return errors.Join(err, ignoreCount(fmt.Fprintln(w, "\n  no peers")))
	}
	rows := [][]string{{"ADDRESS", "NAMES", "STATE", "ASSURANCE", "SUITE", "MODE", "SINCE", "IN", "OUT", "KEY", "WHY"}}
	for _, p := range s.Peers {
		rows = append(rows, []string{
			p.Address.String(), dash(shorten(p.Names)), string(p.State), string(p.Assurance), dash(p.Suite), dash(p.Mode),
			age(now.Sub(p.Since)), size(p.BytesIn), size(p.BytesOut), dash(p.KeyID), p.Why,
		})
	}
	fmt.Fprintln(w)
	return table(w, rows)
}

// ignoreCount makes an error of what fmt returns.
func ignoreCount(_ int, err error) error { return err }

// shorten names a few and counts the others.
func shorten(names []string) string {
	const most = 3
	if len(names) <= most {
		return strings.Join(names, " ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], " "), len(names)-most)
}

// dash fills an empty cell, so that a row can be split at its blanks.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// age is a duration in its two largest units.
func age(d time.Duration) string {
	switch d = max(d, 0).Truncate(time.Second); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

// size is a number of octets in three figures.
func size(n uint64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d", n)
	}
	f, u := float64(n)/1000, 0
	for f >= 999.5 && u < len(units)-1 {
		f, u = f/1000, u+1
	}
	if f < 10 {
		return fmt.Sprintf("%.1f%c", f, units[u])
	}
	return fmt.Sprintf("%.0f%c", f, units[u])
}
