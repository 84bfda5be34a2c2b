package tun

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"tacit/ipsec"
)

// ikeQueue is how many IKE messages may wait for their reader.
const ikeQueue = 512

// ikeBuffer is the longest IKE message that is read: what fits into a UDP datagram.
const ikeBuffer = maxPacket

// datagram is an IKE message that waits for Read.
type datagram struct {
	data          []byte
	local, remote netip.AddrPort
}

// conn is one of IKE's views of our sockets.
type conn struct {
	plane *Plane
	local netip.AddrPort
	queue chan datagram
	done  chan struct{}
	once  sync.Once
}

// conns are the open ones.
type conns struct {
	mu   sync.RWMutex // read by the socket loops for each IKE message, written by Conn and Close
	list []*conn
}

// Conn opens IKE's view of UDP port 500 or 4500. An unspecified local address takes what comes to any address of that family, no
// address at all takes both families.
func (p *Plane) Conn(local netip.AddrPort) (ipsec.Conn, error) {
	if local.Port() != portIKE && local.Port() != portNATT {
		return nil, fmt.Errorf("conn %v: IKE's ports are %d and %d", local, portIKE, portNATT)
	}
	c := &conn{plane: p, local: local, queue: make(chan datagram, ikeQueue), done: make(chan struct{})}
	p.conns.mu.Lock()
	defer p.conns.mu.Unlock()
	p.conns.list = append(p.conns.list, c)
	return c, nil
}

// wants reports whether a datagram that came to the address is for the conn.
func (c *conn) wants(to netip.AddrPort) bool {
	a := c.local.Addr()
	return c.local.Port() == to.Port() &&
		(!a.IsValid() || a == to.Addr() || a.IsUnspecified() && a.Is4() == to.Addr().Is4())
}

// deliver hands an IKE message to its reader, or counts it: IKE repeats what is lost.
func (l *conns) deliver(counts *counters, local, remote netip.AddrPort, data []byte) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for _, c := range l.list {
		if !c.wants(local) {
			continue
		}
		select {
		case c.queue <- datagram{bytes.Clone(data), local, remote}:
		default:
			counts.ikeDropped.Add(1)
		}
		return
	}
	counts.ikeDropped.Add(1)
}

// ikeLoop reads port 500, where there is no ESP.
func (p *Plane) ikeLoop(s *socket) {
	batch := newRecvBatch(s, 4, ikeBuffer)
	for {
		n, err := batch.read()
		if err != nil {
			if p.stopping() {
				return
			}
			continue
		}
		for i := range n {
			data, from, c := batch.packet(i)
			p.conns.deliver(&p.counts, netip.AddrPortFrom(c.local, portIKE), from.addrPort(), data)
		}
	}
}

// Read waits for an IKE message. After Close, of the Conn or of the Plane, its error is os.ErrClosed.
func (c *conn) Read(b []byte) (n int, local, remote netip.AddrPort, err error) {
	select {
	case d := <-c.queue:
		return copy(b, d.data), d.local, d.remote, nil
	case <-c.done:
	case <-c.plane.done:
	}
	return 0, netip.AddrPort{}, netip.AddrPort{}, fmt.Errorf("read %v: %w", c.local, os.ErrClosed)
}

// Write sends an IKE message from the local address, or from one that the kernel chooses if it is unspecified.
func (c *conn) Write(b []byte, local, remote netip.AddrPort) error {
	family, socks := 0, c.plane.socks.ike
	if remote.Addr().Is6() {
		family = 1
	}
	if c.local.Port() == portNATT {
		socks = c.plane.socks.natt
		b = append(make([]byte, nonESP, nonESP+len(b)), b...)
	}
	s := socks[family]
	if s == nil || !remote.IsValid() {
		return fmt.Errorf("write to %v: no socket of that family", remote)
	}
	if err := s.sendTo(b, local.Addr(), remote); err != nil {
		return fmt.Errorf("write to %v: %w", remote, err)
	}
	return nil
}

// sendTo sends one datagram. IKE sends few: it needs no batch.
func (s *socket) sendTo(b []byte, local netip.Addr, remote netip.AddrPort) error {
	var to unix.Sockaddr = &unix.SockaddrInet4{Port: int(remote.Port())}
	if remote.Addr().Is4() {
		to.(*unix.SockaddrInet4).Addr = remote.Addr().As4()
	} else {
		to = &unix.SockaddrInet6{Port: int(remote.Port()), Addr: remote.Addr().As16()}
	}
	oob := putLocal(make([]byte, 0, controlSize), local)
	var err error
	wait := s.raw.Write(func(fd uintptr) bool {
		err = unix.Sendmsg(int(fd), b, oob, to, unix.MSG_DONTWAIT)
		return !errors.Is(err, unix.EAGAIN)
	})
	return errors.Join(wait, err)
}

// Close ends the view; the socket stays the Plane's.
func (c *conn) Close() error {
	c.once.Do(func() {
		close(c.done)
		l := &c.plane.conns
		l.mu.Lock()
		defer l.mu.Unlock()
		for i := range l.list {
			if l.list[i] == c {
				l.list = append(l.list[:i:i], l.list[i+1:]...)
				break
			}
		}
	})
	return nil
}
