package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

// dnsWorld has names with and without keys in signed zones (NSEC and NSEC3) and in an unsigned one, and runs tacit on Alice,
// Bob and Mallory, who has a key of his own.
func dnsWorld(t *testing.T) *attackWorld {
	t.Helper()
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		var zones []zoneFile
		for _, z := range []zoneFile{{"example.", bindNSEC, nil}, {"three.", bindNSEC3, nil}, {"ldns.", ldnsSigned, nil}} {
			z.records = append(hostRecords("bob."+z.apex, w.bob, &w.bobKey), hostRecords("keyless."+z.apex, w.bob, nil)...)
			z.records = append(z.records, hostRecords("*.wild."+z.apex, w.bob, nil)...)
			z.records = append(z.records, hostRecords("carol."+z.apex, w.mallory, &w.bobKey)...)
			zones = append(zones, z)
		}
		return append(zones, zoneFile{"plain.", unsigned, append(hostRecords("host.plain.", w.mallory, nil), hostRecords("bob.plain.", w.bob, nil)...)})
	})
	w.run("")
	return w
}

// forgetFailure waits until a failure may be asked for again (RFC 9520, 3.2: a second).
func forgetFailure() { time.Sleep(1100 * time.Millisecond) }

const typeKey = dns.TypeIPSECKEY

// TestStrippedKey is: the key, or the proof that there is none, is taken away in all the ways that somebody
// on the path of DNS has.
//
//tacit:attack A-01 ten ways to strip the key or its denial: SERVFAIL within the hold each time; no packet, no policy
func TestStrippedKey(t *testing.T) {
	w := dnsWorld(t)
	lies := []struct {
		what, name string
		lie        func(a *dns.Msg) *dns.Msg
	}{
		{"the key is removed", "bob.example", func(a *dns.Msg) *dns.Msg { a.Answer = without(a.Answer, typeKey); return a }},
		{"its signature is removed", "bob.three", func(a *dns.Msg) *dns.Msg {
			a.Answer = a.Answer[:1]
			return a
		}},
		{"NXDOMAIN is forged", "bob.ldns", func(a *dns.Msg) *dns.Msg { a.Answer, a.Rcode = nil, dns.RcodeNameError; return a }},
		{"an empty answer is forged", "carol.example", func(a *dns.Msg) *dns.Msg { a.Answer, a.Ns = nil, nil; return a }},
		{"NSEC is removed", "keyless.example", func(a *dns.Msg) *dns.Msg { a.Ns = without(a.Ns, dns.TypeNSEC); return a }},
		{"NSEC3 is removed", "keyless.three", func(a *dns.Msg) *dns.Msg { a.Ns = without(a.Ns, dns.TypeNSEC3); return a }},
		{"NSEC's signature is removed", "keyless.ldns", func(a *dns.Msg) *dns.Msg {
			var ns []dns.RR
			for _, rr := range a.Ns {
				if sig, ok := rr.(*dns.RRSIG); !ok || sig.TypeCovered != dns.TypeNSEC {
					ns = append(ns, rr)
				}
			}
			a.Ns = ns
			return a
		}},
		{"the proof of the wildcard's denial is removed", "a.wild.example", func(a *dns.Msg) *dns.Msg { a.Ns = without(a.Ns, dns.TypeNSEC); return a }},
		{"SERVFAIL", "carol.three", func(a *dns.Msg) *dns.Msg { a.Answer, a.Rcode = nil, dns.RcodeServerFailure; return a }},
		{"silence", "carol.ldns", func(*dns.Msg) *dns.Msg { return nil }},
	}
	for _, l := range lies {
		t.Run(l.what, func(t *testing.T) {
			w.liar.tell(about(l.name, typeKey, l.lie))
			mustWithhold(t, w.alice, l.name)
		})
	}
	w.liar.tell(about("bob.example", typeKey, lies[0].lie))
	forgetFailure()
	if _, err := getaddrinfo(t, w.alice, "ahosts", "bob.example"); err == nil {
		t.Error("getaddrinfo has an answer")
	}
	w.wantNothing(w.alice, w.bob)
	w.wantNothing(w.alice, w.mallory)
	w.wantNoPolicy()
	w.liar.tell(nil)
	forgetFailure()
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	mustAnswer(t, w.alice, "keyless.ldns", both(w.bob)...)
	transfer(t, w.alice, w.bob, w.bob.Addr4(), 100_000)
	w.onlyProtected(w.alice, w.bob)
}

