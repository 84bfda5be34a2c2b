package e2e

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

// trustWorld has names that lead to Bob in all the ways that DNS has.
func trustWorld(t *testing.T, top string) *attackWorld {
	t.Helper()
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		bob := append(hostRecords("bob.example.", w.bob, &w.bobKey), hostRecords("shared.example.", w.bob, &w.bobKey)...)
		bob = append(bob, hostRecords("keyless.example.", w.plain, nil)...)
		bob = append(bob, "www.example. 60 IN CNAME bob.example.", "hop.example. 60 IN CNAME alias.three.", "out.example. 60 IN CNAME alias.plain.",
			"long.example. 7200 IN A 192.0.2.2", "long.example. 7200 IN "+w.bobKey.typ45)
		return []zoneFile{
			{"example.", bindNSEC, bob},
			{"three.", bindNSEC3, append(hostRecords("evilhost.three.", w.bob, &w.malKey), "alias.three. 60 IN CNAME bob.example.")},
			{"plain.", unsigned, append(hostRecords("host.plain.", w.plain, nil), "alias.plain. 60 IN CNAME bob.example.")},
		}
	})
	w.run(top)
	return w
}

// handshakes counts the IKE_SA_INIT requests that Alice sent to Bob.
func (w *attackWorld) handshakes() int {
	w.sync()
	return len(w.tap.Select(func(p lab.Packet) bool {
		h, ok := p.IKEHeader()
		return ok && h.Exchange == 34 && !h.Response && has(w.alice, p.Src) && has(w.bob, p.Dst)
	}))
}

// TestAnswers looks at what stubs get to see: AD only for what was validated, TTLs that end with the claim and never grow, and
// nothing added to or changed in what the zone says.
func TestAnswers(t *testing.T) {
	const linger = 20 * time.Second
	w := trustWorld(t, `linger = "20s"`)
	for _, tt := range []struct {
		name   string
		ad     bool
		maxTTL uint32
		want   []string // types in the answer, in order
	}{
		{"bob.example", true, 20, []string{"A"}},
		{"keyless.example", true, 60, []string{"A"}},
		{"www.example", true, 20, []string{"CNAME", "A"}},
		{"hop.example", true, 20, []string{"CNAME", "CNAME", "A"}},
		{"host.plain", false, 60, []string{"A"}},
		{"alias.plain", false, 60, []string{"CNAME", "A"}},
		{"out.example", false, 60, []string{"CNAME", "CNAME", "A"}},
	} {
		a := ask(t, w.alice, tt.name, dns.TypeA)
		var kinds []string
		for _, rr := range a.Answer {
			kinds = append(kinds, dns.Type(rr.Header().Rrtype).String())
			if ttl := rr.Header().Ttl; ttl > tt.maxTTL || ttl == 0 {
				t.Errorf("%s: TTL %d, want 1 to %d", tt.name, ttl, tt.maxTTL)
			}
		}
		if a.Rcode != dns.RcodeSuccess || !slices.Equal(kinds, tt.want) || a.AuthenticatedData != tt.ad {
			t.Errorf("%s: got\n%v\nwant %v, AD %v", tt.name, a.Msg, tt.want, tt.ad)
		}
	}
	// A client that knows nothing of DNSSEC is not told (RFC 6840, 5.8).
	if a, err := query(t.Context(), w.alice, "bob.example", dns.TypeA, func(q *dns.Msg) { q.AuthenticatedData = false }); err != nil || a.AuthenticatedData || len(a.addrs()) != 1 {
		t.Errorf("without AD: got\n%v\n%v", a.Msg, err)
	}
	// One that wants the proofs gets them, and may check them itself.
	a, err := query(t.Context(), w.alice, "bob.example", dns.TypeA, func(q *dns.Msg) { q.IsEdns0().SetDo() })
	if err != nil || !a.AuthenticatedData || len(a.Answer) != 2 || a.Answer[1].Header().Rrtype != dns.TypeRRSIG {
		t.Errorf("with DO: got\n%v\n%v", a.Msg, err)
	}
	if n := w.handshakes(); n != 1 {
		t.Errorf("%d negotiations for the names of one host and family, want 1", n)
	}
	// The second time it is the cache's, and the TTL went on.
	time.Sleep(1100 * time.Millisecond)
	if a := ask(t, w.alice, "keyless.example", dns.TypeA); len(a.Answer) != 1 || a.Answer[0].Header().Ttl > 59 {
		t.Errorf("a second later: got\n%v\nwant a TTL of at most 59", a.Msg)
	}
	// long.example may be kept for two hours, but its address is held for linger after the last proof only.
	if a := ask(t, w.alice, "long.example", dns.TypeA); len(a.Answer) != 1 || a.Answer[0].Header().Ttl > uint32(linger/time.Second) {
		t.Errorf("long.example: got\n%v\nwant a TTL of at most linger", a.Msg)
	}
	w.tap.Reset()
	for _, name := range []string{"www.example", "hop.example"} { // by the alias to the encrypted host
		if addrs, err := getaddrinfo(t, w.alice, "ahostsv4", name); err != nil || !slices.Equal(addrs, []string{"192.0.2.2"}) {
			t.Errorf("%s: %v, %v", name, addrs, err)
		}
		transfer(t, w.alice, w.bob, w.bob.Addr4(), 100_000)
	}
	w.onlyProtected(w.alice, w.bob)
}

