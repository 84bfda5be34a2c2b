package e2e

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tacit/ike"
	"tacit/ipseckey"
	"tacit/lab"
)

// onPath is an attacker on the path from one host to another: what the one sends to the other comes to him first. He answers IKE in the other's
// place, with a key of his own, and passes everything else on.
type onPath struct {
	t        *testing.T
	at       *lab.Host
	from, to *lab.Host
	key      identity
	frames   chan []byte
	calls    chan func()
	quit     chan struct{}
	done     sync.WaitGroup

	// The goroutine's.
	engine  *ike.Endpoint               // of the name that he has now; nil: he passes first messages on
	wake    map[*ike.Endpoint]time.Time // of all that he has had
	refused []error
}

// stepBetween puts the attacker on the path. He is one whose addresses the one's neighbour cache has.
func stepBetween(t *testing.T, at, from, to *lab.Host, key identity) *onPath {
	t.Helper()
	m := &onPath{t: t, at: at, from: from, to: to, key: key, frames: make(chan []byte, 1024), calls: make(chan func()), quit: make(chan struct{}),
		wake: map[*ike.Endpoint]time.Time{}}
	if err := from.Offload(false); err != nil { // checksums are there when the packets come to him
		t.Fatal(err)
	}
	var fd int
	if err := at.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(uint16(unix.ETH_P_ALL<<8&0xff00|unix.ETH_P_ALL>>8)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
		t.Fatal(err)
	}
	m.done.Go(func() { m.read(fd) })
	m.done.Go(m.run)
	t.Cleanup(func() {
		close(m.quit)
		m.done.Wait()
		unix.Close(fd)
	})
	return m
}

// take has the one's packets come here; leave gives them back.
func (m *onPath) take() {
	m.t.Helper()
	for _, a := range both(m.to) {
		output(m.t, m.from, "ip", "neigh", "replace", a.String(), "lladdr", m.at.MAC().String(), "dev", "eth0", "nud", "permanent")
	}
}

func (m *onPath) leave() {
	m.t.Helper()
	for _, a := range both(m.to) {
		output(m.t, m.from, "ip", "neigh", "replace", a.String(), "lladdr", m.to.MAC().String(), "dev", "eth0", "nud", "reachable")
	}
}

// poses has him answer IKE from now on as one of that name; without a name he passes it on.
func (m *onPath) poses(name string) {
	m.do(func() {
		m.engine = nil
		if name != "" {
			m.engine = m.newEngine(name)
		}
	})
}

func (m *onPath) newEngine(name string) *ike.Endpoint {
	key, err := ipseckey.ParseIdentity([]byte(m.key.pem))
	if err != nil {
		m.t.Error(err)
	}
	return ike.New(ike.Config{Name: name, Public: key.Public()})
}

// initiates begins an IKE SA at an address, his own or one that he takes, in a name or without one, and waits until it is refused.
func (m *onPath) initiates(name string, from, to netip.Addr) (refused error) {
	m.t.Helper()
	p := ike.Peer{Local: netip.AddrPortFrom(from, 500), Remote: netip.AddrPortFrom(to, 500), LocalID: ike.ID{Kind: ike.IDNull}, Auth: ike.Authorization{Anonymous: true}}
	if name != "" {
		p.LocalID = ike.ID{Kind: ike.IDFQDN, Value: name}
	}
	m.do(func() {
		e := m.newEngine(name)
		_, out := e.Initiate(time.Now(), p)
		m.output(e, out)
	})
	eventually(m.t, 5*time.Second, "a refusal", func() bool {
		m.do(func() {
			if len(m.refused) > 0 {
				refused, m.refused = m.refused[0], nil
			}
		})
		return refused != nil
	})
	return refused
}

// do runs f in the goroutine that has the engines.
func (m *onPath) do(f func()) {
	done := make(chan struct{})
	m.calls <- func() { f(); close(done) }
	<-done
}

