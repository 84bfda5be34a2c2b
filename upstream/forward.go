// Package upstream has the ways to the DNS that a validator asks by (RFC 1035, 5452, 6891, 7766, 7873): it gets answers whole, from whom it asked, and
// believes none.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
)

// The measures of exchanges.
const (
	udpSize       = 1232                   // octets, EDNS: the DNS flag day's; answers above it come by TCP
	maxUDPReply   = 4096                   // octets read, whatever we said that we take
	firstTimeout  = 400 * time.Millisecond // until the next try begins; doubled after every round over the servers
	maxTimeout    = 2 * time.Second
	maxTries      = 8
	maxExchanges  = 1024             // under way at once
	exchangeBound = 10 * time.Second // for a caller without a deadline
)

// Config is what a Router needs.
type Config struct {
	Servers []netip.AddrPort // forwarders, in order of preference
	// Control is called on each socket before it is bound or connected, as in net.Dialer: to set a mark. May be nil.
	Control func(network, address string, c syscall.RawConn) error
	Log     *slog.Logger
}

// Router asks the host's forwarders: a dnssec.Exchanger. Each try has a socket, port and id of its own, the name in mixed
// case (0x20) and a DNS cookie, which an answer has to show again. Safe for concurrent use.
type Router struct {
	servers   []*server
	control   func(network, address string, c syscall.RawConn) error
	log       *slog.Logger
	preferred atomic.Int32 // the server that answered last
	slots     chan struct{}
}

// server is a forwarder and what is known of it.
type server struct {
	addr      string
	lowercase atomic.Bool // it gives the question back in other letters: seen over TCP
	cookies   cookieJar
}

// New is a Router that asks the given servers.
func New(c Config) (*Router, error) {
	if len(c.Servers) == 0 {
		return nil, errors.New("upstream: no server")
	}
	r := &Router{control: c.Control, log: c.Log, slots: make(chan struct{}, maxExchanges)}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	for _, a := range c.Servers {
		if !a.IsValid() || a.Port() == 0 {
			return nil, fmt.Errorf("upstream: %s is no address with a port", a)
		}
		r.servers = append(r.servers, &server{addr: a.String(), cookies: newCookieJar()})
	}
	return r, nil
}

// Ways is how many servers there are: the Router is a dnssec.Rerouter.
func (r *Router) Ways() int { return len(r.servers) }

// outcome is how one try ended.
type outcome struct {
	msg    *dns.Msg
	err    error
	server int
}

// Exchange asks the preferred server, and the next one when it fails or is slow, until an answer came or ctx ended. Tries that
// are slow are not given up: the first good answer of any counts. If all servers say SERVFAIL or the like, that is the answer.
// The answer has q's id and question; TC is never set.
func (r *Router) Exchange(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	if len(q.Question) != 1 {
		return nil, errors.New("upstream: not one question")
	}
	if _, ok := ctx.Deadline(); !ok {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, exchangeBound)
		defer stop()
	}
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return nil, fmt.Errorf("upstream: %d queries under way: %w", maxExchanges, ctx.Err())
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel() // before the wait: it ends the tries

	// Tries begin one after the other: at once, when all before it failed, or when the timer says that they are slow. A recursor
	// with a cold cache is slow without being dead, so an older try still counts when a newer one is under way.
	results := make(chan outcome, maxTries)
	first, elsewhere := int(r.preferred.Load()), dnssec.Elsewhere(ctx)
	if elsewhere {
		first++ // what the preferred server said could not be proven
	}
	var best outcome // the answer to give if no better comes
	running, sent, wait := 0, 0, time.NewTimer(0)
	defer wait.Stop()
	for {
		select {
		case <-wait.C:
			i := (first + sent) % len(r.servers)
			wg.Go(func() {
				m, err := r.try(ctx, r.servers[i], q)
				results <- outcome{m, err, i}
			})
			running++
			if sent++; sent < maxTries {
				wait.Reset(min(maxTimeout, firstTimeout<<((sent-1)/len(r.servers))))
			}
		case o := <-results:
			running--
			if o.err == nil && usable(o.msg.Rcode) {
				if i := int32(o.server); !elsewhere && i != r.preferred.Swap(i) {
					r.log.Info("upstream changed", "peer", r.servers[i].addr, "why", best.reason())
				}
				return o.msg, nil
			}
			if best.msg == nil {
				best = o
			}
			if running > 0 {
				continue
			}
			if ctx.Err() != nil || sent >= maxTries || sent >= len(r.servers) && best.msg != nil {
				return best.give(ctx)
			}
			if sent < len(r.servers) {
				wait.Reset(0) // the next one is not asked in vain
			}
		case <-ctx.Done():
			return best.give(ctx)
		}
	}
}

