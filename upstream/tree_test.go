package upstream

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// tree is the DNS as its authorities are: servers on loopback, each with zones of its own.
type tree struct {
	t       *testing.T
	port    uint16
	servers map[netip.Addr]*nameserver
}

// nameserver is one server of a tree.
type nameserver struct {
	mu    sync.Mutex
	zones map[string][]dns.RR // by apex
	seen  []string            // "name type", as asked
	tcp   int                 // questions over TCP
	// lie, where set, is called with each answer; nil is silence.
	lie func(q, m *dns.Msg, tcp bool) *dns.Msg
}

// The servers of most tests: the root, and those of two domains and a zone in one of them.
var (
	rootAddr  = netip.MustParseAddr("127.53.0.1")
	testAddr  = netip.MustParseAddr("127.53.0.2")
	otherAddr = netip.MustParseAddr("127.53.0.3")
	deepAddr  = netip.MustParseAddr("127.53.0.4")
	evilAddr  = netip.MustParseAddr("127.53.0.66")
)

// newTree has a root that delegates test. and other., a test. that delegates deep.test., and an other. with servers' names.
func newTree(t *testing.T) *tree {
	t.Helper()
	tr := &tree{t: t, servers: map[netip.Addr]*nameserver{}}
	for i, a := range []netip.Addr{rootAddr, testAddr, otherAddr, deepAddr, evilAddr} {
		s := &nameserver{zones: map[string][]dns.RR{}}
		tr.servers[a] = s
		u, l, err := listen(netip.AddrPortFrom(a, tr.port))
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			tr.port = u.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		}
		s.serve(t, u, l)
	}
	tr.zone(rootAddr, ".", "@ 300 NS ns.root.", "ns.root. 300 A 127.53.0.1",
		"test. 300 NS ns.test.", "ns.test. 300 A 127.53.0.2", "other. 300 NS ns.other.", "ns.other. 300 A 127.53.0.3")
	tr.zone(testAddr, "test.", "@ 300 NS ns.test.", "ns.test. 300 A 127.53.0.2", "www.test. 300 A 192.0.2.1", "a.b.c.test. 300 A 192.0.2.2",
		"deep.test. 300 NS ns.deep.test.", "ns.deep.test. 300 A 127.53.0.4", "alias.test. 300 CNAME www.test.", "away.test. 300 CNAME www.other.",
		"deep.test. 300 DS 1 15 2 FFFF0B80C8C2A2DBD4CE1BFF0B1F4E0A6C5A7C6A0A4A5D6B7C8D9E0F1A2B3C4D")
	tr.zone(deepAddr, "deep.test.", "@ 300 NS ns.deep.test.", "ns.deep.test. 300 A 127.53.0.4", "www.deep.test. 300 A 192.0.2.3")
	tr.zone(otherAddr, "other.", "@ 300 NS ns.other.", "ns.other. 300 A 127.53.0.3", "www.other. 300 A 192.0.2.4", "srv.other. 300 A 127.53.0.4")
	return tr
}

// zone gives a server a zone.
func (tr *tree) zone(at netip.Addr, apex string, texts ...string) {
	s := tr.servers[at]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.zones[apex] = nil
	for _, text := range append([]string{"@ 300 SOA ns. root. 1 1 1 1 60"}, texts...) {
		s.zones[apex] = append(s.zones[apex], records(strings.Replace(text, "@ ", apex+" ", 1))...)
	}
}

// authorities ask the tree.
func (tr *tree) authorities() *authorities {
	a := newAuthorities(dialer{}, []Hint{{"ns.root.", []netip.Addr{rootAddr}}})
	a.port = tr.port
	return a
}

