package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"tacit/lab"
)

// buildDir holds the binary under test for the time of the run.
var buildDir string

func TestMain(m *testing.M) {
	lab.MaybeChild()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Getenv("TACIT_E2E") != "1" {
		return m.Run() // every test skips with its reason
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "e2e: TACIT_E2E=1 needs root")
		return 1
	}
	if gone, err := lab.Sweep(); err != nil || len(gone) > 0 {
		fmt.Fprintln(os.Stderr, "e2e: removed what earlier runs left:", gone, err)
	}
	var err error
	if buildDir, err = os.MkdirTemp("", "tacit-e2e-"); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer os.RemoveAll(buildDir)
	return m.Run()
}

// needE2E skips a test that is not asked for, or lacks a program.
func needE2E(t *testing.T, programs ...string) {
	t.Helper()
	if os.Getenv("TACIT_E2E") != "1" {
		t.Skip("end to end: needs root and TACIT_E2E=1")
	}
	lab.Need(t, programs...)
}

// needTree is the directory that a variable names, in which a peer is unpacked and not installed: scripts/packages does it, and scripts/test has it done.
func needTree(t *testing.T, variable string) string {
	t.Helper()
	tree := os.Getenv(variable)
	if tree == "" {
		lab.Missing(t, "it needs", variable+", which scripts/test sets")
	}
	return tree
}

// tacitBinary builds cmd/tacit once, or takes the one that TACIT_BINARY names: no compiler runs under a slow kernel.
var tacitBinary = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("TACIT_BINARY"); path != "" {
		return path, nil
	}
	path := filepath.Join(buildDir, "tacit")
	c := exec.Command("go", "build", "-o", path, "./cmd/tacit")
	c.Dir = ".."
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})
