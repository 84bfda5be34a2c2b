package daemon

import (
	"context"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"tacit/dnssec"
	"tacit/ike"
	"tacit/ipsec"
	"tacit/ipseckey"
	"tacit/pad"
	"tacit/policy"
	"tacit/resolver"
)

// grantPlay is a peer, the loop's publishing after each step, and an answer that was granted.
type grantPlay struct {
	*play
	l   *loop
	env *pad.Environment
	f   resolver.Found
}

// newGrantPlay has bob's key proven by SA 1 and his answer granted.
func newGrantPlay(t *testing.T) *grantPlay {
	t.Helper()
	p := newProven(t)
	g := &grantPlay{play: p, l: &loop{shared: &shared{grants: newGrants(p.now)}, peers: map[key]*peer{p.p.key: p.p}}, env: &pad.Environment{}}
	g.f = resolver.Found{
		Asked: "www.example.", Owner: "bob.example.", Addrs: []netip.Addr{p.p.remote}, AddrStatus: dnssec.Secure,
		Keys: []ipseckey.Record{{Key: testKey(1)}}, KeyStatus: dnssec.Secure, Until: p.now.Add(time.Hour),
	}
	g.l.publish(p.p)
	if p.p.standing == nil {
		t.Fatal("the key is proven, and has no standing")
	}
	g.l.grants.put(g.f, p.p.remote, g.env, p.p.standing)
	return g
}

func (g *grantPlay) ttl() (time.Duration, bool) { return g.l.grants.ttl(g.now, &g.f, g.env) }

func (g *grantPlay) want(granted bool, when string) {
	g.t.Helper()
	if ttl, ok := g.ttl(); ok != granted {
		g.t.Errorf("%s: granted %v (%v), want %v", when, ok, ttl, granted)
	}
}

func TestGrantSaysWhatTheLoopWouldSay(t *testing.T) {
	for _, age := range []time.Duration{0, 700 * time.Millisecond, 100 * time.Second, 298 * time.Second, 299*time.Second + 1, 301 * time.Second} {
		for _, left := range []time.Duration{time.Second / 2, 5 * time.Second, time.Hour} {
			t.Run(fmt.Sprint(age, left), func(t *testing.T) {
				g := newGrantPlay(t)
				g.now = g.now.Add(age)
				g.f.Until = g.now.Add(left)
				g.l.grants.put(g.f, g.p.remote, g.env, g.p.standing)
				c := pad.Claim{Name: g.f.Owner, Addr: g.p.remote, Keys: []pad.Key{pad.KeyOf(testKey(1))}, Until: g.f.Until}
				want := g.p.pad.Satisfied(g.now, c)
				got, ok := g.ttl()
				if ok != want {
					t.Fatalf("granted %v, the loop says %v", ok, want)
				}
				if ok && got != g.p.pad.TTL(g.now, c) {
					t.Errorf("TTL %v, the loop says %v", got, g.p.pad.TTL(g.now, c))
				}
			})
		}
	}
}

func TestGrantIsOfOneAnswerOnly(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(g *grantPlay)
	}{
		{"another name asked", func(g *grantPlay) { g.f.Asked = "bob.example." }},
		{"another owner", func(g *grantPlay) { g.f.Owner = "eve.example." }},
		{"another address", func(g *grantPlay) { g.f.Addrs = []netip.Addr{netip.MustParseAddr("192.0.2.9")} }},
		{"one address more", func(g *grantPlay) { g.f.Addrs = append(g.f.Addrs, netip.MustParseAddr("192.0.2.9")) }},
		{"the address in IPv6", func(g *grantPlay) { g.f.Addrs = []netip.Addr{netip.AddrFrom16(g.p.remote.As16())} }},
		{"no address", func(g *grantPlay) { g.f.Addrs = nil }},
		{"records that came anew", func(g *grantPlay) { g.f.Keys = []ipseckey.Record{{Key: testKey(1)}} }},
		{"no records", func(g *grantPlay) { g.f.Keys = nil }},
		{"another end", func(g *grantPlay) { g.f.Until = g.f.Until.Add(time.Second) }},
		{"the end has come", func(g *grantPlay) { g.now = g.f.Until }},
		{"the address is not secure", func(g *grantPlay) { g.f.AddrStatus = dnssec.Insecure }},
		{"the key is not secure", func(g *grantPlay) { g.f.KeyStatus = dnssec.Indeterminate }},
		{"a denial", func(g *grantPlay) { g.f.Denied = true }},
		{"addresses or routes changed", func(g *grantPlay) { g.env = &pad.Environment{} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGrantPlay(t)
			g.want(true, "before")
			tt.change(g)
			g.want(false, tt.name)
		})
	}
}

// TestGrantEndsBeforeTheSA steps the peer and publishes, as the loop does before it carries anything out.
func TestGrantEndsBeforeTheSA(t *testing.T) {
	for _, tt := range []struct {
		name string
		step func(g *grantPlay)
	}{
		{"the SA goes down", func(g *grantPlay) { g.ended(1, nil) }},
		{"the SA is being deleted", func(g *grantPlay) { g.p.end(g.now, g.p.sa(1)) }},
		{"an incumbent loses", func(g *grantPlay) { g.p.lose(g.now, g.p.sa(1)) }},
		{"the address proves another key", func(g *grantPlay) { g.established(2, true, 2) }},
		{"the loop stops", func(g *grantPlay) { g.l.withdraw() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGrantPlay(t)
			tt.step(g)
			g.l.publish(g.p)
			g.want(false, tt.name)
		})
	}
}

func TestGrantLivesOnProofs(t *testing.T) {
	g := newGrantPlay(t)
	g.f.Until = g.now.Add(24 * time.Hour)
	g.l.grants.put(g.f, g.p.remote, g.env, g.p.standing)
	for range 10 {
		g.now = g.now.Add(testLinger - 10*time.Second)
		g.want(true, "within linger")
		g.event(ike.Alive{SA: 1})
		g.l.publish(g.p)
	}
	g.now = g.now.Add(testLinger)
	g.want(false, "linger after the last proof")
}

// TestWatchAsksTheLoopOnlyWithoutAGrant has a loop that does not run: who asks it waits until the hold ends.
func TestWatchAsksTheLoopOnlyWithoutAGrant(t *testing.T) {
	g := newGrantPlay(t)
	g.l.calls = make(chan func(time.Time), 8)
	d := &Daemon{shards: &shards{shared: g.l.shared, loops: []*loop{g.l}, seed: maphash.MakeSeed()}, now: func() time.Time { return g.now }, log: slog.New(slog.DiscardHandler), host: &host{}}
	d.rules.Store(policy.NewTable(nil))
	d.host.env.Store(g.env)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	v := (*watcher)(d).Watch(ctx, g.f)
	if len(v.Withhold) > 0 || v.TTL != testLinger {
		t.Errorf("with a grant: got %v, want a TTL of %v", v, testLinger)
	}
	g.ended(1, nil)
	g.l.publish(g.p)
	if v := (*watcher)(d).Watch(ctx, g.f); len(v.Withhold) != 1 {
		t.Errorf("without a grant: got %v, want the address withheld", v)
	}
}

func TestGrantSurvivesARekey(t *testing.T) {
	g := newGrantPlay(t)
	g.event(ike.ChildUp{SA: 1, Pair: ipsec.Pair{ID: g.p.sa(1).pair.ID}, Rekey: true})
	g.l.publish(g.p)
	g.want(true, "after a rekey of the Child SA")
}
