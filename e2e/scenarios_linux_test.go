package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tacit/lab"
)

// Scenarios of libreswan's test-suite between two tacits, where no other test has them. MATRIX.md lists all.

// addressOf is an address of the link, IPv4 or IPv6, by its last part.
func addressOf(v6 bool, n int) netip.Addr {
	if v6 {
		return netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", n))
	}
	return netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", n))
}

// have gives the host one more address.
func have(t *testing.T, h *lab.Host, a netip.Addr) {
	t.Helper()
	bits := 24
	if a.Is6() {
		bits = 64
	}
	if err := h.AddAddr(netip.PrefixFrom(a, bits)); err != nil {
		t.Fatal(err)
	}
}

// outcomes are a scenario's cells: what becomes of a datagram that nobody looked anything up for.
type outcomes struct {
	*attackWorld
	cells []outcomeCell
}

type outcomeCell struct {
	what string
	at   *lab.Host
	to   netip.Addr
	want string // cellProtected, cellClear or cellDown
	came bool
}

// add gives the host the address of a new cell.
func (o *outcomes) add(what string, at *lab.Host, to netip.Addr, want string) {
	o.t.Helper()
	have(o.t, at, to)
	o.cells = append(o.cells, outcomeCell{what: what, at: at, to: to, want: want})
}

// judge sends a datagram to each cell, all at once, and compares what came of it, by the tap, with what is wanted.
func (o *outcomes) judge() {
	o.t.Helper()
	var wg sync.WaitGroup
	for i := range o.cells {
		c := &o.cells[i]
		wg.Go(func() { c.came, _ = firstDatagram(o.t, o.alice, c.at, c.to, slower(hold+2*time.Second)) })
	}
	wg.Wait()
	o.sync()
	for _, c := range o.cells {
		there := o.tap.From(addressOf(c.to.Is6(), 1), c.to)
		got := fmt.Sprintf("came %v, %v", c.came, there)
		switch clear, esp := there.Clear() > 0, there.ESP() > 0; {
		case c.came && esp && !clear:
			got = cellProtected
		case c.came && clear && !esp:
			got = cellClear
		case !c.came && !clear && !esp:
			got = cellDown
		}
		if got != c.want {
			o.t.Errorf("%s, %v: %s, want %s", c.what, c.to, got, c.want)
		}
	}
}

// TestFailuresAndClasses (newoe-30): who is there does not speak IKE, lets nobody in, or has another key than the one that the reverse zone publishes, for each
// class. Only a key that is published makes private-or-clear withhold.
func TestFailuresAndClasses(t *testing.T) {
	failures := []string{"dead", "refuses", "wrong key"}
	kinds := []struct {
		class string
		want  [3]string // by failure
	}{
		{"private", [3]string{cellDown, cellDown, cellDown}},
		{"private-or-clear", [3]string{cellClear, cellClear, cellDown}},
		{"clear-or-private", [3]string{cellClear, cellClear, cellClear}},
	}
	number := func(failure, kind int) int { return 160 + 10*failure + kind }
	o := &outcomes{attackWorld: newAttackWorld(t, func(w *attackWorld) []zoneFile {
		zones := []zoneFile{{reverse4, bindNSEC, nil}, {reverse6, bindNSEC3, nil}}
		for k := range kinds {
			for i := range zones {
				zones[i].records = append(zones[i].records, reverseRecord(t, addressOf(i == 1, number(2, k)), w.malKey, ""))
			}
		}
		return zones
	})}
	var rules strings.Builder
	hosts := []*lab.Host{o.plain, o.mallory, o.bob}
	for k, kind := range kinds {
		var match []string
		for f, failure := range failures {
			for _, v6 := range []bool{false, true} {
				to := addressOf(v6, number(f, k))
				o.add(failure+", "+kind.class, hosts[f], to, kind.want[f])
				match = append(match, fmt.Sprintf("%q", to))
			}
		}
		fmt.Fprintf(&rules, "[[policy]]\nmatch = [%s]\nclass = %q\n", strings.Join(match, ", "), kind.class)
		if k < 2 {
			rules.WriteString("packets = true\nanonymous = true\n")
		}
	}
	startTacit(t, o.mallory, o.anchor, options{name: "mallory.example", identity: newIdentity(t).pem, upstream: o.upstreamOfTheHost,
		policy: "[[policy]]\nmatch = [\"0.0.0.0/0\", \"::/0\"]\nclass = \"clear\"\n"})
	o.bobTac = startTacit(t, o.bob, o.anchor, options{name: "bob.example", identity: o.bobKey.pem, upstream: o.upstreamOfTheHost})
	o.aliceTac = startTacit(t, o.alice, o.anchor, options{upstream: o.upstreamOfTheHost, policy: rules.String()})
	o.judge()
	for _, p := range append(o.aliceTac.peers(o.bob), o.aliceTac.peers(o.mallory)...) {
		if p.State == "protected" {
			t.Errorf("status: %+v", p)
		}
	}
}

