package e2e

import (
	"cmp"
	"crypto"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"tacit/esp"
	"tacit/ike"
	"tacit/ike/wire"
	"tacit/ipsec"
	"tacit/ipseckey"
	"tacit/lab"
)

// load is a host of initiators at thousands of addresses: an engine each, one socket for each of IKE's ports, and no data plane. What a
// responder has to do is the same as if each address were a host.
type load struct {
	t     *testing.T
	key   crypto.Signer
	name  func(i int) string // of the initiator at initiatorAddr(i)
	peer  ike.Peer           // without addresses
	ports map[uint16]*net.UDPConn
	in    chan ike.Datagram
	every time.Duration // how often turn looks at the time; 0: 50 ms

	initiators map[uint64]*initiator // by their SPI
	up         int
	took       samples       // of each set-up, ms
	lost       []error       // why SAs were closed
	repeated   uint64        // messages that had to be sent again
	own        time.Duration // our processor time for the last set-ups, while they were timed
	hurried    bool          // the last answer of a set-up is read later
	unread     []answer      // those that are to be read yet
	answers    int           // to probes
	speaks     bool          // an initiator sends a packet by its SA as soon as it is up
}

// answer is the last one of a set-up.
type answer struct {
	to *initiator
	d  ike.Datagram
}

// initiator is one of them, with one IKE SA.
type initiator struct {
	engine *ike.Endpoint
	id     ike.SAID
	first  ike.Datagram
	wake   time.Time
	began  time.Time
	unread bool // its last answer is in, and not read yet
	up     bool
	asking bool      // a probe is out
	asked  time.Time // when it asked for a rekey
	rekeys samples   // ms
}

// An initiator sends nothing again for so long: a lost message is seen, not made up for. All together may take giveUp.
const (
	patience = 4 * time.Second
	giveUp   = 4 * time.Minute
)

// initiatorAddr is the address of the i-th initiator. The first 65,536 are each in a network of its own, as hosts are.
func initiatorAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(1 + i>>16)})
}

// newLoad makes a load on h, to which all of 10.0.0.0/8 belongs, towards a responder who can route there. All initiators have one key.
func newLoad(t *testing.T, h *lab.Host, own identity, name func(i int) string, peer ike.Peer) *load {
	t.Helper()
	key, err := ipseckey.ParseIdentity([]byte(own.pem))
	if err != nil {
		t.Fatal(err)
	}
	l := &load{t: t, key: key, name: name, peer: peer, ports: map[uint16]*net.UDPConn{}, in: make(chan ike.Datagram, 4096), initiators: map[uint64]*initiator{}}
	for _, port := range []uint16{500, 4500} {
		c := wideSocket(t, h, port)
		l.ports[port] = c
		go l.read(port, c)
	}
	return l
}

// wideSocket takes and sends datagrams of a port for all of the host's addresses, with room for many.
func wideSocket(t *testing.T, h *lab.Host, port uint16) *net.UDPConn {
	t.Helper()
	c, err := h.ListenPacket("udp4", fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) })
	}
	if err == nil {
		err = ipv4.NewPacketConn(c).SetControlMessage(ipv4.FlagDst, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.UDPConn)
}

// read brings what comes to a port to the engine.
func (l *load) read(port uint16, c *net.UDPConn) {
	b, oob := make([]byte, 65536), make([]byte, 256)
	for {
		n, m, _, from, err := c.ReadMsgUDPAddrPort(b, oob)
		if err != nil {
			return
		}
		data := b[:n]
		if port == 4500 {
			if n < 4 || [4]byte(data) != [4]byte{} {
				continue
			}
			data = data[4:]
		}
		var cm ipv4.ControlMessage
		if cm.Parse(oob[:m]) != nil || cm.Dst == nil {
			continue
		}
		to, _ := netip.AddrFromSlice(cm.Dst.To4())
		l.in <- ike.Datagram{Local: netip.AddrPortFrom(to, port), Remote: netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), Data: append([]byte(nil), data...)}
	}
}

