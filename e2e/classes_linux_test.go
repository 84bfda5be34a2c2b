package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"tacit/lab"
	"tacit/policy"
)

// The 5 x 5 matrix: what becomes of the first packet and of the next one between two tacits, of which neither publishes a key, by the class that each has for
// the other's address. One daemon on each host has a rule for each cell, which has addresses of its own.

// The outcomes. In all of them that protect, what the table says of the first packet is exact.
const (
	cellProtected = "T"          // nothing in clear, no packet lost
	cellAnswered  = "T reply"    // our first packet in clear; the other end begins with its reply
	cellRepeated  = "T again"    // our first packet in clear, which the other end refuses and takes as a reason to begin; then it leaves again in ESP
	cellClear     = "clear"      // no packet lost
	cellDown      = "down"       // nothing leaves
	cellDownThere = "down there" // what leaves comes to nothing
)

var classes = []policy.Class{policy.PrivateOrClear, policy.ClearOrPrivate, policy.Private, policy.Clear, policy.Block}

// classMatrix is by us, then by the peer.
var classMatrix = [5][5]string{
	{cellProtected, cellProtected, cellProtected, cellClear, cellDownThere},
	{cellAnswered, cellClear, cellRepeated, cellClear, cellDownThere},
	{cellProtected, cellProtected, cellProtected, cellDown, cellDown},
	{cellClear, cellClear, cellDownThere, cellClear, cellDownThere},
	{cellDown, cellDown, cellDown, cellDown, cellDown},
}

// classCell is one cell in one family, by lookup or not.
type classCell struct {
	n        int
	us, peer int // indexes of classes
	lookup   bool
	v6       bool
	from, to netip.Addr

	got string
	why string
}

func (c *classCell) name() string {
	how, family := "packet", "IPv4"
	if c.lookup {
		how = "lookup"
	}
	if c.v6 {
		family = "IPv6"
	}
	return fmt.Sprintf("%v to %v by %s, %s", classes[c.us], classes[c.peer], how, family)
}

// dnsName is the name of a cell's destination, which has no key.
func (c *classCell) dnsName() string { return fmt.Sprintf("c%d.example.", c.n) }

func (c *classCell) want() string { return classMatrix[c.us][c.peer] }

// newClassCells are the cells that want chooses.
func newClassCells(want func(c *classCell) bool) (cells []*classCell) {
	for us := range classes {
		for peer := range classes {
			for _, lookup := range []bool{false, true} {
				for _, v6 := range []bool{false, true} {
					c := &classCell{us: us, peer: peer, lookup: lookup, v6: v6, n: len(cells) + 1}
					at := func(net byte) netip.Addr {
						if v6 {
							return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, net, 15: byte(c.n)})
						}
						return netip.AddrFrom4([4]byte{198, 18, net, byte(c.n)})
					}
					if c.from, c.to = at(1), at(2); want(c) {
						cells = append(cells, c)
					}
				}
			}
		}
	}
	return cells
}

// classWorld is two hosts with an address for each cell, and names for those by lookup.
type classWorld struct {
	*world
	cells    []*classCell
	names    *lab.DNS
	upstream string
}

func newClassWorld(t *testing.T, cells []*classCell) *classWorld {
	t.Helper()
	w := &classWorld{world: newWorld(t), cells: cells}
	var err error
	if w.names, err = lab.NewDNS(); err != nil {
		t.Fatal(err)
	}
	if err := w.names.AddZone("example.", true); err != nil {
		t.Fatal(err)
	}
	for _, c := range cells {
		kind := "A"
		if c.v6 {
			kind = "AAAA"
		}
		if err := w.names.Add(fmt.Sprintf("%s 60 %s %v", c.dnsName(), kind, c.to)); err != nil {
			t.Fatal(err)
		}
	}
	w.anchor, w.upstream = w.names.TrustAnchor()+"\n", netip.AddrPortFrom(w.ns.Addr4(), 53).String()
	stop, err := w.ns.ServeDNS(w.names, w.upstream)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	for _, h := range []struct {
		*lab.Host
		own func(c *classCell) (own, other netip.Addr)
	}{
		{w.alice, func(c *classCell) (own, other netip.Addr) { return c.from, c.to }},
		{w.bob, func(c *classCell) (own, other netip.Addr) { return c.to, c.from }},
	} {
		for _, c := range cells {
			own, other := h.own(c)
			if err := h.AddAddr(netip.PrefixFrom(own, own.BitLen())); err != nil {
				t.Fatal(err)
			}
			routeFrom(t, h.Host, own, other)
		}
	}
	return w
}

