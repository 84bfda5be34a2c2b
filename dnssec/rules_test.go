package dnssec

import (
	"context"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Zones with a key of each algorithm that is supported are Secure, data and denial; with one that is not they are Insecure, whatever their signatures say
// (RFC 4035, 5.2; RFC 8624; RFC 9905).
func TestAlgorithms(t *testing.T) {
	zones := []*testZone{newZone(t, ".", nsec, dns.ED25519, "")}
	supported := map[string]uint8{"rsa256.": dns.RSASHA256, "rsa512.": dns.RSASHA512, "p256.": dns.ECDSAP256SHA256, "p384.": dns.ECDSAP384SHA384, "ed25519.": dns.ED25519}
	for name, alg := range supported {
		zones = append(zones, newZone(t, name, nsec3, alg, "a."+name+" 60 IN A 192.0.2.1"))
	}
	foreign := map[string]uint8{"md5.": dns.RSAMD5, "dsa.": dns.DSA, "dsa3.": dns.DSANSEC3SHA1, "gost.": dns.ECCGOST, "ed448.": dns.ED448, "private.": dns.PRIVATEDNS, "odd.": 200}
	for name := range foreign {
		zones = append(zones, newZone(t, name, nsec, dns.ED25519, "a."+name+" 60 IN A 192.0.2.1"))
	}
	digest := newZone(t, "gosthash.", nsec, dns.ED25519, "a.gosthash. 60 IN A 192.0.2.1")
	w, a := newWorld(t, append(zones, digest)...)
	for name, alg := range foreign { // in the DS, which is where it counts
		for _, r := range w.zones["."].node[name][dns.TypeDS] {
			r.(*dns.DS).Algorithm = alg
		}
	}
	for _, r := range w.zones["."].node["gosthash."][dns.TypeDS] {
		r.(*dns.DS).DigestType = dns.GOST94
	}
	v := New(w, a, WithClock(clock))
	look := func(name string, want Status, alg uint8) {
		t.Helper()
		for _, rrtype := range []uint16{dns.TypeA, dns.TypeIPSECKEY} {
			got, err := v.Lookup(context.Background(), "a."+name, rrtype)
			if err != nil || got.Status != want || len(got.Links) != 1 || alg != 0 && got.Links[0].Algorithm != alg {
				t.Errorf("%s %s: got %v (%s) %+v, %v, want %v", name, typeName(rrtype), got.Status, got.Why, got.Links, err, want)
			}
		}
	}
	for name, alg := range supported {
		look(name, Secure, alg)
	}
	for name := range foreign {
		look(name, Insecure, 0)
	}
	look("gosthash.", Insecure, 0)
}

// How far a clock may be off: five minutes before the inception, and not a second after the expiration, unless that is set otherwise; in the serial numbers of
// RFC 4034, 3.1.5, which begin anew in 2106.
func TestSkew(t *testing.T) {
	wrap := time.Unix(1<<32, 0)
	for _, tt := range []struct {
		what     string
		now      time.Time
		from, to time.Duration
		options  []Option
		want     Status
		ede      uint16
	}{
		{"five minutes early", testNow, 5 * time.Minute, time.Hour, nil, Secure, NoEDE},
		{"a second more", testNow, 5*time.Minute + time.Second, time.Hour, nil, Bogus, 8},
		{"in its last second", testNow, -time.Hour, 0, nil, Secure, NoEDE},
		{"a second late", testNow, -time.Hour, -time.Second, nil, Bogus, 7},
		{"early, where that is not allowed", testNow, time.Second, time.Hour, []Option{WithSkew(0, 0)}, Bogus, 8},
		{"late, where that is allowed", testNow, -time.Hour, -time.Minute, []Option{WithSkew(0, time.Minute)}, Secure, NoEDE},
		{"later", testNow, -time.Hour, -time.Minute - time.Second, []Option{WithSkew(0, time.Minute)}, Bogus, 7},
		{"over the end of the numbers", wrap, -time.Hour, time.Hour, nil, Secure, NoEDE},
		{"before it", wrap.Add(-30 * time.Minute), -time.Hour, time.Hour, nil, Secure, NoEDE},
		{"expired over it", wrap.Add(time.Hour), -3 * time.Hour, -time.Second, nil, Bogus, 7},
		{"to begin after it", wrap.Add(-10 * time.Minute), 20 * time.Minute, time.Hour, nil, Bogus, 8},
	} {
		root, z := newZone(t, ".", nsec, dns.ED25519, ""), newZone(t, "test.", nsec, dns.ED25519, "a.test. 60 IN A 192.0.2.1")
		root.from, root.to = tt.now.Add(-time.Hour), tt.now.Add(time.Hour)
		z.from, z.to = tt.now.Add(tt.from), tt.now.Add(tt.to)
		w, a := newWorld(t, root, z)
		got, err := New(w, a, append(tt.options, WithClock(func() time.Time { return tt.now }))...).Lookup(context.Background(), "a.test.", dns.TypeA)
		if err != nil || got.Status != tt.want || got.EDE != tt.ede {
			t.Errorf("%s: got %v EDE %d (%s), %v, want %v EDE %d", tt.what, got.Status, got.EDE, got.Why, err, tt.want, tt.ede)
		}
		if got.Status == Secure && got.Until.After(z.to.Add(time.Minute)) {
			t.Errorf("%s: believed until %v, signed until %v", tt.what, got.Until, z.to)
		}
	}
}
