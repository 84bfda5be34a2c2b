package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// demoTimeout ends a demo that hangs; a good one takes a second.
const demoTimeout = 20 * time.Second

// demoOptions are the flags of `tacit demo`.
type demoOptions struct {
	json   bool
	keep   bool
	class  string // of Alice's only rule
	remove string // remove a lab that was kept, and do nothing else
}

// errClear ends a demo in which the tap saw packets in clear between Alice and Bob.
var errClear = errors.New("the tap saw packets in clear between alice and bob")

// demoCommand is `tacit demo`.
func demoCommand() *cobra.Command {
	var o demoOptions
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show the main job on this machine: a lookup becomes an encrypted connection",
		Long: `Makes four hosts in network namespaces of this machine (alice, bob, a plain host and a name server with a private signed
root), runs tacit on alice and bob, looks bob's name up through alice's tacit, fetches a page from him over IPv4 and IPv6,
and tells what happened and what a tap on the cable saw. Needs root, Linux, and nothing else. Touches nothing of the
machine's own network and removes all it made.

Exit status 1 if the tap saw anything in clear between alice and bob: try --class clear.`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			return demo(ctx, o, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := c.Flags()
	f.BoolVar(&o.json, "json", false, "print the result as JSON")
	f.BoolVar(&o.keep, "keep", false, "leave the hosts and their daemons standing, and say how to enter and remove them")
	f.StringVar(&o.class, "class", "private-or-clear", "the class of alice's policy: private-or-clear or clear")
	f.StringVar(&o.remove, "remove", "", "remove the lab of this `NAME`, which --keep left standing")
	return c
}

// demo runs the demo; its result goes to out, prose about its way there to errOut.
func demo(ctx context.Context, o demoOptions, out, errOut io.Writer) error {
	if o.class != "private-or-clear" && o.class != "clear" {
		return fmt.Errorf("--class %q: want private-or-clear or clear", o.class)
	}
	if o.remove != "" {
		return removeDemo(o.remove)
	}
	if ctx == nil {
		ctx = context.Background()
	}
	bounded, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	began := time.Now()
	r, err := runDemo(bounded, o, errOut)
	if ctx.Err() != nil {
		return errors.New("interrupted; all that was made is removed")
	}
	if err != nil {
		return err
	}
	r.Took = milliseconds(time.Since(began))
	if o.json {
		err = r.writeJSON(out)
	} else {
		err = r.write(out)
	}
	if err != nil {
		return err
	}
	return r.verdict()
}

// verdict is the demo's outcome as an error.
func (r *demoReport) verdict() error {
	switch {
	case r.Tap.Dropped > 0:
		return fmt.Errorf("the tap missed %d frames: nothing is proven", r.Tap.Dropped)
	case r.Tap.Clear > 0:
		return errClear
	case r.Tap.ESP == 0:
		return errors.New("the tap saw no ESP between alice and bob")
	case len(r.Problems) > 0:
		return errors.New(strings.Join(r.Problems, "; "))
	}
	return nil
}