// read takes the packets that are not for the attacker himself.
func (m *onPath) read(fd int) {
	b := make([]byte, 65536)
	for {
		select {
		case <-m.quit:
			return
		default:
		}
		n, from, err := unix.Recvfrom(fd, b, 0)
		ll, ok := from.(*unix.SockaddrLinklayer)
		if err != nil || !ok || ll.Pkttype != unix.PACKET_HOST || string(ll.Addr[:6]) != string(m.from.MAC()) {
			continue
		}
		m.frames <- append([]byte(nil), b[:n]...)
	}
}

func (m *onPath) run() {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-m.quit:
			return
		case f := <-m.calls:
			f()
		case p := <-m.frames:
			m.packet(p)
		case now := <-tick.C:
			for e, at := range m.wake {
				if !at.IsZero() && !now.Before(at) {
					m.output(e, e.Advance(now))
				}
			}
		}
	}
}

// packet is one that the one sent to the other.
func (m *onPath) packet(p []byte) {
	f := lab.ParseFrame(append(append(make([]byte, 12), etherType(p)...), p...))
	if !has(m.to, f.Dst) {
		return
	}
	if f.Class == lab.ClassIKE {
		header := 20
		if f.Src.Is6() {
			header = 40
		}
		data := p[header+8:]
		if f.DstPort == 4500 {
			data = data[min(4, len(data)):]
		}
		if m.answers(ike.Datagram{Local: netip.AddrPortFrom(f.Dst, f.DstPort), Remote: netip.AddrPortFrom(f.Src, f.SrcPort), Data: data}) {
			return
		}
	}
	if m.at == m.to { // they are his own: his kernel has them too
		return
	}
	if err := m.at.Inject(p); err != nil {
		m.t.Errorf("pass on %d bytes: %v", len(p), err)
	}
}

// answers reports whether a message is one for him: the first of an SA, and what is of an SA of his.
func (m *onPath) answers(d ike.Datagram) bool {
	if len(d.Data) < 28 {
		return false
	}
	if first := binary.BigEndian.Uint64(d.Data[8:]) == 0; first {
		if m.engine != nil {
			m.output(m.engine, m.engine.Receive(time.Now(), d))
		}
		return m.engine != nil
	}
	for e := range m.wake {
		if out := e.Receive(time.Now(), d); out.Dropped == "" {
			m.output(e, out)
			return true
		}
	}
	return false
}

func (m *onPath) output(e *ike.Endpoint, out ike.Output) {
	m.wake[e] = out.Wake
	for _, d := range out.Send {
		data := d.Data
		if d.Local.Port() == 4500 && len(data) != 1 {
			data = append(make([]byte, 4), data...)
		}
		if err := m.at.Inject(lab.UDPPacket(d.Local, d.Remote, data)); err != nil {
			m.t.Error(err)
		}
	}
	for _, ev := range out.Events {
		now := time.Now()
		switch ev := ev.(type) {
		case ike.AuthorizationWanted:
			m.output(e, e.Authorize(now, ev.SA, ike.Authorization{Anonymous: true}))
		case ike.SignatureWanted:
			key, err := ipseckey.ParseIdentity([]byte(m.key.pem))
			var sig []byte
			if err == nil {
				sig, err = key.Sign(nil, ev.Data, ev.Opts)
			}
			m.output(e, e.Supply(now, ev.SA, ike.Signature{Token: ev.Token, Sig: sig, Err: err}))
		case ike.ChildWanted:
			m.output(e, e.Supply(now, ev.SA, ike.Installed{Token: ev.Token}))
		case ike.Closed:
			if ev.Err != nil {
				m.refused = append(m.refused, ev.Err)
			}
		}
	}
}

func etherType(p []byte) []byte {
	if len(p) > 0 && p[0]>>4 == 6 {
		return []byte{0x86, 0xdd}
	}
	return []byte{0x08, 0x00}
}
