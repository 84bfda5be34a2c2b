package upstream

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

var (
	loop    = netip.MustParseAddr("127.0.0.1")
	discard = slog.New(slog.DiscardHandler)
)

func records(texts ...string) (rrs []dns.RR) {
	for _, t := range texts {
		rr, err := dns.NewRR(t)
		if err != nil {
			panic(t + ": " + err.Error())
		}
		rrs = append(rrs, rr)
	}
	return rrs
}

// listen opens UDP and TCP on one port, which the kernel draws for UDP if it is 0.
func listen(a netip.AddrPort) (*net.UDPConn, *net.TCPListener, error) {
	for try := 0; ; try++ {
		u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
		if err != nil {
			return nil, nil, err
		}
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(u.LocalAddr().(*net.UDPAddr).AddrPort()))
		if err == nil {
			return u, l, nil
		}
		u.Close()
		if a.Port() != 0 || try == 9 {
			return nil, nil, err
		}
	}
}

// readFrame reads a message with its length in front (RFC 1035, 4.2.2).
func readFrame(r io.Reader) ([]byte, error) {
	var n [2]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(n[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

// forwarder is a name server on loopback that a test scripts: it returns the packets to send back.
type forwarder struct {
	addr     netip.AddrPort
	udp, tcp atomic.Int32 // queries seen
}

func newForwarder(t *testing.T, reply func(q *dns.Msg, tcp bool) [][]byte) *forwarder {
	t.Helper()
	u, l, err := listen(netip.AddrPortFrom(loop, 0))
	if err != nil {
		t.Fatal(err)
	}
	f := &forwarder{addr: u.LocalAddr().(*net.UDPAddr).AddrPort()}
	var wg sync.WaitGroup
	t.Cleanup(func() { u.Close(); l.Close(); wg.Wait() })
	wg.Go(func() {
		b := make([]byte, 65535)
		for {
			n, from, err := u.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			f.udp.Add(1)
			q := new(dns.Msg)
			if q.Unpack(b[:n]) != nil {
				continue
			}
			wg.Go(func() {
				for _, p := range reply(q, false) {
					_, _ = u.WriteToUDPAddrPort(p, from)
				}
			})
		}
	})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(3 * time.Second))
				for {
					b, err := readFrame(c)
					if err != nil {
						return
					}
					f.tcp.Add(1)
					q := new(dns.Msg)
					if q.Unpack(b) != nil {
						return
					}
					for _, p := range reply(q, true) {
						_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p...))
					}
				}
			})
		}
	})
	return f
}

// reply makes an answer to q; change may be nil.
func reply(q *dns.Msg, rr string, change func(m *dns.Msg)) []byte {
	m := new(dns.Msg)
	m.SetReply(q)
	m.Compress = true
	if rr != "" {
		m.Answer = records(rr)
		m.Answer[0].Header().Name = q.Question[0].Name
	}
	m.SetEdns0(1232, true)
	if change != nil {
		change(m)
	}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

func testRouter(t *testing.T, fs ...*forwarder) *Router {
	t.Helper()
	var c Config
	for _, f := range fs {
		c.Servers = append(c.Servers, Server{Addr: f.addr, Port: f.addr.Port()})
	}
	u, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func validatorQuery(name string) *dns.Msg {
	q := new(dns.Msg)
	q.SetQuestion(name, dns.TypeA)
	q.Id = 4711
	q.SetEdns0(4096, true)
	q.CheckingDisabled = true
	return q
}

// sendFirst is Exchange by way of Send, where there is one, as a validator does it that is in a hurry.
func sendFirst(u *Router) func(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	return func(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
		sent := u.Send(q)
		if sent == nil {
			return u.Exchange(ctx, q)
		}
		if m := sent.Brief(ctx, -1); m != nil {
			return m, nil
		}
		return sent.Rest(ctx)
	}
}
