package daemon

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"tacit/ike"
	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
	"tacit/pad"
	"tacit/policy"
)

// strangers have taken all places. A lookup of ours gets one all the same, which the stranger leaves that has been idle for the longest; a
// stranger gets none. Who proved a key, is in use, waits for something or is of class private is not moved.
//
//tacit:attack A-51 a stranger beyond the cap is refused; a lookup gets the place of the idlest of those who are nobody, and never of one that proved a key, is in use, or is private
func TestRoomForOurs(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	own := netip.MustParseAddr("192.0.2.1")
	s := newTestShards(t, ipsectest.NewFake(), own, "", nil, func() time.Time { return now }, 1)
	l := s.loops[0]
	f := l.d.cfg.File
	f.Policy = append(f.Policy, policy.Rule{Prefixes: []netip.Prefix{netip.MustParsePrefix("198.51.100.5/32")}, Class: policy.Private, AcceptAnonymous: true})
	l.d.obey(f)
	place := func(last byte, idle time.Duration, key byte) *peer {
		p := l.peerOf(now, own, netip.AddrFrom4([4]byte{198, 51, 100, last}))
		id := ike.SAID(last)
		e := ike.Established{SA: id, RemoteID: ike.ID{Kind: ike.IDNull}}
		if key != 0 {
			e.Key = testKey(key)
		}
		p.step(now.Add(-idle), e)
		p.step(now.Add(-idle), ike.ChildUp{SA: id, Pair: ipsec.Pair{ID: uint32(last)}})
		p.step(now.Add(-idle), evFirst{uint32(last)})
		return p
	}
	places := map[string]*peer{
		"idle":     place(1, time.Minute, 0),
		"idlest":   place(2, time.Hour, 0),
		"in use":   place(3, time.Second, 0),
		"somebody": place(4, 10*time.Hour, 7),
		"private":  place(5, 10*time.Hour, 0),
	}
	l.known.Store(int64(f.MaxPeers))
	wanted := func(remote netip.Addr) (got *peer) {
		done := false
		if err := s.wanted(t.Context(), own, remote, func(_ time.Time, _ *loop, p *peer) { got, done = p, true }); err != nil {
			t.Fatal(err)
		}
		for !done {
			(<-l.calls)(now)
		}
		return got
	}
	next := func(i byte) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, i}) }
	if l.peerOf(now, own, next(0)) != nil {
		t.Error("a stranger has a place where there is none")
	}
	gone := func() (who []string) {
		for _, what := range []string{"idle", "idlest", "in use", "somebody", "private"} {
			if len(places[what].live()) == 0 {
				who = append(who, what)
			}
		}
		return who
	}
	for i, want := range []string{"[idlest]", "[idle idlest]"} {
		if wanted(next(byte(i))) == nil {
			t.Fatalf("a lookup has no place, and there are %v", gone())
		}
		if got := fmt.Sprint(gone()); got != want {
			t.Fatalf("gone are %s, want %s", got, want)
		}
	}
	if wanted(next(9)) != nil || fmt.Sprint(gone()) != "[idle idlest]" {
		t.Errorf("gone are %v for who may not displace anybody that is left", gone())
	}
}

