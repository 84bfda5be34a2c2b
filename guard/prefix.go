package guard

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

/* Rules of prefixes say what becomes of clear packets between any own unicast address and addresses that no element names. They stand in
a map from intervals to where their packets go, so that one look says it: a second look, in another set, may be under the next rules. Of
each set there are two, and those that are not in use are filled, before they are: a look into a set that is being changed may find nothing, before Linux
6.17 because of what goes, and later because of what comes. The map is asked while an element of the set live has time left: so all rules end at once, by themselves.

	out    live? -> peer is in block        -> exempt? else refused at once
	                peer is in hold or trap -> exempt? else as with divert
	                peer is in watch        -> exempt? else the same, but it passes if nobody is there who takes it
	leak   live? -> peer is in hold or block (rule_shut), and about to leave in clear from one of our own addresses -> exempt? else dropped
	input  live? -> the same -> exempt? else counted and dropped. The hook sees what is for this host, after another's rules have
	                translated it back: what answers a masqueraded guest is forwarded, and no matter of ours

Exempt is what others are (own . peer in clear among it), and ICMP errors, which come from any router on the way. */

// Range is the addresses of one family from First to Last, both included.
type Range struct{ First, Last netip.Addr }

// Port is a port of TCP or UDP.
type Port struct {
	Proto  uint8
	Number uint16
}

// Ports are ports that stay in clear for the peers of a range.
type Ports struct {
	Range Range
	Ports []Port
}

// Rules are the ranges of each treatment. Those of Hold, Trap, Block and Watch do not overlap, nor do those of Ports, nor do those of DNS. None
// ends with the last address of its family.
type Rules struct {
	Hold  []Range // ours go to the data plane, theirs are dropped
	Trap  []Range // ours go to the data plane, theirs pass
	Block []Range // ours are refused, theirs are dropped
	Watch []Range // ours go to the data plane if there is one, theirs pass
	DNS   []Range // ports 53 and 853 are not exempt
	Ports []Ports
}

// ErrNoRules is returned where the kernel cannot do what rules need: nftables' fib, or sets of intervals of concatenations.
var ErrNoRules = errors.New("this kernel's nftables has no rules for prefixes (nft_fib_inet; Linux 5.6)")

// ruleSets are the sets of a family: where our packets go, whose packets are shut out, and what is exempt from that.
type ruleSets struct{ ways, shut, dns, ports *nftables.Set }

func (r *ruleSets) all() []*nftables.Set { return []*nftables.Set{r.ways, r.shut, r.dns, r.ports} }

// ruleElements are the elements of rule sets, by the names of the sets.
type ruleElements map[string][]nftables.SetElement

// generation is the sets of rules that are set at once, by their families.
type generation [2]ruleSets

func (s *generation) all() []*nftables.Set { return append(s[0].all(), s[1].all()...) }

// newGenerations makes the sets.
func newGenerations(table *nftables.Table) (all [2]generation) {
	for i := range all {
		all[i].make(table, [...]string{"_a", "_b"}[i])
	}
	return all
}

func (s *generation) make(table *nftables.Table, suffix string) {
	for i, addr := range []nftables.SetDatatype{nftables.TypeIPAddr, nftables.TypeIP6Addr} {
		set := func(name string) *nftables.Set {
			return &nftables.Set{Table: table, Name: name + [...]string{"4", "6"}[i] + suffix, KeyType: addr, Interval: true}
		}
		r := &s[i]
		r.ways, r.shut, r.dns, r.ports = set("rules"), set("rule_shut"), set("rule_dns"), set("rule_ports")
		r.ways.IsMap, r.ways.DataType = true, nftables.TypeVerdict
		r.ports.KeyType, r.ports.Concatenation = nftables.MustConcatSetType(addr, nftables.TypeInetProto, nftables.TypeInetService), true
	}
}

// newLive makes the set that says for how long rules are asked. Beside the families' numbers it holds one that says which generation is.
func newLive(table *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: table, Name: "live", KeyType: nftables.TypeNFProto, HasTimeout: true}
}

// liveGeneration, and the number of the generation, is the element that names it.
const liveGeneration = 0xf0

func liveElements(generation int, timeout time.Duration) (all []nftables.SetElement) {
	for _, key := range []byte{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6, liveGeneration + byte(generation)} {
		all = append(all, nftables.SetElement{Key: []byte{key}, Timeout: max(timeout, time.Millisecond)})
	}
	return all
}