// TestNestedPrefixes (newoe-12 to newoe-17): rules whose prefixes lie in one another, in an order that is none. The longest has it, for packets.
func TestNestedPrefixes(t *testing.T) {
	o := &outcomes{attackWorld: newAttackWorld(t, func(*attackWorld) []zoneFile {
		return []zoneFile{{reverse4, bindNSEC, nil}, {reverse6, bindNSEC3, nil}}
	})}
	var rules strings.Builder
	for _, r := range []struct{ prefix, class string }{
		{"192.0.2.144/28", "clear"}, {"192.0.2.128/25", "clear"}, {"192.0.2.150/32", "private"}, {"192.0.2.128/26", "private"}, {"192.0.2.151/32", "block"},
		{"2001:db8::90/124", "clear"}, {"2001:db8::80/121", "clear"}, {"2001:db8::96/128", "private"}, {"2001:db8::80/122", "private"}, {"2001:db8::97/128", "block"},
	} {
		fmt.Fprintf(&rules, "[[policy]]\nmatch = [%q]\nclass = %q\n", r.prefix, r.class)
		if r.class == "private" {
			rules.WriteString("packets = true\nanonymous = true\n")
		}
	}
	for _, v6 := range []bool{false, true} {
		o.add("clear", o.bob, addressOf(v6, 200), cellClear)
		o.add("private in clear", o.bob, addressOf(v6, 130), cellProtected)
		o.add("clear in private in clear", o.bob, addressOf(v6, 145), cellClear)
		o.add("private in clear in private in clear", o.bob, addressOf(v6, 150), cellProtected)
		o.add("block beside it", o.bob, addressOf(v6, 151), cellDown)
	}
	o.bobTac = startTacit(t, o.bob, o.anchor, options{name: "bob.example", identity: o.bobKey.pem, upstream: o.upstreamOfTheHost})
	o.aliceTac = startTacit(t, o.alice, o.anchor, options{upstream: o.upstreamOfTheHost, policy: rules.String()})
	o.judge()
}

// TestClearPorts (newoe-15): a port that is excluded is in clear before there is an SA and beside it, to either end; everything else is encrypted.
func TestClearPorts(t *testing.T) {
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		return []zoneFile{{reverse4, bindNSEC, []string{reverseRecord(t, w.bob.Addr4(), w.bobKey, "")}},
			{reverse6, bindNSEC3, []string{reverseRecord(t, w.bob.Addr6(), w.bobKey, "")}}}
	})
	const port = 7022
	rule := packetsRule("private", true) + fmt.Sprintf("clear-ports = [\"tcp/%d\"]\n", port)
	w.bobTac = startTacit(t, w.bob, w.anchor, options{name: "bob.example", identity: w.bobKey.pem, upstream: w.upstreamOfTheHost, policy: rule})
	w.aliceTac = startTacit(t, w.alice, w.anchor, options{upstream: w.upstreamOfTheHost, policy: rule})
	excluded := func(a, b *lab.Host) {
		t.Helper()
		for _, to := range both(b) {
			l, err := b.Listen("tcp", netip.AddrPortFrom(to, port).String())
			if err != nil {
				t.Fatal(err)
			}
			c, err := a.Dial(t.Context(), "tcp", l.Addr().String())
			if err != nil {
				t.Errorf("%s to %v: %v", a.Name, l.Addr(), err)
			} else {
				c.Close()
			}
			l.Close()
		}
	}
	excluded(w.alice, w.bob)
	if w.sync(); w.tap.BetweenHosts(w.alice, w.bob)[lab.ClassIKE].Packets > 0 {
		t.Error("the excluded port had a key asked for")
	}
	for _, to := range both(w.bob) {
		if came, _ := firstDatagram(t, w.alice, w.bob, to, slower(3*time.Second)); !came {
			t.Errorf("%v: the first datagram is lost", to)
		}
		transfer(t, w.alice, w.bob, to, 10_000)
	}
	excluded(w.alice, w.bob)
	excluded(w.bob, w.alice)
	w.sync()
	n := map[netip.Addr]int{}
	for _, p := range w.tap.Packets() {
		if p.Class != lab.ClassClear || !(has(w.alice, p.Src) && has(w.bob, p.Dst) || has(w.bob, p.Src) && has(w.alice, p.Dst)) {
			continue
		}
		if n[p.Dst]++; p.Proto != 6 || p.SrcPort != port && p.DstPort != port {
			t.Errorf("in clear: %v to %v, protocol %d, ports %d and %d", p.Src, p.Dst, p.Proto, p.SrcPort, p.DstPort)
		}
	}
	if len(n) != 4 {
		t.Errorf("in clear by destination: %v, want the excluded port at all four addresses", n)
	}
	if c := w.tap.BetweenHosts(w.alice, w.bob); c.ESP() == 0 {
		t.Errorf("tap: %v", c)
	}
}

