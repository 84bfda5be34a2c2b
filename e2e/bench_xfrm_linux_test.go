package e2e

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"tacit/ipsec"
	"tacit/lab"
	"tacit/xfrm"
)

// installRuns is how often a number of Pairs is installed and removed again at each size.
const (
	installRuns = 9
	installEach = 50
)

// benchPairInstall times one Pair at 10, 1,000 and 10,000 installed: put in (both SAs, policy, verdict), replaced as a rekey does, and
// removed. The peer is the size before.
func benchPairInstall(t *testing.T) {
	needESP(t)
	w := newWorld(t)
	plane := openXFRM(t, w.alice)
	steps := []struct {
		name string
		do   func(p, next ipsec.Pair) error
	}{
		{"install", func(p, _ ipsec.Pair) error { return errors.Join(plane.InstallInbound(p), plane.InstallOutbound(p)) }},
		{"replace", func(p, next ipsec.Pair) error {
			return errors.Join(plane.InstallInbound(next), plane.InstallOutbound(next), plane.Retire(p.ID, p.In.SPI))
		}},
		{"remove", func(p, _ ipsec.Pair) error { return plane.Remove(p.ID) }},
	}
	before, was, at := make([]samples, len(steps)), "", uint32(0)
	for _, size := range []uint32{10, 1000, 10_000} {
		for ; at < size; at++ {
			install(t, plane, peerPair(w.alice, at))
		}
		now := make([]samples, len(steps))
		for run := range installRuns + 2 {
			for k, step := range steps {
				for i := range uint32(installEach) {
					p := peerPair(w.alice, at+i)
					next := p
					next.In, next.Out = newChildSA(uint32(p.In.SPI)+0x4000_0000), newChildSA(uint32(p.Out.SPI)+0x4000_0000)
					from := time.Now()
					if err := step.do(p, next); err != nil {
						t.Fatalf("%s: %v", step.name, err)
					}
					if took := time.Since(from); run >= 2 { // the first ones warm up
						now[k].add(took, time.Microsecond)
					}
				}
			}
		}
		installed := fmt.Sprint(size, " installed")
		for k, step := range steps {
			peer, name := before[k], was
			if was == "" {
				peer, name = now[k], installed
			}
			t.Logf("%d installed: %s %.0f pairs a second", size, step.name, 1e6/now[k].median())
			figure(t, fmt.Sprintf("pair-%s-%d", step.name, size), "us", now[k], name, peer)
		}
		before, was = now, installed
	}
}

// openXFRM opens a kernel data plane on a host.
func openXFRM(t *testing.T, h *lab.Host) (plane *xfrm.Plane) {
	t.Helper()
	if err := h.Do(func() (err error) { plane, err = xfrm.Open(xfrm.Config{}); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Close(false); err != nil {
			t.Error(err)
		}
	})
	go func() {
		for range plane.Events() {
		}
	}()
	return plane
}

func install(t *testing.T, plane *xfrm.Plane, p ipsec.Pair) {
	t.Helper()
	if err := errors.Join(plane.InstallInbound(p), plane.InstallOutbound(p)); err != nil {
		t.Fatal(err)
	}
}

// peerPair is a Pair with the nth of many peers.
func peerPair(h *lab.Host, n uint32) ipsec.Pair {
	own := h.Addr4()
	peer := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 0x0a000000+n)))
	return ipsec.Pair{ID: n + 1, Local: netip.AddrPortFrom(own, 0), Remote: netip.AddrPortFrom(peer, 0), Selector: ipsec.Host(own, peer),
		In: newChildSA(0x2000_0000 + n), Out: newChildSA(0x3000_0000 + n)}
}

func newChildSA(spi uint32) ipsec.SA {
	key := make([]byte, 36)
	_, _ = rand.Read(key)
	return ipsec.SA{SPI: ipsec.SPI(spi), Cipher: ipsec.AESGCM16, Key: key[:32], Salt: key[32:], ESN: true}
}

// releaseRuns is how many held packets are timed.
const releaseRuns = 60

// benchHoldRelease times a held datagram from the moment its SA is asked for until it arrives; the peer is what the application's
// TCP would wait before it sends a lost SYN again.
func benchHoldRelease(t *testing.T) {
	needESP(t)
	w := newWorld(t)
	alice, bob := openXFRM(t, w.alice), openXFRM(t, w.bob)
	at, err := w.bob.ListenPacket("udp4", w.bob.Addr4().String()+":7")
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	var held, again samples
	for i := range uint32(releaseRuns) {
		out, in := newChildSA(0x2000_0000+i), newChildSA(0x3000_0000+i)
		pa := ipsec.Pair{ID: i + 1, Local: netip.AddrPortFrom(w.alice.Addr4(), 0), Remote: netip.AddrPortFrom(w.bob.Addr4(), 0),
			Selector: ipsec.Host(w.alice.Addr4(), w.bob.Addr4()), In: in, Out: out}
		pb := ipsec.Pair{ID: i + 1, Local: pa.Remote, Remote: pa.Local, Selector: ipsec.Host(w.bob.Addr4(), w.alice.Addr4()), In: out, Out: in}
		if err := alice.SetPolicy(pa.Selector, ipsec.Hold, time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		c, err := w.alice.Dial(t.Context(), "udp4", w.bob.Addr4().String()+":7")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("held")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
		if err := errors.Join(bob.InstallInbound(pb), alice.InstallInbound(pa)); err != nil {
			t.Fatal(err)
		}
		from := time.Now()
		if err := alice.InstallOutbound(pa); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 64)
		_ = at.SetReadDeadline(time.Now().Add(2 * time.Second))
		if _, _, err := at.ReadFrom(b); err != nil {
			t.Fatalf("run %d: %v", i, err)
		}
		held.add(time.Since(from), time.Millisecond)
		again.add(time.Second, time.Millisecond) // RFC 6298, 2.1
		if err := errors.Join(c.Close(), alice.Remove(i+1), bob.Remove(i+1), alice.ClearPolicy(pa.Selector)); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("hold-release p99 %.2f ms", held.at(0.99))
	figure(t, "hold-release", "ms", held, "retransmission", again)
}