func (s *nameserver) serve(t *testing.T, u *net.UDPConn, l *net.TCPListener) {
	var wg sync.WaitGroup
	t.Cleanup(func() { u.Close(); l.Close(); wg.Wait() })
	wg.Go(func() {
		b := make([]byte, 65535)
		for {
			n, from, err := u.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if p := s.answer(b[:n], false); p != nil {
				_, _ = u.WriteToUDPAddrPort(p, from)
			}
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
				if b, err := readFrame(c); err == nil {
					if p := s.answer(b, true); p != nil {
						_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p...))
					}
				}
			})
		}
	})
}

// answer is what the server says, nil if nothing.
func (s *nameserver) answer(packet []byte, tcp bool) []byte {
	q := new(dns.Msg)
	if q.Unpack(packet) != nil || len(q.Question) != 1 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name, kind := dns.CanonicalName(q.Question[0].Name), q.Question[0].Qtype
	s.seen = append(s.seen, name+" "+dns.TypeToString[kind])
	if tcp {
		s.tcp++
	}
	m := s.lookUp(q, name, kind)
	if s.lie != nil {
		if m = s.lie(q, m, tcp); m == nil {
			return nil
		}
	}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// lookUp is RFC 1034, 4.3.2.
func (s *nameserver) lookUp(q *dns.Msg, name string, kind uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	if q.IsEdns0() != nil {
		m.SetEdns0(1232, true)
	}
	apex, place := "", name
	if kind == dns.TypeDS && name != "." {
		place = parent(name)
	}
	for z := range s.zones {
		if within(place, z) && (apex == "" || below(z, apex)) {
			apex = z
		}
	}
	if apex == "" {
		m.Rcode = dns.RcodeRefused
		return m
	}
	zone := s.zones[apex]
	for _, rr := range zone {
		if cut := rr.Header().Name; rr.Header().Rrtype == dns.TypeNS && cut != apex && within(name, cut) && (name != cut || kind != dns.TypeDS) {
			m.Ns = append(m.Ns, rr)
		}
	}
	if len(m.Ns) > 0 {
		for _, rr := range zone {
			if slices.ContainsFunc(m.Ns, func(ns dns.RR) bool { return ns.(*dns.NS).Ns == rr.Header().Name }) {
				m.Extra = append([]dns.RR{rr}, m.Extra...)
			}
		}
		return m
	}
	m.Authoritative = true
	exists := false
	for _, rr := range zone {
		exists = exists || within(rr.Header().Name, name)
		if rr.Header().Name == name && (rr.Header().Rrtype == kind || rr.Header().Rrtype == dns.TypeCNAME) {
			m.Answer = append(m.Answer, rr)
		}
	}
	for _, rr := range zone {
		if slices.ContainsFunc(m.Answer, func(ns dns.RR) bool { return kind == dns.TypeNS && ns.(*dns.NS).Ns == rr.Header().Name }) {
			m.Extra = append([]dns.RR{rr}, m.Extra...)
		}
	}
	if len(m.Answer) == 0 {
		m.Ns = append(m.Ns, zone[0])
		if !exists {
			m.Rcode = dns.RcodeNameError
		}
	}
	return m
}

// asked is what a server was asked since the last time.
func (tr *tree) asked(at netip.Addr) []string {
	s := tr.servers[at]
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.seen
	s.seen = nil
	return all
}

// lie has a server lie.
func (tr *tree) lie(at netip.Addr, lie func(q, m *dns.Msg, tcp bool) *dns.Msg) {
	s := tr.servers[at]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lie = lie
}

// in is a question as a validator has it.
func in(name string, rrtype uint16) *dns.Msg {
	q := new(dns.Msg)
	q.SetQuestion(name, rrtype)
	q.CheckingDisabled = true
	q.SetEdns0(1232, true)
	return q
}

// text is an answer in short: its rcode and data.
func text(m *dns.Msg, err error) string {
	if err != nil {
		return "error"
	}
	parts := []string{dns.RcodeToString[m.Rcode]}
	for _, rr := range m.Answer {
		parts = append(parts, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	return fmt.Sprint(strings.Join(parts, " "))
}
