package xfrm

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"testing"
	"time"

	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
	"tacit/lab"
)

// childFlag makes the test binary a process that holds two addresses until it is killed.
const childFlag = "-tacit-xfrm-child"

func TestMain(m *testing.M) {
	lab.MaybeChild()
	if len(os.Args) == 4 && os.Args[1] == childFlag {
		if err := child(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func child(own, peer string) error {
	p, err := Open(Config{Linger: ipsectest.ChildLinger})
	if err != nil {
		return err
	}
	s := ipsec.Host(netip.MustParseAddr(own), netip.MustParseAddr(peer))
	if err := p.SetPolicy(s, ipsec.Hold, time.Now().Add(time.Hour)); err != nil {
		return err
	}
	fmt.Println("ready")
	time.Sleep(time.Hour)
	return nil
}

func needLab(t *testing.T) {
	t.Helper()
	if os.Getenv("TACIT_E2E") != "1" {
		t.Skip("needs root and network namespaces: set TACIT_E2E=1")
	}
	if err := Available(); err != nil {
		if os.Getenv("TACIT_ESP") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

func TestConformance(t *testing.T) {
	needLab(t)
	ipsectest.TestDataplane(t, ipsectest.Subject{
		Open: func(o ipsectest.Options) (ipsec.Dataplane, error) {
			return Open(Config{Linger: o.Linger, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))})
		},
		Cleanup: func() error { return Cleanup(Config{}) },
		Child:   []string{"/proc/self/exe", childFlag},
	})
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(string(b))
	return len(b), nil
}