// The places are everybody's: where all strangers came to one loop, they make room for a lookup in another.
func TestRoomInAnotherLoop(t *testing.T) {
	e := newEndOn(t, "192.0.2.1", "", 4, func(p gatedPlane) ipsec.Dataplane { return p })
	close(e.gate)
	other := e.s.loops[3]
	places := map[*loop]netip.Addr{}
	for i := byte(1); len(places) < 4; i++ {
		places[e.s.of(netip.AddrFrom4([4]byte{203, 0, 113, i}))] = netip.AddrFrom4([4]byte{203, 0, 113, i})
	}
	var stranger *peer
	if err := other.ask(t.Context(), func(now time.Time) {
		stranger = other.peerOf(now, e.addr, places[other])
		before := now.Add(-time.Minute)
		stranger.step(before, ike.Established{SA: 7, RemoteID: ike.ID{Kind: ike.IDNull}})
		stranger.step(before, ike.ChildUp{SA: 7, Pair: ipsec.Pair{ID: 7}})
		stranger.step(before, evFirst{7})
		e.s.known.Store(int64(e.s.d.cfg.File.MaxPeers))
	}); err != nil {
		t.Fatal(err)
	}
	got := make(chan *peer, 2)
	wanted := func(ctx context.Context, remote netip.Addr) {
		if err := e.s.wanted(ctx, e.addr, remote, func(_ time.Time, l *loop, p *peer) {
			if p != nil && (l != e.s.of(remote) || l.peers[p.key] != p || p.remote != remote) {
				t.Errorf("the peer for %v is %v", remote, p.key)
			}
			got <- p
		}); err != nil {
			t.Fatal(err)
		}
	}
	// Two lookups of one address, both before there is room: one place is enough for both.
	for range 2 {
		wanted(t.Context(), places[e.s.loops[0]])
	}
	for range 2 {
		if <-got == nil {
			t.Fatal("a lookup has no place, and a stranger has one in another loop")
		}
	}
	if err := other.ask(t.Context(), func(time.Time) {
		if len(stranger.live()) > 0 {
			t.Error("the stranger is still there")
		}
	}); err != nil {
		t.Fatal(err)
	}
	if wanted(t.Context(), places[e.s.loops[1]]); <-got != nil {
		t.Error("a second lookup has a place, and nobody has gone for it")
	}
}

// Nobody goes for a lookup that has ended.
func TestRoomForNobody(t *testing.T) {
	e := newEndOn(t, "192.0.2.1", "", 2, func(p gatedPlane) ipsec.Dataplane { return p })
	close(e.gate)
	for _, l := range e.s.loops {
		if err := l.ask(t.Context(), func(now time.Time) {
			for i := range byte(8) {
				p := l.peerOf(now, e.addr, netip.AddrFrom4([4]byte{198, 51, 100, i}))
				p.step(now.Add(-time.Minute), ike.Established{SA: ike.SAID(i) + 1, RemoteID: ike.ID{Kind: ike.IDNull}})
				p.step(now.Add(-time.Minute), ike.ChildUp{SA: ike.SAID(i) + 1, Pair: ipsec.Pair{ID: uint32(i) + 1}})
				p.step(now.Add(-time.Minute), evFirst{uint32(i) + 1})
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	for range 20 {
		if e.s.roomBeside(ctx, e.s.loops[0]) {
			t.Error("there is room for who has gone")
		}
	}
	for _, l := range e.s.loops {
		if err := l.ask(t.Context(), func(time.Time) {
			for _, p := range l.peers {
				if len(p.live()) != 1 {
					t.Errorf("%v had to go", p.remote)
				}
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// What is remembered only so that it is not asked again soon makes room too, first of all: one program can have thousands of hosts refuse at once.
func TestRoomOfRefusals(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	own := netip.MustParseAddr("192.0.2.1")
	l := newTestLoop(t, ipsectest.NewFake(), own, "", nil, func() time.Time { return now })
	ask := func(last byte, c pad.Claim) *peer {
		p := l.peerOf(now, own, netip.AddrFrom4([4]byte{198, 51, 100, last}))
		c.Addr, c.Until = p.remote, now.Add(time.Hour)
		l.step(now, p, evLookup{waiter{claim: c, reply: make(chan outcome, 1)}})
		return p
	}
	claim := pad.Claim{Name: "bob.example.", Keys: []pad.Key{pad.KeyOf(testKey(7))}}
	nobody, other, asking := ask(1, pad.Claim{}), ask(2, claim), ask(3, claim)
	for _, p := range []*peer{nobody, other} {
		l.step(now, p, ike.Closed{SA: p.attempt.id, Err: ike.ErrTimeout})
	}
	l.known.Store(int64(l.d.cfg.File.MaxPeers))
	now = now.Add(time.Second)
	for i := range byte(2) {
		if !l.makeRoom(now) || l.peerInSpare(now, own, netip.AddrFrom4([4]byte{203, 0, 113, i})) == nil {
			t.Fatalf("a lookup has no place, and %d are there", len(l.peers))
		}
	}
	if l.peers[nobody.key] != nil || l.peers[other.key] != nil || l.peers[asking.key] != asking {
		t.Errorf("there are %v", l.peers)
	}
}
