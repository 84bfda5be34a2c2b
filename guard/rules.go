package guard

import (
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// seenTimeout is how long a counter of clear packets is kept after the last of them.
const seenTimeout = time.Minute

// What is never diverted, refused or dropped (TRUST.md R6).
var (
	dnsPorts  = []port{{unix.IPPROTO_UDP, 53}, {unix.IPPROTO_TCP, 53}, {unix.IPPROTO_UDP, 853}, {unix.IPPROTO_TCP, 853}}
	dhcpPorts = []port{{unix.IPPROTO_UDP, 67}, {unix.IPPROTO_UDP, 68}, {unix.IPPROTO_UDP, 546}, {unix.IPPROTO_UDP, 547}}
	ikePorts  = []port{{unix.IPPROTO_UDP, 500}, {unix.IPPROTO_UDP, 4500}}
)

// ICMPv6 types, as ranges: multicast listener discovery, neighbour discovery, MLDv2 reports.
var icmp6Exempt = [][2]byte{{130, 132}, {133, 137}, {143, 143}}

// Registers: 1 is the first of 16 octets, 2 the second, 9 the second of 4 octets.
const (
	regFirst  = 1
	regSecond = 2
	reg32Next = 9
)

// addChains writes the rules. The sets are looked up first: a packet of no concern costs four lookups and nothing else.
func (g *Guard) addChains() {
	g.regular("out_exempt", exemptOut(g.sets))
	g.regular("in_exempt", exemptIn(g.sets))
	g.regular("out_divert", [][]expr.Any{{jump("out_exempt")}, setMark(MarkDivert)})
	g.regular("out_leak", [][]expr.Any{{jump("out_exempt")}, {&expr.Counter{}, verdict(expr.VerdictDrop)}})
	g.regular("out_block", [][]expr.Any{
		{jump("out_exempt")},
		concat(l4proto(unix.IPPROTO_TCP), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}),
		{verdict(expr.VerdictDrop)}, // a drop in OUTPUT is EPERM to the sender
	})
	for i := range g.sets.seen {
		name := [...]string{"in_shut4", "in_shut6"}[i]
		seen := &expr.Dynset{SrcRegKey: regFirst, SetName: g.sets.seen[i].Name, SetID: g.sets.seen[i].ID,
			Operation: uint32(unix.NFT_DYNSET_OP_UPDATE), Exprs: []expr.Any{&expr.Counter{}}}
		g.regular(name, [][]expr.Any{
			{jump("in_exempt")},
			concat(loadKey(i, true), []expr.Any{seen}),
			{verdict(expr.VerdictDrop)},
		})
	}
	mangle := nftables.ChainPriorityMangle
	out := g.conn.AddChain(&nftables.Chain{Name: "out", Table: g.table, Type: nftables.ChainTypeRoute,
		Hooknum: nftables.ChainHookOutput, Priority: mangle})
	in := g.conn.AddChain(&nftables.Chain{Name: "in", Table: g.table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: mangle})
	g.rule(in, concat(fromDevice(g.cfg.Device), setMark(MarkDivert), []expr.Any{verdict(expr.VerdictAccept)}))
	g.rule(in, concat(fromDevice("lo"), []expr.Any{verdict(expr.VerdictAccept)})) // resets that out_block made
	leak := g.conn.AddChain(&nftables.Chain{Name: "leak", Table: g.table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPostrouting, Priority: mangle})
	g.rule(leak, concat(toDevice(g.cfg.Device), []expr.Any{verdict(expr.VerdictAccept)}))
	for i := range g.sets.divert {
		shut := [...]string{"in_shut4", "in_shut6"}[i]
		g.rule(out, concat(loadKey(i, false), lookup(g.sets.divert[i]), []expr.Any{jumpTo("out_divert")}))
		g.rule(leak, concat(loadKey(i, false), lookup(g.sets.divert[i]), []expr.Any{jumpTo("out_leak")}))
		g.rule(out, concat(loadKey(i, false), lookup(g.sets.block[i]), []expr.Any{jumpTo("out_block")}))
		g.rule(in, concat(loadKey(i, true), lookup(g.sets.divert[i]), []expr.Any{jumpTo(shut)}))
		g.rule(in, concat(loadKey(i, true), lookup(g.sets.block[i]), []expr.Any{jumpTo(shut)}))
	}
}

// exemptOut accepts what this host sends in clear whatever the policy: our own sockets first. They are known by their ports too, which
// nobody else can have: if another's rule takes the mark of our ESP away, it must not come back to us to be sealed again.
func exemptOut(s sets) [][]expr.Any {
	accept := []expr.Any{verdict(expr.VerdictAccept)}
	rules := [][]expr.Any{
		concat(markIs(MarkOwn), accept),
		concat(l4proto(unix.IPPROTO_ESP), accept),
		concat(loadPort(2), lookup(s.clearPorts), accept),
		concat(loadPort(0), lookup(s.clearPorts), accept),
		concat(loadPort(2), lookup(s.out), accept),
		concat(loadPort(0), lookup(s.in), accept),
	}
	return append(rules, exemptICMP6()...)
}