// elements lays the ranges out for the sets.
func (r Rules) elements(sets *generation) ruleElements {
	out := make(ruleElements)
	put := func(in func(*ruleSets) *nftables.Set, ranges []Range, to string) {
		for _, a := range ranges {
			name := in(&sets[family(a.First)]).Name
			first := nftables.SetElement{Key: a.First.AsSlice()}
			if to != "" {
				first.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: to}
			}
			out[name] = append(out[name], first, nftables.SetElement{Key: a.Last.Next().AsSlice(), IntervalEnd: true})
		}
	}
	ways, shut := func(s *ruleSets) *nftables.Set { return s.ways }, func(s *ruleSets) *nftables.Set { return s.shut }
	put(ways, r.Hold, "rule_divert")
	put(ways, r.Trap, "rule_divert")
	put(ways, r.Block, "rule_refuse")
	put(ways, r.Watch, "rule_watch")
	put(shut, r.Hold, "")
	put(shut, r.Block, "")
	put(func(s *ruleSets) *nftables.Set { return s.dns }, r.DNS, "")
	for _, a := range r.Ports {
		name := sets[family(a.Range.First)].ports.Name
		for _, p := range a.Ports {
			tail := portElements([]port{{p.Proto, p.Number}})[0].Key
			out[name] = append(out[name], nftables.SetElement{
				Key: append(a.Range.First.AsSlice(), tail...), KeyEnd: append(a.Range.Last.AsSlice(), tail...)})
		}
	}
	return out
}

// fillRules replaces the elements of a generation that is not in force, in the transaction that is being made.
func (g *Guard) fillRules(generation int, elements ruleElements) error {
	for _, set := range g.sets.rules[generation].all() {
		g.conn.FlushSet(set)
		for list := elements[set.Name]; len(list) > 0; {
			n := min(len(list), chunk)
			if err := g.conn.SetAddElements(set, list[:n]); err != nil {
				return err
			}
			list = list[n:]
		}
	}
	return nil
}

// switchRules puts a generation in force, in the transaction that is being made.
func (g *Guard) switchRules(generation int, lasting bool, timeout time.Duration) error {
	for _, c := range lookChains(g.sets, generation) {
		g.conn.FlushChain(&nftables.Chain{Name: c.name, Table: g.table})
		g.addRules(c)
	}
	g.conn.FlushSet(g.sets.live)
	if !lasting {
		return nil
	}
	return g.conn.SetAddElements(g.sets.live, liveElements(generation, timeout))
}

// holdAll has the rules of all addresses hold, in the transaction that is being made: it stands for the moment in which the sets of a new table do not show
// what they hold.
func (g *Guard) holdAll(timeout time.Duration) error {
	for i, to := range [rulesLook]string{"rule_divert", "rule_leak", "rule_shut"} {
		g.conn.FlushChain(&nftables.Chain{Name: looks[i], Table: g.table})
		g.addRules(chain{name: looks[i], rules: [][]expr.Any{{jumpTo(to)}}})
	}
	return g.conn.SetAddElements(g.sets.live, liveElements(0, timeout))
}

// SetRules replaces all rules, in one step. They are asked for as long as timeout says, unless that is renewed.
func (g *Guard) SetRules(r Rules, timeout time.Duration) error {
	if g.sets.live == nil {
		if r.empty() {
			return nil
		}
		return fmt.Errorf("guard: %w: %w", ErrNoRules, g.noRules)
	}
	next := 1 - g.generation
	elements := r.elements(&g.sets.rules[next])
	// Two transactions: packets see the rules of a new generation before its sets show what was added with them.
	lasting := len(elements) > 0
	err := g.once("fill rules", false, func() error { return g.fillRules(next, elements) })
	if err == nil {
		err = g.once("set rules", lasting, func() error { return g.switchRules(next, lasting, timeout) })
	}
	if err == nil {
		g.generation, g.ruled = next, lasting
	}
	return err
}

func (r Rules) empty() bool {
	return len(r.Hold)+len(r.Trap)+len(r.Block)+len(r.Watch)+len(r.DNS)+len(r.Ports) == 0
}

