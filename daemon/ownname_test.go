package daemon

import (
	"net/netip"
	"testing"

	"tacit/config"
	"tacit/pad"
	"tacit/policy"
)

// Our name leaves from addresses that it publishes, and from others only where that says nothing: to who knows it already, to who is known without DNS,
// and where it publishes nothing at all.
func TestNameFromPublishedAddressesOnly(t *testing.T) {
	p := newPlay(t)
	l := idleLoop(t, p)
	l.d.cfg.File.Name = "alice.example"
	l.d.cfg.Signer = l.mask(p.p.local, p.p.remote) // any key
	tells := func(identify string, called bool, pins config.Pins, addrs ...string) bool {
		f := *l.d.cfg.File
		f.Identify, f.Pins = identify, pins
		l.d.obey(&f)
		p.p.called = called
		l.d.published.Store(nil)
		if addrs != nil {
			all := published{}
			for _, a := range addrs {
				all = append(all, netip.MustParseAddr(a))
			}
			l.d.published.Store(&all)
		}
		tells, behindNAT := l.tellsName(p.p, pad.Claim{Name: "bob.example."})
		return tells && !behindNAT
	}
	at := config.Pins{"192.0.2.2": {id(1)}}
	for _, tt := range []struct {
		what      string
		got, want bool
	}{
		{"not known yet", tells("all", false, nil), true},
		{"published", tells("all", false, nil, "2001:db8::1", "192.0.2.1"), true},
		{"another is", tells("all", false, nil, "192.0.2.9"), false},
		{"only the other family", tells("all", false, nil, "2001:db8::1"), false},
		{"nothing is", tells("all", false, nil, []string{}...), true},
		{"another is, and the peer has called", tells("matched", true, nil, "192.0.2.9"), true},
		{"another is, and the peer is pinned by its address", tells("all", false, at, "192.0.2.9"), true},
		{"the same, but nobody says its name", tells("matched", false, at, "192.0.2.9"), false},
		{"never", tells("never", true, at, "192.0.2.1"), false},
		{"the peer is named", tells("matched", false, config.Pins{"bob.example.": {id(1)}}, "192.0.2.1"), true},
		{"the peer is named, another address is published", tells("matched", false, config.Pins{"bob.example.": {id(1)}}, "192.0.2.9"), false},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: told %v, want %v", tt.what, tt.got, tt.want)
		}
	}
}

// From behind a NAT whose address it may be our name leaves where it publishes one that this host has not, of the family; from a temporary address beside the
// one that it publishes it does not.
func TestNameFromBehindANAT(t *testing.T) {
	p := newPlay(t)
	l := idleLoop(t, p)
	l.d.cfg.File.Name, l.d.cfg.File.Identify = "alice.example", "all"
	l.d.cfg.Signer = l.mask(p.p.local, p.p.remote) // any key
	other := netip.MustParseAddr("192.0.2.77")
	l.d.host.env.Store(&pad.Environment{Own: []netip.Addr{p.p.local, other}})
	for _, tt := range []struct {
		what   string
		addrs  published
		called bool
		want   [2]bool
	}{
		{"it publishes the NAT's", published{theNAT}, false, [2]bool{true, true}},
		{"and another of ours", published{other, theNAT}, false, [2]bool{true, true}},
		{"only another of ours", published{other}, false, [2]bool{}},
		{"only of the other family", published{netip.MustParseAddr("2001:db8::9")}, false, [2]bool{}},
		{"the NAT's and this", published{theNAT, p.p.local}, false, [2]bool{true, false}},
		{"the NAT's, and the peer knows it", published{theNAT}, true, [2]bool{true, false}},
	} {
		p.p.called = tt.called
		l.d.published.Store(&tt.addrs)
		if tells, behindNAT := l.tellsName(p.p, pad.Claim{Name: "bob.example."}); [2]bool{tells, behindNAT} != tt.want {
			t.Errorf("%s: told %v, only behind a NAT %v; want %v", tt.what, tells, behindNAT, tt.want)
		}
	}
}

// Who is met by packets, without a name, is matched by the rule of his address, if that is what proves him: by the word of his own zone, or the administrator's.
// A name that leads to the address, nobody in particular there, and a rule for all addresses match nothing; a rule for the reverse name does.
func TestAddressIsMatched(t *testing.T) {
	p := newPlay(t)
	l := idleLoop(t, p)
	l.d.cfg.File.Name = "alice.example"
	l.d.cfg.Signer = l.mask(p.p.local, p.p.remote) // any key
	const own, reverse, name = "192.0.2.0/24", "*.2.0.192.in-addr.arpa.", "2.2.0.192.in-addr.arpa."
	for _, tt := range []struct {
		identify, match string
		claim           pad.Claim
		want            bool
	}{
		{"matched", own, pad.Claim{Name: name, Source: pad.Reverse}, true},
		{"matched", own, pad.Claim{Name: "192.0.2.2.", Source: pad.Administrator}, true},
		{"matched", reverse, pad.Claim{Name: name, Source: pad.Reverse}, true},
		{"matched", own, pad.Claim{Name: "bob.example."}, false},
		{"matched", own, pad.Claim{}, false},
		{"matched", "0.0.0.0/0", pad.Claim{Name: name, Source: pad.Reverse}, false},
		{"matched", "198.51.100.0/24", pad.Claim{Name: name, Source: pad.Reverse}, false},
		{"matched", "2001:db8::/32", pad.Claim{Name: name, Source: pad.Reverse}, false},
		{"never", own, pad.Claim{Name: name, Source: pad.Reverse}, false},
		{"all", "0.0.0.0/0", pad.Claim{Name: name, Source: pad.Reverse}, true},
	} {
		f := *l.d.cfg.File
		r := policy.Rule{Class: policy.PrivateOrClear, Packets: true}
		if prefix, err := netip.ParsePrefix(tt.match); err == nil {
			r.Prefixes = []netip.Prefix{prefix}
		} else {
			r.Names = []string{tt.match}
		}
		f.Identify, f.Policy = tt.identify, []policy.Rule{r, {Class: policy.PrivateOrClear, Prefixes: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}, policy.Default()}
		l.d.obey(&f)
		if got, _ := l.tellsName(p.p, tt.claim); got != tt.want {
			t.Errorf("%s, with a rule for %s: %+v is told: %v, want %v", tt.identify, tt.match, tt.claim, got, tt.want)
		}
	}
}
