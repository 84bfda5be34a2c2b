package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

// Hosts behind NATs, as libreswan's test-suite has them, that cannot be keyed: the server assigns no addresses (those that are assigned one are in
// lodgers_linux_test.go), or is behind the NAT itself. What must hold is that a host is told so at once, that
// nothing of it leaves in clear where a key is published, and that nobody else at the NAT's address is any worse off.

// natWorld has a NAT with three hosts behind it, of which Erin runs no tacit, and a second NAT; the only host behind that, twin, has Carol's address.
type natWorld struct {
	*attackWorld
	nat, nat2               *lab.Host
	carol, dave, erin, twin *lab.Host
	plane                   string // of the tacits; empty: dataplane()
}

// The networks behind the NATs.
const (
	inside4 = "198.51.100."
	inside6 = "2001:db8:1::"
)

// newNATWorld makes the hosts and the servers; both NATs keep the ports of those behind them where they can.
func newNATWorld(t *testing.T, zones func(w *natWorld) []zoneFile) *natWorld {
	t.Helper()
	w := &natWorld{}
	newAttackWorld(t, func(a *attackWorld) []zoneFile {
		w.attackWorld = a
		for _, h := range []struct {
			host **lab.Host
			name string
			n    int
		}{{&w.nat, "nat", 9}, {&w.nat2, "nat2", 8}} {
			*h.host = w.add(h.name, fmt.Sprintf("192.0.2.%d/24", h.n), fmt.Sprintf("2001:db8::%d/64", h.n))
			masquerade(t, *h.host)
		}
		w.carol, w.dave, w.erin, w.twin = w.behind(w.nat, "carol", 2), w.behind(w.nat, "dave", 3), w.behind(w.nat, "erin", 4), w.behind(w.nat2, "twin", 2)
		return zones(w)
	})
	return w
}

