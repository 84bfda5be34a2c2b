package guard

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The TCP flags of the tests.
const (
	fin, syn, rst, ack = 0x01, 0x02, 0x04, 0x10
)

// packet is what the rules see of a packet.
type packet struct {
	in, out          string // devices
	src, dst         netip.Addr
	proto            uint8
	srcPort, dstPort uint16
	flags            byte
	mark             uint32
}

func (p packet) network() []byte {
	if p.src.Is4() {
		return append(append(make([]byte, 12), p.src.AsSlice()...), p.dst.AsSlice()...)
	}
	return append(append(make([]byte, 8), p.src.AsSlice()...), p.dst.AsSlice()...)
}

func (p packet) transport() []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, p.srcPort)
	binary.BigEndian.PutUint16(b[2:], p.dstPort)
	b[13] = p.flags
	return b
}

// machine runs the rules as the kernel does.
type machine struct {
	t      *testing.T
	chains map[string]chain
	size   map[string]int                      // of a set's key
	room   map[string]int                      // elements of a set; 0: no bound
	have   map[string]map[string]time.Duration // the elements of a set with their timeouts
	sets   sets
	rules  ruleElements
	looked []string // the sets that packets were looked up in
	regs   [64]byte
	packet packet
}

// newMachine loads all chains, with both pairs in the divert sets.
func newMachine(t *testing.T) *machine {
	t.Helper()
	conn, err := nftables.New() // not dialled before the first flush
	if err != nil {
		t.Fatal(err)
	}
	g := &Guard{cfg: Config{Device: "tacit0"}, conn: conn, table: &nftables.Table{Family: nftables.TableFamilyINet, Name: TableName}}
	if err := g.addSets(true); err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, chains: make(map[string]chain), size: make(map[string]int), room: make(map[string]int), have: make(map[string]map[string]time.Duration)}
	s := g.sets
	m.sets = s
	all := []*nftables.Set{s.clearPorts, s.in, s.out, s.live}
	for i := range s.divert {
		all = append(append(all, s.divert[i], s.block[i], s.clear[i], s.seen[i], s.strange[i], s.client[i], s.server[i], s.watched[i]), s.rules[0][i].all()...)
	}
	for _, set := range all {
		m.size[set.Name], m.room[set.Name], m.have[set.Name] = int(set.KeyType.Bytes), int(set.Size), make(map[string]time.Duration)
	}
	for set, ports := range map[*nftables.Set][]port{s.clearPorts: dnsPorts, s.in: append(dhcpPorts, ikePorts...), s.out: dhcpPorts} {
		for _, e := range portElements(ports) {
			m.have[set.Name][string(e.Key)] = 0
		}
	}
	m.have["divert4"][string(encodeKey(key4))] = 0
	m.have["divert6"][string(encodeKey(key6))] = 0
	for _, c := range chains(s, "tacit0") {
		for _, r := range c.rules {
			for _, e := range r {
				if v, ok := e.(*expr.Verdict); ok && v.Chain != "" && m.chains[v.Chain].name == "" {
					t.Errorf("chain %s goes to %s, which comes later", c.name, v.Chain)
				}
			}
		}
		m.chains[c.name] = c
	}
	return m
}

func at(reg uint32) int {
	if reg >= reg32First {
		return int(reg-reg32First) * 4
	}
	return int(reg-1) * 16
}

// store fills registers of 32 bits, the last one with zeros behind the data.
func (m *machine) store(reg uint32, b []byte) {
	n := copy(m.regs[at(reg):], b)
	for ; n%4 != 0; n++ {
		m.regs[at(reg)+n] = 0
	}
}

// run enters a chain and returns what became of the packet.
func (m *machine) run(name string, p packet) expr.VerdictKind {
	m.packet = p
	v := m.walk(name)
	if v != expr.VerdictDrop {
		v = expr.VerdictAccept // the chain's policy
	}
	return v
}

func (m *machine) walk(name string) expr.VerdictKind {
	for _, r := range m.chains[name].rules {
		for _, e := range r {
			v := m.eval(e)
			if v == expr.VerdictBreak {
				break
			}
			if v != expr.VerdictContinue {
				return v
			}
		}
	}
	return expr.VerdictReturn
}