// spoil alters a signature over the type.
func spoil(rrs []dns.RR, kind uint16) {
	for _, rr := range rrs {
		if sig, ok := rr.(*dns.RRSIG); ok && sig.TypeCovered == kind {
			first := byte('A')
			if sig.Signature[0] == first {
				first = 'B'
			}
			sig.Signature = string(first) + sig.Signature[1:]
		}
	}
}

// TestBogusKey is A-02: SERVFAIL with EDE 6, and the truth counts as soon as it is told.
//
//tacit:attack A-02 SERVFAIL with EDE 6, twice; the truth counts as soon as it is told
func TestBogusKey(t *testing.T) {
	w := dnsWorld(t)
	for _, name := range []string{"bob.example", "bob.three", "bob.ldns"} {
		w.liar.tell(about(name, typeKey, func(a *dns.Msg) *dns.Msg { spoil(a.Answer, typeKey); return a }))
		for range 2 { // the second finds a cache
			if code, _ := mustWithhold(t, w.alice, name).ede(); code != dns.ExtendedErrorCodeDNSBogus {
				t.Errorf("%s: EDE %d, want 6", name, code)
			}
		}
	}
	// The key itself altered under a good signature; its own record asked for is bogus too.
	w.liar.tell(about("carol.example", typeKey, func(a *dns.Msg) *dns.Msg {
		for _, rr := range a.Answer {
			if k, ok := rr.(*dns.IPSECKEY); ok {
				k.PublicKey = "A" + k.PublicKey[1:]
				k.Precedence++
			}
		}
		return a
	}))
	if code, _ := mustWithhold(t, w.alice, "carol.example").ede(); code != dns.ExtendedErrorCodeDNSBogus {
		t.Errorf("altered key: EDE %d, want 6", code)
	}
	if r := ask(t, w.alice, "carol.example", typeKey); r.Rcode != dns.RcodeServerFailure || len(r.Answer) > 0 {
		t.Errorf("the altered key is passed on:\n%v", r.Msg)
	}
	w.wantNothing(w.alice, w.bob)
	w.wantNoPolicy()

	w.liar.tell(nil) // repaired
	forgetFailure()
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	transfer(t, w.alice, w.bob, w.bob.Addr4(), 100_000)
	w.onlyProtected(w.alice, w.bob)
}

// TestBogusAddress is A-04: an address that is not the zone's does not become so by the genuine key beside it.
//
//tacit:attack A-04 SERVFAIL, also with CD where the key is proven; no IKE is sent
func TestBogusAddress(t *testing.T) {
	w := dnsWorld(t)
	move := func(a *dns.Msg) *dns.Msg {
		for _, rr := range a.Answer {
			switch rr := rr.(type) {
			case *dns.A:
				rr.A = w.mallory.Addr4().AsSlice()
			case *dns.AAAA:
				rr.AAAA = w.mallory.Addr6().AsSlice()
			}
		}
		return a
	}
	unsign := func(a *dns.Msg) *dns.Msg { a.Answer = a.Answer[:1]; return a }
	for _, l := range []struct {
		what, name string
		lie        func(a *dns.Msg) *dns.Msg
	}{
		{"moved", "bob.example", move},
		{"moved and unsigned", "bob.three", func(a *dns.Msg) *dns.Msg { return unsign(move(a)) }},
		{"unsigned", "bob.ldns", unsign},
		{"moved, of a name without a key", "keyless.example", move},
	} {
		w.liar.tell(func(q dns.Question, a *dns.Msg) *dns.Msg {
			if !strings.EqualFold(q.Name, l.name+".") || q.Qtype == typeKey || len(a.Answer) == 0 {
				return a
			}
			return l.lie(a)
		})
		code, _ := mustWithhold(t, w.alice, l.name).ede()
		if code != dns.ExtendedErrorCodeDNSBogus && code != dns.ExtendedErrorCodeRRSIGsMissing {
			t.Errorf("%s: EDE %d, want 6 or 10", l.what, code)
		}
		// With CD the stub wants to judge for itself; where the key is proven the address does not leave all the same.
		r, err := query(t.Context(), w.alice, l.name, dns.TypeA, func(q *dns.Msg) { q.CheckingDisabled = true })
		if err != nil || l.name != "keyless.example" && len(r.addrs()) > 0 || r.AuthenticatedData {
			t.Errorf("%s, with CD: got\n%v\n%v", l.what, r.Msg, err)
		}
	}
	w.wantNoPolicy()
	wantNoElements(t, w.mallory)
	w.sync()
	for _, p := range w.tap.Select(func(p lab.Packet) bool { return p.Class == lab.ClassIKE }) {
		t.Errorf("IKE: %v -> %v", p.Src, p.Dst)
	}
}

