package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tacit/lab"
)

// demoResult is what these tests read of `tacit demo --json`.
type demoResult struct {
	Lab      string `json:"lab"`
	Contacts []struct {
		Answer string `json:"answer"`
		Events []struct {
			At    float64 `json:"at_ms"`
			Event string  `json:"event"`
		} `json:"events"`
	} `json:"contacts"`
	Tap struct {
		ESP, IKE, Clear, Dropped int
	} `json:"tap"`
	Plain struct {
		Clear int `json:"packets_in_clear"`
	} `json:"plain"`
	Kept *struct {
		Remove string `json:"remove"`
	} `json:"kept"`
	Took float64 `json:"took_ms"`
}

// runDemo runs `tacit demo` with the flags and returns its exit code.
func runDemo(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	needE2E(t)
	exe, err := tacitBinary()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(exe, append([]string{"demo"}, args...)...)
	var out, errOut strings.Builder
	c.Stdout, c.Stderr = &out, &errOut
	err = c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), c.ProcessState.ExitCode()
}

func decodeDemo(t *testing.T, text string) (r demoResult) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return r
}

// noDemo fails the test if a lab of a demo stands.
func noDemo(t *testing.T) {
	t.Helper()
	for _, name := range lab.Standing() {
		if strings.HasPrefix(name, "tacit-demo-") {
			t.Errorf("%s still stands", name)
		}
	}
	list, _ := os.ReadDir("/run/netns")
	for _, e := range list {
		if strings.HasPrefix(e.Name(), "tacit-demo-") {
			t.Errorf("namespace %s still stands", e.Name())
		}
	}
}

func TestDemo(t *testing.T) {
	out, errOut, code := runDemo(t, "--json")
	if code != 0 {
		t.Fatalf("exit %d: %s\n%s", code, errOut, out)
	}
	noDemo(t)
	r := decodeDemo(t, out)
	if r.Tap.Clear != 0 || r.Tap.Dropped != 0 || r.Tap.ESP < 10 || r.Plain.Clear < 5 || r.Took > 10_000 {
		t.Errorf("got %+v", r)
	}
	// The second contact runs over an SA of its own: an address is a peer.
	want := []string{"question", "DNS validated", "IKE_SA_INIT", "IKE_SA_INIT", "IKE_AUTH", "IKE_AUTH", "SA installed", "answer released",
		"answer arrives", "first packet", "page"}
	for _, c := range r.Contacts {
		i := 0
		for _, e := range c.Events {
			if i < len(want) && e.Event == want[i] {
				i++
			}
		}
		if i < len(want) {
			t.Errorf("%s: no %q in its place in %v", c.Answer, want[i], c.Events)
		}
	}
}

func TestDemoForAPerson(t *testing.T) {
	out, errOut, code := runDemo(t)
	if code != 0 || !strings.Contains(out, "0 packets in clear") || !strings.Contains(out, "IKE_SA_INIT") {
		t.Errorf("exit %d: %s\n%s", code, errOut, out)
	}
	t.Log(out)
	noDemo(t)
}

// TestDemoInClear breaks the feature: the demo has to say so.
func TestDemoInClear(t *testing.T) {
	out, errOut, code := runDemo(t, "--json", "--class", "clear")
	if code != 1 || !strings.Contains(errOut, "in clear") {
		t.Errorf("exit %d: %s\n%s", code, errOut, out)
	}
	if r := decodeDemo(t, out); r.Tap.Clear < 10 || r.Tap.ESP != 0 {
		t.Errorf("tap: got %+v", r.Tap)
	}
	noDemo(t)
}

func TestDemoKeepAndRemove(t *testing.T) {
	out, errOut, code := runDemo(t, "--json", "--keep")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, errOut)
	}
	r := decodeDemo(t, out)
	t.Cleanup(func() { _ = lab.Remove(r.Lab) })
	if r.Kept == nil || !strings.HasSuffix(r.Kept.Remove, "demo --remove "+r.Lab) {
		t.Errorf("kept: got %+v", r.Kept)
	}
	if gone, err := lab.Sweep(); err != nil || len(gone) != 0 {
		t.Errorf("the sweep took %v, %v", gone, err)
	}
	if _, err := os.Stat("/run/netns/" + r.Lab + ".alice"); err != nil {
		t.Error(err)
	}
	if out, err := exec.Command("ip", "netns", "pids", r.Lab+".alice").Output(); err == nil && strings.TrimSpace(string(out)) == "" {
		t.Error("no daemon lives on alice")
	}
	if _, errOut, code := runDemo(t, "--remove", r.Lab); code != 0 {
		t.Errorf("--remove: exit %d: %s", code, errOut)
	}
	noDemo(t)
}

// TestDemoInterrupted ends the demo with Ctrl-C at several moments.
func TestDemoInterrupted(t *testing.T) {
	needE2E(t)
	exe, err := tacitBinary()
	if err != nil {
		t.Fatal(err)
	}
	for _, after := range []time.Duration{20 * time.Millisecond, 60 * time.Millisecond, 150 * time.Millisecond} {
		c := exec.Command(exe, "demo")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after)
		if err := c.Process.Signal(unix.SIGINT); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- c.Wait() }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			_ = c.Process.Kill()
			t.Fatalf("interrupted after %v, it does not end", after)
		}
		noDemo(t)
	}
}

// TestDemoKilled leaves a lab behind; the next demo sweeps it.
func TestDemoKilled(t *testing.T) {
	needE2E(t)
	exe, err := tacitBinary()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(exe, "demo")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	_ = c.Process.Kill()
	_ = c.Wait()
	if _, errOut, code := runDemo(t, "--json"); code != 0 {
		t.Errorf("exit %d: %s", code, errOut)
	}
	noDemo(t)
}