func (w *natWorld) add(name string, addrs ...string) *lab.Host {
	w.t.Helper()
	h, err := w.lab.Host(name, lab.Prefixes(addrs...)...)
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

// behind adds a host behind a NAT. There is one cable, so that each NAT is told where its hosts are, and hosts learn no shorter way.
func (w *natWorld) behind(nat *lab.Host, name string, n int) *lab.Host {
	w.t.Helper()
	h := w.add(name)
	w.moveBehind(h, nat, n)
	return h
}

// moveBehind gives a host the n-th address behind a NAT, and the way through it.
func (w *natWorld) moveBehind(h, nat *lab.Host, n int) {
	w.t.Helper()
	router := 100 + len(nat.Name) // another for each NAT
	output(w.t, h, "sysctl", "-qw", "net.ipv6.conf.eth0.accept_redirects=0")
	for _, f := range []struct{ flag, net, bits string }{{"-4", inside4, "/24"}, {"-6", inside6, "/64"}} {
		own, via := fmt.Sprintf("%s%d", f.net, n), fmt.Sprintf("%s%d", f.net, router)
		if !has(nat, netip.MustParseAddr(via)) {
			have(w.t, nat, netip.MustParseAddr(via))
		}
		have(w.t, h, netip.MustParseAddr(own))
		output(w.t, nat, "ip", f.flag, "neigh", "replace", own, "lladdr", h.MAC().String(), "dev", "eth0", "nud", "permanent")
		output(w.t, h, "ip", f.flag, "route", "replace", "default", "via", via)
	}
}

// leave takes addresses from a host.
func (w *natWorld) leave(h *lab.Host, addrs []netip.Prefix) {
	w.t.Helper()
	for _, p := range addrs {
		if err := h.DelAddr(p); err != nil {
			w.t.Fatal(err)
		}
	}
}

// moves has a NAT give IKE's ports others, from a range.
func moves(t *testing.T, nat *lab.Host, from int) {
	t.Helper()
	for family, net := range map[string]string{"ip": inside4 + "0/24", "ip6": inside6 + "/64"} {
		output(t, nat, "nft", fmt.Sprintf("add table %[1]s moves; delete table %[1]s moves; table %[1]s moves { chain post { type nat hook postrouting priority srcnat - 1; "+
			"%[1]s saddr %[2]s udp sport { 500, 4500 } masquerade to :%[3]d-%[4]d; }; }", family, net, from, from+999))
	}
}

// forgets has a NAT forget what it knows of UDP: it gives new ports then.
func forgets(t *testing.T, nats ...*lab.Host) {
	t.Helper()
	for _, n := range nats {
		for _, key := range []string{"nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"} {
			if err := n.Sysctl("net.netfilter."+key, "1"); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// client starts a tacit without a name on a host.
func (w *natWorld) client(h *lab.Host, policy string) *tacit {
	w.t.Helper()
	return startTacit(w.t, h, w.anchor, options{upstream: w.upstreamOfTheHost, dns: fmt.Sprintf("hold = %q", slower(hold)), policy: policy, dataplane: w.plane})
}

// server starts Bob's, which assigns no addresses to clients behind a NAT.
func (w *natWorld) server(policy string) {
	w.t.Helper()
	w.bobTac = startTacit(w.t, w.bob, w.anchor, options{name: "bob.example", identity: w.bobKey.pem, upstream: w.upstreamOfTheHost, policy: policy, dataplane: w.plane, top: "nat-pool = []"})
}

// refused has hosts look a name up, all at once in both families: it is withheld from all of them, in time, and they learn that it is for a NAT. Since the tap began a negotiation with
// the name's host was tried, and nothing passed but that.
func (w *natWorld) refused(name string, to *lab.Host, hosts ...*lab.Host) {
	w.t.Helper()
	var wg sync.WaitGroup
	for _, h := range hosts {
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
			wg.Go(func() {
				a, err := query(w.t.Context(), h, name, kind)
				if err != nil {
					w.t.Errorf("%s asks for %s %s: %v", h.Name, name, dns.Type(kind), err)
					return
				}
				_, why := a.ede()
				w.t.Logf("%s: %s %s: %s in %v, %q", h.Name, name, dns.Type(kind), dns.RcodeToString[a.Rcode], a.took.Round(time.Millisecond), why)
				if a.Rcode != dns.RcodeServerFailure || len(a.addrs()) > 0 || !strings.Contains(why, "behind a NAT") {
					w.t.Errorf("%s: %s %s: got\n%v\nwant SERVFAIL, and the NAT as the reason", h.Name, name, dns.Type(kind), a.Msg)
				}
				if limit := slower(hold + slack); a.took > limit {
					w.t.Errorf("%s: %s %s: answered after %v, want within %v", h.Name, name, dns.Type(kind), a.took, limit)
				}
			})
		}
	}
	wg.Wait()
	for _, h := range hosts {
		w.wantNothing(h, to)
		if c := w.tap.BetweenHosts(h, to); c[lab.ClassIKE].Packets < 4*2 {
			w.t.Errorf("tap between %s and %s: %v, want the messages of a negotiation for each family", h.Name, to.Name, c)
		}
	}
}

// noESP fails the test if the tap saw ESP between Bob and the NATs, or what it saw of IKE is not by the ports that the NATs give.
func (w *natWorld) noESP(keeps bool) {
	w.t.Helper()
	w.sync()
	for _, n := range []*lab.Host{w.nat, w.nat2} {
		if c := w.tap.BetweenHosts(n, w.bob); c.ESP() > 0 || c[lab.ClassIKE].Packets == 0 {
			w.t.Errorf("tap between %s and bob: %v, want IKE and no ESP", n.Name, c)
		}
		kept, moved := 0, 0
		for _, p := range w.tap.Packets() {
			if p.Class != lab.ClassIKE || !has(n, p.Src) || !has(w.bob, p.Dst) {
				continue
			}
			if p.SrcPort == 500 || p.SrcPort == 4500 {
				kept++
			} else {
				moved++
			}
		}
		if keeps && kept == 0 || !keeps && (kept > 0 || moved == 0) {
			w.t.Errorf("%s: %d IKE messages from IKE's own ports, %d from others", n.Name, kept, moved)
		}
	}
	if n, err := w.tap.Dropped(); n != 0 || err != nil {
		w.t.Errorf("the tap missed %d frames (%v): nothing is proven", n, err)
	}
}

// clientsWorld is natWorld with Bob's key at his name, and an unsigned name of his without one.
func clientsWorld(t *testing.T) *natWorld {
	t.Helper()
	return newNATWorld(t, func(w *natWorld) []zoneFile {
		return []zoneFile{{"example.", bindNSEC, hostRecords("bob.example.", w.bob, &w.bobKey)}, {"plain.", unsigned, hostRecords("bob.plain.", w.bob, nil)}}
	})
}

// TestClientsBehindNAT (newoe-25-cat-1 and -5, certoe-06, -07, -08): two clients behind one NAT, and a third behind another with the first one's address, look a
// name with a key up at once. All are refused in time, and told why; before and after the server, the clients and the mappings of the NATs were started anew. Who speaks in
// clear from behind the same NAT is not disturbed, and nothing ever stands on its address.
//
//tacit:attack A-29 nobody is keyed at a NAT's address, so that there is nothing to cross; its other hosts go on in clear
func TestClientsBehindNAT(t *testing.T) {
	for what, keeps := range map[string]bool{"which keeps ports": true, "which moves ports": false} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := clientsWorld(t)
			clientsBehindNAT(w, keeps, true, w.carol, w.dave, w.twin)
		})
	}
}

