package e2e

import (
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

// attackWorld has a liar between the tacits and NSD behind unbound, and mallory, who is on the cable like anybody else, but
// on nobody's path.
type attackWorld struct {
	*world
	liar              *liar
	mallory           *lab.Host
	bobKey, malKey    identity
	aliceTac, bobTac  *tacit
	upstreamOfTheHost string
	zones             string // the directory of signZones
}

// newAttackWorld makes the hosts and the servers; daemons come with run.
func newAttackWorld(t *testing.T, zones func(w *attackWorld) []zoneFile) *attackWorld {
	t.Helper()
	needE2E(t, "nsd", "unbound", "nft", "ip", "dnssec-signzone", "ldns-signzone", "getent")
	w := &attackWorld{world: newWorld(t), bobKey: newIdentity(t), malKey: newIdentity(t)}
	var err error
	if w.mallory, err = w.lab.Host("mallory", lab.Prefixes("192.0.2.66/24", "2001:db8::66/64")...); err != nil {
		t.Fatal(err)
	}
	l, err := w.lab.Host("liar", lab.Prefixes("192.0.2.55/24")...)
	if err != nil {
		t.Fatal(err)
	}
	w.zones, w.anchor = signZones(t, zones(w)...)
	startNSD(t, w.ns, w.zones)
	startUnbound(t, w.up, w.ns.Addr4().String())
	w.liar = startLiar(t, l, w.up.Addr4().String()+":53")
	w.upstreamOfTheHost = l.Addr4().String()
	return w
}

// run starts tacit on both hosts.
func (w *attackWorld) run(top string) {
	w.t.Helper()
	w.bobTac = startTacit(w.t, w.bob, w.anchor, options{name: "bob.example", identity: w.bobKey.pem, upstream: w.upstreamOfTheHost, top: top})
	hold := ""
	if os.Getenv("TACIT_ESP") == "1" { // a slow kernel
		hold = "hold = \"8s\""
	}
	w.aliceTac = startTacit(w.t, w.alice, w.anchor, options{upstream: w.upstreamOfTheHost, top: top, dns: hold})
}

// wantNothing fails the test if the tap saw a packet in clear, or ESP, between the two hosts.
func (w *attackWorld) wantNothing(a, b *lab.Host) {
	w.t.Helper()
	w.sync()
	if c := w.tap.BetweenHosts(a, b); c.Clear()+c.ESP() > 0 {
		w.t.Errorf("tap between %s and %s: %v", a.Name, b.Name, c)
		w.showClear(a, b)
	}
}

// wantNoPolicy fails the test if anything stands on the other's address on either side.
func (w *attackWorld) wantNoPolicy() {
	w.t.Helper()
	wantNoElements(w.t, w.alice, w.bob)
	for _, p := range w.aliceTac.peers(w.bob) {
		if p.State != "clear" && p.State != "keying" {
			w.t.Errorf("alice's status of bob: %+v", p)
		}
	}
}

// TestWrongKeyInDNS: Bob's key in DNS is not the key he has. His name is withheld; nothing else happens to his address.
//
//tacit:attack A-17 the host that answers has not the key: withheld, flows in clear go on, nothing stands on either side; it forgets what was refused
func TestWrongKeyInDNS(t *testing.T) {
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		return []zoneFile{{"example.", bindNSEC, append(hostRecords("bob.example.", w.bob, &w.malKey), hostRecords("www.example.", w.bob, nil)...)}}
	})
	w.run("")
	atAlice, atBob := watchElements(t, w.alice), watchElements(t, w.bob)
	// Bob does install an SA each time, since the name that Alice asks for is his; she refuses his signature, and he is told.
	flows := []*stream{startStream(t, w.alice, w.bob, w.bob.Addr4()), startStream(t, w.bob, w.alice, w.alice.Addr6())}
	for round := range 2 {
		a := mustWithhold(t, w.alice, "bob.example")
		if code, _ := a.ede(); code != dns.ExtendedErrorCodeOther {
			t.Errorf("EDE %d, want Other with the reason", code)
		}
		if _, err := getaddrinfo(t, w.alice, "ahosts", "bob.example"); err == nil {
			t.Errorf("round %d: getaddrinfo has an answer", round)
		}
		w.wantNoPolicy()
		for _, f := range flows {
			f.goesOn(disturbed)
		}
	}
	// Another name at that address is as if nothing had happened.
	mustResolve(t, w.alice, "www.example", w.bob.Addr4().String(), w.bob.Addr6().String())
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 50_000_000)
		transfer(t, w.alice, w.plain, both(w.plain)[index(addr)], 50_000_000) // for comparison, in the log
	}
	mustWithhold(t, w.alice, "bob.example")
	w.sync()
	if c := w.tap.BetweenHosts(w.alice, w.bob); c.Clear() == 0 || c.ESP() > 0 {
		t.Errorf("tap between alice and bob: %v, want clear packets only", c)
	}
	w.wantNoPolicy()
	for host, added := range map[string]func() []string{"alice": atAlice, "bob": atBob} {
		if list := added(); len(list) > 0 {
			t.Errorf("on %s there were for a while: %v", host, list)
		}
	}
	eventually(t, 10*time.Second, "bob forgets what alice refused", func() bool { return len(w.bobTac.peers(w.alice)) == 0 })
}

// TestSilentPeer: a name with a key whose address does not speak IKE, or does not exist, is withheld within the hold, and nobody
// else waits for it.
//
//tacit:attack A-15 IKE that nobody answers: withheld within the hold in both families, at most five requests to an address, nobody else waits
func TestSilentPeer(t *testing.T) {
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		r := append(hostRecords("noike.example.", w.plain, &w.malKey), hostRecords("www.example.", w.plain, nil)...)
		r = append(r, "nobody.example. 60 IN A 192.0.2.200", "nobody.example. 60 IN AAAA 2001:db8::200", "nobody.example. 60 IN "+w.malKey.typ45)
		return []zoneFile{{"example.", bindNSEC, append(r, hostRecords("bob.example.", w.bob, &w.bobKey)...)}}
	})
	w.run("")
	added := watchElements(t, w.alice)
	var wg sync.WaitGroup
	for _, name := range []string{"noike.example", "nobody.example"} {
		wg.Go(func() { mustWithhold(t, w.alice, name) })
	}
	time.Sleep(100 * time.Millisecond)
	flow := startStream(t, w.alice, w.plain, w.plain.Addr4())
	www := mustAnswer(t, w.alice, "www.example", both(w.plain)...)
	bob := mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	t.Logf("meanwhile: www.example %v, bob.example %v", www.took, bob.took)
	if www.took > hold/4 || bob.took > hold/4 {
		t.Error("they waited for others' peers")
	}
	wg.Wait()
	flow.goesOn(disturbed)
	for _, addr := range both(w.plain) {
		transfer(t, w.alice, w.plain, addr, 1_000_000)
	}
	for _, e := range added() {
		if f := strings.Fields(e); !slices.Contains(f, w.bob.Addr4().String()) && !slices.Contains(f, w.bob.Addr6().String()) {
			t.Errorf("there was for a while: %s", e)
		}
	}
	w.sync()
	for _, a := range both(w.plain) {
		n := 0
		for _, p := range w.tap.Packets() {
			if h, ok := p.IKEHeader(); ok && p.Dst == a && !h.Response {
				n++
			}
		}
		if n < 1 || n > 5 {
			t.Errorf("%d IKE requests to %v, want a few", n, a)
		}
	}
}

// index is 0 for IPv4, 1 for IPv6, as both orders them.
func index(a interface{ Is6() bool }) int {
	if a.Is6() {
		return 1
	}
	return 0
}