// routeFrom has the host speak to another address of the link from an address of its own.
func routeFrom(t *testing.T, h *lab.Host, own, other netip.Addr) {
	t.Helper()
	link, err := h.Netlink().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	mask := net.CIDRMask(other.BitLen(), other.BitLen())
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: &net.IPNet{IP: other.AsSlice(), Mask: mask}, Src: own.AsSlice(), Scope: netlink.SCOPE_LINK}
	if other.Is6() {
		r.Scope = netlink.SCOPE_UNIVERSE
	}
	for end := time.Now().Add(3 * time.Second); ; time.Sleep(time.Millisecond) { // an IPv6 address takes a moment
		if err = h.Netlink().RouteAdd(r); err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("route from %v to %v: %v", own, other, err)
		}
	}
}

// rulesFor are those of one end: each cell's class for the other end's address.
func (w *classWorld) rulesFor(class func(c *classCell) (policy.Class, netip.Addr)) string {
	var text strings.Builder
	for _, c := range w.cells {
		k, other := class(c)
		fmt.Fprintf(&text, "[[policy]]\nmatch = [\"%v\"]\nclass = \"%v\"\npackets = true\nanonymous = true\n", other, k)
	}
	return text.String()
}

// start starts both daemons.
func (w *classWorld) start(plane string) {
	t := w.t
	t.Helper()
	dns := `hold = "2s"`
	startTacit(t, w.bob, w.anchor, options{upstream: w.upstream, dataplane: plane, dns: dns,
		policy: w.rulesFor(func(c *classCell) (policy.Class, netip.Addr) { return classes[c.peer], c.from })})
	startTacit(t, w.alice, w.anchor, options{upstream: w.upstream, dataplane: plane, dns: dns,
		policy: w.rulesFor(func(c *classCell) (policy.Class, netip.Addr) { return classes[c.us], c.to })})
	w.tap.Reset()
}

// run starts both daemons and tries the cells, so many at once.
func (w *classWorld) run(plane string, atOnce int) {
	w.t.Helper()
	w.start(plane)
	seats := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for _, c := range w.cells {
		seats <- struct{}{}
		all.Go(func() {
			defer func() { <-seats }()
			w.try(c)
		})
	}
	all.Wait()
	w.sync()
	for _, c := range w.cells {
		w.judge(c)
	}
}

// heard is what came to a cell's destination.
type heard struct {
	net.PacketConn
	mu   sync.Mutex
	seen map[uint32]int
}

// listen sends back what comes, once.
func (w *classWorld) listen(c *classCell) *heard {
	conn, err := w.bob.ListenPacket("udp", netip.AddrPortFrom(c.to, 9000).String())
	if err != nil {
		w.t.Error(err)
		return nil
	}
	h := &heard{PacketConn: conn, seen: map[uint32]int{}}
	go func() {
		b := make([]byte, 64)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			h.mu.Lock()
			h.seen[binary.BigEndian.Uint32(b)]++
			h.mu.Unlock()
			_, _ = conn.WriteTo(b[:n], from)
		}
	}()
	return h
}

func (h *heard) count(n uint32) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.seen[n]
}

