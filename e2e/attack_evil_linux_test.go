package e2e

import (
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

// evilWorld: Mallory owns evil.example and evilgw.example, whose address is Bob's and whose key is Mallory's; the gateway field
// of the second is Mallory's address.
func evilWorld(t *testing.T) *attackWorld {
	t.Helper()
	return newAttackWorld(t, func(w *attackWorld) []zoneFile {
		r := append(hostRecords("bob.example.", w.bob, &w.bobKey), hostRecords("evil.example.", w.bob, &w.malKey)...)
		r = append(r, hostRecords("evilgw.example.", w.bob, nil)...)
		r = append(r, "evilgw.example. 60 IN "+w.malKey.withGateway(w.mallory.Addr4()))
		return []zoneFile{{"example.", bindNSEC, r}, {"plain.", unsigned, hostRecords("bob.plain.", w.bob, nil)}}
	})
}

// resets are the TCP segments with RST between two hosts.
func (w *world) resets(a, b *lab.Host) int {
	between := func(x, y netip.Addr) bool {
		return (x == a.Addr4() || x == a.Addr6()) && (y == b.Addr4() || y == b.Addr6())
	}
	return len(w.tap.Select(func(p lab.Packet) bool {
		if p.Proto != 6 || !between(p.Src, p.Dst) && !between(p.Dst, p.Src) {
			return false
		}
		header := 14 + 20
		if p.Src.Is6() {
			header = 14 + 40
		}
		return len(p.Head) > header+13 && p.Head[header+13]&4 != 0
	}))
}

// disturbed is longer than a round of a flow takes on a busy machine. A single lost packet takes 200 ms and up, which is too near;
// that none was dropped follows from the sets, in which there was never an element.
const disturbed = time.Second

// TestEvilName is A-05, off path: only the evil name fails. Clear flows between the client and the victim go on, and neither
// side puts anything on the other's address. A-07 is the same with a gateway.
//
//tacit:attack A-05 the evil name alone is withheld; nothing was ever put on the victim's address on either side, flows in clear went on, no reset; the victim's own name keys at once
//tacit:attack A-07 no packet of any kind to the gateway that the record names
func TestEvilName(t *testing.T) {
	w := evilWorld(t)
	w.run("")
	atAlice, atBob := watchElements(t, w.alice), watchElements(t, w.bob)
	mustAnswer(t, w.alice, "bob.plain", both(w.bob)...) // an unsigned name: in clear
	flows := []*stream{
		startStream(t, w.alice, w.bob, w.bob.Addr4()), startStream(t, w.alice, w.bob, w.bob.Addr6()),
		startStream(t, w.bob, w.alice, w.alice.Addr4()), startStream(t, w.bob, w.alice, w.alice.Addr6()),
	}
	goOn := func(limit time.Duration) {
		t.Helper()
		for _, f := range flows {
			f.goesOn(limit)
		}
	}
	goOn(disturbed)
	for range 3 {
		mustWithhold(t, w.alice, "evil.example")
		a := ask(t, w.alice, "evilgw.example", dns.TypeA)
		t.Logf("evilgw.example: %s %v", dns.RcodeToString[a.Rcode], a.addrs())
		wantNoElements(t, w.alice, w.bob)
		goOn(disturbed)
		mustAnswer(t, w.alice, "bob.plain", both(w.bob)...)
		time.Sleep(600 * time.Millisecond) // over the back-off of the evil names' negative cache
	}
	w.sync()
	if c := w.tap.BetweenHosts(w.alice, w.bob); c.ESP() > 0 || c.Clear() == 0 {
		t.Errorf("tap between alice and bob: %v, want clear and IKE only", c)
	}
	if n := w.resets(w.alice, w.bob); n > 0 {
		t.Errorf("%d resets between alice and bob", n)
	}
	for _, x := range []*lab.Host{w.alice, w.bob} {
		if c := w.tap.BetweenHosts(x, w.mallory); c[lab.ClassIKE].Packets+c.ESP()+c.Clear() > 0 {
			t.Errorf("tap between %s and mallory: %v", x.Name, c)
		}
	}
	w.wantNoPolicy()
	for host, added := range map[string]func() []string{"alice": atAlice, "bob": atBob} {
		if list := added(); len(list) > 0 {
			t.Errorf("on %s there were for a while: %v", host, list)
		}
	}

	// Bob's own name is not worse off: it keys at once, and the flows go on, encrypted.
	a := mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	answered := time.Now()
	t.Logf("bob.example AAAA after %v", a.took)
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 1_000_000)
	}
	goOn(2 * time.Second)
	if len(atAlice()) == 0 || len(atBob()) == 0 {
		t.Error("the watch over the sets does not see what a real SA puts there: nothing was proven")
	}
	w.noClearSince(answered)

	// With the true host's SA in place the evil name does not displace it (R3).
	mustWithhold(t, w.alice, "evil.example")
	goOn(disturbed)
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	for _, p := range w.aliceTac.peers(w.bob) {
		if p.State != "protected" || p.Assurance != "authenticated" || len(p.Names) != 1 || p.Names[0] != "bob.example" {
			t.Errorf("alice's status of bob: %+v", p)
		}
	}
	w.noClearSince(answered)
}

