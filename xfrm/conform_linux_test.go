package xfrm

import (
	"log/slog"
	"os"
	"testing"

	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
)

func TestMain(m *testing.M) {
	ipsectest.Main(m, func(o ipsectest.Options) (ipsec.Dataplane, error) { return Open(Config{Linger: o.Linger}) })
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
			return Open(Config{Linger: o.Linger, Log: slog.New(slog.NewTextHandler(ipsectest.Log{T: t}, nil))})
		},
		Cleanup: func() error { return Cleanup(Config{}) },
		Short:   os.Getenv("TACIT_LONG") != "1",
	})
}