// exemptIn accepts what the peer may send in clear. A fragment that is not the first carries no ports; it may pass, since
// without the first, which is judged, nothing is ever reassembled from it.
func exemptIn(s sets) [][]expr.Any {
	accept := []expr.Any{verdict(expr.VerdictAccept)}
	rules := [][]expr.Any{
		concat(l4proto(unix.IPPROTO_ESP), accept),
		concat(loadPort(2), lookup(s.in), accept),
		concat(loadPort(2), lookup(s.clearPorts), accept),
		concat(loadPort(0), lookup(s.clearPorts), accept),
		concat(nfproto(unix.NFPROTO_IPV4), payload(expr.PayloadBaseNetworkHeader, 6, 2), maskNotZero(0x1f, 0xff), accept),
		concat(nfproto(unix.NFPROTO_IPV6), fragmentOffset(), maskNotZero(0xff, 0xf8), accept),
	}
	return append(rules, exemptICMP6()...)
}

// exemptICMP6 accepts what keeps IPv6 neighbours known; without it a protected peer is lost when the cache empties.
func exemptICMP6() [][]expr.Any {
	var rules [][]expr.Any
	for _, r := range icmp6Exempt {
		rules = append(rules, concat(
			nfproto(unix.NFPROTO_IPV6), l4proto(unix.IPPROTO_ICMPV6), payload(expr.PayloadBaseTransportHeader, 0, 1),
			[]expr.Any{&expr.Range{Op: expr.CmpOpEq, Register: regFirst, FromData: []byte{r[0]}, ToData: []byte{r[1]}},
				verdict(expr.VerdictAccept)}))
	}
	return rules
}

// regular adds a chain that others jump to.
func (g *Guard) regular(name string, rules [][]expr.Any) {
	chain := g.conn.AddChain(&nftables.Chain{Name: name, Table: g.table})
	for _, r := range rules {
		g.rule(chain, r)
	}
}

func (g *Guard) rule(c *nftables.Chain, exprs []expr.Any) {
	g.conn.AddRule(&nftables.Rule{Table: g.table, Chain: c, Exprs: exprs})
}

func concat(parts ...[]expr.Any) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func verdict(k expr.VerdictKind) expr.Any { return &expr.Verdict{Kind: k} }

func jump(chain string) expr.Any { return &expr.Verdict{Kind: expr.VerdictJump, Chain: chain} }

func jumpTo(chain string) expr.Any { return &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain} }

func lookup(s *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: regFirst, SetName: s.Name, SetID: s.ID}}
}

func compare(data ...byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: regFirst, Data: data}
}

func nfproto(p byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: regFirst}, compare(p)}
}

func l4proto(p byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: regFirst}, compare(p)}
}

func payload(base expr.PayloadBase, offset, length uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: regFirst, Base: base, Offset: offset, Len: length}}
}

// fragmentOffset loads the field of the IPv6 fragment header that holds the offset; without that header the rule ends.
func fragmentOffset() []expr.Any {
	return []expr.Any{&expr.Exthdr{DestRegister: regFirst, Type: unix.IPPROTO_FRAGMENT, Offset: 2, Len: 2, Op: expr.ExthdrOpIpv6}}
}

func maskNotZero(mask ...byte) []expr.Any {
	zero := make([]byte, len(mask))
	return []expr.Any{
		&expr.Bitwise{SourceRegister: regFirst, DestRegister: regFirst, Len: uint32(len(mask)), Mask: mask, Xor: zero},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: regFirst, Data: zero},
	}
}

func fromDevice(name string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: regFirst}, compare(deviceName(name)...)}
}

func toDevice(name string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: regFirst}, compare(deviceName(name)...)}
}

// deviceName pads a name as the kernel compares it.
func deviceName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

// markIs compares our bits of the mark.
func markIs(mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: regFirst},
		&expr.Bitwise{SourceRegister: regFirst, DestRegister: regFirst, Len: 4, Mask: native(MarkMask), Xor: native(0)},
		compare(native(mark)...),
	}
}

// setMark changes our bits of the mark only.
func setMark(mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: regFirst},
		&expr.Bitwise{SourceRegister: regFirst, DestRegister: regFirst, Len: 4, Mask: native(^MarkMask), Xor: native(mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: regFirst},
	}
}

// loadKey loads own . peer: source . destination on the way out, the reverse on the way in.
func loadKey(fam int, inbound bool) []expr.Any {
	proto, src, dst, size, second := byte(unix.NFPROTO_IPV4), uint32(12), uint32(16), uint32(4), uint32(reg32Next)
	if fam == 1 {
		proto, src, dst, size, second = unix.NFPROTO_IPV6, 8, 24, 16, regSecond
	}
	if inbound {
		src, dst = dst, src
	}
	return append(nfproto(proto),
		&expr.Payload{DestRegister: regFirst, Base: expr.PayloadBaseNetworkHeader, Offset: src, Len: size},
		&expr.Payload{DestRegister: second, Base: expr.PayloadBaseNetworkHeader, Offset: dst, Len: size})
}

// loadPort loads protocol . port; offset 0 is the source port, 2 the destination's. Protocols without ports find nothing.
func loadPort(offset uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: regFirst},
		&expr.Payload{DestRegister: reg32Next, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
	}
}
