package tun

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"tacit/esp"
	"tacit/ipsec"
	"tacit/plane"
)

// keeper is a device that keeps what is written to it.
type keeper struct {
	sink
	packets [][]byte
}

func (k *keeper) Write(b [][]byte, offset int) (int, error) {
	for _, p := range b {
		k.packets = append(k.packets, bytes.Clone(p[offset:]))
	}
	return len(b), nil
}

// The packet that arms a Pair, and those that wait with it, may be SYNs: their segments must fit like any other's, though what fits is found out
// only then.
func TestFirstPacketIsClamped(t *testing.T) {
	p, _ := testPlane(t, ipsec.Tunnel)
	dev := &keeper{}
	p.dev = dev
	p.socks.natt[0] = &socket{}
	in, _ := p.spis.get(1000)
	local, remote := netip.AddrPortFrom(bob4, plane.PortNATT), netip.AddrPortFrom(alice4, plane.PortNATT)
	sealer, err := esp.NewSealer(testSA(1000))
	if err != nil {
		t.Fatal(err)
	}
	in.live.Store(false)
	in.mss = 0
	in.pair.local, in.pair.remote, in.pair.armed, in.pair.ins = local, remote, true, []*inbound{in} // armed: no nftables here
	in.next = &outbound{pair: in.pair, order: 1, spi: 2000, sealer: sealer, tunnel: true}
	r, from := testReceiver(), makeSockaddr(remote)
	send := func() {
		b, err := sealer.Seal(nil, 4, syn(alice4, bob4, tcpSYN, optMSS, 4, 0xff, 0xff))
		if err != nil {
			t.Fatal(err)
		}
		p.receiveNATT(r, b, &from, control{})
	}
	in.arming = true // by somebody who has not come to it yet
	send()
	send()
	p.arm(in)
	send()
	p.deliver(r)
	if len(dev.packets) != 3 || !in.live.Load() {
		t.Fatalf("%d packets, live %v", len(dev.packets), in.live.Load())
	}
	want := segmentLimit(in.pair.spec(), defaultMTU, sealer)
	for i, b := range dev.packets {
		if got := binary.BigEndian.Uint16(b[ipv4Header+tcpHeader+2:]); got != want {
			t.Errorf("packet %d: segments of %d octets, want %d", i, got, want)
		}
	}
	if out := in.pair.flow.out.Load(); out != in.next || out.sock == nil {
		t.Errorf("the flow sends with %+v", out)
	}
}