// RenewRules gives the rules their time anew, if there are any.
func (g *Guard) RenewRules(timeout time.Duration) error {
	if !g.ruled {
		return nil
	}
	return g.once("renew rules", true, func() error {
		g.conn.FlushSet(g.sets.live)
		return g.conn.SetAddElements(g.sets.live, liveElements(g.generation, timeout))
	})
}

// once makes a transaction, which may bring what stands, and a second time with a new socket if it fails.
func (g *Guard) once(op string, stands bool, fill func() error) error {
	if err := g.fault(op); err != nil {
		return err
	}
	try := func() error {
		if err := fill(); err != nil {
			return err
		}
		return g.flush(stands)
	}
	err := try()
	if err == nil {
		return nil
	}
	if e := g.resync(); e != nil {
		return hint(op, errors.Join(err, e))
	}
	if err = try(); err != nil {
		return hint(op, errors.Join(err, g.resync()))
	}
	return nil
}

// RulesLeft reports whether rules stand that a dead process set.
func (g *Guard) RulesLeft() bool { return g.left }

// existingRules reads the rules of a table that a dead process left, for the generation that ours begin with, and how long they are asked yet. A
// table of an older version has none.
func (g *Guard) existingRules(table *nftables.Table) (ruleElements, time.Duration) {
	alive, err := g.conn.GetSetElements(newLive(table))
	if err != nil {
		return nil, 0
	}
	generations := newGenerations(table)
	for _, e := range alive {
		which := int(e.Key[0]) - liveGeneration
		if which != 0 && which != 1 || e.Expires <= 0 {
			continue
		}
		out, ours := make(ruleElements), generations[0].all()
		for i, set := range generations[which].all() {
			list, err := g.conn.GetSetElements(set)
			if err != nil {
				return nil, 0
			}
			for k := range list {
				if set.IsMap && !list[k].IntervalEnd {
					list[k].VerdictData, list[k].Val = &expr.Verdict{Kind: expr.VerdictGoto, Chain: chainOf(list[k].Val)}, nil
				}
			}
			out[ours[i].Name] = list
		}
		return out, e.Expires
	}
	return nil, 0
}

// chainOf reads where a verdict goes, as the kernel lists it.
func chainOf(verdict []byte) string {
	for _, other := range []string{"rule_refuse", "rule_watch"} {
		if bytes.Contains(verdict, []byte(other+"\x00")) {
			return other
		}
	}
	return "rule_divert"
}

// icmpErrors are the types of ICMP and ICMPv6 that report what became of another packet (RFC 792; RFC 4443, 2.1).
var icmpErrors = [2][][2]byte{{{3, 3}, {11, 12}}, {{1, 4}}}

// ruleChains are the chains behind the rules of prefixes; those that they go to are made already.
func ruleChains(s sets) []chain {
	accept := []expr.Any{verdict(expr.VerdictAccept)}
	exempt, shut := chain{name: "rule_exempt"}, chain{name: "rule_shut"}
	for i := range s.clear {
		exempt.add(concat(loadKey(i, false), lookup(s.clear[i]), accept))
		for _, set := range []*nftables.Set{s.clear[i], s.divert[i], s.block[i]} { // of the latter two the hook before has judged
			shut.add(concat(loadKey(i, true), lookup(set), accept))
		}
		errs := icmpTypes(i, icmpErrors[i])
		exempt.add(errs...)
		shut.add(errs...)
	}
	// Said so that a packet of which the routing table has nothing to say is judged.
	exempt.add(concat(addressType(false, unix.RTN_LOCAL, unix.RTN_MULTICAST), accept))
	shut.add(concat(addressType(false, unix.RTN_BROADCAST, unix.RTN_MULTICAST), accept), []expr.Any{jump("in_exempt")})
	for i := range s.strange {
		shut.add(concat(loadKey(i, true), count(s.strange[i])))
	}
	shut.add([]expr.Any{verdict(expr.VerdictDrop)})
	return []chain{exempt, shut,
		{name: "rule_divert", rules: [][]expr.Any{{jump("rule_exempt")}, {jumpTo("out_divert")}}},
		{name: "rule_refuse", rules: [][]expr.Any{{jump("rule_exempt")}, {jumpTo("out_block")}}},
		{name: "rule_watch", rules: watchRules(s, nil, setMark(MarkWatch))},
		{name: "rule_leak", rules: [][]expr.Any{{jump("rule_exempt")}, concat(addressType(true, unix.RTN_UNICAST, unix.RTN_UNICAST), accept), {jumpTo("out_leak")}}}}
}