// TestXFRMBehindNAT: the same on the kernel's ESP, of a client behind each NAT, once.
func TestXFRMBehindNAT(t *testing.T) {
	needESP(t, "nft", "nsd", "unbound", "dnssec-signzone", "ldns-signzone", "getent")
	w := clientsWorld(t)
	w.plane = "xfrm"
	clientsBehindNAT(w, true, false, w.carol, w.twin)
	if states := output(t, w.bob, "ip", "xfrm", "state"); states != "" {
		t.Errorf("bob's SAs:\n%s", states)
	}
}

// clientsBehindNAT has clients refused behind NATs that keep their ports or move them, and once more when all have been started anew.
func clientsBehindNAT(w *natWorld, keeps, again bool, clients ...*lab.Host) {
	t := w.t
	t.Helper()
	if !keeps {
		for _, n := range []*lab.Host{w.nat, w.nat2} {
			moves(t, n, 40_000)
		}
	}
	w.server("")
	var tacits []*tacit
	for _, h := range clients {
		tacits = append(tacits, w.client(h, ""))
	}
	atBob := watchElements(t, w.bob)
	flows := []*stream{startStream(t, w.erin, w.bob, w.bob.Addr4()), startStream(t, w.erin, w.bob, w.bob.Addr6())}
	check := func() {
		t.Helper()
		w.tap.Reset()
		w.refused("bob.example", w.bob, clients...)
		w.noESP(keeps)
		for _, f := range flows {
			f.goesOn(slower(disturbed))
		}
		for _, h := range clients { // in clear, to the same address, as ever
			mustAnswer(t, h, "bob.plain", both(w.bob)...)
			for _, to := range both(w.bob) {
				datagrams(t, h, w.bob, to, 3, 1, 1472)
			}
		}
		eventually(t, slower(5*time.Second), "bob has forgotten the NATs", func() bool { return len(w.bobTac.peers(w.nat))+len(w.bobTac.peers(w.nat2)) == 0 })
	}
	check()
	if again {
		for _, d := range append(tacits, w.bobTac) {
			rebooted(t, d)
			d.start(false)
		}
		if !keeps {
			forgets(t, w.nat, w.nat2)
			for _, n := range []*lab.Host{w.nat, w.nat2} {
				moves(t, n, 50_000)
			}
		}
		check()
	}
	if list := atBob(); len(list) > 0 {
		t.Errorf("on bob there were for a while: %v", list)
	}
	if !keeps && !strings.Contains(w.bobTac.log(), "it is behind a NAT") {
		t.Error("bob's log does not say whom he refuses for what")
	}
}

