package xfrm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"tacit/guard"
	"tacit/ipsec"
)

const (
	ikeQueue  = 512   // IKE messages that may wait for their reader
	ikeBuffer = 65535 // the longest
	nonESP    = 4     // octets of the marker before IKE on port 4500 (RFC 3948, 2.2)
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
	for _, port := range []uint16{portIKE, portNATT} {
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
	if port == portNATT {
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

// readLoop hands IKE messages to their readers. What finds none is dropped: IKE repeats what is lost.
func (p *Plane) readLoop(s *socket) {
	b := make([]byte, ikeBuffer)
	for {
		n, local, remote, err := s.read(b)
		if err != nil {
			if p.stopping() {
				return
			}
			continue // an error of one packet
		}
		data := b[:n]
		if s.port == portNATT {
			if n < nonESP || !bytes.Equal(data[:nonESP], make([]byte, nonESP)) {
				continue // what the kernel did not take for ESP, and is no IKE
			}
			data = data[nonESP:]
		}
		p.conns.deliver(local, remote, data)
	}
}

func (l *conns) deliver(local, remote netip.AddrPort, data []byte) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for _, c := range l.list {
		if c.wants(local) {
			select {
			case c.queue <- datagram{bytes.Clone(data), local, remote}:
			default:
			}
			return
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
	if c.local.Port() == portNATT {
		b = append(make([]byte, nonESP, nonESP+len(b)), b...)
	}
	for _, s := range c.plane.socks {
		if s.port == c.local.Port() && (s.v4 != nil) == remote.Addr().Is4() {
			if err := s.write(b, local.Addr(), remote); err != nil {
				return fmt.Errorf("write to %v: %w", remote, err)
			}
			return nil
		}
	}
	return fmt.Errorf("write to %v: no socket of that family", remote)
}

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
