package daemon

import (
	"net/netip"
	"testing"

	"tacit/config"
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
		return l.tellsName(p.p, "bob.example.")
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
