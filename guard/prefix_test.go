package guard

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

func between(first, last string) Range {
	return Range{netip.MustParseAddr(first), netip.MustParseAddr(last)}
}

// someRules are of all kinds and both families; one has as many ranges as need several messages.
func someRules() Rules {
	r := Rules{
		Hold:  []Range{between("10.0.0.0", "10.0.0.255"), between("2001:db8::", "2001:db8::ffff")},
		Block: []Range{between("10.0.1.0", "10.0.1.255")},
		Watch: []Range{between("10.0.2.0", "10.0.2.255"), between("2001:db8::1:0", "2001:db8::1:ffff")},
		DNS:   []Range{between("10.0.0.0", "10.0.1.255")},
		Ports: []Ports{{between("10.0.0.0", "10.0.0.255"), []Port{{6, 22}, {17, 123}}}, {between("2001:db8::", "2001:db8::ffff"), []Port{{6, 22}}}},
	}
	for i := range 2 * chunk {
		a := netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), 0})
		r.Trap = append(r.Trap, Range{a, a})
	}
	return r
}

// count is how many elements the kernel has in a set.
func (g *Guard) count(t *testing.T, set string) (n int) {
	t.Helper()
	for _, s := range append(g.sets.rules[g.generation].all(), g.sets.live) {
		if strings.TrimRight(s.Name, "_ab") != set {
			continue
		}
		return len(g.listed(t, s))
	}
	t.Fatalf("there is no set %s", set)
	return 0
}

func (g *Guard) listed(t *testing.T, s *nftables.Set) []nftables.SetElement {
	t.Helper()
	listed, err := g.conn.GetSetElements(s)
	if err != nil {
		t.Fatal(err)
	}
	return listed
}

func (g *Guard) checkRules(t *testing.T, want map[string]int) {
	t.Helper()
	for set, n := range want {
		if got := g.count(t, set); got != n {
			t.Errorf("%s: %d elements, want %d", set, got, n)
		}
	}
}

