package daemon

import (
	"net/netip"
	"testing"
	"time"

	"tacit/config"
	"tacit/dnssec"
	"tacit/ipseckey"
	"tacit/pad"
	"tacit/resolver"
)

// TestClaimOfLastSecond: a cache upstream answers with a TTL of 0 in the last second of a record. The lookup that got it is answered; a
// longer TTL is the claim's.
func TestClaimOfLastSecond(t *testing.T) {
	key, err := ipseckey.GenerateIdentity()
	if err != nil {
		t.Fatal(err)
	}
	record, err := ipseckey.NewRecord(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	addr, asked := netip.MustParseAddr("192.0.2.2"), time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	var file config.Config
	for _, c := range []struct{ ttl, want time.Duration }{{0, transaction}, {time.Second, transaction}, {time.Minute, time.Minute}} {
		d := Decide(file.Table(), pad.Environment{}, resolver.Found{
			Asked: "bob.example.", Owner: "bob.example.", Addrs: []netip.Addr{addr}, AddrStatus: dnssec.Secure, KeyStatus: dnssec.Secure,
			Keys: []ipseckey.Record{record}, AskedAt: asked, Until: asked.Add(c.ttl),
		}, addr)
		if got := d.Claim.Until.Sub(asked); got != c.want {
			t.Errorf("TTL %v: the claim ends after %v, want %v (%s)", c.ttl, got, c.want, d.Why)
		}
		x := pad.NewAddress(time.Minute)
		if s := x.Ask(asked.Add(time.Second), d.Claim); s.State == pad.Expired {
			t.Errorf("TTL %v: %s", c.ttl, s.Why)
		}
	}
}
