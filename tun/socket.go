package tun

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"tacit/guard"
	"tacit/plane"
)

// socketBuffer is what a socket may hold in the kernel while the path is busy.
const socketBuffer = 8 << 20

// socket is one of our sockets: UDP of a port and family, or raw ESP of a family. IPv4 and IPv6 are apart (IPV6_V6ONLY), since a
// dual-stack socket has no pktinfo of IPv4 kind. All bear MarkOwn, so that guard lets them pass.
type socket struct {
	file *os.File
	raw  syscall.RawConn
	v6   bool
	port uint16 // 0: raw ESP
}

func (s *socket) name() string {
	kind, family := "esp", "IPv4"
	if s.port != 0 {
		kind = fmt.Sprintf("udp port %d", s.port)
	}
	if s.v6 {
		family = "IPv6"
	}
	return kind + " " + family
}

// openSocket opens a socket in the network namespace of the calling thread; port 0 is raw ESP.
func openSocket(port uint16, v6 bool) (*socket, error) {
	s := &socket{v6: v6, port: port}
	domain, kind, proto := unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP
	if v6 {
		domain = unix.AF_INET6
	}
	if port == 0 {
		kind, proto = unix.SOCK_RAW, unix.IPPROTO_ESP
	}
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, hint("open socket "+s.name(), err)
	}
	if err := s.configure(fd); err != nil {
		_ = unix.Close(fd)
		return nil, hint("open socket "+s.name(), err)
	}
	s.file = os.NewFile(uintptr(fd), s.name())
	if s.raw, err = s.file.SyscallConn(); err != nil {
		_ = s.file.Close()
		return nil, fmt.Errorf("socket %s: %w", s.name(), err)
	}
	return s, nil
}

type sockopt struct{ level, name, value int }

// configure sets the options and binds.
func (s *socket) configure(fd int) error {
	opts := []sockopt{{unix.SOL_SOCKET, unix.SO_MARK, int(guard.MarkOwn)}}
	if s.v6 {
		// The kernel fragments what is longer than the path's MTU; applications and TCP are told by other means.
		opts = append(opts, sockopt{unix.SOL_IPV6, unix.IPV6_V6ONLY, 1}, sockopt{unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1},
			sockopt{unix.SOL_IPV6, unix.IPV6_RECVTCLASS, 1}, sockopt{unix.SOL_IPV6, unix.IPV6_RECVHOPLIMIT, 1},
			sockopt{unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT})
	} else {
		opts = append(opts, sockopt{unix.SOL_IP, unix.IP_PKTINFO, 1}, sockopt{unix.SOL_IP, unix.IP_RECVTOS, 1},
			sockopt{unix.SOL_IP, unix.IP_RECVTTL, 1}, sockopt{unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_OMIT}) // without DF no router says what is too long: who does has made it up (TRUST.md A-48)
	}
	for _, o := range opts {
		if s.v6 && s.port == 0 && o.name == unix.IPV6_V6ONLY {
			continue // raw sockets are of one family anyway
		}
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("option %d of level %d: %w", o.name, o.level, err)
		}
	}
	for _, name := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, name, socketBuffer) // more is better, less is no error
	}
	if s.port == plane.PortNATT {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) // kernels before 5.0 hand out one datagram at a time
	}
	if s.v6 {
		return unix.Bind(fd, &unix.SockaddrInet6{Port: int(s.port)})
	}
	return unix.Bind(fd, &unix.SockaddrInet4{Port: int(s.port)})
}

// sockaddr is a destination as the kernel reads it.
type sockaddr struct {
	buf [unix.SizeofSockaddrInet6]byte
	len uint32
}

func makeSockaddr(a netip.AddrPort) (s sockaddr) {
	if a.Addr().Is4() {
		s.len = unix.SizeofSockaddrInet4
		binary.NativeEndian.PutUint16(s.buf[0:], unix.AF_INET)
		v4 := a.Addr().As4()
		copy(s.buf[4:], v4[:])
	} else {
		s.len = unix.SizeofSockaddrInet6
		binary.NativeEndian.PutUint16(s.buf[0:], unix.AF_INET6)
		v6 := a.Addr().As16()
		copy(s.buf[8:], v6[:])
	}
	binary.BigEndian.PutUint16(s.buf[2:], a.Port())
	return s
}

func (s *sockaddr) addrPort() netip.AddrPort {
	port := binary.BigEndian.Uint16(s.buf[2:])
	if binary.NativeEndian.Uint16(s.buf[0:]) == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(s.buf[4:8])), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(s.buf[8:24])), port)
}

// Control messages: the local address, the type of service and the hops of a packet, and the segment size of several in one.
var (
	cmsgHeader  = unix.CmsgLen(0)
	controlSize = unix.CmsgSpace(unix.SizeofInet6Pktinfo) + 3*unix.CmsgSpace(4)
)

