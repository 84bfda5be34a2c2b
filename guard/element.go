package guard

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// sets are the sets of the table: one of each kind for a family.
type sets struct {
	divert, block, clear, seen [2]*nftables.Set // index 0 is IPv4, 1 is IPv6
	strange                    [2]*nftables.Set // as seen, of peers that no element names
	watched                    [2]*nftables.Set // whose packets are led to the data plane because of Rules.Watch
	client, server             [2]*nftables.Set // flows of DNS by the role of this host
	clearPorts                 *nftables.Set
	in, out                    *nftables.Set
	latch                      [2]*nftables.Set // only where the kernel does ESP
	rules                      [2]generation    // of prefixes
	live                       *nftables.Set    // of families whose rules are asked; nil: the kernel cannot do rules
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// of is the set that holds keys with the verdict.
func (s *sets) of(k Key, v Verdict) *nftables.Set {
	switch v {
	case Block:
		return s.block[family(k.Own)]
	case Clear:
		return s.clear[family(k.Own)]
	}
	return s.divert[family(k.Own)]
}

var errKey = errors.New("key")

// check refuses what no set could hold. IPv4-mapped addresses never stand in a packet.
func (k Key) check() error {
	if !k.Own.IsValid() || !k.Peer.IsValid() || k.Own.Is4() != k.Peer.Is4() || k.Own.Is4In6() || k.Peer.Is4In6() {
		return fmt.Errorf("%w %v . %v: want two addresses of one family", errKey, k.Own, k.Peer)
	}
	return nil
}

// encodeKey lays a concatenation out as the kernel compares it: each part padded to 32 bits, which addresses are.
func encodeKey(k Key) []byte {
	if k.Own.Is4() {
		own, peer := k.Own.As4(), k.Peer.As4()
		return append(append(make([]byte, 0, 8), own[:]...), peer[:]...)
	}
	own, peer := k.Own.As16(), k.Peer.As16()
	return append(append(make([]byte, 0, 32), own[:]...), peer[:]...)
}

// DecodeKey is the inverse, for what the kernel lists.
func DecodeKey(b []byte) (Key, error) {
	if len(b) != 8 && len(b) != 32 {
		return Key{}, fmt.Errorf("%w of %d octets: want 8 or 32", errKey, len(b))
	}
	own, _ := netip.AddrFromSlice(b[:len(b)/2])
	peer, _ := netip.AddrFromSlice(b[len(b)/2:])
	k := Key{Own: own, Peer: peer}
	return k, k.check()
}

// elementLists gathers the elements of one transaction by their set, in the order in which the sets first came.
type elementLists map[*nftables.Set][]nftables.SetElement

func (l elementLists) append(s *nftables.Set, e nftables.SetElement) { l[s] = append(l[s], e) }

func (l elementLists) each(do func(*nftables.Set, []nftables.SetElement) error) error {
	for set, elements := range l {
		for len(elements) > 0 {
			n := min(len(elements), chunk)
			if err := do(set, elements[:n]); err != nil {
				return err
			}
			elements = elements[n:]
		}
	}
	return nil
}

// empty forgets the elements, and keeps the room for as many as a message takes.
func (l elementLists) empty() {
	for set, elements := range l {
		clear(elements)
		if l[set] = elements[:0]; cap(elements) > 2*chunk {
			delete(l, set)
		}
	}
}

// addSets adds the empty sets, with those of prefixes or without, and the constant ones with their ports.
func (g *Guard) addSets(prefixes bool) error {
	for i, addr := range []nftables.SetDatatype{nftables.TypeIPAddr, nftables.TypeIP6Addr} {
		pair := nftables.MustConcatSetType(addr, addr)
		suffix := [...]string{"4", "6"}[i]
		g.sets.divert[i] = &nftables.Set{Table: g.table, Name: "divert" + suffix, KeyType: pair, HasTimeout: true}
		g.sets.block[i] = &nftables.Set{Table: g.table, Name: "block" + suffix, KeyType: pair, HasTimeout: true}
		g.sets.clear[i] = &nftables.Set{Table: g.table, Name: "clear" + suffix, KeyType: pair, HasTimeout: true}
		counters := func(name string, size uint32) *nftables.Set {
			return &nftables.Set{Table: g.table, Name: name + suffix, KeyType: pair, HasTimeout: true, Dynamic: true, Counter: true,
				Timeout: seenTimeout, Size: size}
		}
		g.sets.seen[i], g.sets.strange[i] = counters("seen", maxSeen), counters("strange", maxStrange)
		g.sets.client[i], g.sets.server[i] = newFlowSets(g.table, addr, suffix)
		g.sets.watched[i] = &nftables.Set{Table: g.table, Name: "watched" + suffix, KeyType: pair, HasTimeout: true, Dynamic: true, Timeout: watchedTimeout, Size: maxWatched}
		all := []*nftables.Set{g.sets.divert[i], g.sets.block[i], g.sets.clear[i], g.sets.seen[i], g.sets.strange[i], g.sets.client[i], g.sets.server[i], g.sets.watched[i]}
		if g.kernel() {
			g.sets.latch[i] = &nftables.Set{Table: g.table, Name: "latch" + suffix, KeyType: pair, HasTimeout: true}
			all = append(all, g.sets.latch[i])
		}
		for _, s := range all {
			if err := g.conn.AddSet(s, nil); err != nil {
				return err
			}
		}
	}
	if prefixes {
		g.sets.rules, g.sets.live = newGenerations(g.table), newLive(g.table)
		for _, s := range append(append(g.sets.rules[0].all(), g.sets.rules[1].all()...), g.sets.live) { // of both generations
			if err := g.conn.AddSet(s, nil); err != nil {
				return err
			}
		}
	}
	port := nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	g.sets.clearPorts = &nftables.Set{Table: g.table, Name: "clear_ports", KeyType: port}
	g.sets.in = &nftables.Set{Table: g.table, Name: "exempt_in", KeyType: port}
	g.sets.out = &nftables.Set{Table: g.table, Name: "exempt_out", KeyType: port}
	return errors.Join(
		g.conn.AddSet(g.sets.clearPorts, portElements(dnsPorts)),
		g.conn.AddSet(g.sets.in, portElements(append(dhcpPorts, ikePorts...))),
		g.conn.AddSet(g.sets.out, portElements(dhcpPorts)),
	)
}

// port is a transport protocol and a port.
type port struct {
	proto uint8
	port  uint16
}

// portElements lays out protocol . port, each padded to 32 bits.
func portElements(ports []port) []nftables.SetElement {
	var out []nftables.SetElement
	for _, p := range ports {
		out = append(out, nftables.SetElement{Key: []byte{p.proto, 0, 0, 0, byte(p.port >> 8), byte(p.port), 0, 0}})
	}
	return out
}

// elements lists the sets of two addresses. What has timed out is left out, even if the kernel still lists it. A table of an older version
// lacks some of them.
func (g *Guard) elements(table *nftables.Table) ([]Element, error) {
	var out []Element
	for _, v := range []Verdict{Divert, Block, Clear} {
		for _, suffix := range []string{"4", "6"} {
			listed, err := g.conn.GetSetElements(&nftables.Set{Table: table, Name: v.String() + suffix})
			if errors.Is(err, unix.ENOENT) && v == Clear {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("list %v%s: %w", v, suffix, err)
			}
			for _, e := range listed {
				k, err := DecodeKey(e.Key)
				if err != nil {
					return nil, err
				}
				if e.Expires > 0 {
					out = append(out, Element{Key: k, Verdict: v, Left: e.Expires})
				}
			}
		}
	}
	return out, nil
}

// Seen returns the counters of dropped clear packets. They start anew when none came for [seenTimeout].
func (g *Guard) Seen() ([]Seen, error) {
	var out []Seen
	for _, set := range slices.Concat(g.sets.seen[:], g.sets.strange[:]) {
		listed, err := g.conn.GetSetElements(set)
		if err != nil {
			return nil, hint("list "+set.Name, err)
		}
		for _, e := range listed {
			k, err := DecodeKey(e.Key)
			if err != nil {
				return nil, hint("list "+set.Name, err)
			}
			s := Seen{Key: k, Packets: 1}
			if c := e.Counter; c != nil {
				s.Packets = (*expr.Counter)(c).Packets
			}
			out = append(out, s)
		}
	}
	return out, nil
}
