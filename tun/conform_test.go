package tun

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

func needLab(t testing.TB) {
	t.Helper()
	if os.Getenv("TACIT_E2E") != "1" {
		t.Skip("needs root and network namespaces: set TACIT_E2E=1")
	}
}

func TestConformance(t *testing.T) {
	needLab(t)
	ipsectest.TestDataplane(t, ipsectest.Subject{
		Open: func(o ipsectest.Options) (ipsec.Dataplane, error) {
			return Open(Config{Linger: o.Linger, Log: slog.New(slog.NewTextHandler(ipsectest.Log{T: t}, nil))})
		},
		Cleanup: func() error { return Cleanup(Config{}) },
	})
}

// TestConformanceWithoutOffload moves one packet at a time through the device and the sockets.
func TestConformanceWithoutOffload(t *testing.T) {
	needLab(t)
	ipsectest.TestDataplane(t, ipsectest.Subject{
		Open: func(o ipsectest.Options) (ipsec.Dataplane, error) {
			return Open(Config{Linger: o.Linger, NoOffload: true})
		},
		Only: []string{"carry", "bulk", "latch race", "rekey"},
	})
}
