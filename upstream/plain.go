package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

// moment is how long a thread may wait for an answer, instead of a goroutine.
const moment = time.Millisecond

// errNoTCP is an answer that needs TCP, which is known not to pass.
var errNoTCP = errors.New("the answer is truncated, and TCP does not pass")

// dialer opens sockets, each with a port of its own that the kernel draws.
type dialer struct {
	control func(network, address string, c syscall.RawConn) error // may be nil
}

// dial opens a connected socket: only datagrams from the server's address and port come in. It breaks when ctx ends; done closes it.
func (d dialer) dial(ctx context.Context, network, addr string) (c net.Conn, done func(), err error) {
	n := net.Dialer{Control: d.control}
	if c, err = n.DialContext(ctx, network, addr); err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	return c, func() { stop(); c.Close() }, nil
}

// plain is a server that is asked by UDP and TCP, and what is known of it. Each try has a socket, port and id of its own, the name in mixed case (0x20) and
// a DNS cookie, which an answer has to show again.
type plain struct {
	dialer
	addr      string
	to        netip.AddrPort // the same; not valid with a zone, or where it is none
	foreign   bool           // not this host: what would come back to us is not sent
	lowercase atomic.Bool    // it gives the question back in other letters: seen over TCP
	noTCP     atomic.Bool    // a probe found that TCP does not pass
	noEDNS    atomic.Bool    // it does not know EDNS
	far       atomic.Bool    // its last answer did not come within a moment
	cookies   cookieJar
}

func newPlain(d dialer, addr string) *plain {
	s := &plain{dialer: d, addr: addr, cookies: newCookieJar()}
	if to, err := netip.ParseAddrPort(addr); err == nil && to.Addr().Zone() == "" {
		s.to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	}
	return s
}

// renew forgets what was learned by way of another network (RFC 9018, 3: a client's cookie must not tell that it has moved).
func (s *plain) renew() {
	s.cookies.renew()
	s.lowercase.Store(false)
	s.noTCP.Store(false)
	s.noEDNS.Store(false)
	s.far.Store(false)
}

// ask asks once: over UDP, and over TCP where the answer is truncated or is not surely the server's. The answer has q's id and letters.
func (s *plain) ask(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	out, m, sure, err := s.overUDP(ctx, q)
	return s.conclude(ctx, q, out, m, sure, err)
}

// conclude is ask with what a first try over UDP brought: out went out for q.
func (s *plain) conclude(ctx context.Context, q, out, m *dns.Msg, sure bool, err error) (*dns.Msg, error) {
	if err == nil && m.Rcode == dns.RcodeBadCookie && s.cookies.learn(m) {
		out, m, sure, err = s.overUDP(ctx, q) // RFC 7873, 5.3: once more, with the cookie that came
	}
	if err != nil {
		return nil, err
	}
	// A forger off path can make us use TCP by a guess, and no more: the answer over UDP is forgotten.
	if m.Truncated && sure && s.noTCP.Load() {
		return nil, errNoTCP
	}
	if m.Truncated || !sure {
		tctx, cancel := context.WithTimeout(ctx, tcpTimeout)
		m, err = s.overTCP(tctx, out)
		cancel()
		if err != nil {
			return nil, err
		}
		// Nobody off path speaks TCP for the server: other letters here are its own.
		s.lowercase.Store(m.Question[0].Name != out.Question[0].Name)
		if m.Truncated {
			return nil, errors.New("truncated over TCP")
		}
		s.cookies.lost(m)
	}
	s.cookies.learn(m)
	restore(m, q, out)
	return m, nil
}

// prepare makes what goes out for q: an id, the name in mixed case, EDNS with our size and a cookie.
func (s *plain) prepare(q *dns.Msg) *dns.Msg {
	out := q.Copy()
	out.Id = dns.Id()
	if !s.lowercase.Load() {
		out.Question[0].Name = mixCase(q.Question[0].Name)
	}
	if s.noEDNS.Load() {
		out.Extra = nil
		return out
	}
	s.cookies.add(edns(out))
	return out
}

