package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"tacit/lab"
)

// rebooted makes a host what it is after a reboot: its tacit and all that it had in the kernel are gone, and nobody was told.
func rebooted(t *testing.T, d *tacit) {
	t.Helper()
	d.kill()
	if _, err := d.run("cleanup"); err != nil {
		t.Fatal(err)
	}
}

// TestPeerRebootsAndSpeaksClear: Bob comes back from a reboot and speaks to Alice in clear before anything else. She drops it, notices, and asks him: with
// a tacit he proves at once that he was started anew and is keyed anew; without one he is released as soon as his silence is certain, and what
// had been protected does not go on in clear.
//
//tacit:attack A-58 dropped and noticed; keyed anew within two seconds; where it runs no tacit any more, held until linger after its last proof, then released
func TestPeerRebootsAndSpeaksClear(t *testing.T) {
	for _, tt := range []struct {
		name  string
		again bool
	}{{"with a tacit", true}, {"without", false}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			const linger = 6 * time.Second
			w, _, answered, flows := endingWorld(t, linger.String(), "", "")
			echo(t, w.bob, both(w.bob)...)
			rebooted(t, w.bobTac)
			for _, f := range flows { // a reboot ends connections
				if strings.HasPrefix(f.name, "TCP bob") {
					f.stop()
				}
			}
			back := time.Now()
			if tt.again {
				w.bobTac.start(false)
				back = time.Now()
			}
			for _, addr := range both(w.alice) {
				c, err := w.bob.Dial(t.Context(), "udp", netip.AddrPortFrom(addr, 7000).String())
				if err != nil {
					t.Fatal(err)
				}
				_, _ = c.Write([]byte("do you remember me?"))
				c.Close()
			}
			if !tt.again {
				eventually(t, 2*linger+5*time.Second, "alice lets go", func() bool { return len(verdicts(t, w.alice)) == 0 })
				t.Logf("released after %v", time.Since(back).Round(10*time.Millisecond))
				w.clearOnlyFrom(w.bob, answered, flows)
				return
			}
			for _, addr := range both(w.bob) {
				eventually(t, slower(3*time.Second), "an answer from "+addr.String(), func() bool { return burst(t, w.alice, addr, 1, 100*time.Millisecond) == nil })
			}
			t.Logf("keyed anew after %v", time.Since(back).Round(10*time.Millisecond))
			if w.clearOnlyFrom(w.bob, answered, flows); !strings.Contains(w.aliceTac.log(), "clear packets of a protected peer were dropped") {
				t.Log("no clear packet met the policy: it was keyed before")
			}
			if !w.aliceTac.knows(w.bob, "authenticated", "bob.example") {
				t.Errorf("alice's status of bob: %+v", w.aliceTac.peers(w.bob))
			}
		})
	}
}

// clearOnlyFrom fails the test if anybody but the host that rebooted spoke in clear on a stream, or to the other's protected address.
func (w *attackWorld) clearOnlyFrom(rebooted *lab.Host, since time.Time, flows []*stream) {
	w.t.Helper()
	w.sync()
	ports := map[uint16]bool{}
	for _, f := range flows {
		ports[netip.MustParseAddrPort(f.near.LocalAddr().String()).Port()] = true
		ports[netip.MustParseAddrPort(f.near.RemoteAddr().String()).Port()] = true
	}
	for _, p := range w.tap.Packets() {
		if p.Class == lab.ClassClear && p.Time.After(since) && !has(rebooted, p.Src) && has(rebooted, p.Dst) && (ports[p.SrcPort] || ports[p.DstPort]) {
			w.t.Errorf("in clear: %v:%d -> %v:%d protocol %d", p.Src, p.SrcPort, p.Dst, p.DstPort, p.Proto)
			return
		}
	}
}
