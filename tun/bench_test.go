package tun

import (
	"encoding/binary"
	"net/netip"
	"os"
	"testing"
	"time"

	wgtun "golang.zx2c4.com/wireguard/tun"

	"tacit/esp"
	"tacit/guard"
	"tacit/ipsec"
	"tacit/plane"
)

// sink is a device that counts what is written to it.
type sink struct{ packets int }

func (s *sink) File() *os.File                         { return nil }
func (s *sink) Read([][]byte, []int, int) (int, error) { return 0, os.ErrClosed }
func (s *sink) Write(b [][]byte, _ int) (int, error)   { s.packets += len(b); return len(b), nil }
func (s *sink) MTU() (int, error)                      { return deviceMTU, nil }
func (s *sink) Name() (string, error)                  { return "sink", nil }
func (s *sink) Events() <-chan wgtun.Event             { return nil }
func (s *sink) Close() error                           { return nil }
func (s *sink) BatchSize() int                         { return 1 }

func testSA(spi ipsec.SPI) ipsec.SA {
	return ipsec.SA{SPI: spi, Cipher: ipsec.AESGCM16, Key: make([]byte, 16), Salt: make([]byte, 4), ESN: true}
}

// testPlane is a Plane with one armed Pair that receives what it sends, and no kernel behind it.
func testPlane(t testing.TB, mode ipsec.Mode) (*Plane, *sink) {
	t.Helper()
	dev := &sink{}
	p := newPlane(Config{}.withDefaults())
	p.dev = dev
	sealer, err := esp.NewSealer(testSA(1000))
	if err != nil {
		t.Fatal(err)
	}
	opener, err := esp.NewOpener(testSA(1000))
	if err != nil {
		t.Fatal(err)
	}
	f := p.policies.Flow(guard.Key{Own: alice4, Peer: bob4})
	pr := &pair{mode: mode, flow: f}
	out := &outbound{pair: pr, sealer: sealer, expire: expireAfter(testSA(1000)), tunnel: mode == ipsec.Tunnel, mtu: 1500, fits: 1472, mss: 1400}
	out.segments.Store(true)
	f.out.Store(out)
	// The inbound SA is the peer's end of the same one.
	there := &pair{mode: mode, flow: p.policies.Flow(guard.Key{Own: bob4, Peer: alice4})}
	in := &inbound{pair: there, spi: 1000, mode: mode, encap: true, mss: 1400, opener: opener}
	outer := netip.AddrPortFrom(alice4, plane.PortNATT)
	in.outer.Store(&outer)
	in.live.Store(true)
	p.spis.put(1000, in)
	return p, dev
}

func testReceiver() *receiver {
	r := &receiver{sock: &socket{port: plane.PortNATT}, ready: make([][]byte, 0, deviceBatch), now: time.Now()}
	return r
}

// TestPath sends packets through the path and back without a kernel.
func TestPath(t *testing.T) {
	for _, mode := range []ipsec.Mode{ipsec.Transport, ipsec.Tunnel} {
		p, dev := testPlane(t, mode)
		batch, r := newSendBatch(&p.counts), testReceiver()
		from := makeSockaddr(netip.AddrPortFrom(alice4, plane.PortNATT))
		for size := 0; size < 3000; size += 7 {
			want := udp(alice4, bob4, size)
			p.sendPacket(batch, want, time.Now())
			for _, m := range batch.pending {
				p.receiveNATT(r, batch.arena[m.start:m.end], &from, control{})
			}
			batch.arena, batch.pending = batch.arena[:0], batch.pending[:0]
			if len(r.ready) != 1 {
				t.Fatalf("%v, %d octets: got %d packets", mode, size, len(r.ready))
			}
			got := r.ready[0][deviceOffset:]
			if mode == ipsec.Transport { // hops, identification and DF are the new header's
				binary.BigEndian.PutUint16(want[4:], 0)
				want[6], want[8] = got[6], got[8]
				copy(want[10:12], got[10:12])
			}
			if string(got) != string(want) {
				t.Fatalf("%v, %d octets: got %x, want %x", mode, size, got, want)
			}
			p.deliver(r)
		}
		if dev.packets == 0 || p.counts.mismatched.Load()+p.counts.unfit.Load()+p.counts.stray.Load() != 0 {
			t.Errorf("%v: %d packets, counters %+v", mode, dev.packets, &p.counts)
		}
	}
}

