package e2e

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

// tellsTruth is what the upstream behind the liar says, with DNSSEC's records.
func (l *liar) tellsTruth(name string, kind uint16) (*dns.Msg, error) {
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), kind)
	q.SetEdns0(4096, true)
	q.CheckingDisabled = true
	c, err := l.host.Dial(context.Background(), "tcp", l.truth)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	conn := &dns.Conn{Conn: c}
	if err := conn.WriteMsg(q); err != nil {
		return nil, err
	}
	return conn.ReadMsg()
}

// instead makes a lie: whatever is asked about name gets what is true of other, under the asked name.
func (l *liar) instead(name, other string) func(dns.Question, *dns.Msg) *dns.Msg {
	name, other = dns.Fqdn(name), dns.Fqdn(other)
	return func(q dns.Question, a *dns.Msg) *dns.Msg {
		if !strings.EqualFold(q.Name, name) {
			return a
		}
		b, err := l.tellsTruth(other, q.Qtype)
		if err != nil {
			return nil
		}
		for _, rr := range b.Answer {
			if strings.EqualFold(rr.Header().Name, other) {
				rr.Header().Name = name
			}
		}
		a.Answer, a.Ns, a.Rcode = b.Answer, b.Ns, b.Rcode
		return a
	}
}

// TestAliasThroughUnsigned is A-10: the weakest link of a chain decides, and the name that counts is the target's.
//
//tacit:attack A-10 the weakest link decides; the name in status is the target's
func TestAliasThroughUnsigned(t *testing.T) {
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		return []zoneFile{
			{"example.", bindNSEC, append(hostRecords("evil.example.", w.mallory, &w.malKey), "alias.example. 60 IN CNAME bob.three.",
				"via.example. 60 IN CNAME mid.plain.", "forged.example. 60 IN CNAME next.plain.", "moved.example. 60 IN CNAME bob.three.")},
			{"three.", bindNSEC3, hostRecords("bob.three.", w.bob, &w.bobKey)},
			{"plain.", unsigned, append(hostRecords("host.plain.", w.bob, nil), "mid.plain. 60 IN CNAME evil.example.", "next.plain. 60 IN CNAME host.plain.")},
		}
	})
	mallory := startTacit(t, w.mallory, w.anchor, options{name: "evil.example", identity: w.malKey.pem, upstream: w.upstreamOfTheHost})
	w.bobTac = startTacit(t, w.bob, w.anchor, options{name: "bob.three", identity: w.bobKey.pem, upstream: w.upstreamOfTheHost})
	w.aliceTac = startTacit(t, w.alice, w.anchor, options{upstream: w.upstreamOfTheHost})

	// Signed, unsigned, signed: the key at the end is genuine, and would be proven. Nobody says that it is via.example's.
	w.clearOnly(t, "via.example", w.mallory)
	// The same where the unsigned link was turned to Mallory's name on the way.
	w.liar.tell(func(q dns.Question, a *dns.Msg) *dns.Msg {
		name := strings.ToLower(q.Name)
		if name != "forged.example." && name != "next.plain." {
			return a
		}
		end, err := w.liar.tellsTruth("evil.example", q.Qtype)
		if err != nil {
			return nil
		}
		a.Answer = slices.DeleteFunc(a.Answer, func(rr dns.RR) bool { return !strings.EqualFold(rr.Header().Name, "forged.example.") })
		a.Answer = append(append(a.Answer, record(t, "next.plain. 60 IN CNAME evil.example.")), end.Answer...)
		a.Ns, a.Rcode = end.Ns, end.Rcode
		return a
	})
	w.clearOnly(t, "forged.example", w.mallory)
	if list := mallory.peers(w.alice); len(list) > 0 {
		t.Errorf("mallory's status of alice: %+v", list)
	}
	// A signed link that was turned is bogus.
	w.liar.tell(func(q dns.Question, a *dns.Msg) *dns.Msg {
		if strings.EqualFold(q.Name, "moved.example.") {
			for _, rr := range a.Answer {
				if c, ok := rr.(*dns.CNAME); ok {
					c.Target = "evil.example."
				}
			}
		}
		return a
	})
	mustWithhold(t, w.alice, "moved.example")
	w.liar.tell(nil)
	// Signed all the way: protected, and authenticated as the target.
	mustAnswer(t, w.alice, "alias.example", both(w.bob)...)
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 100_000)
	}
	w.onlyProtected(w.alice, w.bob)
	for _, p := range w.aliceTac.peers(w.bob) {
		if p.Assurance != "authenticated" || !slices.Equal(p.Names, []string{"bob.three"}) {
			t.Errorf("alice's status of bob: %+v", p)
		}
	}
	for _, a := range w.aliceTac.lookup("alias.example").Addresses {
		if a.ReportedAs != "authenticated as bob.three (via alias.example)" {
			t.Errorf("%v is reported as %q", a.Address, a.ReportedAs)
		}
	}
}

