package resolver

import (
	"net"
	"net/netip"
)

// Who is behind a query matters only where there is not room for everybody (TRUST.md A-36): it takes a question to the kernel, and what is answered from the cache
// never comes to it. From then on each user has his share of the queries and lookups under way, and of the questions to the upstream; nobody waits behind
// what another has begun.

const (
	crowd     = 48            // queries, lookups or connections under way, from which on it is asked whose they are
	ourselves = "this daemon" // who looks up what it needs itself
)

// origin is where a message came from. The zero value is anywhere.
type origin struct {
	client, server netip.AddrPort
	tcp            bool
}

// originOf is where the messages of a TCP connection come from.
func originOf(c net.Conn) origin {
	return origin{client: addrPort(c.RemoteAddr()), server: addrPort(c.LocalAddr()), tcp: true}
}

// addrPort is a as this package has addresses; the zero value if it is none.
func addrPort(a net.Addr) netip.AddrPort {
	at, ok := a.(interface{ AddrPort() netip.AddrPort })
	if !ok {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(at.AddrPort().Addr().Unmap(), at.AddrPort().Port())
}

// server is where a socket's queries come to.
func (b *batch) server() netip.AddrPort { return addrPort(b.conn.LocalAddr()) }

// crowded says whether so much is under way that it matters whose it is.
func (s *Server) crowded() bool {
	return max(s.slots.Used(), s.under.Used(), s.conns.Used()) >= crowd
}

// who is the user behind a message; "" as long as nobody needs to know.
func (s *Server) who(from origin) string {
	if s.cfg.Who == nil || !from.client.IsValid() || !s.crowded() {
		return ""
	}
	return s.cfg.Who(from.tcp, from.client, from.server)
}
