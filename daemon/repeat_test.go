package daemon

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"tacit/ike"
	"tacit/ipsec"
	"tacit/policy"
)

var watchedRule = policy.Rule{Class: policy.ClearOrPrivate, Packets: true, Anonymous: true}

// comes has the address begin an SA with us, which refused what left in clear, or says nothing of that.
func (x *traffic) comes(sa ike.SAID, refused bool) *peer {
	p := x.l.peerOf(x.now, x.p.local, x.p.remote)
	x.l.bySA[sa] = p
	x.l.engineEvent(x.now, ike.Established{SA: sa, Local: netip.AddrPortFrom(p.local, 500), Remote: netip.AddrPortFrom(p.remote, 500), RemoteID: ike.ID{Kind: ike.IDNull}})
	if refused {
		x.l.engineEvent(x.now, ike.ClearRefused{SA: sa})
	}
	x.l.engineEvent(x.now, ike.ChildUp{SA: sa, Pair: ipsec.Pair{ID: uint32(sa)}})
	x.settle()
	return p
}

// uses has its first packet come on that.
func (x *traffic) uses(pair uint32) {
	x.l.event(x.now, ipsec.Event{Kind: ipsec.FirstPacket, ID: pair})
	x.settle()
}

// Who has refused what left in clear gets it again when he uses his SA, once. Nobody else does, nor one whose rule has changed meanwhile.
func TestRepeat(t *testing.T) {
	for name, tt := range map[string]struct {
		refused bool
		then    policy.Class
		want    int
	}{
		"refused":       {true, policy.ClearOrPrivate, 1},
		"not a word":    {false, policy.ClearOrPrivate, 0},
		"another rule":  {true, policy.PrivateOrClear, 0},
		"another still": {true, policy.Block, 0},
	} {
		x := newTraffic(t, watchedRule)
		x.try()
		p := x.comes(7, tt.refused)
		if n := len(x.fake.Calls("Repeat")); n != 0 {
			t.Errorf("%s: %d repeats before the peer has used its SA", name, n)
		}
		r := watchedRule
		r.Class = tt.then
		x.rule(r)
		for range 2 {
			x.uses(7)
			x.l.step(x.now, p, &evUsage{7, ipsec.Usage{LastIn: x.now, Armed: true}})
			x.l.engineEvent(x.now, ike.ChildUp{SA: 7, Pair: ipsec.Pair{ID: 7}, Rekey: true})
			x.settle()
		}
		calls := x.fake.Calls("Repeat")
		if len(calls) != tt.want || tt.want == 1 && calls[0].ID != 7 {
			t.Errorf("%s: %v, want %d", name, calls, tt.want)
		}
	}
}

// An address whose packets are watched is asked nothing, and left alone after a moment, for some time. An SA ends that, and so do other rules.
func TestWatchEnds(t *testing.T) {
	x := newTraffic(t, watchedRule)
	s := ipsec.Host(x.p.local, x.p.remote)
	x.try()
	keep(x.l, x.now.Add(watchFor-time.Millisecond))
	x.settle()
	x.want("at first", "")
	x.now = x.now.Add(watchFor)
	keep(x.l, x.now)
	x.settle()
	x.want("after a moment", "bypass")
	if p, _ := x.fake.Policy(s); p.Until.Sub(x.now) != mostDenial || len(x.l.packets.watched) != 0 {
		t.Errorf("left alone for %v, want %v; %d are watched", p.Until.Sub(x.now), mostDenial, len(x.l.packets.watched))
	}
	x.comes(7, true)
	x.want("with an SA", "")
	x.try()
	x.now = x.now.Add(2 * watchFor)
	keep(x.l, x.now)
	x.settle()
	x.want("while the peer has an SA", "")
	if n := x.asked[x.p.remote] + x.attempts(); n != 0 {
		t.Errorf("%d lookups and attempts, want none", n)
	}

	x = newTraffic(t, watchedRule)
	x.try()
	x.now = x.now.Add(watchFor)
	keep(x.l, x.now)
	x.settle()
	old := x.l.d.rules.Load()
	x.rule(policy.Rule{Class: policy.Private, Packets: true})
	x.l.reconsider(x.now, old, x.l.d.rules.Load())
	x.settle()
	x.want("private by now", "")

	x = newTraffic(t, watchedRule)
	x.try()
	x.rule(policy.Rule{Class: policy.Private, Packets: true})
	x.now = x.now.Add(watchFor)
	keep(x.l, x.now)
	x.settle()
	x.want("private before it was left alone", "")
}

// However many addresses there are, so many are noted at most, and the others ask again.
func TestWatchBounds(t *testing.T) {
	x := newTraffic(t, watchedRule)
	for i := range maxWatching + 100 {
		x.packet(nth(i))
	}
	if n := len(x.l.packets.watched); n != maxWatching {
		t.Errorf("%d are watched, want %d", n, maxWatching)
	}
	x.now = x.now.Add(watchFor)
	keep(x.l, x.now)
	x.settle()
	if n := len(x.fake.Calls("SetPolicy")); n != maxWatching || len(x.l.packets.watched) != 0 {
		t.Errorf("%d are left alone, %d watched", n, len(x.l.packets.watched))
	}
}