// send sends a datagram from its address.
func (l *load) send(d ike.Datagram) {
	data := d.Data
	if d.Local.Port() == 4500 && len(data) != 1 {
		data = append(make([]byte, 4, 4+len(data)), data...)
	}
	if err := sendFrom(l.ports[d.Local.Port()], data, d.Local.Addr(), d.Remote); err != nil {
		l.t.Errorf("send from %v to %v: %v", d.Local, d.Remote, err)
	}
}

func sendFrom(c *net.UDPConn, data []byte, from netip.Addr, to netip.AddrPort) error {
	cm := ipv4.ControlMessage{Src: net.IP(from.AsSlice())}
	_, _, err := c.WriteMsgUDPAddrPort(data, cm.Marshal(), to)
	return err
}

// output does what an engine asks.
func (l *load) output(in *initiator, out ike.Output) {
	in.wake = out.Wake
	for _, d := range out.Send {
		l.send(d)
	}
	for _, e := range out.Events {
		l.event(in, e)
	}
}

func (l *load) event(in *initiator, e ike.Event) {
	now := time.Now()
	switch e := e.(type) {
	case ike.SignatureWanted:
		sig, err := l.key.Sign(nil, e.Data, e.Opts)
		l.output(in, in.engine.Supply(now, e.SA, ike.Signature{Token: e.Token, Sig: sig, Err: err}))
	case ike.ChildWanted:
		l.output(in, in.engine.Supply(now, e.SA, ike.Installed{Token: e.Token}))
		if l.speaks && !e.Rekey {
			l.speak(e.Pair)
		}
	case ike.ChildUp:
		switch {
		case !in.up:
			in.up = true
			l.up++
			if !in.unread {
				l.took.add(now.Sub(in.began), time.Millisecond)
			}
		case e.Rekey && !in.asked.IsZero():
			in.rekeys.add(now.Sub(in.asked), time.Millisecond)
			in.asked = time.Time{}
		}
	case ike.Alive:
		if in.asking {
			in.asking = false
			l.answers++
		}
	case ike.Closed:
		if in.up {
			l.up--
		}
		l.lost = append(l.lost, e.Err)
	}
}

// speak sends an echo reply that nobody waits for, in ESP in UDP.
func (l *load) speak(p ipsec.Pair) {
	payload, next := []byte{0, 0, 0xff, 0xff, 0, 0, 0, 0}, byte(1)
	if p.Mode == ipsec.Tunnel {
		payload, next = lab.IPPacket(p.Local.Addr(), p.Remote.Addr(), next, payload), 4
	}
	s, err := esp.NewSealer(p.Out)
	var packet []byte
	if err == nil {
		packet, err = s.Seal(nil, next, payload)
	}
	if err == nil {
		err = sendFrom(l.ports[4500], packet, p.Local.Addr(), netip.AddrPortFrom(p.Remote.Addr(), 4500))
	}
	if err != nil {
		l.t.Errorf("ESP from %v: %v", p.Local, err)
	}
}

// turn serves what comes, until the time is over or done says so.
func (l *load) turn(d time.Duration, done func() bool) {
	end := time.Now().Add(d)
	ticker := time.NewTicker(cmp.Or(l.every, 50*time.Millisecond))
	defer ticker.Stop()
	for !done() {
		select {
		case d := <-l.in:
			in := l.initiators[binary.BigEndian.Uint64(d.Data)]
			switch {
			case in == nil:
			case l.hurried && !in.unread && !in.up && lastOfSetUp(d):
				l.took.add(time.Since(in.began), time.Millisecond)
				in.unread, l.unread = true, append(l.unread, answer{in, d})
			default:
				l.output(in, in.engine.Receive(time.Now(), d))
			}
		case now := <-ticker.C:
			if !now.Before(end) {
				return
			}
			for _, in := range l.initiators {
				if !in.wake.IsZero() && !in.wake.After(now) && !in.began.IsZero() && !in.unread {
					l.output(in, in.engine.Advance(now))
				}
			}
		}
	}
}

