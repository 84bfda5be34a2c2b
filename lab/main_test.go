package lab

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	maybeChild()
	os.Exit(m.Run())
}

// needLab skips a test that makes namespaces.
func needLab(t *testing.T) {
	t.Helper()
	if os.Getenv("TACIT_E2E") != "1" {
		t.Skip("makes network namespaces: needs root and TACIT_E2E=1")
	}
}
