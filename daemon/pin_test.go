package daemon

import (
	"net/netip"
	"testing"

	"tacit/config"
	"tacit/dnssec"
	"tacit/ike"
	"tacit/ipseckey"
	"tacit/pad"
	"tacit/policy"
	"tacit/resolver"
)

// pin puts pins in force as a reload does.
func pin(p *play, l *loop, pins config.Pins) {
	old := l.d.rules.Load()
	f := *l.d.cfg.File
	f.Pins = pins
	l.d.obey(&f)
	l.reconsider(p.now, old, l.d.rules.Load())
}

func id(k byte) string { return ipseckey.Fingerprint(testKey(k)) }

// I2: a pin that the live key is not ends its SA. The address stays held, but for the pinned key: the other does not come in any more, neither when we
// ask nor when it comes.
func TestPinAgainstTheLiveKey(t *testing.T) {
	for _, subject := range []string{"bob.example.", "192.0.2.2"} {
		p, l := reloadPlay(t)
		pin(p, l, config.Pins{subject: {id(1), id(2)}})
		if p.p.authenticated() == nil {
			t.Fatalf("%s: pinned to its own key it lost its SA", subject)
		}
		pin(p, l, config.Pins{subject: {id(2)}})
		if p.p.authenticated() != nil || !p.p.pad.Held(p.now) {
			t.Errorf("%s: SA %v, held %v", subject, p.p.authenticated(), p.p.pad.Held(p.now))
		}
		if keys := p.p.last.Keys; len(keys) != 1 || keys[0].ID != id(2) {
			t.Errorf("%s: a held packet would have it asked for %+v", subject, p.p.last)
		}
		a, _ := l.verdict(p.now, ike.AuthorizationWanted{Local: netip.AddrPortFrom(p.p.local, 500), Remote: netip.AddrPortFrom(p.p.remote, 500)}, p.claim("bob.example.", 2))
		if a.Anonymous || len(a.Keys) != 1 || ipseckey.Fingerprint(a.Keys[0]) != id(2) {
			t.Errorf("%s: who comes may be %+v", subject, a)
		}
	}
}

// R3: what the administrator says of an address comes before what names publish, and before who proves himself there.
func TestPinComesFirst(t *testing.T) {
	f := config.Default()
	f.Pins = config.Pins{"192.0.2.2": {id(2)}, "www.example.": {id(1)}}
	found := func(name string, addr, key dnssec.Status) resolver.Found {
		return resolver.Found{Asked: name, Owner: name, AddrStatus: addr, KeyStatus: key, Keys: []ipseckey.Record{{Key: testKey(1)}}}
	}
	at, elsewhere := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	for _, tt := range []struct {
		f       resolver.Found
		addr    netip.Addr
		outcome policy.Outcome
		key     string
	}{
		{found("bob.example.", dnssec.Secure, dnssec.Secure), at, policy.Protect, id(2)},
		{found("bob.example.", dnssec.Insecure, dnssec.Insecure), at, policy.Protect, id(2)},
		{found("bob.example.", dnssec.Bogus, dnssec.Bogus), at, policy.ServFail, ""},
		{found("bob.example.", dnssec.Secure, dnssec.Secure), elsewhere, policy.Protect, id(1)},
		{found("www.example.", dnssec.Secure, dnssec.Secure), at, policy.Withhold, ""},
		{found("www.example.", dnssec.Insecure, dnssec.Insecure), elsewhere, policy.Protect, id(1)},
	} {
		d := Decide(f.Table(), pad.Environment{}, tt.f, tt.addr)
		key := ""
		if len(d.Claim.Keys) == 1 {
			key = d.Claim.Keys[0].ID
		}
		if d.Outcome != tt.outcome || key != tt.key {
			t.Errorf("%s (%v) at %v: %v by %q (%s), want %v by %q", tt.f.Asked, tt.f.AddrStatus, tt.addr, d.Outcome, key, d.Why, tt.outcome, tt.key)
		}
	}

	p := newPlay(t)
	l := idleLoop(t, p)
	pin(p, l, f.Pins)
	e := ike.AuthorizationWanted{Local: netip.AddrPortFrom(p.p.local, 500), Remote: netip.AddrPortFrom(p.p.remote, 500)}
	if a, _ := l.verdict(p.now, e, p.claim("bob.example.", 1)); len(a.Keys) != 0 {
		t.Errorf("the prover comes in before the administrator's: %+v", a)
	}
}