// What was watched takes no room from what was found out about other addresses.
func TestWatchedTakeNoRoom(t *testing.T) {
	x := newTraffic(t, watchedRule)
	x.l.packets.denials = newDenials(2)
	x.l.packets.watchedBefore = newDenials(2)
	found := &denial{addr: netip.MustParseAddr("203.0.113.1"), until: x.now.Add(time.Hour)}
	x.l.packets.denials.put(found)
	for i := range byte(5) {
		x.l.watch(x.now, x.p.local, netip.AddrFrom4([4]byte{198, 51, 100 + i, 1}))
	}
	x.now = x.now.Add(watchFor)
	keep(x.l, x.now)
	if x.l.packets.denials.get(x.now, found.addr) != found || len(x.l.packets.denials.of) != 1 || len(x.l.packets.watchedBefore.of) != 2 {
		t.Errorf("%d were found out, %d watched", len(x.l.packets.denials.of), len(x.l.packets.watchedBefore.of))
	}
}

// What an address is held for waits, whatever its rule says of what is not held.
func TestHeldIsNotWatched(t *testing.T) {
	x := newTraffic(t, watchedRule)
	p := x.l.peerOf(x.now, x.p.local, x.p.remote)
	p.held = x.now.Add(time.Minute)
	x.try()
	if len(x.l.packets.watched) != 0 {
		t.Error("it is watched")
	}
}

// A peer is told that its packets were dropped where that is why we begin, and where all of them were: by a rule or by a hold, not since a moment ago.
func TestTellsRefusal(t *testing.T) {
	for name, tt := range map[string]struct {
		class    policy.Class
		provoked bool
		key      byte
		late     time.Duration // since packets were dropped first
		again    bool          // some were just now
		want     bool
	}{
		"private, provoked":                {policy.Private, true, 0, 0, false, true},
		"private, provoked, a key":         {policy.Private, true, 1, 0, false, true},
		"private, of our own accord":       {policy.Private, false, 0, 0, false, false},
		"private, long ago":                {policy.Private, true, 0, refusedFor, false, false},
		"open, provoked":                   {policy.PrivateOrClear, true, 0, 0, false, false},
		"open, held for a key just now":    {policy.PrivateOrClear, true, 1, 0, false, false}, // what came before got through
		"open, held for a key for long":    {policy.PrivateOrClear, true, 1, refusedFor, true, true},
		"open, held, and nothing came now": {policy.PrivateOrClear, true, 1, refusedFor, false, false},
	} {
		x := newTraffic(t, policy.Rule{Class: tt.class, Packets: true, Anonymous: true})
		if tt.key != 0 {
			x.says = x.reverseClaim(tt.key)
		}
		kind := ipsec.Acquire
		if tt.provoked {
			kind = ipsec.ClearSeen
		}
		x.l.event(x.now, ipsec.Event{Kind: kind, Selector: ipsec.Host(x.p.local, x.p.remote)})
		x.settle()
		if x.attempts() != 1 {
			t.Fatalf("%s: %d attempts", name, x.attempts())
		}
		x.now = x.now.Add(tt.late)
		if tt.again {
			x.l.event(x.now, ipsec.Event{Kind: ipsec.ClearSeen, Selector: ipsec.Host(x.p.local, x.p.remote)})
		}
		if got := x.l.tellsRefusal(x.now, x.peer()); got != tt.want {
			t.Errorf("%s: tells %v", name, got)
		}
	}
	x := newTraffic(t, policy.Rule{Class: policy.Private, Packets: true, Anonymous: true})
	x.try()
	x.succeeds(0)
	x.l.event(x.now, ipsec.Event{Kind: ipsec.ClearSeen, Selector: ipsec.Host(x.p.local, x.p.remote)})
	if !x.l.tellsRefusal(x.now, x.peer()) {
		t.Error("a peer that we know is not told")
	}
	x.l.reconsider(x.now, x.l.d.rules.Load(), x.l.d.rules.Load())
	if x.l.tellsRefusal(x.now, x.peer()) {
		t.Error("it is told when the rule is new: what came before got through")
	}
	x.now = x.now.Add(refusedFor)
	x.l.event(x.now, ipsec.Event{Kind: ipsec.ClearSeen, Selector: ipsec.Host(x.p.local, x.p.remote)})
	if !x.l.tellsRefusal(x.now, x.peer()) {
		t.Error("it is not told though the rule has stood for long enough")
	}
}

// What was dropped while an SA of ours was on its way is said when that is up: it was not known when we began. What was said then is not said again.
func TestTellsRefusalLate(t *testing.T) {
	for provoked, want := range map[bool]bool{false: true, true: false} {
		x := newTraffic(t, policy.Rule{Class: policy.Private, Packets: true, Anonymous: true})
		clear := ipsec.Event{Kind: ipsec.ClearSeen, Selector: ipsec.Host(x.p.local, x.p.remote)}
		if provoked {
			x.l.event(x.now, clear)
			x.settle()
		} else {
			x.try()
			x.now = x.now.Add(time.Millisecond)
			x.l.event(x.now, clear)
		}
		p := x.peer()
		id := p.attempt.id
		x.l.step(x.now, p, ike.Established{SA: id, Initiator: true, RemoteID: ike.ID{Kind: ike.IDNull}})
		do, _ := p.step(x.now, ike.ChildUp{SA: id, Pair: ipsec.Pair{ID: 7}})
		if got := slices.Contains(do, action(doCommand{id, ike.Probe})); got != want {
			t.Errorf("provoked %v: a probe %v, of %v", provoked, got, do)
		}
	}
}
