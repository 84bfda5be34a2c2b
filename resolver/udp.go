package resolver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const (
	maxReaders     = 8       // sockets of one address, each with a goroutine that reads it
	roomForQueries = 2 << 20 // octets that the kernel may keep for a socket: it counts almost a kilobyte for a short datagram
	batchSize      = 32      // queries read at once: each read, and each rest between two, costs as much as an answer
	sentAtOnce     = 4       // answers: more keep the first one waiting
	oobSize        = 64      // octets: one control message with an address
)

// listen opens UDP and TCP on one port. For port 0 the kernel draws it for UDP, and TCP has to have it too.
func listen(a netip.AddrPort) ([]*batch, *net.TCPListener, error) {
	for try := 0; ; try++ {
		u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
		if err != nil {
			return nil, nil, err
		}
		got := netip.AddrPortFrom(a.Addr(), u.LocalAddr().(*net.UDPAddr).AddrPort().Port())
		t, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(got))
		if err != nil {
			u.Close()
			if a.Port() != 0 || try == 9 {
				return nil, nil, err
			}
			continue
		}
		bs, err := batches(append([]*net.UDPConn{u}, beside(u, got)...))
		if err != nil {
			t.Close()
			return nil, nil, err
		}
		return bs, t, nil
	}
}

// beside opens more sockets on the port of u, one for each further processor, among which the kernel spreads the clients. Only now
// that u has the port does it share it: an address in use is an error still. Where sockets cannot share, there are none.
func beside(u *net.UDPConn, a netip.AddrPort) (more []*net.UDPConn) {
	raw, err := u.SyscallConn()
	if err != nil || raw.Control(func(fd uintptr) { err = shareAddress(fd) }) != nil || err != nil {
		return nil
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return errors.Join(c.Control(func(fd uintptr) { err = shareAddress(fd) }), err)
	}}
	for range min(runtime.GOMAXPROCS(0), maxReaders) - 1 {
		p, err := lc.ListenPacket(context.Background(), "udp", a.String())
		if err != nil {
			break
		}
		more = append(more, p.(*net.UDPConn))
	}
	return more
}

// batches makes sockets ready to be read, all or none. A socket for every address is told where each query came to: without it a host of
// several addresses answers from the wrong one.
func batches(us []*net.UDPConn) (bs []*batch, err error) {
	for _, u := range us {
		makeRoom(u)
		var b *batch
		wildcard := u.LocalAddr().(*net.UDPAddr).IP.IsUnspecified()
		if err == nil && wildcard { // one of the two fits the socket's family
			err4 := ipv4.NewPacketConn(u).SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true)
			err6 := ipv6.NewPacketConn(u).SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true)
			if err4 != nil && err6 != nil {
				err = fmt.Errorf("udp %s: %w", u.LocalAddr(), err4)
			}
		}
		if err == nil {
			b, err = newBatch(u, wildcard)
		}
		if err != nil {
			u.Close()
			continue
		}
		bs = append(bs, b)
	}
	if err != nil {
		for _, b := range bs {
			b.close()
		}
		return nil, err
	}
	return bs, nil
}

// serveUDP reads until the socket is stopped, and returns when every datagram is answered. An answer leaves from the address that the
// query came to, also where the socket listens on every address.
func (s *Server) serveUDP(b *batch) error {
	var wg sync.WaitGroup
	wg.Go(func() { s.readOn(b, &wg) })
	wg.Wait()
	return nil
}

// readOn reads queries from a socket until it is stopped, or another has taken its place.
func (s *Server) readOn(b *batch, wg *sync.WaitGroup) {
	for {
		n, err := b.read()
		switch {
		case s.base.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		case err != nil: // an ICMP error about an earlier answer, or no memory
			time.Sleep(time.Millisecond)
			continue
		}
		for i := range n {
			query, answer := b.query(i)
			if answer, ok := s.quick(query, answer); ok {
				b.answered(i, answer)
				continue
			}
			if n > 1 {
				s.apart(b, i, query, wg)
				continue
			}
			answer, ok, left := s.first(query, answer, b.file, func() {
				s.apart(b, i, query, wg)
				wg.Go(func() { s.readOn(b, wg) })
			})
			switch {
			case left:
				return
			case ok:
				b.answered(i, answer)
			default:
				s.apart(b, i, query, wg)
			}
		}
		b.flush()
		if n == batchSize { // a socket that is never empty, would let nobody else run
			runtime.Gosched()
		}
	}
}

// apart answers a query in a goroutine.
func (s *Server) apart(b *batch, i int, query []byte, wg *sync.WaitGroup) {
	packet, from := bytes.Clone(query), b.client(i).keep()
	wg.Go(func() {
		if answer := s.serve(packet, origin{client: from.at(), server: b.server()}); answer != nil {
			b.write(from, answer)
		}
	})
}

// sourceOf is the control message that has an answer leave from where the query came to, out of the query's.
func sourceOf(oob []byte) []byte {
	if len(oob) == 0 {
		return nil
	}
	var six ipv6.ControlMessage
	if six.Parse(oob) == nil && six.Dst != nil {
		if six.Dst.To4() == nil {
			return (&ipv6.ControlMessage{Src: six.Dst}).Marshal()
		}
		return (&ipv4.ControlMessage{Src: six.Dst}).Marshal()
	}
	var four ipv4.ControlMessage
	if four.Parse(oob) == nil && four.Dst != nil {
		return (&ipv4.ControlMessage{Src: four.Dst}).Marshal()
	}
	return nil
}