// eval returns Continue to go on in the rule, Break to go on with the next one, Return to leave the chain, or a verdict.
func (m *machine) eval(e expr.Any) expr.VerdictKind {
	on := func(ok bool) expr.VerdictKind {
		if ok {
			return expr.VerdictContinue
		}
		return expr.VerdictBreak
	}
	switch e := e.(type) {
	case *expr.Verdict:
		return m.jump(e)
	case *expr.Meta:
		m.meta(e)
	case *expr.Payload:
		b := m.packet.network()
		if e.Base == expr.PayloadBaseTransportHeader {
			b = m.packet.transport()
		}
		m.store(e.DestRegister, b[e.Offset:e.Offset+e.Len])
	case *expr.Exthdr:
		return expr.VerdictBreak // none of the packets is a fragment
	case *expr.Bitwise:
		b := bytes.Clone(m.regs[at(e.SourceRegister):][:e.Len])
		for i := range b {
			b[i] = b[i]&e.Mask[i] ^ e.Xor[i]
		}
		m.store(e.DestRegister, b)
	case *expr.Cmp:
		return on(bytes.Equal(m.regs[at(e.Register):][:len(e.Data)], e.Data) == (e.Op == expr.CmpOpEq))
	case *expr.Range:
		b := m.regs[at(e.Register):][:len(e.FromData)]
		return on(bytes.Compare(b, e.FromData) >= 0 && bytes.Compare(b, e.ToData) <= 0)
	case *expr.Fib:
		m.store(e.Register, native(m.addressType(e.FlagSADDR)))
	case *expr.Reject:
		return expr.VerdictDrop
	case *expr.Lookup:
		m.looked = append(m.looked, e.SetName)
		if list, ok := m.rules[e.SetName]; ok {
			to, found := inRanges(list, []byte(m.key(e.SourceRegister, e.SetName)))
			if found && e.IsDestRegSet {
				return m.jump(to)
			}
			return on(found)
		}
		_, ok := m.have[e.SetName][m.key(e.SourceRegister, e.SetName)]
		return on(ok)
	case *expr.Dynset:
		key, have := m.key(e.SrcRegKey, e.SetName), m.have[e.SetName]
		if _, ok := have[key]; !ok && m.room[e.SetName] > 0 && len(have) >= m.room[e.SetName] {
			return on(false)
		}
		have[key] = e.Timeout
	case *expr.Counter:
	default:
		m.t.Fatalf("no such expression: %T", e)
	}
	return expr.VerdictContinue
}

func (m *machine) jump(e *expr.Verdict) expr.VerdictKind {
	switch e.Kind {
	case expr.VerdictGoto:
		return m.walk(e.Chain)
	case expr.VerdictJump:
		if v := m.walk(e.Chain); v != expr.VerdictReturn {
			return v
		}
		return expr.VerdictContinue
	}
	return e.Kind
}

// deviceIndex is the loopback device's or another's.
func deviceIndex(name string) uint32 {
	if name == "lo" {
		return 1
	}
	return 2
}

func (m *machine) meta(e *expr.Meta) {
	if e.SourceRegister {
		m.packet.mark = binary.NativeEndian.Uint32(m.regs[at(e.Register):])
		return
	}
	var b []byte
	switch e.Key {
	case expr.MetaKeyNFPROTO:
		b = []byte{unix.NFPROTO_IPV6}
		if m.packet.src.Is4() {
			b[0] = unix.NFPROTO_IPV4
		}
	case expr.MetaKeyL4PROTO:
		b = []byte{m.packet.proto}
	case expr.MetaKeyIIFNAME:
		b = deviceName(m.packet.in)
	case expr.MetaKeyOIFNAME:
		b = deviceName(m.packet.out)
	case expr.MetaKeyIIF:
		b = native(deviceIndex(m.packet.in))
	case expr.MetaKeyOIF:
		b = native(deviceIndex(m.packet.out))
	case expr.MetaKeyMARK:
		b = native(m.packet.mark)
	default:
		m.t.Fatalf("no such meta key: %v", e.Key)
	}
	m.store(e.Register, b)
}

func (m *machine) key(reg uint32, set string) string { return string(m.regs[at(reg):][:m.size[set]]) }

// fate sends a packet through the hooks of its way and says what becomes of it.
func (m *machine) fate(outbound bool, p packet) string {
	if !outbound {
		p.in = "eth0"
		if m.run("in", p) == expr.VerdictDrop || m.run("input", p) == expr.VerdictDrop {
			return "dropped"
		}
		return "clear"
	}
	if m.run("out", p) == expr.VerdictDrop {
		return "refused"
	}
	if m.packet.mark&MarkMask == MarkDivert {
		return "diverted"
	}
	p.mark, p.out = m.packet.mark, "eth0"
	if m.run("leak", p) == expr.VerdictDrop {
		return "leaked"
	}
	if p.mark&MarkMask == MarkWatch { // and passes if no device takes it
		return "watched"
	}
	return "clear"
}

