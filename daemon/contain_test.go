package daemon

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tacit/config"
	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
	"tacit/pad"
	"tacit/policy"
)

// crashing is a data plane with a bug.
type crashing struct{ gatedPlane }

func (crashing) SetPolicy(ipsec.Selector, ipsec.Action, time.Time) error { panic("injected") }

// A peer whose every step panics is put in quarantine: lookups at its address are withheld at once, the others are answered, and the loop goes on.
//
//tacit:attack A-50 a panic at each step of a peer: lookups at its address are withheld, at once from the second on; others are keyed and answered
func TestPanicIsQuarantined(t *testing.T) {
	t.Parallel()
	alice, bob, evil := newEnd(t, "192.0.2.1", ""), newEnd(t, "192.0.2.2", "bob.example"), newEnd(t, "192.0.2.3", "evil.example")
	ipsectest.Wire(alice.Fake, bob.Fake)
	close(alice.gate)
	close(bob.gate)
	alice.do(t, func(now time.Time) { alice.l.peerOf(now, alice.addr, evil.addr).pad = nil })
	for range 3 {
		if o := outcomeOf(t, alice.lookup(evil)); o.ok || o.why == "" {
			t.Errorf("got %+v", o)
		}
	}
	if n := alice.l.panics.Load(); n != 1 {
		t.Errorf("%d panics for three lookups, want one", n)
	}
	alice.do(t, func(now time.Time) { keep(alice.l, now.Add(tick)) }) // its ticks panic too
	if o := outcomeOf(t, alice.lookup(bob)); !o.ok {
		t.Errorf("bob: %+v", o)
	}
	if n := alice.l.panics.Load(); n < 2 {
		t.Errorf("%d panics: nothing was injected", n)
	}
}

// What is remembered of panics is no more than there are peers, and nothing when the quarantine has ended: strangers cannot fill memory with it.
func TestQuarantineEnds(t *testing.T) {
	p := newPlay(t)
	l := idleLoop(t, p)
	delete(l.peers, p.p.key)
	for i := range byte(20) {
		q := l.peerOf(p.now, p.p.local, netip.AddrFrom4([4]byte{192, 0, 2, 100 + i}))
		sound := q.pad
		q.pad = nil
		l.step(p.now, q, evTick{})
		q.pad = sound
		l.step(p.now, q, evTick{})
	}
	if len(l.quarantined) != 20 || len(l.peers) != 20 {
		t.Errorf("%d of %d peers in quarantine, want 20", len(l.quarantined), len(l.peers))
	}
	for _, q := range l.rota.Due(p.now.Add(tick)) { // panics in its turn
		sound := q.pad
		q.pad = nil
		l.housekeep(p.now, []*peer{q})
		q.pad = sound
	}
	keep := func(now time.Time) {
		l.pardon(now)
		l.housekeep(now, l.rota.Due(now))
	}
	keep(p.now.Add(quarantine - 1))
	if len(l.quarantined) != 20 {
		t.Errorf("%d in quarantine before it ends", len(l.quarantined))
	}
	keep(p.now.Add(quarantine))
	if len(l.quarantined)+len(l.peers) != 0 {
		t.Errorf("%d in quarantine and %d peers are left", len(l.quarantined), len(l.peers))
	}
}

// A panic of one input, or of the data plane, is that input's end.
func TestPanicsAreContained(t *testing.T) {
	t.Parallel()
	alice := newEndOn(t, "192.0.2.1", "", 1, func(p gatedPlane) ipsec.Dataplane { return crashing{p} })
	close(alice.gate)
	if err := alice.l.post(t.Context(), func(time.Time) { panic("injected") }); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	alice.do(t, func(time.Time) {
		alice.l.job("holding", func() error { return alice.l.dp.SetPolicy(ipsec.Selector{}, ipsec.Hold, time.Time{}) }, func(_ time.Time, err error) { failed <- err })
	})
	if err := <-failed; err == nil {
		t.Error("no error")
	}
	if n := alice.l.panics.Load(); n != 2 {
		t.Errorf("%d panics, want 2", n)
	}
}

// What goes wrong with what DNS says of an address or a name, beside the loop, costs that judgement: nothing leaves in clear because of it, and nobody comes in.
func TestJudgementsAreContained(t *testing.T) {
	x := newTraffic(t, policy.Rule{Class: policy.PrivateOrClear, Packets: true, AcceptAnonymous: true})
	x.l.d.reverse = func(netip.Addr) reversed { panic("test") }
	x.l.d.find = func(string, netip.Addr) (pad.Claim, string) { panic("test") }
	x.try()
	x.want("the reverse zone's judgement panics", "block")
	if n := len(x.l.packets.quests) + x.l.packets.flying; n != 0 {
		t.Errorf("%d lookups are under way for ever", n)
	}
	q, _ := x.l.inquire(calling{"bob.example.", x.p.remote})
	if q == nil {
		t.Fatal("no inquiry")
	}
	(<-x.l.done)(x.now)
	if n := len(x.l.callers.inquiries); n != 0 {
		t.Errorf("%d inquiries are under way for ever", n)
	}
	if n := x.l.panics.Load(); n != 2 {
		t.Errorf("%d panics, want 2", n)
	}
}

// An endpoint whose name cannot be judged has no place for now: the daemon goes on, and looks again.
func TestEndpointsAreContained(t *testing.T) {
	x := newTraffic(t, policy.Rule{Class: policy.Private})
	var said bytes.Buffer
	x.l.d.log, x.l.d.shards = slog.New(slog.NewTextHandler(&said, nil)), &shards{shared: x.l.shared}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	x.l.d.keep(ctx, config.Peer{Name: "bob.example."}) // there is no resolver
	if n := x.l.panics.Load(); n != 1 || !strings.Contains(said.String(), "endpoint without a place") {
		t.Errorf("%d panics, want 1; said %q", n, said.String())
	}
}