// TestOpportunisticBehindNAT (newoe-22, newoe-25-cat-1 to -3): no keys are published, and all would encrypt with anybody, without a lookup. Two clients behind a
// NAT fall back to clear with their first packet, and lose none; a third, for which everything is private, sends nothing. The host beside the server, which is behind no
// NAT, is encrypted.
func TestOpportunisticBehindNAT(t *testing.T) {
	t.Parallel()
	w := newNATWorld(t, func(*natWorld) []zoneFile { return []zoneFile{{reverse4, bindNSEC, nil}, {reverse6, bindNSEC3, nil}} })
	anybody := packetsRule("private-or-clear", true)
	w.server(anybody)
	w.client(w.carol, anybody)
	w.client(w.dave, anybody)
	w.client(w.twin, packetsRule("private", true))
	w.aliceTac = w.client(w.alice, anybody)
	var wg sync.WaitGroup
	for _, h := range []*lab.Host{w.alice, w.carol, w.dave, w.twin} {
		for _, to := range both(w.bob) {
			wg.Go(func() { w.first(h, to, h != w.twin) })
		}
	}
	wg.Wait()
	w.sync()
	for _, h := range []*lab.Host{w.carol, w.dave} {
		for _, to := range both(w.bob) {
			datagrams(t, h, w.bob, to, 5, 1, 1472)
		}
		if c := w.tap.BetweenHosts(h, w.bob); c.ESP() > 0 || c.Clear() == 0 || c[lab.ClassIKE].Packets == 0 {
			t.Errorf("tap between %s and bob: %v, want clear packets after IKE", h.Name, c)
		}
	}
	w.wantNothing(w.nat2, w.bob) // Carol has twin's address, but not its NAT's
	for _, to := range both(w.bob) {
		transfer(t, w.alice, w.bob, to, 10_000)
	}
	w.onlyProtected(w.alice, w.bob)
}

// first sends two datagrams to Bob, which come back, or one, which does not.
func (w *natWorld) first(h *lab.Host, to netip.Addr, comes bool) {
	srv, err := w.bob.ListenPacket("udp", netip.AddrPortFrom(to, 0).String())
	if err != nil {
		w.t.Error(err)
		return
	}
	defer srv.Close()
	go bounce(srv)
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	c, err := h.Dial(ctx, "udp", srv.LocalAddr().String())
	if err != nil {
		w.t.Error(err)
		return
	}
	defer c.Close()
	for n := range uint32(2) {
		began := time.Now()
		came := sendNumber(c, n, slower(hold+slack))
		w.t.Logf("%s to %v, datagram %d: %v after %v", h.Name, to, n+1, came, time.Since(began).Round(time.Millisecond))
		if came != comes {
			w.t.Errorf("%s to %v: datagram %d came back: %v, want %v", h.Name, to, n+1, came, comes)
		}
		if !came {
			return
		}
	}
}

// TestMovesBehindNAT (ikev2-switchnat-01): Alice has proven Bob's key when she moves behind a NAT. What she sends from there is not in clear, and his name is withheld, with
// the reason; when she is back, she is keyed as before.
func TestMovesBehindNAT(t *testing.T) {
	t.Parallel()
	w := clientsWorld(t)
	w.run("")
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	for _, to := range both(w.bob) {
		transfer(t, w.alice, w.bob, to, 10_000)
	}
	home := w.alice.Addrs()
	w.tap.Reset()
	w.moveBehind(w.alice, w.nat, 7)
	w.leave(w.alice, home)
	away := w.alice.Addrs()
	time.Sleep(300 * time.Millisecond) // tacit has seen it
	for _, to := range both(w.bob) {
		if c, err := w.alice.Dial(t.Context(), "udp", netip.AddrPortFrom(to, 7000).String()); err == nil {
			_, _ = c.Write([]byte("do not read me"))
			c.Close()
		}
	}
	w.refused("bob.example", w.bob, w.alice)
	for _, p := range home {
		have(t, w.alice, p.Addr())
	}
	w.leave(w.alice, away)
	eventually(t, 20*time.Second, "alice is keyed again", func() bool {
		a := ask(t, w.alice, "bob.example", dns.TypeA)
		return a.Rcode == dns.RcodeSuccess
	})
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	for _, to := range both(w.bob) {
		transfer(t, w.alice, w.bob, to, 10_000)
	}
	w.onlyProtected(w.alice, w.bob)
}
