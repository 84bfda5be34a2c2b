package daemon

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"net/netip"
	"testing"
	"time"

	"tacit/ike"
	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
)

// Four loops on one data plane and one pair of ports: whoever begins, all that concerns an address is in one of them, and every
// message and event finds it.
func TestShards(t *testing.T) {
	t.Parallel()
	const hosts = 12
	alice := newEndOn(t, "192.0.2.1", "alice.example", 4, func(p gatedPlane) ipsec.Dataplane { return p })
	close(alice.gate)
	bobs := map[netip.Addr]*end{}
	for i := range hosts {
		b := newEnd(t, fmt.Sprintf("192.0.2.%d", 10+i), fmt.Sprintf("bob%d.example", i))
		b.OnSend(alice.Deliver)
		close(b.gate)
		bobs[b.addr] = b
	}
	alice.OnSend(func(d ipsectest.Datagram) { bobs[d.Local.Addr()].Deliver(d) })
	answers := map[netip.Addr]<-chan outcome{}
	for addr, b := range bobs {
		if addr.As4()[3]%2 == 0 {
			answers[addr] = alice.lookup(b)
		} else {
			answers[addr] = b.lookup(alice)
		}
	}
	for addr, answer := range answers {
		if o := outcomeOf(t, answer); !o.ok {
			t.Errorf("%v: %s", addr, o.why)
		}
	}
	busy := 0
	for i, l := range alice.s.loops {
		if err := l.ask(t.Context(), func(time.Time) {
			if len(l.peers) > 0 {
				busy++
			}
			for k, p := range l.peers {
				if alice.s.of(k.remote) != l || len(p.live()) == 0 {
					t.Errorf("%v: in loop %d, with %d SAs", k.remote, i, len(p.live()))
				}
			}
			for id, p := range l.pairs {
				for _, e := range []ipsec.Event{{Kind: ipsec.FirstPacket, ID: id}, {Kind: ipsec.Acquire, Selector: ipsec.Host(p.local, p.remote)}} {
					if alice.s.ofEvent(e) != l {
						t.Errorf("%v of %v goes to another loop", e.Kind, p.remote)
					}
				}
			}
			for id := range l.bySA {
				if uint64(id)%4 != uint64(i) {
					t.Errorf("SPI %x in loop %d", id, i)
				}
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	if busy < 2 {
		t.Errorf("%d loops have peers", busy)
	}
	if n := alice.s.known.Load(); n != hosts {
		t.Errorf("%d peers are counted, want %d", n, hosts)
	}
}

// A network's cap is the host's: its addresses are in several loops, and get no more for that (TRUST.md A-22).
func TestCapsHoldForAllLoops(t *testing.T) {
	s := newTestShards(t, ipsectest.NewFake(), netip.MustParseAddr("192.0.2.1"), "", nil, time.Now, 4)
	defer s.close()
	flood, to, loops := ike.New(ike.Config{}), netip.MustParseAddrPort("192.0.2.1:500"), map[*loop]bool{}
	for i := range 100 {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)}), 500)
		_, o := flood.Initiate(time.Now(), ike.Peer{Local: from, Remote: to, Auth: ike.Authorization{Anonymous: true}})
		l := s.of(from.Addr())
		loops[l] = true
		l.engine.Receive(time.Now(), ike.Datagram{Local: to, Remote: from, Data: o.Send[0].Data})
	}
	half, cookies := 0, uint64(0)
	for l := range loops {
		half, cookies = half+l.engine.Stats().HalfOpen, cookies+l.engine.Stats().Drops["cookie-demanded"]
	}
	if len(loops) != 4 || half != 8 || cookies != 92 { // a quarter of 32
		t.Errorf("%d half-open in %d loops, %d cookies demanded", half, len(loops), cookies)
	}
}

// However many first messages wait, those of the SAs that there are have a queue of their own.
func TestStrangersWaitApart(t *testing.T) {
	s := &shards{seed: maphash.MakeSeed(), loops: []*loop{newLoop(nil, nil), newLoop(nil, nil)}}
	message := func(responder uint64) ike.Datagram {
		b := make([]byte, 28)
		b[7], b[17], b[18], b[19], b[27] = 1, 0x20, 34, 8, 28 // IKE_SA_INIT of an initiator
		binary.BigEndian.PutUint64(b[8:], responder)
		return ike.Datagram{Remote: netip.MustParseAddrPort("192.0.2.7:500"), Data: b}
	}
	for range 10_000 {
		select {
		case s.ofDatagram(message(0)) <- ike.Datagram{}:
		default:
		}
	}
	for spi := range uint64(2) {
		if q := s.ofDatagram(message(16 + spi)); q != (chan<- ike.Datagram)(s.loops[spi].datagrams) || len(q) != 0 {
			t.Errorf("SPI %d: its queue has %d messages", spi, len(q))
		}
	}
}
