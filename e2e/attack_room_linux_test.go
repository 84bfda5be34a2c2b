package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/ike"
	"tacit/ipsec"
)

// TestRoom: Mallory takes every place that Alice has for peers, from hundreds of addresses, as nobody, and answers whatever he is asked. What Alice has
// stays, while she looks up what leads nowhere: an SA that proved a key and is idle, one of nobody's that is in use, and an idle one of nobody's where the class is private. Whom she looks up next
// gets a place.
//
//tacit:attack A-51 strangers from 300 addresses at a table of 32: it stays within its bounds; an idle SA that proved a key, one in use and one of class private stay; who is looked up next is keyed within the hold, in the place of a stranger; no packet in clear to any of them
func TestRoom(t *testing.T) {
	const places, spare, strangers, page = 32, 8, 300, 100
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		r := []string{
			fmt.Sprintf("bob.example. 60 IN A %s", w.bob.Addr4()), "bob.example. 60 IN " + w.bobKey.typ45,
			fmt.Sprintf("late.example. 60 IN AAAA %s", w.bob.Addr6()), "late.example. 60 IN " + w.bobKey.typ45,
			fmt.Sprintf("nobody.example. 60 IN A %s", w.plain.Addr4()),
		}
		for i := range page {
			r = append(r, fmt.Sprintf("n%d.example. 60 IN A 192.0.2.%d", i, 100+i), fmt.Sprintf("n%d.example. 60 IN %s", i, w.malKey.typ45))
		}
		return []zoneFile{{"example.", bindNSEC, r}}
	})
	route(t, w.alice, w.mallory)
	w.bobTac = startTacit(t, w.bob, w.anchor, options{name: "bob.example", identity: w.bobKey.pem, upstream: w.upstreamOfTheHost})
	startTacit(t, w.plain, w.anchor, options{upstream: w.upstreamOfTheHost})
	w.aliceTac = startTacit(t, w.alice, w.anchor, options{upstream: w.upstreamOfTheHost, top: fmt.Sprintf("max-peers = %d\n", places),
		policy: fmt.Sprintf("[[policy]]\nmatch = [\"nobody.example\"]\nclass = \"private\"\nanonymous = true\n\n[[policy]]\nmatch = [%q]\nclass = \"private\"\naccept-anonymous = true\n",
			initiatorAddr(0))})

	private := ike.Peer{Remote: netip.AddrPortFrom(w.alice.Addr4(), 500), LocalID: ike.ID{Kind: ike.IDNull}, Auth: ike.Authorization{Anonymous: true, Mode: ipsec.Transport}}
	m := newLoad(t, w.mallory, w.malKey, func(int) string { return "" }, private)
	m.setUp(1, 1)
	for name, at := range map[string]netip.Addr{"bob.example": w.bob.Addr4(), "nobody.example": w.plain.Addr4()} {
		if a := ask(t, w.alice, name, dns.TypeA); len(a.addrs()) != 1 || a.addrs()[0] != at {
			t.Fatalf("%s: %v", name, a.Msg)
		}
	}
	flow := startStream(t, w.alice, w.plain, w.plain.Addr4())

	for i, in := range m.prepare(strangers) {
		in.began = time.Now()
		m.send(in.first)
		m.turn(time.Second, func() bool { return i%8 != 0 || len(m.in) == 0 })
	}
	m.idle(armed)
	full := w.aliceTac.rows()
	t.Logf("%d strangers: %d have an SA, %d were refused; alice knows %d peers", strangers, m.up, len(m.lost), len(full))
	if m.up < places/2 || len(full) < places || len(full) > places+spare {
		t.Fatalf("alice knows %d peers, and %d strangers have an SA: the table is not full", len(full), m.up)
	}

	late := make(chan error, 1)
	go func() {
		a, err := query(t.Context(), w.alice, "late.example", dns.TypeAAAA)
		if err == nil && (len(a.addrs()) != 1 || a.took > hold) {
			err = fmt.Errorf("after %v:\n%v", a.took, a.Msg)
		}
		late <- err
	}()
	m.turn(hold+slack, func() bool { return len(late) > 0 })
	if err := <-late; err != nil {
		t.Errorf("late.example, with a full table: %v", err)
	}
	// A page of names that lead nowhere takes the places of all strangers that are left, and of nobody else.
	before := m.up
	for i := range page {
		go func() { _, _ = query(t.Context(), w.alice, fmt.Sprintf("n%d.example", i), dns.TypeA) }()
		if i%10 == 0 {
			m.idle(150 * time.Millisecond)
		}
	}
	m.idle(slack)
	if t.Logf("%d strangers are left of %d", m.up, before); m.up != 1 {
		t.Errorf("%d SAs are left, want that of class private: %v", m.up, m.lost[len(m.lost)-1])
	}
	flow.goesOn(disturbed)
	transfer(t, w.alice, w.bob, w.bob.Addr4(), 100_000)
	transfer(t, w.alice, w.bob, w.bob.Addr6(), 100_000)
	after := w.aliceTac.rows()
	if len(after) > places+spare {
		t.Errorf("alice knows %d peers", len(after))
	}
	for what, addr := range map[string]netip.Addr{"bob": w.bob.Addr4(), "bob, looked up late": w.bob.Addr6(), "who is in use": w.plain.Addr4(), "who is private": initiatorAddr(0)} {
		if p := after[addr]; p.State != "protected" {
			t.Errorf("%s: %+v", what, p)
		}
	}
	w.onlyProtected(w.alice, w.bob)
	w.onlyProtected(w.alice, w.plain)
}

// armed is how long a stranger may leave an SA unused until it counts as idle, and somewhat more.
const armed = 5500 * time.Millisecond

// rows are the daemon's peers by their address.
func (d *tacit) rows() map[netip.Addr]peerStatus {
	d.t.Helper()
	of := map[netip.Addr]peerStatus{}
	for _, p := range d.statusPeers() {
		of[p.Address] = p
	}
	return of
}
