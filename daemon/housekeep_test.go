package daemon

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"tacit/ike"
	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
)

// slowPlane is a Fake that takes its time over a Pair's counters.
type slowPlane struct {
	gatedPlane
	asked chan uint32
	tell  chan struct{} // closed: at once
}

func (p slowPlane) Usage(id uint32) (ipsec.Usage, error) {
	select {
	case p.asked <- id:
	default:
	}
	<-p.tell
	return p.gatedPlane.Usage(id)
}

// A data plane that is slow to tell the counters keeps nobody waiting: lookups are answered meanwhile. What it tells in the end counts.
func TestSlowCountersKeepNobodyWaiting(t *testing.T) {
	t.Parallel()
	var slow slowPlane
	alice := newEndOn(t, "192.0.2.1", "", 1, func(p gatedPlane) ipsec.Dataplane {
		slow = slowPlane{p, make(chan uint32, 1), make(chan struct{})}
		return slow
	})
	bob := newEnd(t, "192.0.2.2", "bob.example")
	tell := sync.OnceFunc(func() { close(slow.tell) })
	t.Cleanup(tell)
	ipsectest.Wire(alice.Fake, bob.Fake)
	close(alice.gate)
	close(bob.gate)
	if o := outcomeOf(t, alice.lookup(bob)); !o.ok {
		t.Fatalf("first lookup: %+v", o)
	}
	pair := uint32(0)
	for id := range alice.Pairs() {
		pair = id
	}
	select {
	case id := <-slow.asked:
		if id != pair {
			t.Errorf("asked for the counters of %d, want %d", id, pair)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the counters are never read")
	}
	from := time.Now()
	if o := outcomeOf(t, alice.lookup(bob)); !o.ok || time.Since(from) > tick {
		t.Errorf("a lookup while the counters are read: %+v after %v", o, time.Since(from))
	}
	alice.SetUsage(pair, ipsec.Usage{LastIn: from})
	tell()
	await(t, "the counters arrive", func() (there bool) {
		alice.do(t, func(time.Time) {
			for _, a := range alice.l.pairs[pair].sas {
				there = there || a.usage.in.time().Equal(from)
			}
		})
		return there
	})
}

// do runs f in the loop of an end and waits for it.
func (e *end) do(t *testing.T, f func(now time.Time)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := e.l.ask(ctx, f); err != nil {
		t.Fatalf("the loop takes nothing: %v", err)
	}
}

// behindNAT establishes an SA of the loop's engine with a responder that sees it at another port, and returns its Pair's id.
func behindNAT(t *testing.T, p *play, l *loop) (sa ike.SAID, pair uint32) {
	t.Helper()
	responder := ike.New(ike.Config{PostQuantum: ike.Off})
	local, remote := netip.AddrPortFrom(p.p.local, 500), netip.AddrPortFrom(p.p.remote, 500)
	sa, out := l.engine.Initiate(p.now, ike.Peer{Local: local, Remote: remote, LocalID: ike.ID{Kind: ike.IDNull}, Auth: ike.Authorization{Anonymous: true}})
	answer := func(e *ike.Endpoint, events []ike.Event) (send []ike.Datagram) {
		for _, ev := range events {
			var more ike.Output
			switch ev := ev.(type) {
			case ike.AuthorizationWanted:
				more = e.Authorize(p.now, ev.SA, ike.Authorization{Anonymous: true, Inner: netip.MustParseAddr("198.19.0.7")})
			case ike.ChildWanted:
				more, pair = e.Supply(p.now, ev.SA, ike.Installed{Token: ev.Token}), ev.Pair.ID
			}
			for _, ev := range more.Events { // a responder's Authorize wants the child
				if c, ok := ev.(ike.ChildWanted); ok {
					more.Send = append(more.Send, e.Supply(p.now, c.SA, ike.Installed{Token: c.Token}).Send...)
				}
			}
			send = append(send, more.Send...)
		}
		return send
	}
	ours := append(out.Send, answer(l.engine, out.Events)...)
	for range 4 {
		var theirs []ike.Datagram
		for _, d := range ours {
			seen := netip.AddrPortFrom(d.Local.Addr(), d.Local.Port()+1000)
			o := responder.Receive(p.now, ike.Datagram{Local: d.Remote, Remote: seen, Data: d.Data})
			theirs = append(theirs, append(o.Send, answer(responder, o.Events)...)...)
		}
		ours = nil
		for _, d := range theirs {
			o := l.engine.Receive(p.now, ike.Datagram{Local: netip.AddrPortFrom(local.Addr(), d.Remote.Port()-1000), Remote: d.Local, Data: d.Data})
			ours = append(ours, append(o.Send, answer(l.engine, o.Events)...)...)
		}
	}
	return sa, pair
}

// A NAT that sees our ESP gets no keepalives beside it; one that sees nothing does (RFC 3948, 4).
func TestESPKeepsTheNAT(t *testing.T) {
	p := newPlay(t)
	l := newTestLoop(t, ipsectest.NewFake(), p.p.local, "", nil, func() time.Time { return p.now })
	sa, pair := behindNAT(t, p, l)
	p.p.sas = append(p.p.sas, &association{claim: noClaim, id: sa, initiator: true, up: true, armed: true, pair: carried{ID: pair}})
	l.pairs[pair] = p.p
	keepalives := func(seconds int, esp bool) (n int) {
		for range seconds {
			p.now = p.now.Add(time.Second)
			if esp {
				l.count(p.now, []evUsage{{pair, ipsec.Usage{LastIn: p.now, LastOut: p.now}}})
				keep(l, p.now)
			}
			for _, d := range l.engine.Advance(p.now).Send {
				if len(d.Data) == 1 {
					n++
				}
			}
		}
		return n
	}
	if n := keepalives(50, false); n != 2 {
		t.Errorf("%d keepalives in 50 s of silence, want 2", n)
	}
	if n := keepalives(50, true); n != 0 {
		t.Errorf("%d keepalives beside ESP", n)
	}
}

// What every second asks of a peer that is idle makes no garbage.
func TestIdlePeerMakesNoGarbage(t *testing.T) {
	p := newProven(t)
	l := idleLoop(t, p)
	usages := []evUsage{{p.p.sas[0].pair.ID, ipsec.Usage{}}}
	n := testing.AllocsPerRun(10, func() {
		p.p.step(p.now, &usages[0])
		l.spread(p.now, p.p)
		p.p.pad.Lame(p.now) // asked thrice at a tick
	})
	if n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// keep is the housekeeping of a second, at once.
func keep(l *loop, now time.Time) {
	l.packets.denials.expire(now, maxQuests)
	l.packets.watchedBefore.expire(now, maxQuests)
	l.unwatch(now)
	l.housekeep(now, l.rota.Due(now))
}

// A peer hears of its counters when they have changed, or say that it is armed, and else is left alone.
func TestNews(t *testing.T) {
	at := time.Unix(1000, 0)
	later := at.Add(time.Nanosecond)
	has := usage{readingOf(at), readingOf(at)}
	for what, tt := range map[string]struct {
		a    association
		u    ipsec.Usage
		want bool
	}{
		"nothing new":     {association{up: true, armed: true, usage: has}, ipsec.Usage{LastIn: at, LastOut: at, Armed: true}, false},
		"more octets":     {association{up: true, armed: true, usage: has}, ipsec.Usage{LastIn: at, LastOut: at, Armed: true, InBytes: 7}, false},
		"came":            {association{up: true, armed: true, usage: has}, ipsec.Usage{LastIn: later, LastOut: at, Armed: true}, true},
		"left":            {association{up: true, armed: true, usage: has}, ipsec.Usage{LastIn: at, LastOut: later, Armed: true}, true},
		"armed":           {association{up: true, usage: has}, ipsec.Usage{LastIn: at, LastOut: at, Armed: true}, true},
		"not armed":       {association{up: true, usage: has}, ipsec.Usage{LastIn: at, LastOut: at}, false},
		"not up any more": {association{usage: has}, ipsec.Usage{LastIn: later, LastOut: later, Armed: true}, false},
		"never used":      {association{up: true, armed: true}, ipsec.Usage{Armed: true}, false},
	} {
		tt.a.pair.ID = 4
		p := &peer{sas: []*association{{pair: carried{ID: 3}, up: true}, &tt.a}}
		if got := p.news(&evUsage{4, tt.u}); got != tt.want {
			t.Errorf("%s: %v", what, got)
		}
		if p.news(&evUsage{5, tt.u}) {
			t.Errorf("%s: news of another's Pair", what)
		}
	}
}

// A peer of which something is expected is looked after every second; one at rest once in a minute or two, or at the end of what its name has claimed.
func TestTurn(t *testing.T) {
	for what, tt := range map[string]struct {
		make func(p *play)
		want time.Duration
	}{
		"proven":    {func(p *play) { p.lookup("bob.example.", 1); p.established(1, true, 1) }, calmTicks * tick / 4},
		"anonymous": {func(p *play) { p.established(1, false, 0); p.event(evFirst{101}) }, calmTicks * tick / 4},
		"silent": {func(p *play) {
			p.lookup("bob.example.", 1)
			p.established(1, true, 1)
			p.p.sas[0].since = at(p.now).Add(-calmTicks * tick)
		}, calmTicks * tick},
		"nobody's any more": {func(p *play) {}, calmTicks * tick / 4},
		"lame, and about to end": {func(p *play) {
			p.established(1, true, 1)
			p.event(evFirst{101})
			p.p.state, p.p.since = lame, at(p.now).Add(10*time.Second-p.p.renew)
		}, 10 * time.Second},
		"not used yet": {func(p *play) { p.established(1, false, 0) }, tick},
		"being keyed":  {func(p *play) { p.lookup("bob.example.", 1) }, tick},
		"held":         {func(p *play) { p.lookup("bob.example.", 1); p.established(1, true, 1); p.ended(1, nil) }, tick},
		"not answering": {func(p *play) {
			p.established(1, true, 0)
			p.event(&evUsage{101, ipsec.Usage{Armed: true, LastOut: p.now.Add(time.Millisecond)}})
		}, tick},
		"asked":     {func(p *play) { p.established(1, true, 0); p.p.probeAll(p.now) }, tick},
		"contested": {func(p *play) { p.lookup("bob.example.", 1); p.established(1, true, 1); p.event(evContest{}) }, tick},
		"its claim ends": {func(p *play) {
			p.lookup("bob.example.", 1)
			p.established(1, true, 1)
			c := p.claim("alias.example.", 1)
			c.Until = p.now.Add(3 * time.Second)
			p.event(evClaim{c})
		}, 3 * time.Second},
		"to be asked again": {func(p *play) {
			p.established(1, false, 1)
			p.event(evFirst{101})
			p.event(evTick{})
			p.p.sas[0].asked = at(p.now).Add(10*time.Second - askedAgain)
		}, 10 * time.Second},
		"about to end": {func(p *play) {
			p.established(1, false, 0)
			p.event(evFirst{101})
			was := p.now.Add(10*time.Second - p.p.linger)
			p.p.sas[0].since, p.p.sas[0].usage = at(was), usage{in: readingOf(was)}
		}, 10 * time.Second},
		"used for seconds only": {func(p *play) { p.p.linger = 24 * time.Second; p.established(1, true, 0) }, 24 * time.Second / calmPart},
	} {
		p := newPlay(t)
		tt.make(p)
		calmly := min(calmTicks*tick/4, p.p.linger/calmPart)
		if tt.want == calmTicks*tick {
			calmly = tt.want
		}
		if got := p.p.turn(p.now).Sub(p.now); got > tt.want || got < tt.want && (tt.want < calmly || got <= calmly/2) {
			t.Errorf("%s: in %v, want %v", what, got, tt.want)
		}
	}
}

// A second's housekeeping looks at some of those at rest, even where all were looked at in one, and at all in time.
func TestManyAtRest(t *testing.T) {
	p := newPlay(t)
	l := idleLoop(t, p)
	const many = 800
	for i := range many {
		q := l.peerOf(p.now, p.p.local, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
		l.step(p.now, q, ike.Established{SA: ike.SAID(i + 1), Initiator: true})
		l.step(p.now, q, ike.ChildUp{SA: ike.SAID(i + 1), Pair: ipsec.Pair{ID: uint32(i + 1)}})
	}
	last := map[*peer]time.Time{}
	for second := range 2 * calmTicks {
		p.now = p.now.Add(tick)
		due := l.rota.Due(p.now)
		if second > calmTicks && len(due) > many/3 {
			t.Errorf("%d peers in second %d", len(due), second)
		}
		for _, q := range due {
			last[q] = p.now
		}
		l.housekeep(p.now, due)
		if second < calmTicks {
			continue
		}
		for q, at := range last {
			if l.peers[q.key] == q && p.now.Sub(at) > calmTicks*tick {
				t.Fatalf("%v was not looked after for %v", q.remote, p.now.Sub(at))
			}
		}
	}
	if len(last) < many {
		t.Errorf("%d of %d peers were looked after", len(last), many)
	}
}

// A peer that was at rest and is sent to without an answer is asked whether it is there in the round in which the counters say so.
func TestSilenceIsNoticedAtOnce(t *testing.T) {
	p := newProven(t)
	l := idleLoop(t, p)
	l.pairs[101] = p.p
	l.housekeep(p.now, l.rota.Due(p.now))
	p.now = p.now.Add(silence)
	l.housekeep(p.now, l.rota.Due(p.now))
	p.now = p.now.Add(tick)
	l.count(p.now, []evUsage{{101, ipsec.Usage{Armed: true, LastIn: p.now.Add(-silence), LastOut: p.now}}})
	l.housekeep(p.now, l.rota.Due(p.now))
	if p.p.sas[0].probed.IsZero() {
		t.Error("it is not asked")
	}
}

// What is used before the loop knows whose it is, is heard of afterwards: of a Pair that has come up, and of one that takes the place of another.
func TestUsedBeforeItIsKnown(t *testing.T) {
	p := newPlay(t)
	fake := ipsectest.NewFake()
	l := newTestLoop(t, fake, p.p.local, "", nil, func() time.Time { return p.now })
	l.peers[p.p.key], l.bySA[1] = p.p, p.p
	round := func() {
		p.now = p.now.Add(tick)
		l.count(p.now, l.measure(l.usedBy(l.shard)))
	}
	fake.SetExisting()
	for id := range uint32(2) {
		if err := fake.InstallInbound(ipsec.Pair{ID: 101 + id, Selector: ipsec.Host(p.p.local, p.p.remote)}); err != nil {
			t.Fatal(err)
		}
		fake.SetUsage(101+id, ipsec.Usage{LastIn: p.now})
		fake.Raise(ipsec.Event{Kind: ipsec.FirstPacket, ID: 101 + id})
	}
	round() // nobody knows them
	l.engineEvent(p.now, ike.Established{SA: 1, Local: netip.AddrPortFrom(p.p.local, 500), Remote: netip.AddrPortFrom(p.p.remote, 500)})
	l.engineEvent(p.now, ike.ChildUp{SA: 1, Pair: ipsec.Pair{ID: 101}})
	l.engineEvent(p.now, ike.ChildUp{SA: 1, Pair: ipsec.Pair{ID: 102}})
	a := p.p.sas[0]
	if a.armed {
		t.Fatal("it is armed already")
	}
	if round(); !a.armed || a.usage.in == 0 {
		t.Errorf("the first Pair is armed: %v, used %v", a.armed, a.usage)
	}
	round()
	l.engineEvent(p.now, ike.ChildDown{SA: 1, Pair: 101})
	if a.armed || a.pair.ID != 102 {
		t.Fatalf("its heir is %d, armed: %v", a.pair.ID, a.armed)
	}
	if round(); !a.armed || a.usage.in == 0 {
		t.Errorf("the second Pair is armed: %v, used %v", a.armed, a.usage)
	}
}

// An SA of ours is looked after before it expires, however short its lifetime is: it may have to be set up anew.
func TestTurnBeforeExpiry(t *testing.T) {
	for _, lifetime := range []time.Duration{20 * time.Second, time.Minute, 2 * time.Minute, time.Hour} {
		p := newPlay(t)
		p.p = newPeer(p.p.key, testLinger, lifetime, p.now)
		p.lookup("bob.example.", 1)
		p.established(1, true, 1)
		renew := p.now.Add(p.p.renew)
		if got := p.p.turn(renew.Add(-1500 * time.Millisecond)); got.After(renew) {
			t.Errorf("lifetime %v: %v after it is to be set up anew", lifetime, got.Sub(renew))
		}
	}
}
