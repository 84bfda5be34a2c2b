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

// Registers: 0 is the verdict; 1 is the first of 16 octets, 2 the second; 8 is the first of 4 octets, at the same place as 1, and 9 the second.
const (
	regVerdict = 0
	regFirst   = 1
	regSecond  = 2
	reg32First = 8
	reg32Next  = 9
)

// chain is a chain with its rules: of a hook, or one that others jump to.
type chain struct {
	name  string
	kind  nftables.ChainType // empty without a hook
	hook  *nftables.ChainHook
	rules [][]expr.Any
}

func (c *chain) add(rules ...[]expr.Any) { c.rules = append(c.rules, rules...) }

// addChains writes the rules.
func (g *Guard) addChains() {
	list := chains(g.sets, g.cfg.Device)
	if g.kernel() {
		list = kernelChains(g.sets, g.cfg.Queue)
	}
	for _, c := range list {
		to := &nftables.Chain{Name: c.name, Table: g.table}
		if c.hook != nil {
			to.Type, to.Hooknum, to.Priority = c.kind, c.hook, nftables.ChainPriorityMangle
		}
		g.conn.AddChain(to)
		g.addRules(c)
	}
}

func (g *Guard) addRules(c chain) {
	for _, r := range c.rules {
		g.conn.AddRule(&nftables.Rule{Table: g.table, Chain: &nftables.Chain{Name: c.name, Table: g.table}, Exprs: r})
	}
}

// chains are all chains, each before those that jump to it. The sets are looked up first, but for our own packets: one of no concern costs two
// lookups in those of its family, and one that says whether there are rules of prefixes; one more if there are.
func chains(s sets, device string) []chain {
	drop := verdict(expr.VerdictDrop)
	list := dnsChains(s)
	var look []chain
	if s.live != nil {
		look = lookChains(s, 0)
		list = append(append(list, portChains(s)...), look[rulesLook:]...)
	}
	list = append(list,
		chain{name: "out_exempt", rules: exemptOut(s, s.look("out_dns", "out_dns_query"), "out_ports")},
		chain{name: "leak_exempt", rules: exemptOut(s, "leak_dns_query", "leak_ports")},
		chain{name: "in_exempt", rules: exemptIn(s)},
		chain{name: "out_divert", rules: [][]expr.Any{{jump("out_exempt")}, setMark(MarkDivert)}},
		chain{name: "out_leak", rules: [][]expr.Any{{jump("leak_exempt")}, {&expr.Counter{}, drop}}},
		chain{name: "out_block", rules: [][]expr.Any{
			{jump("out_exempt")},
			concat(l4proto(unix.IPPROTO_TCP), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}),
			{drop}, // a drop in OUTPUT is EPERM to the sender
		}})
	for i := range s.seen {
		list = append(list, chain{name: inShut[i], rules: [][]expr.Any{
			{jump("in_exempt")},
			concat(loadKey(i, true), count(s.seen[i])),
			{drop},
		}})
	}
	if s.live != nil {
		list = append(append(list, ruleChains(s)...), look[:rulesLook]...)
	}
	return append(list, hooks(s, device)...)
}

var inShut = [...]string{"in_shut4", "in_shut6"}

// deviceRule is the place, in the chains of hooks, of the rule that knows the device.
const deviceRule = 1

// hooks are the chains that the kernel enters.
func hooks(s sets, device string) []chain {
	out := chain{name: "out", kind: nftables.ChainTypeRoute, hook: nftables.ChainHookOutput}
	in := chain{name: "in", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting}
	leak := chain{name: "leak", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPostrouting}
	accept := []expr.Any{verdict(expr.VerdictAccept)}
	// What goes to this host itself is no peer's, and there is much of it: every lookup of a program goes this way twice. So do the
	// resets that out_block made.
	for _, c := range []*chain{&out, &leak} {
		c.add(concat(loopback(expr.MetaKeyOIF), accept))
	}
	in.add(concat(loopback(expr.MetaKeyIIF), accept), concat(fromDevice(device), setMark(MarkDivert), accept))
	leak.add(concat(toDevice(device), accept))
	// Nor is what our own sockets of IKE and ESP send any concern of ours. A host with many peers has most of these sets in no cache.
	for _, c := range []*chain{&out, &leak} {
		c.add(concat(markIs(MarkOwn), loadPort(0), lookup(s.in), accept))
	}
	for i := range s.divert {
		out.add(concat(loadKey(i, false), lookup(s.divert[i]), []expr.Any{jumpTo("out_divert")}))
		leak.add(concat(loadKey(i, false), lookup(s.divert[i]), []expr.Any{jumpTo("out_leak")}))
		out.add(concat(loadKey(i, false), lookup(s.block[i]), []expr.Any{jumpTo("out_block")}))
		in.add(concat(loadKey(i, true), lookup(s.divert[i]), []expr.Any{jumpTo(inShut[i])}))
		in.add(concat(loadKey(i, true), lookup(s.block[i]), []expr.Any{jumpTo(inShut[i])}))
	}
	if s.live == nil {
		return []chain{out, in, leak}
	}
	input := chain{name: "input", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookInput}
	input.add(concat(loopback(expr.MetaKeyIIF), accept), concat(fromDevice(device), accept), whileLive(s, "in_rules"))
	out.add(whileLive(s, "out_rules"))
	leak.add(whileLive(s, "leak_rules"))
	return []chain{out, in, leak, input}
}

