package main

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"tacit/config"
	"tacit/daemon"
	"tacit/dnssec"
	"tacit/flows"
	"tacit/ipseckey"
)

// runCommand is `tacit run`: the daemon, in the foreground.
func runCommand(f *flags) *cobra.Command {
	var observe, debug bool
	c := &cobra.Command{
		Use:   "run",
		Short: "Answer this host's DNS and encrypt to whoever publishes a key",
		Long: `Runs the daemon in the foreground. It logs to standard error, a line for each change of a peer's state with its reason.
It ends on SIGINT and SIGTERM, tells its peers, and gives everything back but what ` + "`dns.on-failure`" + ` keeps shut. On SIGUSR2 it ends for a
process that follows it at once: what is protected or held stays so, and peers are told nothing.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			file, err := f.load()
			if err != nil {
				return err
			}
			level := slog.LevelInfo
			if debug {
				level = slog.LevelDebug
			}
			if os.Getenv("GOGC") == "" {
				boundGarbage()
			}
			log := slog.New(slog.NewTextHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: level}))
			d, err := open(file, f.load, observe, log)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			go onSignal(ctx, syscall.SIGHUP, func() {
				if err := d.ReloadFile(ctx); err != nil {
					log.Error("not reloaded", "err", err)
				}
			})
			go onSignal(ctx, syscall.SIGUSR2, func() { d.HandOver(); stop() })
			err = d.Run(ctx)
			return errors.Join(err, d.Close())
		},
	}
	c.Flags().BoolVar(&observe, "observe", false, "log what would be encrypted or withheld and why, and touch nothing")
	c.Flags().BoolVar(&debug, "debug", false, "log every IKE message and every decision")
	return c
}

// keepProofs has what addresses prove outlive a crash, in a file beside our key.
func keepProofs(cfg *daemon.Config, path string) (err error) {
	cfg.Proofs, err = os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	cfg.SaveProofs = func(write func(io.Writer) error) error {
		if write != nil {
			return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), dnssec.ReplaceFile(path, 0o600, write))
		}
		if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	return nil
}

// onSignal calls f for each such signal until ctx ends.
func onSignal(ctx context.Context, s os.Signal, f func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, s)
	defer signal.Stop(c)
	for {
		select {
		case <-ctx.Done():
			return
		case <-c:
			f()
		}
	}
}

// open wires the daemon. load reads the file again.
func open(file *config.Config, load func() (*config.Config, error), observe bool, log *slog.Logger) (*daemon.Daemon, error) {
	cfg := daemon.Config{File: file, Load: load, Observe: observe, Version: version(), Log: log, DataplaneName: "none", DataplaneWhy: "observing: nothing is touched",
		Flows: flows.List, Owner: flows.Owner}
	var err error
	if cfg.Anchors, err = trustAnchors(file); err != nil {
		return nil, err
	}
	if cfg.Hints, err = rootHints(file); err != nil {
		return nil, err
	}
	if cfg.TrustPoint, err = trustPoint(file, cfg.Anchors); err != nil {
		return nil, err
	}
	if cfg.SaveTrust = dnssec.SaveFile(file.DNS.TrustAnchorState, 0o644); observe {
		cfg.SaveTrust = func([]byte) error { return nil }
	}
	// Every tacit gives a token: by it others know that it ends crossing SAs as they do. An anonymous client's does not outlive the process.
	cfg.CrashSecret = make([]byte, 32)
	rand.Read(cfg.CrashSecret)
	if file.Name != "" { // an anonymous client has nothing to prove
		if cfg.Signer, err = readKey(file.Identity); err != nil {
			return nil, err
		}
		if cfg.CrashSecret, err = ipseckey.DeriveSecret(cfg.Signer, "quick crash detection"); err != nil {
			return nil, err
		}
	}
	if observe {
		return daemon.New(cfg)
	}
	if err := keepProofs(&cfg, filepath.Join(filepath.Dir(file.Identity), "proofs.json")); err != nil {
		return nil, err
	}
	if err := openPlane(&cfg, file); err != nil {
		return nil, err
	}
	d, err := daemon.New(cfg)
	if err != nil {
		return nil, errors.Join(err, giveBack(cfg))
	}
	return d, nil
}

// giveBack closes the data plane of a daemon that does not start. What a process before it left shut, which did not end in good order, stays so until its
// time is over: a restart that fails opens nothing (TRUST.md I1, R11).
func giveBack(cfg daemon.Config) error { return cfg.Dataplane.Close(len(cfg.Proofs) > 0) }
