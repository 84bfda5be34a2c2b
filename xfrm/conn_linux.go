package xfrm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"tacit/guard"
	"tacit/ipsec"
	"tacit/plane"
)

// socket is one of our sockets: a port, a family. IPv4 and IPv6 are apart (IPV6_V6ONLY), since the kernel decides by the socket's family
// what policies it asks. All bear guard.MarkOwn, so that no policy takes what they send. Those of port 4500 hand ESP to the kernel.
type socket struct {
	conn *net.UDPConn
	v4   *ipv4.PacketConn
	v6   *ipv6.PacketConn
	port uint16
}

type sockets []*socket

func (p *Plane) openSockets() error {
	for _, port := range []uint16{plane.PortIKE, plane.PortNATT} {
		for _, v6 := range []bool{false, true} {
			s, err := openSocket(port, v6)
			if v6 && errors.Is(err, unix.EAFNOSUPPORT) {
				continue
			}
			if err != nil {
				return err
			}
			p.socks = append(p.socks, s)
		}
	}
	return nil
}

func openSocket(port uint16, v6 bool) (*socket, error) {
	network, any := "udp4", "0.0.0.0"
	if v6 {
		network, any = "udp6", "::"
	}
	op := fmt.Sprintf("open %s port %d", network, port)
	cfg := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		return errors.Join(c.Control(func(fd uintptr) { err = configure(int(fd), port, v6) }), err)
	}}
	conn, err := cfg.ListenPacket(context.Background(), network, netip.AddrPortFrom(netip.MustParseAddr(any), port).String())
	if err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			err = fmt.Errorf("%w%s", err, holder(port))
		}
		return nil, hint(op, err)
	}
	s := &socket{conn: conn.(*net.UDPConn), port: port}
	if v6 {
		s.v6 = ipv6.NewPacketConn(conn)
		err = s.v6.SetControlMessage(ipv6.FlagDst, true)
	} else {
		s.v4 = ipv4.NewPacketConn(conn)
		err = s.v4.SetControlMessage(ipv4.FlagDst, true)
	}
	if err != nil {
		return nil, hint(op, errors.Join(err, conn.Close()))
	}
	return s, nil
}

func configure(fd int, port uint16, v6 bool) error {
	type option struct{ level, name, value int }
	// The kernel fragments what is longer than the path's MTU.
	opts := []option{{unix.SOL_SOCKET, unix.SO_MARK, int(guard.MarkOwn)}, {unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT}}
	if v6 {
		opts[1] = option{unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT}
	}
	if port == plane.PortNATT {
		opts = append(opts, option{unix.IPPROTO_UDP, unix.UDP_ENCAP, unix.UDP_ENCAP_ESPINUDP})
	}
	for _, o := range opts {
		err := unix.SetsockoptInt(fd, o.level, o.name, o.value)
		if o.name == unix.UDP_ENCAP && errors.Is(err, unix.ENOPROTOOPT) { // IPv6: kernels before 5.8
			return fmt.Errorf("%w: no ESP in UDP: %w", ErrUnavailable, err)
		}
		if err != nil {
			return fmt.Errorf("option %d of level %d: %w", o.name, o.level, err)
		}
	}
	return nil
}

func (s *socket) close() error { return s.conn.Close() }

// read returns a datagram with the address that it was sent to.
func (s *socket) read(b []byte) (n int, local, remote netip.AddrPort, err error) {
	var from net.Addr
	var to net.IP
	if s.v4 != nil {
		var cm *ipv4.ControlMessage
		if n, cm, from, err = s.v4.ReadFrom(b); cm != nil {
			to = cm.Dst
		}
	} else {
		var cm *ipv6.ControlMessage
		if n, cm, from, err = s.v6.ReadFrom(b); cm != nil {
			to = cm.Dst
		}
	}
	if err != nil {
		return 0, local, remote, err
	}
	at, _ := netip.AddrFromSlice(to)
	remote = from.(*net.UDPAddr).AddrPort()
	return n, netip.AddrPortFrom(at.Unmap(), s.port), netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port()), nil
}

// write sends a datagram from a local address, or from one that the kernel chooses if it is unspecified.
func (s *socket) write(b []byte, local netip.Addr, remote netip.AddrPort) (err error) {
	var from net.IP
	if local.IsValid() && !local.IsUnspecified() {
		from = local.AsSlice()
	}
	to := net.UDPAddrFromAddrPort(remote)
	if s.v4 != nil {
		_, err = s.v4.WriteTo(b, &ipv4.ControlMessage{Src: from}, to)
	} else {
		_, err = s.v6.WriteTo(b, &ipv6.ControlMessage{Src: from}, to)
	}
	return err
}

// Conn opens IKE's view of UDP port 500 or 4500; see [plane.Conns].
func (p *Plane) Conn(local netip.AddrPort) (ipsec.Conn, error) { return p.conns.Open(local) }

// readLoop hands IKE messages to their readers. On port 4500 the kernel has taken what it holds for ESP.
func (p *Plane) readLoop(s *socket) {
	b := make([]byte, plane.MaxIKE)
	for {
		n, local, remote, err := s.read(b)
		if err != nil {
			if p.run.Stopping() {
				return
			}
			continue // an error of one packet
		}
		message, ok := b[:n], true
		if s.port == plane.PortNATT {
			message, ok = plane.IsIKE(message)
		}
		if ok {
			p.conns.Deliver(local, remote, message)
		}
	}
}

// sendIKE sends one datagram from one of our ports.
func (p *Plane) sendIKE(port uint16, b []byte, local netip.Addr, remote netip.AddrPort) error {
	for _, s := range p.socks {
		if s.port == port && (s.v4 != nil) == remote.Addr().Is4() {
			return s.write(b, local, remote)
		}
	}
	return errors.New("no socket of that family")
}
