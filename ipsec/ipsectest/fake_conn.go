package ipsectest

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"tacit/ipsec"
)

// fakeQueue is how many datagrams may wait for a Conn's reader.
const fakeQueue = 256

// fakeConn is a Conn of a Fake.
type fakeConn struct {
	fake  *Fake
	local netip.AddrPort
	queue chan Datagram
	done  chan struct{}
	once  sync.Once
}

// Conn opens a Conn that exchanges datagrams with the test.
func (f *Fake) Conn(local netip.AddrPort) (ipsec.Conn, error) {
	c := &fakeConn{fake: f, local: local, queue: make(chan Datagram, fakeQueue), done: make(chan struct{})}
	err := f.do(Call{Method: "Conn", Local: local}, func() error {
		f.conns = append(f.conns, c)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// OnSend sets what becomes of the datagrams that the Conns write. It is called without the Fake's lock held.
func (f *Fake) OnSend(send func(Datagram)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.send = send
}

// Wire joins two Fakes: what one's Conns write, the other's read.
func Wire(a, b *Fake) {
	a.OnSend(b.Deliver)
	b.OnSend(a.Deliver)
}

// Deliver hands a datagram to the Conn of its local port. Without one, and if too many wait, it is lost, as on a real network.
func (f *Fake) Deliver(d Datagram) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		a := c.local.Addr()
		if c.local.Port() != d.Local.Port() ||
			a.IsValid() && a != d.Local.Addr() && (!a.IsUnspecified() || a.Is4() != d.Local.Addr().Is4()) {
			continue
		}
		select {
		case c.queue <- Datagram{d.Local, d.Remote, bytes.Clone(d.Data)}:
			return
		case <-c.done:
		default:
			return
		}
	}
}

// Read waits for a datagram.
func (c *fakeConn) Read(b []byte) (n int, local, remote netip.AddrPort, err error) {
	select {
	case d := <-c.queue:
		return copy(b, d.Data), d.Local, d.Remote, nil
	case <-c.done:
		return 0, netip.AddrPort{}, netip.AddrPort{}, fmt.Errorf("read %v: %w", c.local, os.ErrClosed)
	}
}

// Write hands a datagram to OnSend's function.
func (c *fakeConn) Write(b []byte, local, remote netip.AddrPort) error {
	select {
	case <-c.done:
		return fmt.Errorf("write to %v: %w", remote, os.ErrClosed)
	default:
	}
	c.fake.mu.Lock()
	send := c.fake.send
	c.fake.mu.Unlock()
	if send != nil {
		send(Datagram{Local: remote, Remote: netip.AddrPortFrom(local.Addr(), c.local.Port()), Data: bytes.Clone(b)})
	}
	return nil
}

func (c *fakeConn) Close() error {
	c.shut()
	return nil
}

func (c *fakeConn) shut() { c.once.Do(func() { close(c.done) }) }