// clearOnly fails the test unless the name is answered at once, without AD, and what is sent to the host then is clear and nobody's.
func (w *attackWorld) clearOnly(t *testing.T, name string, at *lab.Host) {
	t.Helper()
	if a := mustAnswer(t, w.alice, name, both(at)...); a.AuthenticatedData || a.took > hold/4 {
		t.Errorf("%s: AD %v, after %v", name, a.AuthenticatedData, a.took)
	}
	for _, addr := range both(at) {
		transfer(t, w.alice, at, addr, 10_000)
	}
	w.neverAuthenticated(at)
	w.sync()
	if c := w.tap.BetweenHosts(w.alice, at); c.ESP() > 0 || c.Clear() == 0 || c[lab.ClassIKE].Packets > 0 {
		t.Errorf("%s: tap %v", name, c)
	}
}

// TestWildcardsAndGaps is A-11: an expansion counts only with the proof that no closer name is there, and a gap only for the names in it.
//
//tacit:attack A-11 withheld without the proof that no closer name is there
func TestWildcardsAndGaps(t *testing.T) {
	zones := []string{"example", "three", "ldns"}
	signers := []signer{bindNSEC, bindNSEC3, ldnsSigned}
	w := newAttackWorld(t, func(w *attackWorld) (list []zoneFile) {
		for i, z := range zones {
			r := append(hostRecords("*.wild."+z+".", w.mallory, nil), hostRecords("x.wild."+z+".", w.bob, &w.bobKey)...)
			r = append(append(r, hostRecords("*.keyed."+z+".", w.bob, &w.bobKey)...), hostRecords("keyless."+z+".", w.mallory, nil)...)
			r = append(r, hostRecords("bob."+z+".", w.bob, &w.bobKey)...)
			list = append(list, zoneFile{z + ".", signers[i], r})
		}
		return list
	})
	w.run("")
	strip := func(name string, kind uint16, rest int) func(dns.Question, *dns.Msg) *dns.Msg {
		return about(name, kind, func(a *dns.Msg) *dns.Msg {
			left := 0
			a.Ns = slices.DeleteFunc(a.Ns, func(rr dns.RR) bool {
				t := rr.Header().Rrtype
				if t == dns.TypeNSEC || t == dns.TypeNSEC3 {
					left++
				}
				return (t == dns.TypeNSEC || t == dns.TypeNSEC3) && left > rest
			})
			return a
		})
	}
	for i, z := range zones {
		rest := 0 // one NSEC says both that the name is not there and what the wildcard has
		if signers[i] == bindNSEC3 {
			rest = 1
		}
		for _, l := range []struct {
			what, name string
			lie        func(dns.Question, *dns.Msg) *dns.Msg
		}{
			{"a wildcard over a name that is there", "x.wild." + z, w.liar.instead("x.wild."+z, "zz.wild."+z)},
			{"a wildcard without the proof that there is no closer name", "q.keyed." + z, strip("q.keyed."+z, dns.TypeAAAA, 0)},
			{"a wildcard's key without that proof", "r.keyed." + z, strip("r.keyed."+z, typeKey, 0)},
			{"a wildcard's denial of a key, without the wildcard's own record", "s.wild." + z, strip("s.wild."+z, typeKey, rest)},
			{"the gap of another name", "bob." + z, about("bob."+z, typeKey, func(a *dns.Msg) *dns.Msg {
				b, err := w.liar.tellsTruth("none."+z, typeKey)
				if err != nil {
					return nil
				}
				a.Answer, a.Ns, a.Rcode = nil, b.Ns, b.Rcode
				return a
			})},
			{"the denial of another name's key", "bob." + z, about("bob."+z, typeKey, func(a *dns.Msg) *dns.Msg {
				b, err := w.liar.tellsTruth("keyless."+z, typeKey)
				if err != nil {
					return nil
				}
				a.Answer, a.Ns, a.Rcode = nil, b.Ns, b.Rcode
				return a
			})},
		} {
			t.Run(z+" "+l.what, func(t *testing.T) {
				w.liar.tell(l.lie)
				w.aliceTac.stop() // what it learned from the truth would answer for the liar (RFC 8198)
				w.aliceTac.start(false)
				a := ask(t, w.alice, l.name, dns.TypeAAAA)
				if code, text := a.ede(); a.Rcode != dns.RcodeServerFailure || len(a.addrs()) > 0 || text == "" {
					t.Errorf("%s: got EDE %d %q\n%v", l.name, code, text, a.Msg)
				} else {
					t.Logf("EDE %d %q", code, text)
				}
			})
		}
	}
	w.wantNothing(w.alice, w.bob)
	w.wantNothing(w.alice, w.mallory)
	w.wantNoPolicy()
	w.liar.tell(nil)
	forgetFailure()
	for _, z := range zones {
		mustAnswer(t, w.alice, "a.wild."+z, both(w.mallory)...)
		for _, name := range []string{"x.wild.", "b.keyed.", "bob."} {
			mustAnswer(t, w.alice, name+z, both(w.bob)...)
		}
	}
	for _, addr := range []netip.Addr{w.bob.Addr4(), w.bob.Addr6()} {
		transfer(t, w.alice, w.bob, addr, 100_000)
	}
	w.onlyProtected(w.alice, w.bob)
}