// noClearSince fails the test if Alice sent Bob anything in clear after the moment, or Bob Alice once her first ESP had reached
// him: that arms him, and what he had sent by then is on its way for a moment more.
func (w *attackWorld) noClearSince(at time.Time) {
	w.t.Helper()
	const onTheWay = 50 * time.Millisecond
	w.sync()
	armed := map[bool]time.Time{} // by family: Is6
	shown := 0
	for _, p := range w.tap.Packets() {
		there, back := has(w.alice, p.Src) && has(w.bob, p.Dst), has(w.bob, p.Src) && has(w.alice, p.Dst)
		first, known := armed[p.Src.Is6()]
		switch {
		case !there && !back || !p.Time.After(at):
			continue
		case p.Class == lab.ClassESP || p.Class == lab.ClassESPUDP:
			if there && !known {
				armed[p.Src.Is6()] = p.Time
			}
			continue
		case p.Class != lab.ClassClear && p.Class != lab.ClassDNS:
			continue
		case back && (!known || p.Time.Before(first.Add(onTheWay))):
			continue
		}
		if shown++; shown < 10 {
			w.t.Errorf("in clear %v after the answer: %v -> %v protocol %d ports %d %d, %d bytes", p.Time.Sub(at), p.Src, p.Dst, p.Proto,
				p.SrcPort, p.DstPort, p.Length)
		}
	}
	if len(armed) != 2 {
		w.t.Errorf("ESP from alice to bob in %d families, want 2", len(armed))
	}
	if n, err := w.tap.Dropped(); n != 0 || err != nil {
		w.t.Errorf("the tap missed %d frames (%v): nothing is proven", n, err)
	}
}

func has(h *lab.Host, a netip.Addr) bool {
	for _, p := range h.Addrs() {
		if p.Addr() == a {
			return true
		}
	}
	return false
}

// TestUnclaimable is A-08: names that point a key at our resolver, gateway, loopback, ourselves, or nobody in particular. No
// IKE is sent, nothing stands on the addresses, and what they are for works.
//
//tacit:attack A-08 20 addresses: not one IKE packet, nothing stands anywhere, answers wait for nothing
func TestUnclaimable(t *testing.T) {
	const gateway = "192.0.2.66" // Mallory
	claims := map[string][]string{
		"resolver": {"A 192.0.2.55"}, "gateway": {"A " + gateway}, "loopback": {"A 127.0.0.1", "AAAA ::1"}, "loopback2": {"A 127.1.2.3"},
		"own": {"A 192.0.2.1", "AAAA 2001:db8::1"}, "multicast": {"A 224.0.0.251", "AAAA ff02::fb"}, "broadcast": {"A 192.0.2.255"},
		"limited": {"A 255.255.255.255"}, "unspecified": {"A 0.0.0.0", "AAAA ::"}, "linklocal": {"A 169.254.1.1", "AAAA fe80::2"},
		"mapped": {"AAAA ::ffff:127.0.0.1"}, "mapped2": {"AAAA ::ffff:192.0.2.55"}, "private": {"A 10.1.2.3", "AAAA fd00::2"}, "reserved": {"A 240.0.0.1"},
	}
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		r := hostRecords("bob.example.", w.bob, &w.bobKey)
		for name, list := range claims {
			for _, a := range list {
				r = append(r, name+".example. 60 IN "+a)
			}
			r = append(r, name+".example. 60 IN "+w.malKey.typ45)
		}
		return []zoneFile{{"example.", bindNSEC, r}}
	})
	output(t, w.alice, "ip", "route", "add", "default", "via", gateway)
	w.run("")
	for name, list := range claims {
		for _, c := range list {
			kind := dns.TypeA
			if c[:4] == "AAAA" {
				kind = dns.TypeAAAA
			}
			a := ask(t, w.alice, name+".example", kind)
			code, text := a.ede()
			t.Logf("%-12s %-26s %s in %v, EDE %d %q", name, c, dns.RcodeToString[a.Rcode], a.took.Round(time.Millisecond), code, text)
			if a.took > 500*time.Millisecond {
				t.Errorf("%s %s: answered after %v, as if something had been waited for", name, c, a.took)
			}
		}
	}
	w.sync()
	for _, p := range w.tap.Select(func(p lab.Packet) bool { return p.Class == lab.ClassIKE }) {
		t.Errorf("IKE: %v -> %v", p.Src, p.Dst)
	}
	wantNoElements(t, w.alice, w.bob)
	if out, err := w.aliceTac.run("status", "--json"); err != nil || !containsNoPeer(out) {
		t.Errorf("status: %v\n%s", err, out)
	}
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...) // the resolver is still ours to ask
	transfer(t, w.alice, w.mallory, w.mallory.Addr4(), 10_000)
	transfer(t, w.alice, w.alice, w.alice.Addr4(), 10_000)
	transfer(t, w.alice, w.bob, w.bob.Addr4(), 10_000)
	w.onlyProtected(w.alice, w.bob)
}
