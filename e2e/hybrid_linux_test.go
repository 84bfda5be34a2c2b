package e2e

import (
	"strings"
	"testing"
	"time"
)

// TestPostQuantum lets two tacits have keys of X25519 and ML-KEM-768: right after the first contact, which takes no longer for it, or
// before it. With a peer that has it switched off there are none, and nothing else changes. Data flows across the rekeys.
func TestPostQuantum(t *testing.T) {
	for _, c := range []struct {
		top, log string // of both; in their logs
		hybrid   bool
	}{
		{`post-quantum = "after"`, `suite="chacha20-poly1305 prf-sha256 x25519"`, true},
		{`post-quantum = "before"`, `suite="chacha20-poly1305 prf-sha256 x25519+mlkem768"`, true},
		{`post-quantum = "off"`, `suite="chacha20-poly1305 prf-sha256 x25519"`, false},
	} {
		t.Run(c.top, func(t *testing.T) {
			w, alice, bob := jobWorld(t, "bob.example", c.top)
			mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
			for _, addr := range both(w.bob) {
				transfer(t, w.alice, w.bob, addr, 1_000_000)
			}
			for _, d := range []*tacit{alice, bob} {
				if first, _, _ := strings.Cut(d.log(), "sa-installed"); !strings.Contains(first, c.log) {
					t.Errorf("%s began otherwise than with %s", d.host.Name, c.log)
				}
				eventually(t, 5*time.Second, "the suite in status", func() bool {
					out, err := d.run("status", "--json")
					return err == nil && strings.Contains(out, "mlkem768") == c.hybrid && strings.Contains(out, "x25519")
				})
			}
			for _, addr := range both(w.bob) {
				transfer(t, w.alice, w.bob, addr, 1_000_000)
			}
			w.onlyProtected(w.alice, w.bob)
		})
	}
}