// try looks the destination up, if the cell says so, and sends two datagrams, the second when the first was answered or given up. What came of it is in c.got
// as far as it needs no tap: which of the two came there and back.
func (w *classWorld) try(c *classCell) {
	there := w.listen(c)
	if there == nil {
		return
	}
	defer there.Close()
	if c.lookup {
		kind := dns.TypeA
		if c.v6 {
			kind = dns.TypeAAAA
		}
		r, err := query(w.t.Context(), w.alice, c.dnsName(), kind)
		if err != nil || len(r.Answer) == 0 {
			c.got, c.why = "--", fmt.Sprintf("no answer (%v)", err)
			return
		}
	}
	conn, err := w.alice.Dial(w.t.Context(), "udp", netip.AddrPortFrom(c.to, 9000).String())
	if err != nil {
		c.why = err.Error()
		return
	}
	defer conn.Close()
	for n := uint32(1); n <= 2; n++ {
		came := sendNumber(conn, n, slower(2800*time.Millisecond))
		times := there.count(n)
		switch {
		case came && times == 1:
			c.got += "+"
		case times == 0:
			c.got += "-"
		default:
			c.got += fmt.Sprintf("(%d there, back %v)", times, came)
		}
	}
}

// sendNumber sends a number and reports whether it came back. Errors that the kernel tells of earlier packets are no answer.
func sendNumber(conn net.Conn, n uint32, patience time.Duration) bool {
	b := binary.BigEndian.AppendUint32(nil, n)
	end := time.Now().Add(patience)
	for {
		if _, err := conn.Write(b); err == nil {
			break
		}
		if time.Now().After(end) {
			return false
		}
		time.Sleep(100 * time.Millisecond)
	}
	in := make([]byte, 64)
	for time.Now().Before(end) {
		_ = conn.SetReadDeadline(end)
		if k, err := conn.Read(in); err == nil && k == 4 && binary.BigEndian.Uint32(in) == n {
			return true
		} else if err != nil {
			time.Sleep(time.Millisecond)
		}
	}
	return false
}

// judge adds what the tap saw.
func (w *classWorld) judge(c *classCell) {
	out, in := w.tap.From(c.from, c.to), w.tap.From(c.to, c.from)
	esp := out.ESP() > 0 && in.ESP() > 0
	seen := fmt.Sprintf("%s; out %v; in %v %s", c.got, out, in, c.why)
	switch came := c.got; {
	case came == "++" && esp && out.Clear()+in.Clear() == 0:
		c.got = cellProtected
	case came == "++" && out.ESP() == 1 && in.ESP() > 0 && out.Clear() == 1 && in.Clear() == 0: // the second packet alone
		c.got = cellAnswered
	case came == "++" && out.ESP() >= 2 && in.ESP() > 0 && out.Clear() == 1 && in.Clear() == 0: // both, and what answers the nudge (TRUST.md R10)
		c.got = cellRepeated
	case came == "++" && out.ESP()+in.ESP() == 0 && out.Clear() == 2 && in.Clear() == 2:
		c.got = cellClear
	case came == "--" && out.ESP()+in.ESP()+out.Clear()+in.Clear() == 0:
		c.got = cellDown
	case came == "--" && out.ESP()+in.ESP()+in.Clear() == 0:
		c.got = cellDownThere
	default:
		c.got = "?"
	}
	c.why = seen
}

// compare prints the matrix and fails for each cell that is another than the table's.
func (w *classWorld) compare() {
	w.t.Helper()
	var text strings.Builder
	for _, c := range w.cells {
		mark := ""
		if c.got != c.want() {
			w.t.Errorf("%s (%v to %v): %s, want %s\n\t%s", c.name(), c.from, c.to, c.got, c.want(), c.why)
			mark = " (want " + c.want() + ")"
		}
		fmt.Fprintf(&text, "\n%-55s %s%s", c.name(), c.got, mark)
	}
	w.t.Log(text.String())
	if n, err := w.tap.Dropped(); n != 0 || err != nil {
		w.t.Errorf("the tap missed %d frames (%v): nothing is proven", n, err)
	}
}