// watchRules lead the packets of as many addresses as there is room for to where last says, after what else comes first.
func watchRules(s sets, first, last []expr.Any) [][]expr.Any {
	rules := [][]expr.Any{{jump("rule_exempt")}, {jump("out_exempt")}}
	if first != nil {
		rules = append(rules, first)
	}
	for i, set := range s.watched {
		rules = append(rules, concat(loadKey(i, false),
			[]expr.Any{&expr.Dynset{SrcRegKey: regFirst, SetName: set.Name, SetID: set.ID, Operation: uint32(unix.NFT_DYNSET_OP_ADD)}}, last))
	}
	return rules
}

// The chains that look into the sets of a generation. They are there from the beginning, and filled anew for each. The first look for rules, the others for
// what is exempt.
var looks = []string{"out_rules", "leak_rules", "in_rules", "out_ports", "leak_ports", "in_ports", "out_dns", "in_dns"}

const rulesLook = 3

// look is such a chain, or where there are no rules another.
func (s *sets) look(chain, without string) string {
	if s.live == nil {
		return without
	}
	return chain
}

// lookChains are these, filled.
func lookChains(s sets, generation int) (all []chain) {
	rules := make(map[string][][]expr.Any)
	add := func(name string, r ...[]expr.Any) { rules[name] = append(rules[name], r...) }
	protected := []expr.Any{verdict(expr.VerdictReturn)}
	for i, r := range s.rules[generation] {
		add("out_rules", append(loadPeer(i, false),
			&expr.Lookup{SourceRegister: regFirst, DestRegister: regVerdict, IsDestRegSet: true, SetName: r.ways.Name, SetID: r.ways.ID}))
		add("leak_rules", concat(loadPeer(i, false), lookup(r.shut), []expr.Any{jumpTo("rule_leak")}))
		add("in_rules", concat(loadPeer(i, true), lookup(r.shut), []expr.Any{jumpTo("rule_shut")}))
		add("out_ports", portRules(r, i, false, "out_port_reply", "out_port_query")...)
		add("leak_ports", portRules(r, i, false, "out_port_reply", "leak_port_query")...)
		add("in_ports", portRules(r, i, true, "in_port_reply", "in_port_query")...)
		add("out_dns", concat(markIsNot(MarkOwn), loadPeer(i, false), lookup(r.dns), protected)) // our own queries never are
		add("in_dns", concat(loadPeer(i, true), lookup(r.dns), protected))
	}
	add("out_dns", []expr.Any{jumpTo("out_dns_query")})
	add("in_dns", []expr.Any{jumpTo("in_dns_query")})
	for _, name := range looks {
		all = append(all, chain{name: name, rules: rules[name]})
	}
	return all
}

// whileLive goes to a chain while there are rules.
func whileLive(s sets, chain string) []expr.Any {
	return concat([]expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: regFirst}}, lookup(s.live), []expr.Any{jumpTo(chain)})
}

// addressType ends the rule unless what the routing table says of the destination's address, or the source's, lies between two of its types: unicast,
// local, broadcast, anycast, multicast, in this order.
func addressType(source bool, first, last uint32) []expr.Any {
	return []expr.Any{&expr.Fib{Register: regFirst, ResultADDRTYPE: true, FlagSADDR: source, FlagDADDR: !source},
		&expr.Range{Op: expr.CmpOpEq, Register: regFirst, FromData: native(first), ToData: native(last)}}
}

// loadPeer loads the peer's address.
func loadPeer(fam int, inbound bool) []expr.Any {
	proto, _, peer, size := addresses(fam, inbound)
	return append(nfproto(proto), &expr.Payload{DestRegister: regFirst, Base: expr.PayloadBaseNetworkHeader, Offset: peer, Len: size})
}

// loadPeerPort loads peer . protocol . port; offset 0 is the source port, 2 the destination's.
func loadPeerPort(fam int, inbound bool, offset uint32) []expr.Any {
	_, _, _, size := addresses(fam, inbound)
	next := reg32First + size/4
	return append(loadPeer(fam, inbound), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: next},
		&expr.Payload{DestRegister: next + 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2})
}
