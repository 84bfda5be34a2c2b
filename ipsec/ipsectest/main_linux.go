package ipsectest

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"tacit/ipsec"
	"tacit/lab"
)

// childFlag makes the test binary a process that holds two addresses, or a prefix, until it is killed.
const childFlag = "-tacit-plane-child"

// Main is the TestMain of a package with a Dataplane: it knows the processes that its tests start.
func Main(m *testing.M, open func(Options) (ipsec.Dataplane, error)) {
	lab.MaybeChild()
	if len(os.Args) == 4 && os.Args[1] == childFlag {
		if err := child(open, os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func child(open func(Options) (ipsec.Dataplane, error), own, peer string) error {
	p, err := open(Options{Linger: childLinger})
	if err != nil {
		return err
	}
	if own == "" {
		err = p.SetRules([]ipsec.Rule{{Remote: netip.MustParsePrefix(peer), Action: ipsec.Hold}})
	} else {
		err = p.SetPolicy(ipsec.Host(netip.MustParseAddr(own), netip.MustParseAddr(peer)), ipsec.Hold, time.Now().Add(time.Hour))
	}
	if err != nil {
		return err
	}
	fmt.Println("ready")
	time.Sleep(time.Hour)
	return nil
}

// Log writes a data plane's log into that of a test.
type Log struct{ T testing.TB }

func (l Log) Write(b []byte) (int, error) {
	l.T.Log(string(b))
	return len(b), nil
}