// putCmsg appends a control message. The buffer has the capacity.
func putCmsg(b []byte, level, kind int32, data []byte) []byte {
	at := len(b)
	b = b[:at+unix.CmsgSpace(len(data))]
	clear(b[at:])
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[at]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(len(data)))
	copy(b[at+cmsgHeader:], data)
	return b
}

// putLocal sets the source address of a packet; without one the kernel chooses.
func putLocal(b []byte, local netip.Addr) []byte {
	switch {
	case !local.IsValid() || local.IsUnspecified():
		return b
	case local.Is4():
		var info [unix.SizeofInet4Pktinfo]byte
		a := local.As4()
		copy(info[4:], a[:])
		return putCmsg(b, unix.SOL_IP, unix.IP_PKTINFO, info[:])
	}
	var info [unix.SizeofInet6Pktinfo]byte
	a := local.As16()
	copy(info[:], a[:])
	return putCmsg(b, unix.SOL_IPV6, unix.IPV6_PKTINFO, info[:])
}

// putTOS sets the type of service, with its ECN bits, of the outer header (RFC 4301, 5.1.2; RFC 6040, 4.1).
func putTOS(b []byte, v6 bool, tos uint8) []byte {
	var v [4]byte
	binary.NativeEndian.PutUint32(v[:], uint32(tos))
	if v6 {
		return putCmsg(b, unix.SOL_IPV6, unix.IPV6_TCLASS, v[:])
	}
	return putCmsg(b, unix.SOL_IP, unix.IP_TOS, v[:])
}

// putHops sets the TTL or Hop Limit of the outer header: in transport mode it is the packet's own.
func putHops(b []byte, v6 bool, hops uint8) []byte {
	var v [4]byte
	binary.NativeEndian.PutUint32(v[:], uint32(hops))
	if v6 {
		return putCmsg(b, unix.SOL_IPV6, unix.IPV6_HOPLIMIT, v[:])
	}
	return putCmsg(b, unix.SOL_IP, unix.IP_TTL, v[:])
}

// control is what the control messages of a received packet say.
type control struct {
	local   netip.Addr
	tos     uint8
	hops    uint8
	segment int // UDP_GRO: the length of each datagram but the last; 0: there is one
}

// parseControl reads the control messages of a packet. Unknown ones are skipped.
func parseControl(b []byte) (c control) {
	c.hops = defaultHops
	for len(b) >= cmsgHeader {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		length := int(h.Len)
		if length < cmsgHeader || length > len(b) {
			return c
		}
		data := b[cmsgHeader:length]
		switch {
		case h.Level == unix.SOL_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			c.local = netip.AddrFrom4([4]byte(data[8:12])) // the destination in the header
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			c.local = netip.AddrFrom16([16]byte(data[:16]))
		case h.Level == unix.SOL_IP && h.Type == unix.IP_TOS && len(data) >= 1:
			c.tos = data[0]
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_TCLASS && len(data) >= 4:
			c.tos = uint8(binary.NativeEndian.Uint32(data))
		case len(data) >= 4 && (h.Level == unix.SOL_IP && h.Type == unix.IP_TTL || h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_HOPLIMIT):
			c.hops = uint8(binary.NativeEndian.Uint32(data))
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 2:
			c.segment = int(binary.NativeEndian.Uint16(data))
		}
		b = b[min(len(b), unix.CmsgSpace(length-cmsgHeader)):]
	}
	return c
}

// mtuProbe asks the kernel for the MTU of the path to an address, with what it learned from ICMP. Its sockets send nothing.
type mtuProbe struct{ fd4, fd6 int }

// openProbe opens the sockets of a probe in the network namespace of the calling thread.
func openProbe() (mtuProbe, error) {
	fd4, err4 := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	fd6, err6 := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err4 != nil && err6 != nil {
		return mtuProbe{-1, -1}, fmt.Errorf("open socket: %w", errors.Join(err4, err6))
	}
	for _, fd := range []int{fd4, fd6} {
		if fd >= 0 {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(guard.MarkOwn))
		}
	}
	return mtuProbe{fd4, fd6}, nil
}

func (m mtuProbe) close() {
	for _, fd := range []int{m.fd4, m.fd6} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// minMTU is IPv6's least (RFC 8200, 5) and the floor for what ICMP may claim (TRUST.md A-48).
const minMTU, defaultMTU = 1280, 1500

// mtu is the path's MTU, or what is usual where the kernel knows no way.
func (m mtuProbe) mtu(to netip.Addr) int {
	fd, level, opt := m.fd4, unix.SOL_IP, unix.IP_MTU
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: plane.PortNATT}
	if to.Is4() {
		sa.(*unix.SockaddrInet4).Addr = to.As4()
	} else {
		fd, level, opt = m.fd6, unix.SOL_IPV6, unix.IPV6_MTU
		sa = &unix.SockaddrInet6{Port: plane.PortNATT, Addr: to.As16()}
	}
	if unix.Connect(fd, sa) != nil {
		return defaultMTU
	}
	mtu, err := unix.GetsockoptInt(fd, level, opt)
	if err != nil {
		return defaultMTU
	}
	return max(mtu, minMTU)
}