// edns gives a query EDNS with our size, and returns it.
func edns(q *dns.Msg) *dns.OPT {
	if q.IsEdns0() == nil {
		q.SetEdns0(udpSize, false)
	}
	opt := q.IsEdns0()
	opt.SetUDPSize(udpSize)
	return opt
}

// overUDP sends q and reads until an answer to it came. Others' are passed over. sure is false for an answer with our id and question, but without what a
// spoofer does not know.
func (s *plain) overUDP(ctx context.Context, q *dns.Msg) (out, m *dns.Msg, sure bool, err error) {
	out = s.prepare(q)
	wire, err := out.Pack()
	if err != nil {
		return nil, nil, false, fmt.Errorf("query: %w", err)
	}
	c, done, err := s.dial(ctx, "udp", s.addr)
	if err != nil {
		return nil, nil, false, err
	}
	defer done()
	if to := c.RemoteAddr().(*net.UDPAddr).IP; s.foreign && (to.IsLoopback() || c.LocalAddr().(*net.UDPAddr).IP.Equal(to)) {
		return nil, nil, false, errors.New("an address of this host")
	}
	sent := time.Now()
	if _, err := c.Write(wire); err != nil {
		return nil, nil, false, err
	}
	m, sure, err = s.receive(c, out)
	s.far.Store(err != nil || time.Since(sent) > moment)
	return out, m, sure, err
}

// receive reads until an answer to out came.
func (s *plain) receive(c net.Conn, out *dns.Msg) (m *dns.Msg, sure bool, err error) {
	b := make([]byte, maxUDPReply) // more than we ask for
	for {
		n, err := c.Read(b)
		if err != nil {
			return nil, false, err
		}
		if m, sure := s.read(b[:n], out); m != nil {
			return m, sure, nil
		}
	}
}

// read is a datagram as the answer to out, nil if it is none. RFC 5452, 9.1: what does not match is dropped, and the right answer still awaited: an error
// here would be a weapon.
func (s *plain) read(b []byte, out *dns.Msg) (m *dns.Msg, sure bool) {
	m = new(dns.Msg)
	if m.Unpack(b) != nil && !truncatedHead(b, m) || !answers(m, out) {
		return nil, false
	}
	return m, s.cookies.shows(m) && (s.lowercase.Load() || m.Question[0].Name == out.Question[0].Name)
}

// truncatedHead says whether a packet that does not unpack is cut off in its middle and says so with TC: then TCP has it whole.
func truncatedHead(b []byte, m *dns.Msg) bool {
	return len(b) >= 12 && m.Truncated && len(m.Question) == 1
}

// overTCP asks over a connection of its own (RFC 7766).
func (s *plain) overTCP(ctx context.Context, out *dns.Msg) (*dns.Msg, error) {
	c, done, err := s.dial(ctx, "tcp", s.addr)
	if err != nil {
		return nil, fmt.Errorf("tcp: %w", err)
	}
	defer done()
	stream := &dns.Conn{Conn: c} // frames messages (RFC 1035, 4.2.2)
	if err := stream.WriteMsg(out); err != nil {
		return nil, fmt.Errorf("tcp: %w", err)
	}
	m, err := stream.ReadMsg()
	if err != nil {
		return nil, fmt.Errorf("tcp: %w", err)
	}
	if !answers(m, out) {
		return nil, errors.New("tcp: an answer to another question")
	}
	return m, nil
}

// answers says whether m answers out: id, opcode and question, in whatever case.
func answers(m, out *dns.Msg) bool {
	if m.Id != out.Id || !m.Response || m.Opcode != out.Opcode || len(m.Question) != 1 {
		return false
	}
	a, b := m.Question[0], out.Question[0]
	return a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}
