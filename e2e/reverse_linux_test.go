package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/ipseckey"
	"tacit/lab"
)

// Traffic without a lookup, and what the reverse zone of its destination says.

// reverseRecord is the IPSECKEY record of an address in its reverse zone, in zone-file form; gateway is "" for none, an address or a name.
func reverseRecord(t *testing.T, addr netip.Addr, key identity, gateway string) string {
	t.Helper()
	own, err := ipseckey.ParseIdentity([]byte(key.pem))
	if err != nil {
		t.Fatal(err)
	}
	r, err := ipseckey.NewRecord(own.Public())
	if err != nil {
		t.Fatal(err)
	}
	if a, err := netip.ParseAddr(gateway); err == nil {
		r.GatewayAddr, r.GatewayType = a, ipseckey.GatewayIPv4
		if a.Is6() {
			r.GatewayType = ipseckey.GatewayIPv6
		}
	} else if gateway != "" {
		r.GatewayName, r.GatewayType = gateway, ipseckey.GatewayName
	}
	raw, err := r.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s 60 IN TYPE45 \\# %d %x", reverseName(t, addr), len(raw), raw)
}

func reverseName(t *testing.T, addr netip.Addr) string {
	t.Helper()
	name, err := dns.ReverseAddr(addr.String())
	if err != nil {
		t.Fatal(err)
	}
	return name
}

const (
	reverse4 = "2.0.192.in-addr.arpa."
	reverse6 = "8.b.d.0.1.0.0.2.ip6.arpa."
)

// packetsRule lets traffic without a lookup ask for a key.
func packetsRule(class string, anonymous bool) string {
	return fmt.Sprintf("[[policy]]\nmatch = [\"0.0.0.0/0\", \"::/0\"]\nclass = %q\npackets = true\nanonymous = %v\n", class, anonymous)
}