// usable says whether another server is not worth asking.
func usable(rcode int) bool {
	return rcode == dns.RcodeSuccess || rcode == dns.RcodeNameError || rcode == dns.RcodeYXDomain
}

func (o outcome) reason() string {
	switch {
	case o.msg != nil:
		return dns.RcodeToString[o.msg.Rcode]
	case o.err != nil:
		return o.err.Error()
	}
	return "the one before is slower"
}

func (o outcome) give(ctx context.Context) (*dns.Msg, error) {
	switch {
	case o.msg != nil:
		return o.msg, nil
	case o.err != nil:
		return nil, fmt.Errorf("upstream: %w", o.err)
	}
	return nil, fmt.Errorf("upstream: no answer: %w", ctx.Err())
}

// try asks one server once: over UDP, and over TCP where the answer is truncated or is not surely the server's.
func (r *Router) try(ctx context.Context, s *server, q *dns.Msg) (*dns.Msg, error) {
	out := s.prepare(q)
	wire, err := out.Pack()
	if err != nil {
		return nil, fmt.Errorf("query: %w", err)
	}
	m, sure, err := r.overUDP(ctx, s, out, wire)
	if err != nil {
		return nil, err
	}
	// A forger off path can make us use TCP by a guess, and no more: the answer over UDP is forgotten.
	if m.Truncated || !sure {
		if m, err = r.overTCP(ctx, s, out, wire); err != nil {
			return nil, err
		}
		// Nobody off path speaks TCP for the server: other letters here are its own.
		s.lowercase.Store(m.Question[0].Name != out.Question[0].Name)
		if m.Truncated {
			return nil, fmt.Errorf("%s: truncated over TCP", s.addr)
		}
	}
	s.cookies.learn(m)
	restore(m, q, out)
	return m, nil
}

// prepare makes what goes out for q: an id, the name in mixed case, EDNS with our size and a cookie.
func (s *server) prepare(q *dns.Msg) *dns.Msg {
	out := q.Copy()
	out.Id = dns.Id()
	if !s.lowercase.Load() {
		out.Question[0].Name = mixCase(q.Question[0].Name)
	}
	opt := out.IsEdns0()
	if opt == nil {
		out.SetEdns0(udpSize, false)
		opt = out.IsEdns0()
	}
	opt.SetUDPSize(udpSize)
	s.cookies.add(opt)
	return out
}

// dial opens a connected socket: the kernel draws its port, and only datagrams from the server's address and port come in.
func (r *Router) dial(ctx context.Context, network string, s *server) (net.Conn, func(), error) {
	d := net.Dialer{Control: r.control}
	c, err := d.DialContext(ctx, network, s.addr)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	return c, func() { stop(); c.Close() }, nil
}

// overUDP sends wire and reads until an answer to it came. Others' are passed over. sure is false for an answer with our id and
// question, but without what a spoofer does not know.
func (r *Router) overUDP(ctx context.Context, s *server, out *dns.Msg, wire []byte) (m *dns.Msg, sure bool, err error) {
	c, done, err := r.dial(ctx, "udp", s)
	if err != nil {
		return nil, false, err
	}
	defer done()
	if _, err := c.Write(wire); err != nil {
		return nil, false, err
	}
	b := make([]byte, maxUDPReply) // more than we ask for
	for {
		n, err := c.Read(b)
		if err != nil {
			return nil, false, fmt.Errorf("%s: %w", s.addr, err)
		}
		// RFC 5452, 9.1: what does not match is dropped, and the right answer still awaited: an error here would be a weapon.
		m := new(dns.Msg)
		if m.Unpack(b[:n]) != nil && !truncatedHead(b[:n], m) || !answers(m, out) {
			continue
		}
		sure := s.cookies.shows(m) && (s.lowercase.Load() || m.Question[0].Name == out.Question[0].Name)
		return m, sure, nil
	}
}

// truncatedHead says whether a packet that does not unpack is cut off in its middle and says so with TC: then TCP has it whole.
func truncatedHead(b []byte, m *dns.Msg) bool {
	return len(b) >= 12 && m.Truncated && len(m.Question) == 1
}

// overTCP asks over a connection of its own (RFC 7766).
func (r *Router) overTCP(ctx context.Context, s *server, out *dns.Msg, wire []byte) (*dns.Msg, error) {
	c, done, err := r.dial(ctx, "tcp", s)
	if err != nil {
		return nil, err
	}
	defer done()
	stream := &dns.Conn{Conn: c} // frames messages (RFC 1035, 4.2.2)
	if _, err := stream.Write(wire); err != nil {
		return nil, fmt.Errorf("%s: %w", s.addr, err)
	}
	m, err := stream.ReadMsg()
	if err != nil {
		return nil, fmt.Errorf("%s: tcp: %w", s.addr, err)
	}
	if !answers(m, out) {
		return nil, fmt.Errorf("%s: tcp: an answer to another question", s.addr)
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