func TestDNS(t *testing.T) {
	const udp, tcp = unix.IPPROTO_UDP, unix.IPPROTO_TCP
	type step struct {
		dir       string // "out" or "in"
		proto     uint8
		own, peer uint16
		flags     byte
		mark      uint32
		want      string
	}
	for name, steps := range map[string][]step{
		"client, udp": {
			{"in", udp, 4000, 53, 0, 0, "dropped"},
			{"out", udp, 4000, 53, 0, 0, "clear"},
			{"in", udp, 4000, 53, 0, 0, "clear"},
			{"in", udp, 4000, 853, 0, 0, "dropped"},
			{"in", udp, 4000, 54, 0, 0, "dropped"},
			{"in", udp, 4001, 53, 0, 0, "dropped"},
			{"in", tcp, 4000, 53, ack, 0, "dropped"},
			{"out", udp, 4000, 54, 0, 0, "diverted"},
		},
		"client, tcp": {
			{"in", tcp, 4000, 853, syn | ack, 0, "dropped"},
			{"out", tcp, 4000, 853, syn, 0, "clear"},
			{"in", tcp, 4000, 853, syn | ack, 0, "clear"},
			{"out", tcp, 4000, 853, ack, 0, "clear"},
			{"in", tcp, 4000, 853, ack, 0, "clear"},
			{"in", tcp, 4000, 853, syn, 0, "dropped"},
			{"in", udp, 4000, 853, 0, 0, "dropped"},
			{"in", tcp, 4000, 853, fin | ack, 0, "clear"},
			{"out", tcp, 4000, 853, rst, 0, "clear"},
		},
		"our own queries are marked": {
			{"out", udp, 4000, 53, 0, MarkOwn, "clear"},
			{"in", udp, 4000, 53, 0, 0, "clear"},
			{"out", udp, 4500, 4500, 0, MarkOwn, "clear"},
			{"out", tcp, 4000, 80, syn, MarkOwn, "clear"},
		},
		"server, udp": {
			{"out", udp, 53, 4000, 0, 0, "diverted"},
			{"in", udp, 53, 4000, 0, 0, "clear"},
			{"out", udp, 53, 4000, 0, 0, "clear"},
			{"out", udp, 853, 4000, 0, 0, "diverted"},
			{"out", udp, 53, 4001, 0, 0, "diverted"},
			{"out", tcp, 53, 4000, ack, 0, "diverted"},
		},
		"server, tcp": {
			{"out", tcp, 53, 4000, syn | ack, 0, "diverted"},
			{"in", tcp, 53, 4000, syn, 0, "clear"},
			{"out", tcp, 53, 4000, syn | ack, 0, "clear"},
			{"in", tcp, 53, 4000, ack, 0, "clear"},
			{"out", tcp, 53, 4000, syn, 0, "diverted"},
		},
		"from port 53 to a service": {
			{"in", udp, 7007, 53, 0, 0, "dropped"},
			{"in", tcp, 7007, 53, syn, 0, "dropped"},
			{"out", tcp, 7007, 53, syn | ack, 0, "diverted"},
			{"in", tcp, 7007, 53, ack, 0, "dropped"},
			{"out", tcp, 7007, 53, ack, 0, "diverted"},
			{"out", tcp, 7007, 53, rst | ack, 0, "diverted"},
		},
		"both ports are 53": {
			{"in", udp, 53, 53, 0, 0, "clear"},
			{"out", udp, 53, 53, 0, 0, "clear"},
			{"in", tcp, 53, 53, syn, 0, "clear"},
			{"out", tcp, 53, 53, syn | ack, 0, "clear"},
		},
		"other exemptions": {
			{"in", unix.IPPROTO_ESP, 0, 0, 0, 0, "clear"},
			{"out", unix.IPPROTO_ESP, 0, 0, 0, 0, "clear"},
			{"in", udp, 4500, 4500, 0, 0, "clear"},
			{"in", udp, 7007, 4000, 0, 0, "dropped"},
			{"out", udp, 7007, 4000, 0, 0, "diverted"},
		},
	} {
		for _, k := range []Key{key4, key6} {
			m := newMachine(t)
			for i, s := range steps {
				p := packet{src: k.Peer, dst: k.Own, proto: s.proto, srcPort: s.peer, dstPort: s.own, flags: s.flags, mark: s.mark}
				if s.dir == "out" {
					p.src, p.dst, p.srcPort, p.dstPort = k.Own, k.Peer, s.own, s.peer
				}
				if got := m.fate(s.dir == "out", p); got != s.want {
					t.Errorf("%s, %v, packet %d: %s %+v: %s", name, k.Own, i, s.dir, s, got)
				}
			}
		}
	}
}

