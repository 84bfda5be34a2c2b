package ike

import (
	"net/netip"
	"testing"
	"time"
)

// networks are those that have any.
func (e *Endpoint) networks() map[netip.Prefix]Tally { return e.cfg.Census.(*census).of }

// The caps are those of a host: who floods several of its shards gets no more of them together than of one (TRUST.md ).
//
//tacit:attack A-22 the caps hold for all shards of a host together
func TestCapsAreShared(t *testing.T) {
	for name, tt := range map[string]struct {
		cfg  Config
		from func(i byte) netip.Addr
		want int
		drop string
	}{
		"one /24":                {Config{MaxHalfOpen: 40, CookieAbove: 1000}, func(i byte) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, i}) }, 10, "too-many-half-open"},
		"one /56":                {Config{MaxHalfOpen: 40, CookieAbove: 1000}, func(i byte) netip.Addr { return netip.AddrFrom16([16]byte{32, 1, 13, 184, 6: 7, 7: i, 15: 1}) }, 10, "too-many-half-open"},
		"one /24, cookies":       {Config{CookieAbove: 40}, func(i byte) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, i}) }, 10, "cookie-demanded"},
		"one /56, cookies":       {Config{CookieAbove: 40}, func(i byte) netip.Addr { return netip.AddrFrom16([16]byte{32, 1, 13, 184, 6: 7, 7: i, 15: 1}) }, 10, "cookie-demanded"},
		"many networks":          {Config{MaxHalfOpen: 40, CookieAbove: 1000}, func(i byte) netip.Addr { return netip.AddrFrom4([4]byte{198, i, 1, 1}) }, 40, "too-many-half-open"},
		"many networks, cookies": {Config{CookieAbove: 40}, func(i byte) netip.Addr { return netip.AddrFrom4([4]byte{198, i, 1, 1}) }, 40, "cookie-demanded"},
		"many networks, SAs":     {Config{MaxSAs: 20, CookieAbove: 1000}, func(i byte) netip.Addr { return netip.AddrFrom4([4]byte{198, i, 1, 1}) }, 20, "too-many-sas"},
	} {
		const shards = 4
		census := newCensus()
		var es []*Endpoint
		for i := range shards {
			tt.cfg.Rand, tt.cfg.Census, tt.cfg.Shard, tt.cfg.Shards = newSeeded(uint64(i)), census, i, shards
			es = append(es, New(tt.cfg))
		}
		flood := New(Config{Rand: newSeeded(9)})
		for i := range 100 {
			from := netip.AddrPortFrom(tt.from(byte(i)), 500)
			to := addrB
			if from.Addr().Is6() {
				to = netip.MustParseAddrPort("[2001:db8::2]:500")
			}
			_, o := flood.Initiate(start, Peer{Local: from, Remote: to, Auth: Authorization{Anonymous: true}})
			es[i%shards].Receive(start, Datagram{to, from, o.Send[0].Data})
		}
		half, dropped := 0, 0
		for _, e := range es {
			half += e.Stats().HalfOpen
			dropped += int(e.Stats().Drops[tt.drop])
		}
		if half != tt.want || dropped != 100-tt.want {
			t.Errorf("%s: %d half-open and %d times %s, want %d", name, half, dropped, tt.drop, tt.want)
		}
		for _, e := range es {
			e.Advance(start.Add(time.Hour))
		}
		if len(census.of) != 0 || census.all != (Tally{}) {
			t.Errorf("%s: left %+v", name, census)
		}
	}
}