// TestInjectedKey is A-03: a key that nobody signed never authenticates anybody.
//
//tacit:attack A-03 status never says authenticated, nothing stands on any address, the attacker who has the key meets nobody
func TestInjectedKey(t *testing.T) {
	w := dnsWorld(t)
	// Mallory would prove his key to everybody who believes that it belongs to the name.
	mallory := startTacit(t, w.mallory, w.anchor, options{name: "host.plain", identity: w.malKey.pem, upstream: w.upstreamOfTheHost})
	inject := func(name string) func(*dns.Msg) *dns.Msg {
		return func(a *dns.Msg) *dns.Msg {
			a.Rcode = dns.RcodeSuccess
			a.Answer = append(a.Answer, record(t, fmt.Sprintf("%s. 60 IN %s", name, w.malKey.typ45)))
			return a
		}
	}
	t.Run("unsigned zone", func(t *testing.T) {
		w.liar.tell(about("host.plain", typeKey, inject("host.plain")))
		mustAnswer(t, w.alice, "host.plain", both(w.mallory)...)
		transfer(t, w.alice, w.mallory, w.mallory.Addr4(), 100_000)
		w.neverAuthenticated(w.mallory)
		w.sync()
		if c := w.tap.BetweenHosts(w.alice, w.mallory); c.Clear() == 0 {
			t.Errorf("tap: %v", c)
		}
		if r := ask(t, w.alice, "host.plain", typeKey); r.AuthenticatedData {
			t.Error("the injected key is passed on with AD")
		}
	})
	t.Run("beside the genuine one", func(t *testing.T) {
		for _, name := range []string{"carol.example", "carol.three"} {
			w.liar.tell(about(name, typeKey, inject(name)))
			mustWithhold(t, w.alice, name)
		}
		w.neverAuthenticated(w.mallory)
	})
	t.Run("in place of a denial", func(t *testing.T) {
		w.liar.tell(about("keyless.example", typeKey, func(a *dns.Msg) *dns.Msg { a.Ns = nil; return inject("keyless.example")(a) }))
		mustWithhold(t, w.alice, "keyless.example")
	})
	t.Run("in another section", func(t *testing.T) {
		w.liar.tell(func(q dns.Question, a *dns.Msg) *dns.Msg {
			if strings.EqualFold(q.Name, "keyless.three.") {
				a.Extra = append([]dns.RR{record(t, "keyless.three. 60 IN "+w.malKey.typ45)}, a.Extra...)
			}
			return a
		})
		mustAnswer(t, w.alice, "keyless.three", both(w.bob)...) // the denial is genuine
	})
	wantNoElements(t, w.alice, w.bob, w.mallory)
	if list := mallory.peers(w.alice); len(list) > 0 {
		t.Errorf("mallory's status of alice: %+v", list)
	}
}

// neverAuthenticated fails the test if Alice's status says that anybody at the host is authenticated.
func (w *attackWorld) neverAuthenticated(at *lab.Host) {
	w.t.Helper()
	for _, p := range w.aliceTac.peers(at) {
		if p.Assurance == "authenticated" || p.KeyID != "" {
			w.t.Errorf("alice's status of %s: %+v", at.Name, p)
		}
	}
}

