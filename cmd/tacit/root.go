package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"tacit/config"
	"tacit/control"
	"tacit/resolver"
)

// The exit codes.
const (
	exitOK      = 0
	exitFailure = 1 // what was asked for could not be done, or is not so
	exitUsage   = 2 // it was not understood what was asked for
)

// flags are those of every verb.
type flags struct {
	config string
	socket string // empty: the configuration's
}

// load reads the configuration, with what the command line says instead.
func (f *flags) load() (*config.Config, error) {
	c, err := config.Load(f.config)
	if err != nil {
		return nil, err
	}
	if f.socket != "" {
		c.Socket = f.socket
	}
	if c.Pins, err = config.LoadPins(c.PinsPath()); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(resolvConf)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	c.UseNameservers(resolver.ParseResolvConf(text))
	return c, nil
}

// resolvConf is where the host's own nameservers are found, when the configuration names no upstream.
const resolvConf = "/etc/resolv.conf"

// client returns a client of the daemon. With --socket no configuration is needed.
func (f *flags) client() (*control.Client, error) {
	if f.socket != "" {
		return control.Dial(f.socket), nil
	}
	c, err := f.load()
	if err != nil {
		return nil, err
	}
	return control.Dial(c.Socket), nil
}

// usageError is an error in how we were called.
type usageError struct{ error }

func usageErrorf(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// execute runs the command line and returns the exit code.
func execute(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root, started := rootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(context.Background())
	if err == nil {
		return exitOK
	}
	var usage usageError
	if errors.As(err, &usage) || !*started { // cobra found it before a verb began
		complain(stderr, err)
		fmt.Fprintln(stderr, `Run "tacit --help" for usage.`)
		return exitUsage
	}
	complain(stderr, err)
	return exitFailure
}

// rootCommand makes the tree of verbs. started is set when one of them begins.
func rootCommand() (root *cobra.Command, started *bool) {
	f, started := new(flags), new(bool)
	root = &cobra.Command{
		Use:   "tacit",
		Short: "Encrypt to other hosts without being asked",
		Long: `tacit answers this host's DNS lookups. When a name publishes an IPsec key, proven by DNSSEC, it negotiates IPsec with that
host before the application gets its answer.

Records and JSON go to standard output, messages to standard error. Exit status: 0 done, 1 not done, 2 not understood.`,
		SilenceErrors:    true,
		SilenceUsage:     true,
		PersistentPreRun: func(*cobra.Command, []string) { *started = true },
	}
	root.PersistentFlags().StringVar(&f.config, "config", config.DefaultPath, "read the configuration from `FILE`")
	root.PersistentFlags().StringVar(&f.socket, "socket", "", "control socket `PATH` of the daemon (default: the configuration's)")
	root.AddCommand(
		runCommand(f),
		initCommand(f),
		keyCommand(f),
		statusCommand(f),
		lookupCommand(f),
		policyCommand(f),
		pinCommand(f),
		reloadCommand(f),
		checkConfigCommand(f),
		cleanupCommand(),
		demoCommand(),
		versionCommand(),
	)
	return root, started
}