// TestClassMatrix has all cells at once, with ESP in user space.
func TestClassMatrix(t *testing.T) {
	needE2E(t, "nft", "ip")
	w := newClassWorld(t, newClassCells(func(*classCell) bool { return true }))
	w.run(dataplane(), 50)
	w.compare()
}

// TestXFRMClassMatrix has them with the kernel's ESP: some of those by packet on IPv4, or all of them where there is time.
func TestXFRMClassMatrix(t *testing.T) {
	needESP(t)
	long := os.Getenv("TACIT_LONG") == "1"
	some := [5]string{"++++-", "+-+--", "+-++-", "+----", "----+"}
	w := newClassWorld(t, newClassCells(func(c *classCell) bool { return long || !c.lookup && !c.v6 && some[c.us][c.peer] == '+' }))
	w.run("xfrm", 3)
	w.compare()
}

// TestBothPacketsAtOnce: packets of both ends wait for the other at the same moment. Neither is lost, nor is one in clear but the first to an end that refuses it.
func TestBothPacketsAtOnce(t *testing.T) {
	needE2E(t, "nft", "ip")
	w := newClassWorld(t, newClassCells(func(c *classCell) bool {
		waits := func(class int) bool { return class%2 == 0 && class < 4 }
		return !c.lookup && (waits(c.us) && waits(c.peer) || c.want() == cellRepeated)
	}))
	w.start(dataplane())
	for _, c := range w.cells {
		t.Run(c.name(), func(t *testing.T) {
			var ends [2]net.PacketConn
			for i, at := range []struct {
				host *lab.Host
				addr netip.Addr
			}{{w.alice, c.from}, {w.bob, c.to}} {
				var err error
				if ends[i], err = at.host.ListenPacket("udp", netip.AddrPortFrom(at.addr, 9000).String()); err != nil {
					t.Fatal(err)
				}
				defer ends[i].Close()
			}
			for round := byte(1); round <= 3; round++ {
				for i := range ends {
					if _, err := ends[i].WriteTo([]byte{round}, ends[1-i].LocalAddr()); err != nil {
						t.Fatal(err)
					}
				}
				for i := range ends {
					b := make([]byte, 8)
					_ = ends[i].SetReadDeadline(time.Now().Add(3 * time.Second))
					if n, _, err := ends[i].ReadFrom(b); err != nil || n != 1 || b[0] != round {
						t.Errorf("round %d, end %d: got %v, %v", round, i, b[:n], err)
					}
				}
			}
			w.sync()
			clear := 0
			if c.want() == cellRepeated {
				clear = 1
			}
			if seen := w.tap.Between(c.from, c.to); seen.Clear() != clear || seen.ESP() < 6 {
				t.Errorf("tap: %v", seen)
			}
		})
	}
}

// TestProvenKeyIsNotClear: where the other end publishes a key, what the table says is in clear is not, for lack of a proof: neither by lookup nor by packet.
func TestProvenKeyIsNotClear(t *testing.T) {
	for _, class := range []string{"clear", "block"} {
		t.Run(class, func(t *testing.T) {
			w := reverseWorld(t)
			w.bobTac = startTacit(t, w.bob, w.anchor, options{name: "bob.example", identity: w.bobKey.pem, upstream: w.upstreamOfTheHost,
				policy: fmt.Sprintf("[[policy]]\nmatch = [\"%v\", \"%v\"]\nclass = %q\n", w.alice.Addr4(), w.alice.Addr6(), class)})
			w.aliceTac = startTacit(t, w.alice, w.anchor, options{upstream: w.upstreamOfTheHost, policy: packetsRule("private-or-clear", true)})
			mustWithhold(t, w.alice, "bob.example")
			for _, addr := range both(w.bob) {
				if came, _ := firstDatagram(t, w.alice, w.bob, addr, time.Second); came {
					t.Errorf("%v: a datagram came there and back", addr)
				}
			}
			w.wantNothing(w.alice, w.bob)
		})
	}
}