// firstDatagram sends one datagram to a place where nothing was sent before, and reports whether it came there and back.
func firstDatagram(t *testing.T, a, b *lab.Host, addr netip.Addr, patience time.Duration) (came bool, took time.Duration) {
	t.Helper()
	srv, err := b.ListenPacket("udp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	go bounce(srv)
	c, err := a.Dial(t.Context(), "udp", srv.LocalAddr().(*net.UDPAddr).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	began := time.Now()
	return sendNumber(c, 1, patience), time.Since(began)
}

// reverseWorld has Bob's key at both his reverse names: without a gateway for IPv4, with himself as the gateway for IPv6; that of the plain host has a key that
// it has not; mallory's has none; and there is one in a zone that is not signed.
func reverseWorld(t *testing.T) *attackWorld {
	t.Helper()
	return newAttackWorld(t, func(w *attackWorld) []zoneFile {
		return []zoneFile{
			{"example.", bindNSEC, hostRecords("bob.example.", w.bob, &w.bobKey)},
			{reverse4, bindNSEC, []string{reverseRecord(t, w.bob.Addr4(), w.bobKey, ""), reverseRecord(t, w.plain.Addr4(), w.malKey, "")}},
			{reverse6, bindNSEC3, []string{reverseRecord(t, w.bob.Addr6(), w.bobKey, w.bob.Addr6().String())}},
			{"18.198.in-addr.arpa.", unsigned, []string{reverseRecord(t, unsignedAddr, w.malKey, "")}},
		}
	})
}

// unsignedAddr is the address with a key that nothing signs.
var unsignedAddr = netip.MustParseAddr("198.18.0.200")

// TestReverseZone: nobody looks anything up. A key in the signed reverse zone of the address is proven before the first packet leaves, and that packet arrives; a
// key that is not proven is waited for in vain; without one, or with one that nothing signs, the first packet leaves in clear.
func TestReverseZone(t *testing.T) {
	w := reverseWorld(t)
	if err := w.mallory.AddAddr(netip.PrefixFrom(unsignedAddr, 32)); err != nil {
		t.Fatal(err)
	}
	routeFrom(t, w.alice, w.alice.Addr4(), unsignedAddr)
	w.bobTac = startTacit(t, w.bob, w.anchor, options{name: "bob.example", identity: w.bobKey.pem, upstream: w.upstreamOfTheHost})
	w.aliceTac = startTacit(t, w.alice, w.anchor, options{upstream: w.upstreamOfTheHost, policy: packetsRule("private-or-clear", false)})
	for _, addr := range both(w.bob) {
		came, took := firstDatagram(t, w.alice, w.bob, addr, slower(3*time.Second))
		if !came {
			t.Errorf("%v: the first datagram is lost", addr)
		}
		t.Logf("%v: there and back, with the lookup and IKE, in %v", addr, took)
		datagrams(t, w.alice, w.bob, addr, 5, 1, 1472, 9000)
		transfer(t, w.alice, w.bob, addr, 100_000)
	}
	for _, p := range w.aliceTac.peers(w.bob) {
		if name := strings.TrimSuffix(reverseName(t, p.Address), "."); p.Assurance != "authenticated" || len(p.Names) != 1 || p.Names[0] != name {
			t.Errorf("status: %+v, want %s authenticated", p, name)
		}
	}
	w.onlyProtected(w.alice, w.bob)
	// The name, whose key is the same, needs no negotiation any more.
	if a := mustAnswer(t, w.alice, "bob.example", both(w.bob)...); a.took > time.Second {
		t.Errorf("bob.example took %v", a.took)
	}

	if came, _ := firstDatagram(t, w.alice, w.plain, w.plain.Addr4(), slower(3*time.Second)); came {
		t.Error("a key is published, and nobody proved it")
	}
	w.sync()
	if c := w.tap.From(w.alice.Addr4(), w.plain.Addr4()); c.Clear()+c.ESP() != 0 || c[lab.ClassIKE].Packets == 0 {
		t.Errorf("tap from alice to plain: %v", c)
	}
	for _, addr := range []netip.Addr{w.mallory.Addr4(), w.mallory.Addr6(), unsignedAddr, w.plain.Addr6()} {
		host := w.mallory
		if addr == w.plain.Addr6() {
			host = w.plain
		}
		came, took := firstDatagram(t, w.alice, host, addr, slower(3*time.Second))
		if !came || took > slower(time.Second) {
			t.Errorf("%v without a key: came %v after %v", addr, came, took)
		}
	}
}

// TestReverseZoneStripped: whoever takes the key out of the answer, or its denial, gets no packet in clear.
//
//tacit:attack A-01 traffic without a lookup: the key or its denial is stripped from the reverse zone; nothing leaves
func TestReverseZoneStripped(t *testing.T) {
	w := reverseWorld(t)
	w.aliceTac = startTacit(t, w.alice, w.anchor, options{upstream: w.upstreamOfTheHost, dns: "iterate = false", policy: packetsRule("private-or-clear", true)})
	w.liar.tell(func(q dns.Question, a *dns.Msg) *dns.Msg {
		if q.Qtype == dns.TypeIPSECKEY {
			a.Answer, a.Ns = nil, nil
		}
		return a
	})
	for _, h := range []*lab.Host{w.bob, w.mallory} {
		if came, _ := firstDatagram(t, w.alice, h, h.Addr4(), 3*time.Second); came {
			t.Errorf("%s is spoken to in clear", h.Name)
		}
		if said := "event=withheld address=" + h.Addr4().String(); !strings.Contains(w.aliceTac.log(), said) {
			t.Errorf("no audit event %s", said)
		}
		w.wantNothing(w.alice, h)
	}
}

// TestReverseZoneGateway: the reverse zone of an address names another host as its gateway (R5): the SA is a tunnel to that one, strongSwan.
func TestReverseZoneGateway(t *testing.T) {
	needE2E(t, "charon-systemd", "swanctl")
	for _, kind := range []string{"address", "name"} {
		t.Run(kind, func(t *testing.T) {
			behind := netip.MustParseAddr("192.0.2.77")
			aliceKey := newIdentity(t)
			w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
				gateway := w.bob.Addr4().String()
				if kind == "name" {
					gateway = "gw.example."
				}
				return []zoneFile{
					{"example.", bindNSEC, append(hostRecords("alice.example.", w.alice, &aliceKey), "gw.example. 60 IN A "+w.bob.Addr4().String())},
					{reverse4, bindNSEC, []string{reverseRecord(t, behind, w.bobKey, gateway)}},
				}
			})
			if err := w.bob.AddAddr(netip.PrefixFrom(behind, 24)); err != nil {
				t.Fatal(err)
			}
			swan := startSwan(t, w.bob, swanConf{id: "bob.example", peerID: "alice.example", key: w.bobKey, peerKey: aliceKey, peer: w.alice,
				child: "local_ts = " + behind.String() + "/32"})
			top, rule := `identify = "all"`, packetsRule("private-or-clear", false)
			if kind == "address" { // strongSwan takes nobody without a name: the rule of the address must have it told
				top, rule = `identify = "matched"`, strings.Replace(rule, "0.0.0.0/0", "192.0.2.64/26", 1)
			}
			w.aliceTac = startTacit(t, w.alice, w.anchor, options{name: "alice.example", identity: aliceKey.pem, upstream: w.upstreamOfTheHost, top: top, policy: rule})
			if came, took := firstDatagram(t, w.alice, w.bob, behind, 3*time.Second); !came {
				t.Errorf("the first datagram is lost (%v)", took)
			}
			datagrams(t, w.alice, w.bob, behind, 5, 1, 1200)
			transfer(t, w.alice, w.bob, behind, 100_000)
			w.sync()
			if c := w.tap.Between(w.alice.Addr4(), behind); c.Clear()+c.ESP() != 0 {
				t.Errorf("tap between alice and the host behind the gateway: %v", c)
			}
			if c := w.tap.Between(w.alice.Addr4(), w.bob.Addr4()); c.ESP() == 0 || c.Clear() != 0 {
				t.Errorf("tap between alice and the gateway: %v", c)
			}
			if sas := swan.ctl("--list-sas"); !strings.Contains(sas, behind.String()+"/32") {
				t.Errorf("the gateway's SAs:\n%s", sas)
			}
		})
	}
}