// exemptOut accepts what this host sends in clear whatever the policy: our own sockets first. They are known by their ports too, which
// nobody else can have: if another's rule takes the mark of our ESP away, it must not come back to us to be sealed again. DNS
// comes before our mark, since our own queries are recorded like all others; a reply comes before a query, which records.
func exemptOut(s sets, query, ports string) [][]expr.Any {
	accept := []expr.Any{verdict(expr.VerdictAccept)}
	rules := [][]expr.Any{
		concat(l4proto(unix.IPPROTO_ESP), accept),
		concat(loadPort(0), lookup(s.in), accept),
	}
	if s.live != nil {
		rules = append(rules, []expr.Any{jump(ports)})
	}
	rules = append(rules,
		concat(loadPort(0), lookup(s.clearPorts), []expr.Any{jump("out_dns_reply")}),
		concat(loadPort(2), lookup(s.clearPorts), []expr.Any{jump(query)}),
		concat(markIs(MarkOwn), accept),
		concat(loadPort(2), lookup(s.out), accept))
	return append(rules, exemptICMP6()...)
}

// exemptIn accepts what the peer may send in clear. A fragment that is not the first carries no ports; it may pass, since
// without the first, which is judged, nothing is ever reassembled from it.
func exemptIn(s sets) [][]expr.Any {
	accept := []expr.Any{verdict(expr.VerdictAccept)}
	rules := [][]expr.Any{
		concat(l4proto(unix.IPPROTO_ESP), accept),
		concat(loadPort(2), lookup(s.in), accept),
	}
	if s.live != nil {
		rules = append(rules, []expr.Any{jump("in_ports")})
	}
	rules = append(rules,
		concat(loadPort(0), lookup(s.clearPorts), []expr.Any{jump("in_dns_reply")}),
		concat(loadPort(2), lookup(s.clearPorts), []expr.Any{jump(s.look("in_dns", "in_dns_query"))}),
		concat(nfproto(unix.NFPROTO_IPV4), payload(expr.PayloadBaseNetworkHeader, 6, 2), maskNotZero(0x1f, 0xff), accept),
		concat(nfproto(unix.NFPROTO_IPV6), fragmentOffset(), maskNotZero(0xff, 0xf8), accept))
	return append(rules, exemptICMP6()...)
}

// exemptICMP6 accepts what keeps IPv6 neighbours known; without it a protected peer is lost when the cache empties.
func exemptICMP6() [][]expr.Any { return icmpTypes(1, icmp6Exempt) }

// icmpTypes accepts ranges of types of a family's ICMP.
func icmpTypes(fam int, types [][2]byte) (rules [][]expr.Any) {
	proto, _, _, _ := addresses(fam, false)
	for _, r := range types {
		rules = append(rules, concat(
			nfproto(proto), l4proto([...]byte{unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6}[fam]), payload(expr.PayloadBaseTransportHeader, 0, 1),
			[]expr.Any{&expr.Range{Op: expr.CmpOpEq, Register: regFirst, FromData: []byte{r[0]}, ToData: []byte{r[1]}},
				verdict(expr.VerdictAccept)}))
	}
	return rules
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

// count counts a packet under the key in the registers. If the set is full the rule ends.
func count(s *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Dynset{SrcRegKey: regFirst, SetName: s.Name, SetID: s.ID,
		Operation: uint32(unix.NFT_DYNSET_OP_UPDATE), Exprs: []expr.Any{&expr.Counter{}}}}
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

// loopback is the loopback device by its index, which is the same in each network namespace (LOOPBACK_IFINDEX): quicker than a name.
func loopback(key expr.MetaKey) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: regFirst}, compare(native(1)...)}
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
func markIs(mark uint32) []expr.Any { return compareMark(mark, expr.CmpOpEq) }

func markIsNot(mark uint32) []expr.Any { return compareMark(mark, expr.CmpOpNeq) }

func compareMark(mark uint32, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: regFirst},
		&expr.Bitwise{SourceRegister: regFirst, DestRegister: regFirst, Len: 4, Mask: native(MarkMask), Xor: native(0)},
		&expr.Cmp{Op: op, Register: regFirst, Data: native(mark)},
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

// addresses says where in the header of a family our own address and the peer's stand, and their size: the source is ours on the way
// out, the destination on the way in.
func addresses(fam int, inbound bool) (proto byte, own, peer, size uint32) {
	proto, own, peer, size = unix.NFPROTO_IPV4, 12, 16, 4
	if fam == 1 {
		proto, own, peer, size = unix.NFPROTO_IPV6, 8, 24, 16
	}
	if inbound {
		own, peer = peer, own
	}
	return proto, own, peer, size
}

// loadKey loads own . peer.
func loadKey(fam int, inbound bool) []expr.Any {
	proto, own, peer, size := addresses(fam, inbound)
	second := [...]uint32{reg32Next, regSecond}[fam]
	return append(nfproto(proto),
		&expr.Payload{DestRegister: regFirst, Base: expr.PayloadBaseNetworkHeader, Offset: own, Len: size},
		&expr.Payload{DestRegister: second, Base: expr.PayloadBaseNetworkHeader, Offset: peer, Len: size})
}

// loadPort loads protocol . port; offset 0 is the source port, 2 the destination's. Protocols without ports find nothing.
func loadPort(offset uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: regFirst},
		&expr.Payload{DestRegister: reg32Next, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
	}
}