// TestUpstreamStalls: silence for one name is nobody else's trouble.
func TestUpstreamStalls(t *testing.T) {
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		z := zoneFile{"example.", bindNSEC, append(hostRecords("bob.example.", w.bob, &w.bobKey), hostRecords("stall.example.", w.bob, &w.bobKey)...)}
		z.records = append(z.records, "late.example. 60 IN A 192.0.2.3")
		for i := range 40 {
			z.records = append(z.records, fmt.Sprintf("n%d.example. 60 IN A 192.0.2.3", i))
		}
		return []zoneFile{z, {"three.", bindNSEC3, hostRecords("stall.three.", w.bob, &w.bobKey)}}
	})
	w.run("")
	w.liar.tell(func(q dns.Question, a *dns.Msg) *dns.Msg {
		name := strings.ToLower(q.Name)
		if name == "stall.example." && q.Qtype == typeKey || name == "stall.three." {
			return nil
		}
		return a
	})
	var wg sync.WaitGroup
	began := time.Now()
	for _, name := range []string{"stall.example", "stall.three"} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
			wg.Go(func() {
				r, err := query(t.Context(), w.alice, name, kind)
				if err != nil || r.Rcode != dns.RcodeServerFailure || r.took > hold+slack {
					t.Errorf("%s: %v after %v, error %v, want SERVFAIL within the hold", name, r.Msg, r.took, err)
				}
			})
		}
	}
	time.Sleep(50 * time.Millisecond) // so that they stall by now
	var longest time.Duration
	for i := range 40 {
		a := mustAnswer(t, w.alice, fmt.Sprintf("n%d.example", i), netip.MustParseAddr("192.0.2.3"))
		longest = max(longest, a.took)
	}
	first := mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	transfer(t, w.alice, w.bob, w.bob.Addr6(), 100_000)
	if d := time.Since(began); d > hold {
		t.Errorf("the others were done after %v, which is after the hold", d)
	}
	t.Logf("the longest of 40 other lookups %v; bob.example AAAA with its handshake %v", longest.Round(10*time.Microsecond), first.took.Round(10*time.Microsecond))
	wg.Wait()
	// Nor is it the others' trouble in the same zone afterwards.
	mustAnswer(t, w.alice, "late.example", netip.MustParseAddr("192.0.2.3"))
	w.onlyProtected(w.alice, w.bob)
}

// TestSecondNameserver is A-55: with another nameserver beside tacit, a stub takes from there what tacit withholds. Status
// says so.
//
//tacit:attack A-55 status says FAIL, and which server
func TestSecondNameserver(t *testing.T) {
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		return []zoneFile{{"example.", bindNSEC, hostRecords("bob.example.", w.bob, &w.bobKey)}}
	})
	w.aliceTac = startTacit(t, w.alice, w.anchor, options{upstream: w.upstreamOfTheHost})
	line := func() string {
		out, err := w.aliceTac.run("status")
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(out) {
			if strings.Contains(l, "stub") {
				return strings.TrimSpace(l)
			}
		}
		t.Fatalf("no line about the stub in:\n%s", out)
		return ""
	}
	if l := line(); !strings.HasSuffix(l, "ok") {
		t.Errorf("alone: %q", l)
	}
	for _, conf := range []string{"nameserver 127.0.0.1\nnameserver 192.0.2.54\n", "nameserver 192.0.2.54\nnameserver 127.0.0.1\n", "nameserver 192.0.2.54\n"} {
		put(t, w.alice, "/etc/resolv.conf", conf)
		if l := line(); !strings.Contains(l, "FAIL") || !strings.Contains(l, "192.0.2.54") {
			t.Errorf("with %q: %q, want FAIL and 192.0.2.54", conf, l)
		} else {
			t.Log(l)
		}
	}
	put(t, w.alice, "/etc/resolv.conf", "nameserver 127.0.0.1\n")
	if l := line(); !strings.HasSuffix(l, "ok") {
		t.Errorf("alone again: %q", l)
	}
}