// TestFiveKeys (dnsoe): five keys are published, of which the host has the third, or none. With none the name is withheld, there is no SA, and the
// peer's half is gone too.
func TestFiveKeys(t *testing.T) {
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		right, none := hostRecords("bob.example.", w.bob, nil), hostRecords("plain.example.", w.plain, nil)
		for i := range 5 {
			key := newIdentity(t)
			none = append(none, "plain.example. 60 IN "+key.typ45)
			if i == 2 {
				key = w.bobKey
			}
			right = append(right, "bob.example. 60 IN "+key.typ45)
		}
		return []zoneFile{{"example.", bindNSEC, append(right, none...)}}
	})
	w.run("")
	carol := startTacit(t, w.plain, w.anchor, options{name: "plain.example", identity: w.malKey.pem, upstream: w.upstreamOfTheHost})
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	for _, to := range both(w.bob) {
		transfer(t, w.alice, w.bob, to, 1000)
	}
	w.onlyProtected(w.alice, w.bob)
	if !w.aliceTac.knows(w.bob, "authenticated", "bob.example") {
		t.Errorf("status: %+v", w.aliceTac.peers(w.bob))
	}

	mustWithhold(t, w.alice, "plain.example")
	w.wantNothing(w.alice, w.plain)
	wantNoElements(t, w.plain)
	for _, p := range w.aliceTac.peers(w.plain) {
		if p.State == "protected" {
			t.Errorf("status: %+v", p)
		}
	}
	eventually(t, 10*time.Second, "the peer forgets its half", func() bool { return len(carol.peers(w.alice)) == 0 })
}

// TestInterfaceLost (newoe-31): Alice's interface goes down under an SA and comes back, then with other addresses. What is sent meanwhile is lost; nothing is in
// clear at any time, and nobody looks anything up for the same addresses.
func TestInterfaceLost(t *testing.T) {
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		return []zoneFile{{"example.", bindNSEC, hostRecords("bob.example.", w.bob, &w.bobKey)}}
	})
	w.run("")
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	works := func() {
		t.Helper()
		for _, to := range both(w.bob) {
			eventually(t, slower(5*time.Second), fmt.Sprintf("%v answers", to), func() bool {
				came, _ := firstDatagram(t, w.alice, w.bob, to, time.Second)
				return came
			})
			transfer(t, w.alice, w.bob, to, 10_000)
		}
	}
	works()
	down := func() {
		t.Helper()
		nl := w.alice.Netlink()
		link, err := nl.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		old := w.alice.Addrs()
		if err := nl.LinkSetDown(link); err != nil {
			t.Fatal(err)
		}
		for _, p := range old {
			_ = w.alice.DelAddr(p) // those of IPv6 went with the link
		}
		for _, to := range both(w.bob) {
			if c, err := w.alice.Dial(t.Context(), "udp", netip.AddrPortFrom(to, 7000).String()); err == nil {
				_, _ = c.Write([]byte("to nobody"))
				c.Close()
			}
		}
		time.Sleep(300 * time.Millisecond)
		if err := nl.LinkSetUp(link); err != nil {
			t.Fatal(err)
		}
	}
	before := slices.Clone(w.alice.Addrs())
	down()
	for _, p := range before {
		have(t, w.alice, p.Addr())
	}
	works()
	w.onlyProtected(w.alice, w.bob)

	down()
	for _, v6 := range []bool{false, true} {
		have(t, w.alice, addressOf(v6, 12))
	}
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	works()
	w.onlyProtected(w.alice, w.bob)
	for _, p := range before { // that Alice has no more
		for _, to := range both(w.bob) {
			if c := w.tap.From(p.Addr(), to); c.Clear() > 0 {
				t.Errorf("tap from %v to %v: %v", p.Addr(), to, c)
			}
		}
	}
}

// TestEndpointMoves (ikev2-ddns): a peer that is known by its name gets other addresses. It is keyed there, and nobody looks it up.
func TestEndpointMoves(t *testing.T) {
	w := &changes{newKey: newIdentity(t)}
	w.attackWorld = newAttackWorld(t, func(w *attackWorld) []zoneFile {
		return []zoneFile{{"example.", bindNSEC, shortLived(hostRecords("bob.example.", w.bob, &w.bobKey))}}
	})
	w.bobTac = startTacit(t, w.bob, w.anchor, options{name: "bob.example", identity: w.bobKey.pem, upstream: w.upstreamOfTheHost})
	w.aliceTac = startTacit(t, w.alice, w.anchor, options{upstream: w.upstreamOfTheHost, policy: "[[peer]]\nname = \"bob.example\"\nstart = \"now\"\n"})
	w.aliceTac.protected(w.bob, "bob.example")
	for _, p := range slices.Clone(w.bob.Addrs()) {
		if err := w.bob.DelAddr(p); err != nil {
			t.Fatal(err)
		}
	}
	for _, v6 := range []bool{false, true} {
		have(t, w.bob, addressOf(v6, 12))
	}
	w.says(hostRecords("bob.example.", w.bob, &w.bobKey))
	began := time.Now()
	eventually(t, 30*time.Second, "alice has bob where he is now", func() bool { return w.aliceTac.knows(w.bob, "authenticated", "bob.example") })
	t.Logf("keyed at the new addresses after %v", time.Since(began))
	for _, to := range both(w.bob) {
		transfer(t, w.alice, w.bob, to, 1000)
	}
	w.onlyProtected(w.alice, w.bob)
}
