package lab

import (
	"os"
	"os/exec"
)

// Test is what Missing and Need want of a *testing.T: package testing is no part of the programs that are linked with this package.
type Test interface {
	Helper()
	Fatal(...any)
	Skip(...any)
}

// Missing ends a test that wants what this machine has not, and says why: it is skipped, except under CI=true, where nothing may be missing, and it fails.
func Missing(t Test, why ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why...)
	}
	t.Skip(why...)
}

// Need is Missing where there is no such program.
func Need(t Test, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			Missing(t, "it needs", p+":", err)
		}
	}
}
