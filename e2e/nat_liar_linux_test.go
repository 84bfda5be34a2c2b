package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"tacit/ike"
	"tacit/ipsec"
	"tacit/lab"
)

// natLiar is behind a NAT that keeps his ports, and says that there is none: his engine takes the NAT's address for its own.
type natLiar struct {
	t      *testing.T
	engine *ike.Endpoint
	socks  map[uint16]*net.UDPConn
	in     chan ike.Datagram
	up     bool
	over   error
}

func newNATLiar(t *testing.T, at *lab.Host, outside netip.Addr) *natLiar {
	t.Helper()
	m := &natLiar{t: t, engine: ike.New(ike.Config{}), socks: map[uint16]*net.UDPConn{}, in: make(chan ike.Datagram, 16)}
	for _, port := range []uint16{500, 4500} {
		c, err := at.ListenPacket("udp", netip.AddrPortFrom(at.Addr4(), port).String())
		if err != nil {
			t.Fatal(err)
		}
		m.socks[port] = c.(*net.UDPConn)
		t.Cleanup(func() { c.Close() })
		go m.read(m.socks[port], netip.AddrPortFrom(outside, port))
	}
	return m
}

// read takes IKE messages from a socket, as if they had come to the address.
func (m *natLiar) read(c *net.UDPConn, local netip.AddrPort) {
	b := make([]byte, 65536)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		data := append([]byte(nil), b[:n]...)
		if local.Port() == 4500 {
			if n < 4 || binary.BigEndian.Uint32(data) != 0 {
				continue
			}
			data = data[4:]
		}
		m.in <- ike.Datagram{Local: local, Remote: netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), Data: data}
	}
}

func (m *natLiar) output(out ike.Output) {
	for _, d := range out.Send {
		data := d.Data
		if d.Local.Port() == 4500 {
			data = append(make([]byte, 4), data...)
		}
		if _, err := m.socks[d.Local.Port()].WriteToUDPAddrPort(data, d.Remote); err != nil {
			m.t.Error(err)
		}
	}
	for _, e := range out.Events {
		switch e := e.(type) {
		case ike.ChildWanted:
			m.output(m.engine.Supply(time.Now(), e.SA, ike.Installed{Token: e.Token}))
		case ike.ChildUp:
			m.up = true
		case ike.Closed:
			m.over = e.Err
		}
	}
}

// claims begins as nobody with a host, in the NAT's place, and reports whether it is keyed.
func (m *natLiar) claims(outside, to netip.Addr) bool {
	m.t.Helper()
	m.up, m.over = false, nil
	_, out := m.engine.Initiate(time.Now(), ike.Peer{Local: netip.AddrPortFrom(outside, 500), Remote: netip.AddrPortFrom(to, 500),
		LocalID: ike.ID{Kind: ike.IDNull}, Auth: ike.Authorization{Anonymous: true, Mode: ipsec.Transport}})
	m.output(out)
	for end := time.After(slower(5 * time.Second)); !m.up && m.over == nil; {
		select {
		case d := <-m.in:
			m.output(m.engine.Receive(time.Now(), d))
		case <-end:
			m.t.Fatal("neither keyed nor refused")
		}
	}
	return m.up
}

// TestLiarBehindNAT: who speaks from IKE's ports of an address is that address, as far as another host can see, and a NAT that keeps ports gives them to one of those
// behind it. Whether there is a NAT is his word. So he is keyed, as nobody, and before his first ESP nothing is enforced on his neighbours; a rule that leaves the
// NAT's address in clear does not let him in, and they go on whatever he sends.
func TestLiarBehindNAT(t *testing.T) {
	t.Parallel()
	for _, closed := range []bool{false, true} {
		t.Run(fmt.Sprintf("rule for the NAT: %v", closed), func(t *testing.T) {
			w := clientsWorld(t)
			policy := ""
			if closed {
				policy = fmt.Sprintf("[[policy]]\nmatch = [\"%v/32\"]\nclass = \"clear\"\n", w.nat.Addr4())
			}
			w.server(policy)
			flow := startStream(t, w.erin, w.bob, w.bob.Addr4())
			liar := newNATLiar(t, w.dave, w.nat.Addr4())
			if in := liar.claims(w.nat.Addr4(), w.bob.Addr4()); in == closed {
				t.Fatalf("keyed: %v (%v), want %v", in, liar.over, !closed)
			}
			if closed && !errors.Is(liar.over, ike.ErrAuthentication) {
				t.Errorf("refused for %v", liar.over)
			}
			flow.goesOn(disturbed)
			for _, p := range w.bobTac.peers(w.nat) {
				if closed || p.Assurance != "anonymous" {
					t.Errorf("bob's status of the NAT: %+v", p)
				}
			}
			wantNoElements(t, w.bob)
		})
	}
}