// TestAliasKeysFirst: the first lookup is of an alias; the key is its target's.
func TestAliasKeysFirst(t *testing.T) {
	w := trustWorld(t, "")
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
		if a := ask(t, w.alice, "hop.example", kind); a.Rcode != dns.RcodeSuccess || len(a.addrs()) != 1 || !a.AuthenticatedData {
			t.Errorf("hop.example: got\n%v", a.Msg)
		}
	}
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 100_000)
	}
	w.onlyProtected(w.alice, w.bob)
	for _, p := range w.aliceTac.peers(w.bob) {
		if p.Assurance != "authenticated" || !slices.Contains(p.Names, "bob.example") {
			t.Errorf("status: %+v, want authenticated as bob.example", p)
		}
	}
}

// TestSharedHosting: two names have Bob's address and key. Bob refuses to be asked for a name that is not his, so that he is
// asked for none; the key is what he must show. After the first name the second is answered at once, without a negotiation. A
// name with another key at the address is withheld, before and after.
//
//tacit:attack A-09 the co-tenant's name alone is withheld, before and after the others' SA
//tacit:attack A-14 the host refuses the name that is not its own; asked for none, it proves the key, and the key is what counts
func TestSharedHosting(t *testing.T) {
	for _, order := range [][2]string{{"bob.example", "shared.example"}, {"shared.example", "bob.example"}} {
		t.Run(order[0], func(t *testing.T) {
			w := trustWorld(t, "")
			mustWithhold(t, w.alice, "evilhost.three")
			wantNoElements(t, w.alice, w.bob)
			first := mustAnswer(t, w.alice, order[0], both(w.bob)...)
			before := w.handshakes()
			second := mustAnswer(t, w.alice, order[1], both(w.bob)...)
			t.Logf("%s AAAA after %v, %s after %v", order[0], first.took, order[1], second.took)
			if n := w.handshakes() - before; n != 0 {
				t.Errorf("%d negotiations for the second name, want none", n)
			}
			mustWithhold(t, w.alice, "evilhost.three")
			for _, name := range order {
				mustAnswer(t, w.alice, name, both(w.bob)...)
			}
			for _, addr := range both(w.bob) {
				transfer(t, w.alice, w.bob, addr, 100_000)
			}
			w.onlyProtected(w.alice, w.bob)
			for _, p := range w.aliceTac.peers(w.bob) {
				if want := []string{"bob.example", "shared.example"}; !slices.Equal(p.Names, want) || p.Assurance != "authenticated" {
					t.Errorf("status: %+v, want the names %v", p, want)
				}
			}
		})
	}
}

// TestAllOurAddresses: a lookup protects what is sent to Bob from any of Alice's addresses, also from one that she gets later.
func TestAllOurAddresses(t *testing.T) {
	w := trustWorld(t, "")
	add := func(p string) netip.Addr {
		prefix := netip.MustParsePrefix(p)
		if err := w.alice.AddAddr(prefix); err != nil {
			t.Fatal(err)
		}
		return prefix.Addr()
	}
	second4, second6 := add("192.0.2.11/24"), add("2001:db8::11/64")
	time.Sleep(300 * time.Millisecond) // tacit has seen them
	mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
	third := add("192.0.2.12/24")
	time.Sleep(1300 * time.Millisecond)
	for _, from := range []netip.Addr{second4, second6, third} {
		to := w.bob.Addr4()
		if from.Is6() {
			to = w.bob.Addr6()
		}
		if p, err := ping(w.alice, from, to, 5, 50*time.Millisecond); err != nil || p.received != p.sent {
			t.Errorf("from %v: %v, %v", from, p, err)
		}
		w.sync()
		count := func(clear bool) int {
			return len(w.tap.Select(func(p lab.Packet) bool {
				mine := p.Src == from && p.Dst == to || p.Src == to && p.Dst == from
				return mine && (clear && p.Class == lab.ClassClear || !clear && (p.Class == lab.ClassESP || p.Class == lab.ClassESPUDP))
			}))
		}
		if esp, clear := count(false), count(true); clear != 0 || esp < 10 {
			t.Errorf("from %v: %d packets of ESP and %d in clear, want 10 and 0", from, esp, clear)
		}
	}
}

// TestObserve: an administrator who only looks sees what would be done, and nothing is: no rule, no device, no IKE, no answer
// withheld or held.
func TestObserve(t *testing.T) {
	w := trustWorld(t, "")
	w.aliceTac.stop()
	before := kernelState(t, w.alice)
	w.tap.Reset()
	w.aliceTac.start(true)
	mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
	mustResolve(t, w.alice, "evilhost.three", w.bob.Addr4().String(), w.bob.Addr6().String()) // whose key Bob has not
	if p, err := ping(w.alice, w.alice.Addr4(), w.bob.Addr4(), 3, 10*time.Millisecond); err != nil || p.received != 3 {
		t.Errorf("%v, %v", p, err)
	}
	sameState(t, w.alice, before)
	if n := w.handshakes(); n != 0 {
		t.Errorf("%d negotiations by a daemon that only observes", n)
	}
	w.sync()
	if c := w.tap.BetweenHosts(w.alice, w.bob); c.ESP() != 0 || c.Clear() == 0 {
		t.Errorf("the tap saw %v, want packets in clear and no ESP", c)
	}
	for _, want := range []string{"msg=dns-validated name=bob.example.", "msg=dns-validated name=evilhost.three."} {
		eventually(t, time.Second, want+" in the log", func() bool { return strings.Contains(w.aliceTac.log(), want) })
	}
}
