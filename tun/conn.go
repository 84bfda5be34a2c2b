package tun

import (
	"errors"
	"fmt"
	"net/netip"

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