// Our own sockets' packets, known by their mark, are let go before they are looked up by address: many peers make sets that no cache holds.
func TestOwnPacketsMeetNoAddresses(t *testing.T) {
	for _, key := range []Key{key4, key6} {
		for _, hook := range []string{"out", "leak"} {
			m := newMachine(t)
			p := packet{src: key.Own, dst: key.Peer, proto: unix.IPPROTO_UDP, srcPort: 4500, dstPort: 4500, mark: MarkOwn}
			if v := m.run(hook, p); v != expr.VerdictAccept || !slices.Equal(m.looked, []string{m.sets.in.Name}) {
				t.Errorf("%s, %v: %v, looked up in %v", hook, key.Peer, v, m.looked)
			}
			m.looked, p.mark = nil, 0
			if m.run(hook, p); len(m.looked) < 2 {
				t.Errorf("%s, %v: without our mark, looked up in %v alone", hook, key.Peer, m.looked)
			}
		}
	}
}

// TestFlowsAreRecordedAtOneHook: our queries in OUTPUT, theirs in PREROUTING; what only passes by or answers records nothing.
func TestFlowsAreRecordedAtOneHook(t *testing.T) {
	const udp, tcp = unix.IPPROTO_UDP, unix.IPPROTO_TCP
	query := packet{src: key4.Own, dst: key4.Peer, proto: udp, srcPort: 4000, dstPort: 53}
	question := packet{in: "eth0", src: key4.Peer, dst: key4.Own, proto: tcp, srcPort: 4000, dstPort: 53, flags: syn}
	answer, reply := question, query
	answer.srcPort, answer.dstPort = 53, 4000
	reply.srcPort, reply.dstPort = 53, 4000
	for _, c := range []struct {
		hook           string
		p              packet
		client, server time.Duration // the timeout of what is recorded, or zero
	}{
		{"out", query, flowUDP, 0},
		{"leak", query, 0, 0},
		{"in", question, 0, flowTCP},
		{"in", answer, 0, 0},
		{"out", reply, 0, 0},
		{"leak", reply, 0, 0},
	} {
		m := newMachine(t)
		m.run(c.hook, c.p)
		for set, want := range map[string]time.Duration{"dns_client4": c.client, "dns_server4": c.server, "dns_client6": 0, "dns_server6": 0} {
			var got time.Duration
			for key, d := range m.have[set] {
				got = d
				own, peer := uint16(4000), uint16(53)
				if set == "dns_server4" {
					own, peer = peer, own
				}
				k := append(key4.Own.AsSlice(), byte(own>>8), byte(own), 0, 0)
				k = append(append(k, key4.Peer.AsSlice()...), byte(peer>>8), byte(peer), 0, 0, c.p.proto, 0, 0, 0)
				if key != string(k) {
					t.Errorf("%s: flow %x, want %x", set, key, k)
				}
			}
			if got != want || len(m.have[set]) > 1 {
				t.Errorf("hook %s, %+v: set %s: got %d elements for %v, want for %v", c.hook, c.p, set, len(m.have[set]), got, want)
			}
		}
	}
}

// TestFlowsInTheKernel: the kernel takes the sets as they are meant, and records what is sent with the timeout of its protocol.
func TestFlowsInTheKernel(t *testing.T) {
	newNetwork(t)
	g, _, err := Open(Config{Device: "tacit0"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = g.Close(false) }()
	if err := g.Apply([]Change{{key4, Divert, time.Minute}}); err != nil {
		t.Fatal(err)
	}
	for i, size := range []uint32{20, 44} {
		for _, set := range []*nftables.Set{g.sets.client[i], g.sets.server[i]} {
			got, err := g.conn.GetSetByName(g.table, set.Name)
			if err != nil || !got.Dynamic || !got.HasTimeout || got.KeyType.Bytes != size {
				t.Errorf("%s: got %+v, %v", set.Name, got, err)
			}
		}
	}
	if c, err := net.Dial("udp4", "192.0.2.2:53"); err != nil {
		t.Error(err)
	} else if _, err = c.Write([]byte("query")); errors.Join(err, c.Close()) != nil {
		t.Error(err)
	}
	_, _ = (&net.Dialer{Timeout: 50 * time.Millisecond}).Dial("tcp4", "192.0.2.2:853") // nobody answers
	listed, err := g.conn.GetSetElements(g.sets.client[0])
	if err != nil || len(listed) != 2 {
		t.Fatalf("recorded: got %v, %v; want two flows", listed, err)
	}
	for _, e := range listed {
		want := map[byte]time.Duration{unix.IPPROTO_UDP: flowUDP, unix.IPPROTO_TCP: flowTCP}[e.Key[16]]
		if e.Expires > want || e.Expires < want-5*time.Second {
			t.Errorf("flow %x ends in %v, want %v", e.Key, e.Expires, want)
		}
	}
}