// The kernel holds what SetRules says, also where it overlaps what was there, and for a dead process until its time is over.
func TestSetRules(t *testing.T) {
	newNamespace(t)
	g, _, err := Open(Config{Device: "tacit0"})
	if err != nil {
		t.Fatal(err)
	}
	if g.sets.live == nil {
		t.Fatal("the kernel refuses the rules' sets or chains")
	}
	whole := map[string]int{"rules4": 6 + 4*chunk, "rules6": 4, "rule_shut4": 4, "rule_shut6": 2, "rule_dns4": 2, "rule_dns6": 0, "rule_ports4": 2, "rule_ports6": 1, "live": 3}
	for range 3 {
		if err := g.SetRules(someRules(), time.Minute); err != nil {
			t.Fatal(err)
		}
		g.checkRules(t, whole)
	}
	if err := g.SetRules(Rules{Hold: []Range{between("10.0.0.128", "10.0.3.255")}}, 400*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	g.checkRules(t, map[string]int{"rules4": 2, "rules6": 0, "rule_ports4": 0, "live": 3})
	time.Sleep(450 * time.Millisecond)
	g.checkRules(t, map[string]int{"live": 0})
	if err := g.RenewRules(time.Minute); err != nil {
		t.Fatal(err)
	}
	g.checkRules(t, map[string]int{"live": 3})
	if err := errors.Join(g.SetRules(someRules(), time.Minute), g.Close(true)); err != nil {
		t.Fatal(err)
	}
	if g, _, err = Open(Config{Device: "tacit0"}); err != nil {
		t.Fatal(err)
	}
	if !g.RulesLeft() {
		t.Error("no rules are left")
	}
	g.checkRules(t, whole)
	ways := make(map[string]int) // of the dead process, each where it led
	for _, e := range g.listed(t, g.sets.rules[g.generation][0].ways) {
		if !e.IntervalEnd {
			ways[chainOf(e.Val)]++
		}
	}
	if ways["rule_divert"] != 1+2*chunk || ways["rule_refuse"] != 1 || ways["rule_watch"] != 1 {
		t.Errorf("taken over: %v", ways)
	}
	if err := g.SetRules(Rules{}, time.Minute); err != nil {
		t.Fatal(err)
	}
	g.checkRules(t, map[string]int{"rules4": 0, "live": 0})
	if err := errors.Join(g.Close(true)); err != nil {
		t.Fatal(err)
	}
	if g, _, err = Open(Config{Device: "tacit0"}); err != nil || g.RulesLeft() {
		t.Errorf("rules are left (%v), though there were none", err)
	}
	if err := g.Close(false); err != nil {
		t.Error(err)
	}
}

// setRules gives the machine rules.
func (m *machine) setRules(r Rules) {
	m.rules = r.elements(&m.sets.rules[0])
	m.have["live"] = map[string]time.Duration{"\x02": time.Minute, "\x0a": time.Minute}
}

// inRanges looks a key up in a set or map of intervals.
func inRanges(list []nftables.SetElement, key []byte) (to *expr.Verdict, found bool) {
	for i, e := range list {
		switch {
		case e.IntervalEnd:
		case e.KeyEnd != nil: // address . protocol . port: the latter two are no ranges here
			n := len(key) - 8
			if bytes.Equal(e.Key[n:], key[n:]) && bytes.Compare(key[:n], e.Key[:n]) >= 0 && bytes.Compare(key[:n], e.KeyEnd[:n]) <= 0 {
				return nil, true
			}
		case bytes.Compare(key, e.Key) >= 0 && bytes.Compare(key, list[i+1].Key) < 0:
			return e.VerdictData, true
		}
	}
	return nil, false
}

var broadcast = netip.MustParseAddr("192.0.2.255")

// addressType is what the routing table would say.
func (m *machine) addressType(source bool) uint32 {
	a := m.packet.dst
	if source {
		a = m.packet.src
	}
	switch {
	case a == key4.Own || a == key6.Own:
		return unix.RTN_LOCAL
	case a == broadcast:
		return unix.RTN_BROADCAST
	case a.IsMulticast():
		return unix.RTN_MULTICAST
	}
	return unix.RTN_UNICAST
}

// What rules say of packets between this host and three others that no element names, and of what is exempt.
func TestRulesOfPrefixes(t *testing.T) {
	const udp, tcp, icmp, icmp6 = unix.IPPROTO_UDP, unix.IPPROTO_TCP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6
	watched := [2]netip.Addr{netip.MustParseAddr("192.0.2.50"), netip.MustParseAddr("2001:db8::50")}
	held4, trapped4, blocked4 := netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("192.0.2.20"), netip.MustParseAddr("192.0.2.30")
	held6, trapped6, blocked6 := netip.MustParseAddr("2001:db8::10"), netip.MustParseAddr("2001:db8::20"), netip.MustParseAddr("2001:db8::30")
	ports := []Port{{tcp, 22}, {udp, 123}}
	rules := Rules{
		Hold:  []Range{between("192.0.2.3", "192.0.2.19"), between("192.0.2.250", "192.0.2.255"), between("2001:db8::3", "2001:db8::19")},
		Trap:  []Range{between("192.0.2.20", "192.0.2.29"), between("2001:db8::20", "2001:db8::29")},
		Block: []Range{between("192.0.2.30", "192.0.2.39"), between("2001:db8::30", "2001:db8::39")},
		Watch: []Range{between("192.0.2.50", "192.0.2.59"), between("2001:db8::50", "2001:db8::59")},
		DNS:   []Range{between("192.0.2.20", "192.0.2.20"), between("2001:db8::20", "2001:db8::20")},
		Ports: []Ports{{between("192.0.2.3", "192.0.2.29"), ports}, {between("2001:db8::3", "2001:db8::29"), ports}},
	}
	type step struct {
		dir       string
		peers     [2]netip.Addr
		proto     uint8
		own, peer uint16
		flags     byte
		mark      uint32
		want      string
	}
	held, trapped, blocked := [2]netip.Addr{held4, held6}, [2]netip.Addr{trapped4, trapped6}, [2]netip.Addr{blocked4, blocked6}
	other := [2]netip.Addr{netip.MustParseAddr("192.0.2.40"), netip.MustParseAddr("2001:db8::40")}
	group := [2]netip.Addr{broadcast, netip.MustParseAddr("2001:db8::ffff")}
	for name, steps := range map[string][]step{
		"others":  {{"out", other, tcp, 4000, 80, syn, 0, "clear"}, {"in", other, tcp, 80, 4000, syn, 0, "clear"}},
		"held":    {{"out", held, tcp, 4000, 80, syn, 0, "diverted"}, {"in", held, tcp, 80, 4000, syn, 0, "dropped"}, {"out", held, udp, 4000, 80, 0, MarkOwn, "clear"}},
		"trapped": {{"out", trapped, tcp, 4000, 80, syn, 0, "diverted"}, {"in", trapped, tcp, 80, 4000, syn, 0, "clear"}},
		"blocked": {{"out", blocked, tcp, 4000, 80, syn, 0, "refused"}, {"out", blocked, udp, 4000, 80, 0, 0, "refused"}, {"in", blocked, udp, 80, 4000, 0, 0, "dropped"}},
		"watched": {
			{"out", watched, tcp, 4000, 80, syn, 0, "watched"}, {"in", watched, tcp, 80, 4000, syn, 0, "clear"}, {"out", watched, udp, 4000, 80, 0, MarkOwn, "clear"},
			{"out", watched, udp, 4000, 53, 0, 0, "clear"}, {"out", watched, udp, 500, 500, 0, 0, "clear"},
		},
		"other exemptions": {
			{"out", held, udp, 500, 500, 0, 0, "clear"}, {"in", held, udp, 4500, 4500, 0, 0, "clear"},
			{"out", held, udp, 68, 67, 0, 0, "clear"}, {"in", held, udp, 68, 67, 0, 0, "clear"},
			{"out", held, unix.IPPROTO_ESP, 0, 0, 0, 0, "clear"}, {"in", held, unix.IPPROTO_ESP, 0, 0, 0, 0, "clear"},
			{"out", group, udp, 4000, 80, 0, 0, "clear"},
		},
		"dns": {
			{"out", held, udp, 4000, 53, 0, 0, "clear"}, {"in", held, udp, 4000, 53, 0, 0, "clear"}, {"in", held, udp, 4001, 53, 0, 0, "dropped"},
		},
		"dns, protected": {
			{"out", trapped, udp, 4000, 53, 0, 0, "diverted"}, {"out", trapped, tcp, 4000, 853, syn, 0, "diverted"},
			{"out", trapped, udp, 4000, 53, 0, MarkOwn, "clear"}, {"in", trapped, udp, 4000, 53, 0, 0, "clear"},
			{"in", trapped, udp, 53, 4000, 0, 0, "clear"}, {"out", trapped, udp, 53, 4000, 0, 0, "diverted"},
		},
		"ports, as the client": {
			{"in", held, tcp, 4000, 22, syn, 0, "dropped"}, {"out", held, tcp, 4000, 22, syn, 0, "clear"}, {"in", held, tcp, 4000, 22, syn | ack, 0, "clear"},
			{"out", held, tcp, 4000, 22, ack, 0, "clear"}, {"in", held, udp, 4000, 22, 0, 0, "dropped"}, {"out", held, udp, 4000, 22, 0, 0, "diverted"},
			{"in", held, udp, 4000, 123, 0, 0, "dropped"}, {"out", held, udp, 4000, 123, 0, 0, "clear"}, {"in", held, udp, 4000, 123, 0, 0, "clear"},
			{"in", held, udp, 4001, 123, 0, 0, "dropped"},
		},
		"ports, as the server": {
			{"out", held, tcp, 22, 4000, syn, 0, "diverted"}, {"in", held, tcp, 22, 4000, syn, 0, "clear"}, {"out", held, tcp, 22, 4000, syn | ack, 0, "clear"},
			{"out", held, udp, 123, 4000, 0, 0, "diverted"}, {"in", held, udp, 123, 4000, 0, 0, "clear"}, {"out", held, udp, 123, 4000, 0, 0, "clear"},
			{"out", blocked, tcp, 4000, 22, syn, 0, "refused"}, {"in", blocked, tcp, 22, 4000, syn, 0, "dropped"},
		},
	} {
		for i, k := range []Key{key4, key6} {
			m := newMachine(t)
			m.setRules(rules)
			for j, s := range steps {
				p := packet{src: s.peers[i], dst: k.Own, proto: s.proto, srcPort: s.peer, dstPort: s.own, flags: s.flags, mark: s.mark}
				if s.dir == "out" {
					p.src, p.dst, p.srcPort, p.dstPort = k.Own, s.peers[i], s.own, s.peer
				}
				if got := m.fate(s.dir == "out", p); got != s.want {
					t.Errorf("%s, IPv%d, packet %d: %s %+v: %s", name, 4+2*i, j, s.dir, s, got)
				}
			}
		}
	}
	// No more addresses are watched than there is room for; who is goes on to be.
	full := newMachine(t)
	full.setRules(rules)
	first, late := packet{src: key4.Own, dst: netip.MustParseAddr("192.0.2.50"), proto: udp, dstPort: 80}, packet{src: key4.Own, dst: netip.MustParseAddr("192.0.2.51"), proto: udp, dstPort: 80}
	if got := full.fate(true, first); got != "watched" {
		t.Errorf("the first: %s", got)
	}
	for i := range maxWatched - 1 {
		full.have["watched4"][string(encodeKey(Key{key4.Own, netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)})}))] = 0
	}
	for _, p := range []struct {
		packet
		want string
	}{{late, "clear"}, {first, "watched"}} {
		if got := full.fate(true, p.packet); got != p.want {
			t.Errorf("with %d others, %v: %s, want %s", maxWatched-1, p.dst, got, p.want)
		}
	}
	// What stands on two addresses goes first; ports in clear are so there too.
	m := newMachine(t)
	m.setRules(rules)
	m.have["clear4"][string(encodeKey(Key{key4.Own, held4}))], m.have["divert4"][string(encodeKey(Key{key4.Own, trapped4}))] = 0, 0
	syn80 := packet{src: key4.Own, dst: held4, proto: tcp, srcPort: 4000, dstPort: 80, flags: syn}
	for want, p := range map[string]packet{"clear": syn80, "diverted": {src: key4.Own, dst: trapped4, proto: tcp, srcPort: 4000, dstPort: 80, flags: syn}} {
		if got := m.fate(true, p); got != want {
			t.Errorf("to %v: %s, want %s", p.dst, got, want)
		}
	}
	for want, p := range map[string]packet{"clear": {src: held4, dst: key4.Own, proto: tcp, dstPort: 80, flags: syn},
		"dropped": {src: trapped4, dst: key4.Own, proto: tcp, srcPort: 4000, dstPort: 80, flags: syn}} {
		if got := m.fate(false, p); got != want {
			t.Errorf("from %v: %s, want %s", p.src, got, want)
		}
	}
	if got := m.fate(false, packet{src: trapped4, dst: key4.Own, proto: tcp, srcPort: 4000, dstPort: 22, flags: syn}); got != "clear" {
		t.Errorf("to a port in clear of a protected host: %s", got)
	}
	// Routers report errors in clear; what they say in return to what we sent is nothing else.
	for _, e := range []struct {
		proto, kind byte
		src, dst    netip.Addr
		want        string
	}{{icmp, 3, held4, key4.Own, "clear"}, {icmp, 11, held4, key4.Own, "clear"}, {icmp, 8, held4, key4.Own, "dropped"}, {icmp, 0, held4, key4.Own, "dropped"},
		{icmp6, 2, held6, key6.Own, "clear"}, {icmp6, 128, held6, key6.Own, "dropped"}, {icmp6, 135, held6, key6.Own, "clear"}} {
		m := newMachine(t)
		m.setRules(rules)
		p := packet{src: e.src, dst: e.dst, proto: e.proto, srcPort: uint16(e.kind) << 8}
		if got := m.fate(false, p); got != e.want {
			t.Errorf("ICMP type %d from %v: %s, want %s", e.kind, e.src, got, e.want)
		}
	}
	// Forwarded packets leave by the same hook as ours.
	m = newMachine(t)
	m.setRules(rules)
	forwarded := packet{src: other[0], dst: held4, proto: tcp, srcPort: 4000, dstPort: 80, flags: syn, out: "eth0"}
	if v := m.run("leak", forwarded); v != 1 {
		t.Errorf("a forwarded packet: %v", v)
	}
	forwarded.src = key4.Own
	if v := m.run("leak", forwarded); v != 0 {
		t.Errorf("one of ours that is not marked leaves: %v", v)
	}
}
