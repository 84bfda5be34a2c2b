package tun

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"tacit/ipsec"
	"tacit/plane"
)

// Conn opens IKE's view of UDP port 500 or 4500; see [plane.Conns].
func (p *Plane) Conn(local netip.AddrPort) (ipsec.Conn, error) { return p.conns.Open(local) }

// ikeLoop reads port 500, where there is no ESP.
func (p *Plane) ikeLoop(s *socket) {
	batch := newRecvBatch(s, 4, plane.MaxIKE)
	for {
		n, err := batch.read()
		if err != nil {
			if p.run.Stopping() {
				return
			}
			continue
		}
		for i := range n {
			data, from, c := batch.packet(i)
			p.conns.Deliver(netip.AddrPortFrom(c.local, plane.PortIKE), from.addrPort(), data)
		}
	}
}

// sendIKE sends one datagram. IKE sends few: it needs no batch.
func (p *Plane) sendIKE(port uint16, b []byte, local netip.Addr, remote netip.AddrPort) error {
	family, socks := 0, p.socks.ike
	if remote.Addr().Is6() {
		family = 1
	}
	if port == plane.PortNATT {
		socks = p.socks.natt
	}
	s := socks[family]
	if s == nil || !remote.IsValid() {
		return fmt.Errorf("no socket of that family")
	}
	return s.sendTo(b, local, remote)
}

// envelope is a call of sendmsg.
type envelope struct {
	v4      unix.SockaddrInet4
	v6      unix.SockaddrInet6
	to      unix.Sockaddr // one of them
	control []byte
	message []byte
	err     error
	write   func(fd uintptr) (done bool)
}

// envelopes are used again: a burst of set-ups is thousands of messages.
var envelopes = sync.Pool{New: func() any {
	e := &envelope{control: make([]byte, 0, controlSize)}
	e.write = func(fd uintptr) bool {
		e.err = unix.Sendmsg(int(fd), e.message, e.control, e.to, unix.MSG_DONTWAIT)
		return !errors.Is(e.err, unix.EAGAIN)
	}
	return e
}}

func (s *socket) sendTo(b []byte, local netip.Addr, remote netip.AddrPort) error {
	e := envelopes.Get().(*envelope)
	if remote.Addr().Is4() {
		e.v4.Port, e.v4.Addr, e.to = int(remote.Port()), remote.Addr().As4(), &e.v4
	} else {
		e.v6.Port, e.v6.Addr, e.to = int(remote.Port()), remote.Addr().As16(), &e.v6
	}
	e.control, e.message = putLocal(e.control[:0], local), b
	wait := s.raw.Write(e.write)
	err := e.err
	e.message, e.err = nil, nil
	envelopes.Put(e)
	return errors.Join(wait, err)
}
