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

// TestSquatterLeaves: who proved a key at an address has left it without a word, and the next tenant's name is looked up. The incumbent is asked once, does
// not answer, and loses: the name is answered on the first or second try, and what happened is told.
//
//tacit:attack A-56 the next tenant's name is keyed after one probe; conflict, sa-down, sa-up and roll-over are events; the squatter's name is withheld
func TestSquatterLeaves(t *testing.T) {
	t.Parallel()
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		return []zoneFile{{"example.", bindNSEC, append(hostRecords("squatter.example.", w.bob, &w.bobKey), hostRecords("tenant.example.", w.bob, &w.malKey)...)}}
	})
	w.run("")
	mustAnswer(t, w.alice, "squatter.example", w.bob.Addr4())
	rebooted(t, w.bobTac)
	w.bobTac = startTacit(t, w.bob, w.anchor, options{name: "tenant.example", identity: w.malKey.pem, upstream: w.upstreamOfTheHost})
	began := time.Now()
	eventually(t, slower(4*time.Second), "the tenant is answered", func() bool {
		got, err := getaddrinfo(t, w.alice, "ahostsv4", "tenant.example")
		return err == nil && len(got) == 1
	})
	t.Logf("answered after %v", time.Since(began).Round(time.Millisecond))
	transfer(t, w.alice, w.bob, w.bob.Addr4(), 1000)
	if n, first, _ := w.clearBetween(w.alice, w.bob, began, time.Now()); n > 0 {
		t.Errorf("%d packets in clear, the first %v -> %v protocol %d", n, first.Src, first.Dst, first.Proto)
	}
	if p := w.aliceTac.peers(w.bob); len(p) != 1 || p[0].Assurance != "authenticated" || strings.Join(p[0].Names, " ") != "tenant.example" {
		t.Errorf("alice's status: %+v", p)
	}
	if got, err := getaddrinfo(t, w.alice, "ahostsv4", "squatter.example"); err == nil {
		t.Errorf("the squatter's name is answered: %v", got)
	}
	said := strings.Join(w.aliceTac.events(), "\n")
	for _, kind := range []string{"conflict", "sa-down", "roll-over"} {
		if !strings.Contains(said, kind+" ") {
			t.Errorf("no event %s:\n%s", kind, said)
		}
	}
	if strings.Count(said, "sa-up ") != 2 {
		t.Errorf("want two sa-up:\n%s", said)
	}
}