// setUp sets n IKE SAs with a Child SA up, each from another address, so many at once, and says how long all took: from the first message to the last
// answer. What an initiator does before it sends is done before, and what it does with the last answer after that, so that the time is
// the responder's, as far as that can be.
func (l *load) setUp(n, atOnce int) time.Duration {
	l.t.Helper()
	want := l.up + n
	first := l.prepare(n)
	runtime.GC() // what comes before is not the set-ups' work
	l.hurried = true
	began, own := time.Now(), processor(l.t, os.Getpid())
	for i, in := range first {
		l.turn(giveUp, func() bool { return i-len(l.unread)-len(l.lost) < atOnce })
		in.began = time.Now()
		l.send(in.first)
	}
	l.turn(giveUp, func() bool { return len(l.unread) >= n || len(l.lost) > 0 })
	took := time.Since(began)
	l.own, l.hurried = processor(l.t, os.Getpid())-own, false
	for _, a := range l.unread {
		l.output(a.to, a.to.engine.Receive(time.Now(), a.d))
		a.to.unread = false
	}
	l.unread = nil
	if l.up != want {
		l.t.Fatalf("%d of %d SAs are up, %d were closed: %v", l.up, want, len(l.lost), l.lost)
	}
	return took
}

// lastOfSetUp reports whether a datagram is the response to IKE_AUTH.
func lastOfSetUp(d ike.Datagram) bool {
	h, err := wire.ParseHeader(d.Data)
	return err == nil && h.Exchange == wire.IKEAuth && h.Flags&wire.FlagResponse != 0 && h.MessageID == 1
}

// prepare makes n initiators, each with an address of its own, whose first messages are not sent yet.
func (l *load) prepare(n int) (list []*initiator) {
	l.t.Helper()
	for i := len(l.initiators); n > 0; i, n = i+1, n-1 {
		in := &initiator{engine: ike.New(ike.Config{
			Name: l.name(i), Public: l.key.Public(), PostQuantum: ike.Off, Retransmit: []time.Duration{patience, patience, patience, patience, patience, patience, patience, patience},
		})}
		p := l.peer
		p.Local = netip.AddrPortFrom(initiatorAddr(i), 500)
		var out ike.Output
		in.id, out = in.engine.Initiate(time.Now(), p)
		if len(out.Send) != 1 || len(out.Events) != 0 {
			l.t.Fatalf("an initiator begins with %d messages and %d events", len(out.Send), len(out.Events))
		}
		in.first, in.wake = out.Send[0], out.Wake
		l.initiators[uint64(in.id)] = in
		list = append(list, in)
	}
	return list
}

// idle answers what comes for a while.
func (l *load) idle(d time.Duration) { l.turn(d, func() bool { return false }) }

// forget begins anew, with a responder that does too.
func (l *load) forget() {
	for _, in := range l.initiators {
		l.repeated += in.engine.Stats().Retransmitted
	}
	clear(l.initiators)
	l.up, l.lost = 0, nil
	for len(l.in) > 0 {
		<-l.in
	}
}

// loadPeer is whom a load initiates to: at an address, under the name to.example, with a key.
func loadPeer(t *testing.T, h *lab.Host, key identity) ike.Peer {
	t.Helper()
	k, err := ipseckey.ParseIdentity([]byte(key.pem))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := k.Public().(ed25519.PublicKey); !ok {
		t.Fatalf("the responder's key is %T", k.Public())
	}
	return ike.Peer{
		Remote: netip.AddrPortFrom(h.Addr4(), 500), LocalID: ike.ID{Kind: ike.IDFQDN}, RemoteID: ike.ID{Kind: ike.IDFQDN, Value: "to.example"},
		Auth: ike.Authorization{Keys: []crypto.PublicKey{k.Public()}, Mode: ipsec.Tunnel},
	}
}