// TestPathRefuses: valid ESP whose packet lies outside the Pair's selector, dummies, and unknown SPIs are not delivered.
func TestPathRefuses(t *testing.T) {
	p, _ := testPlane(t, ipsec.Tunnel)
	r := testReceiver()
	sealer, err := esp.NewSealer(testSA(1000))
	if err != nil {
		t.Fatal(err)
	}
	from := makeSockaddr(netip.AddrPortFrom(alice4, plane.PortNATT))
	other := netip.MustParseAddr("192.0.2.77")
	for name, c := range map[string]struct {
		next    uint8
		payload []byte
	}{
		"another source":      {4, udp(other, bob4, 10)},
		"another destination": {4, udp(alice4, other, 10)},
		"wrong next header":   {41, udp(alice4, bob4, 10)},
		"no IP packet":        {4, []byte("nonsense")},
		"dummy":               {esp.NextDummy, make([]byte, 100)},
	} {
		b, err := sealer.Seal(nil, c.next, c.payload)
		if err != nil {
			t.Fatal(err)
		}
		p.receiveNATT(r, b, &from, control{})
		if len(r.ready) != 0 {
			t.Errorf("%s: delivered", name)
			r.ready = r.ready[:0]
		}
	}
	p.receiveNATT(r, []byte{0xff}, &from, control{})
	p.receiveNATT(r, make([]byte, 100), &from, control{}) // IKE, and nobody reads
	if p.conns.Dropped.Load() != 1 || p.counts.mismatched.Load() != 3 || p.counts.unfit.Load() != 1 {
		t.Errorf("counters: got %+v", &p.counts)
	}
}

func BenchmarkSend(b *testing.B) {
	p, _ := testPlane(b, ipsec.Transport)
	batch, packet, now := newSendBatch(&p.counts), udp(alice4, bob4, 1400), time.Now()
	b.ReportAllocs()
	b.SetBytes(int64(len(packet)))
	for b.Loop() {
		if !batch.room(2 * len(packet)) {
			batch.arena, batch.pending = batch.arena[:0], batch.pending[:0]
		}
		p.sendPacket(batch, packet, now)
	}
}

func BenchmarkReceive(b *testing.B) {
	p, _ := testPlane(b, ipsec.Transport)
	batch, packet, now := newSendBatch(&p.counts), udp(alice4, bob4, 1400), time.Now()
	r, from := testReceiver(), makeSockaddr(netip.AddrPortFrom(alice4, plane.PortNATT))
	b.ReportAllocs()
	b.SetBytes(int64(len(packet)))
	for b.Loop() {
		b.StopTimer()
		batch.arena, batch.pending = batch.arena[:0], batch.pending[:0]
		p.sendPacket(batch, packet, now)
		b.StartTimer()
		p.receiveNATT(r, batch.arena, &from, control{})
	}
}

// TestPathAllocatesNothing holds the packet path to it.
func TestPathAllocatesNothing(t *testing.T) {
	p, _ := testPlane(t, ipsec.Transport)
	batch, packet, now := newSendBatch(&p.counts), udp(alice4, bob4, 1400), time.Now()
	r, from := testReceiver(), makeSockaddr(netip.AddrPortFrom(alice4, plane.PortNATT))
	n := testing.AllocsPerRun(500, func() {
		batch.arena, batch.pending = batch.arena[:0], batch.pending[:0]
		p.sendPacket(batch, packet, now)
		p.receiveNATT(r, batch.arena, &from, control{})
		p.deliver(r)
	})
	if n != 0 {
		t.Errorf("%v allocations a packet, want 0", n)
	}
}
