package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

// changes is a world whose zone example. says something else from time to time.
type changes struct {
	*attackWorld
	newKey identity
}

// says has the zone be another from now on: it is signed with the same keys.
func (w *changes) says(records ...[]string) {
	w.t.Helper()
	var all []string
	for _, r := range records {
		all = append(all, r...)
	}
	now := zoneFile{"example.", bindNSEC, shortLived(all)}.record(w.t, w.zones, time.Hour)
	w.liar.tell(func(q dns.Question, a *dns.Msg) *dns.Msg {
		if name := dns.CanonicalName(q.Name); strings.HasSuffix(name, ".example.") {
			return now.answer(a, "example.", name, q.Qtype)
		}
		return a
	})
	forgetAnswer()
}

// inClear fails the test where Alice has sent something to these addresses in clear since the tap began, or nothing at all.
func (w *changes) inClear(addrs ...netip.Addr) {
	w.t.Helper()
	w.sync()
	for _, to := range addrs {
		n, esp := 0, 0
		for _, p := range w.tap.Packets() {
			switch {
			case !has(w.alice, p.Src) || p.Dst != to:
			case p.Class == lab.ClassClear || p.Class == lab.ClassDNS:
				n++
			case p.Class == lab.ClassESP || p.Class == lab.ClassESPUDP:
				esp++
			}
		}
		if n > 0 || esp == 0 {
			w.t.Errorf("alice to %v: %d packets in clear, %d encrypted", to, n, esp)
		}
	}
	w.tap.Reset()
}

// datagram sends one to each address, whatever becomes of it.
func (w *changes) datagram(addrs ...netip.Addr) {
	w.t.Helper()
	for _, a := range addrs {
		c, err := w.alice.Dial(w.t.Context(), "udp", netip.AddrPortFrom(a, 7000).String())
		if err != nil {
			w.t.Fatal(err)
		}
		_, _ = c.Write([]byte("do not read me"))
		c.Close()
	}
}

// TestChanges: what Alice knows of Bob's address grows old in every way that there is. Nothing of hers leaves in clear, and who is there now is reached
// as soon as his name is looked up.
//
//tacit:attack A-13 the next tenant's name is keyed within the hold of its first lookup; the old name at the old address is withheld, at the new one keyed; packets to the old address leave encrypted or not at all
//tacit:attack A-56 the next tenant of an address that proved a key: his name is answered after one probe of a second
//tacit:attack A-38 the packet after the idle SA's end waits for a new one, and leaves encrypted; nothing in clear
//tacit:attack A-40 two keys published: the old one's SA goes on satisfying, and who looks up after the change reaches the new one; packets without a lookup wait, none in clear
func TestChanges(t *testing.T) {
	w := &changes{newKey: newIdentity(t)}
	w.attackWorld = newAttackWorld(t, func(w *attackWorld) []zoneFile {
		return []zoneFile{{"example.", bindNSEC, shortLived(hostRecords("bob.example.", w.bob, &w.bobKey))}}
	})
	bob := options{name: "bob.example", identity: w.bobKey.pem, upstream: w.upstreamOfTheHost, top: `linger = "2s"`}
	w.bobTac = startTacit(t, w.bob, w.anchor, bob)
	w.aliceTac = startTacit(t, w.alice, w.anchor, options{upstream: w.upstreamOfTheHost})
	old := both(w.bob)
	mustAnswer(t, w.alice, "bob.example", old...)
	for _, a := range old {
		transfer(t, w.alice, w.bob, a, 1000)
	}

	// Bob's SAs with who is nobody to him end when they are idle. Alice has his address still.
	eventually(t, 10*time.Second, "bob has let go", func() bool { return len(w.bobTac.peers(w.alice)) == 0 })
	for _, p := range w.aliceTac.peers(w.bob) {
		if p.State != "withheld" {
			t.Errorf("alice's status of bob: %+v, want withheld", p)
		}
	}
	for _, a := range old {
		transfer(t, w.alice, w.bob, a, 1000)
	}
	w.onlyProtected(w.alice, w.bob)
	w.inClear(old...)

	// Bob publishes a second key, and then has that one alone.
	now := hostRecords("bob.example.", w.bob, &w.bobKey)
	w.says(now, []string{"bob.example. 60 IN " + w.newKey.typ45})
	before := w.handshakes()
	mustAnswer(t, w.alice, "bob.example", old...)
	if n := w.handshakes() - before; n != 0 {
		t.Errorf("%d negotiations because of a second key", n)
	}
	w.bobTac.kill()
	bob.identity = w.newKey.pem
	w.bobTac = startTacit(t, w.bob, w.anchor, bob)
	w.datagram(old...)
	mustAnswer(t, w.alice, "bob.example", old...)
	w.says(hostRecords("bob.example.", w.bob, &w.newKey))
	if a := mustAnswer(t, w.alice, "bob.example", old...); a.took > hold-300*time.Millisecond {
		t.Errorf("the new key alone: answered after %v, and the old one has a second to answer", a.took)
	}
	for _, a := range old {
		transfer(t, w.alice, w.bob, a, 1000)
	}
	w.inClear(old...)

	// Bob moves, and Carol gets his addresses.
	w.bobTac.kill()
	for i, p := range w.bob.Addrs() {
		if err := w.bob.DelAddr(p); err != nil {
			t.Fatal(err)
		}
		if err := w.bob.AddAddr(netip.MustParsePrefix([]string{"192.0.2.12/24", "2001:db8::12/64"}[i])); err != nil {
			t.Fatal(err)
		}
		if err := w.plain.AddAddr(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.alice.FlushNeighbours(); err != nil {
		t.Fatal(err)
	}
	w.bobTac.start(false)
	startTacit(t, w.plain, w.anchor, options{name: "carol.example", identity: w.malKey.pem, upstream: w.upstreamOfTheHost})
	w.datagram(old...) // to the address that Alice has of Bob
	carol := []string{fmt.Sprintf("carol.example. 60 IN A %s", old[0]), fmt.Sprintf("carol.example. 60 IN AAAA %s", old[1]), "carol.example. 60 IN " + w.malKey.typ45}
	w.says(hostRecords("bob.example.", w.bob, &w.newKey), carol)
	a := mustAnswer(t, w.alice, "carol.example", old...)
	t.Logf("carol.example AAAA after %v", a.took)
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	for i, a := range old {
		transfer(t, w.alice, w.plain, a, 1000)
		transfer(t, w.alice, w.bob, both(w.bob)[i], 1000)
	}
	w.inClear(append(old, both(w.bob)...)...)
	// Somebody plays the records of before.
	w.says([]string{fmt.Sprintf("bob.example. 60 IN A %s", old[0]), fmt.Sprintf("bob.example. 60 IN AAAA %s", old[1]), "bob.example. 60 IN " + w.newKey.typ45}, carol)
	mustWithhold(t, w.alice, "bob.example")
	for _, a := range old {
		transfer(t, w.alice, w.plain, a, 1000)
	}
	w.inClear(old...)
}