// TestPacketStorm: datagrams to 10,000 addresses without keys, in a zone that proves nothing ahead: a lookup each at most, and when they come again, none.
func TestPacketStorm(t *testing.T) {
	needE2E(t, "nft", "ip")
	const storm = 10_000
	w := newWorld(t)
	names, err := lab.NewDNS()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(names.AddZone("arpa.", true), names.AddZone("18.198.in-addr.arpa.", false)); err != nil { // parents first
		t.Fatal(err)
	}
	asked := &countedNames{DNS: names, of: map[string]int{}}
	stop, err := w.ns.ServeDNS(asked, netip.AddrPortFrom(w.ns.Addr4(), 53).String())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	w.route(w.alice, "198.18.0.0/16", w.plain.Addr4()) // who forwards nothing
	alice := startTacit(t, w.alice, names.TrustAnchor()+"\n", options{upstream: netip.AddrPortFrom(w.ns.Addr4(), 53).String(),
		dns: "iterate = false", policy: packetsRule("private-or-clear", false)})
	c, err := w.alice.ListenPacket("udp", netip.AddrPortFrom(w.alice.Addr4(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	left := func() int {
		w.sync()
		return len(w.tap.Select(func(p lab.Packet) bool { return p.Class == lab.ClassClear && p.Dst.Is4() && p.Dst.As4()[0] == 198 }))
	}
	before := resident(t, alice.cmd.Process.Pid)
	for round := range 2 {
		w.tap.Reset()
		for i := range storm {
			to := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
			_, _ = c.WriteTo([]byte{1}, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
			if i%40 == 39 {
				time.Sleep(10 * time.Millisecond)
			}
		}
		for end, n := time.Now().Add(5*time.Second), -1; n != left() && time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
			n = left()
		}
		lookups, most := asked.counts()
		t.Logf("round %d: %d packets left in clear; %d addresses asked for so far, %d times at most; %d KiB, %d before", round, left(), lookups, most, resident(t, alice.cmd.Process.Pid), before)
		if most > 1 || lookups > storm {
			t.Errorf("round %d: %d lookups of %d addresses, %d of one", round, lookups, storm, most)
		}
		if round > 0 && left() != storm {
			t.Errorf("round %d: %d of %d packets left", round, left(), storm)
		}
		if lookups < storm && (round > 0 || lookups < storm*9/10) { // too many at once: the packets of some are dropped, and the next ones ask
			t.Errorf("round %d: %d of %d addresses asked for", round, lookups, storm)
		}
	}
	if kib := resident(t, alice.cmd.Process.Pid) - before; kib > 64<<10 {
		t.Errorf("the storm costs %d KiB", kib)
	}
}

// route leads a prefix to a next hop.
func (w *world) route(h *lab.Host, prefix string, via netip.Addr) {
	w.t.Helper()
	output(w.t, h, "ip", "route", "add", prefix, "via", via.String())
}

// countedNames counts the questions for keys, by name.
type countedNames struct {
	*lab.DNS
	mu sync.Mutex
	of map[string]int
}

func (c *countedNames) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	if name := strings.ToLower(q.Question[0].Name); q.Question[0].Qtype == dns.TypeIPSECKEY && strings.HasSuffix(name, ".18.198.in-addr.arpa.") {
		c.mu.Lock()
		c.of[name]++
		c.mu.Unlock()
	}
	c.DNS.ServeDNS(w, q)
}

// counts are how many names were asked for, and how often one was at most.
func (c *countedNames) counts() (names, most int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.of {
		most = max(most, n)
	}
	return len(c.of), most
}
