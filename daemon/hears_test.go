package daemon

import (
	"reflect"
	"testing"
	"time"

	"tacit/ike"
	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
	"tacit/pad"
)

// What is heard without a step makes of the peer what the step would, which asks for nothing; what means more is left to the step, and changes nothing before.
func TestHearsWhatStepWould(t *testing.T) {
	for what, tt := range map[string]struct {
		make func(p *play)
		want bool
	}{
		"proven": {func(p *play) { p.lookup("bob.example.", 1); p.established(1, true, 1) }, true},
		"proven twice": {func(p *play) {
			p.lookup("bob.example.", 1)
			p.established(1, true, 1)
			p.established(2, false, 1)
			p.event(evFirst{102})
		}, true},
		"lame": {func(p *play) {
			p.lookup("bob.example.", 1)
			p.established(1, true, 1)
			p.now = p.now.Add(2 * time.Hour)
			p.p.pad.Alive(p.now)
			p.p.sas[0].usage.in = readingOf(p.now)
			p.event(evTick{})
		}, true},
		"anonymous":       {func(p *play) { p.established(1, false, 0); p.event(evFirst{101}) }, false},
		"not in use":      {func(p *play) { p.established(1, false, 1) }, false},
		"nobody's":        {func(p *play) {}, false},
		"asked":           {func(p *play) { p.established(1, false, 0); p.event(evFirst{101}); p.p.probeAll(p.now) }, false},
		"being ended":     {func(p *play) { p.established(1, false, 0); p.event(evFirst{101}); p.p.end(p.now, p.p.sas[0]) }, false},
		"without a child": {func(p *play) { p.event(ike.Established{SA: 1, Key: testKey(1)}) }, false},
		"contested":       {func(p *play) { p.lookup("bob.example.", 1); p.established(1, true, 1); p.event(evContest{}) }, false},
		"contested, and answered before": {func(p *play) {
			p.lookup("bob.example.", 1)
			p.established(1, true, 1)
			p.event(evContest{})
			p.event(ike.Alive{SA: 1})
		}, true},
		"somebody knocks": {func(p *play) {
			p.established(1, false, 0)
			p.event(evFirst{101})
			p.event(evKnock{ike.AuthorizationWanted{SA: 7}})
		}, false},
		"another key than the live one": {func(p *play) {
			p.lookup("bob.example.", 1)
			p.established(1, true, 1)
			p.established(2, true, 2)
			p.p.pad.Prove(p.now, pad.KeyOf(testKey(2)))
		}, false},
	} {
		one, other := newPlay(t), newPlay(t)
		tt.make(one)
		tt.make(other)
		l := idleLoop(t, one)
		one.now, other.now = one.now.Add(3*time.Second), other.now.Add(3*time.Second)
		if got := l.hears(one.now, one.p, 1); got != tt.want {
			t.Errorf("%s: %v, want %v", what, got, tt.want)
		}
		other.done, other.said = nil, nil
		if tt.want {
			if other.event(ike.Alive{SA: 1}); len(other.done)+len(other.said) > 0 {
				t.Errorf("%s: the step does %v, and says %v", what, other.done, other.said)
			}
		}
		one.p.stop, one.p.standing, one.p.spreadAt, one.p.spreadTo = other.p.stop, other.p.standing, other.p.spreadAt, other.p.spreadTo // the loop's
		if !reflect.DeepEqual(one.p, other.p) {
			t.Errorf("%s: made\n%+v, want\n%+v", what, one.p, other.p)
		}
	}
	p := newProven(t)
	l := idleLoop(t, p)
	p.now = p.now.Add(time.Second)
	if !l.hears(p.now, p.p, 1) || p.p.standing == nil || p.p.standing.until.Load() != int64(p.p.pad.HoldUntil().Sub(l.grants.start)) {
		t.Errorf("lookups are not shown that the proof holds for longer: %+v", p.p.standing)
	}
	if l.quarantined[p.p.key] = p.now.Add(time.Second); l.hears(p.now, p.p, 1) {
		t.Error("it is in quarantine")
	}
}

// The engine reports nothing of an anonymous SA while nobody asks whether the peer is there; it does as soon as somebody does, and of all that proves something.
func TestListensToWhoIsAsked(t *testing.T) {
	nobody := func(p *play) { p.established(1, false, 0); p.event(evFirst{101}) }
	for what, tt := range map[string]struct {
		make   func(p *play)
		hushed bool
	}{
		"nobody":          {nobody, true},
		"not in use":      {func(p *play) { p.established(1, false, 0) }, false},
		"without a child": {func(p *play) { p.event(ike.Established{SA: 1, RemoteID: ike.ID{Kind: ike.IDNull}}) }, false},
		"somebody":        {func(p *play) { p.lookup("bob.example.", 1); p.established(1, true, 1) }, false},
		"asked":           {func(p *play) { nobody(p); p.p.probeAll(p.now) }, false},
		"has answered":    {func(p *play) { nobody(p); p.p.probeAll(p.now); p.event(ike.Alive{SA: 1}) }, true},
		"being ended":     {func(p *play) { nobody(p); p.p.end(p.now, p.p.sas[0]) }, false},
		"another knocks":  {func(p *play) { nobody(p); p.event(evKnock{ike.AuthorizationWanted{SA: 7}}) }, false},
		"promoted":        {func(p *play) { nobody(p); p.event(ike.Promoted{SA: 1, Key: testKey(1)}) }, false},
	} {
		p := newPlay(t)
		tt.make(p)
		l := idleLoop(t, p)
		if l.listen(p.now, p.p); p.p.sas[0].hushed != tt.hushed {
			t.Errorf("%s: hushed %v, want %v", what, !tt.hushed, tt.hushed)
		}
		l.quarantined[p.p.key] = p.now.Add(quarantine)
		if l.listen(p.now, p.p); p.p.sas[0].hushed {
			t.Errorf("%s: hushed in quarantine", what)
		}
	}
}

// A step that panics may have left a question behind it: from then on every sign of life is reported, until the quarantine is over.
func TestListensAfterAPanic(t *testing.T) {
	p := newPlay(t)
	p.established(1, false, 0)
	p.event(evFirst{101})
	l := idleLoop(t, p)
	a, sound := p.p.sas[0], p.p.pad
	for _, c := range []struct {
		what   string
		after  time.Duration
		pad    *pad.Address
		hushed bool
	}{{"before", 0, sound, true}, {"the panic", 0, nil, false}, {"in quarantine", quarantine - 1, sound, false}, {"after it", 1, sound, true}} {
		p.now = p.now.Add(c.after)
		p.p.pad = c.pad
		l.pardon(p.now)
		if l.step(p.now, p.p, evTick{}); a.hushed != c.hushed {
			t.Errorf("%s: hushed %v, want %v", c.what, a.hushed, c.hushed)
		}
	}
}

// What was heard without a report is known before the next step, and then he who was asked whether he is there is.
func TestCatchesUpWithWhatWasHeard(t *testing.T) {
	t.Parallel()
	alice, bob := newEnd(t, "192.0.2.1", ""), newEnd(t, "192.0.2.2", "bob.example")
	ipsectest.Wire(alice.Fake, bob.Fake)
	close(alice.gate)
	close(bob.gate)
	if o := outcomeOf(t, alice.lookup(bob)); !o.ok {
		t.Fatalf("withheld: %s", o.why)
	}
	for id := range bob.Pairs() {
		bob.Raise(ipsec.Event{Kind: ipsec.FirstPacket, ID: id})
	}
	of := func(e *end, do func(now time.Time, l *loop, p *peer, a *association)) {
		t.Helper()
		if err := e.l.ask(t.Context(), func(now time.Time) {
			for _, p := range e.l.peers {
				for _, a := range p.sas {
					do(now, e.l, p, a)
				}
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "bob has the engine keep quiet of alice", func() (hushed bool) {
		of(bob, func(_ time.Time, _ *loop, _ *peer, a *association) { hushed = a.hushed })
		return hushed
	})
	time.Sleep(10 * time.Millisecond)
	var began, heard moment
	of(alice, func(now time.Time, l *loop, _ *peer, a *association) {
		began = at(now)
		l.output(now, l.engine.Do(now, a.id, ike.Probe))
	})
	await(t, "bob's engine has heard alice", func() (is bool) {
		of(bob, func(_ time.Time, l *loop, _ *peer, a *association) {
			is, heard = !at(l.engine.Heard(a.id)).Before(began), a.heard
		})
		return is
	})
	if !heard.Before(began) {
		t.Error("it was reported")
	}
	of(bob, func(now time.Time, l *loop, p *peer, a *association) {
		if l.step(now, p, evTick{}); !a.heard.Before(began) {
			t.Error("the engine is asked though it does not count")
		}
		a.usage.out = readingOf(now)
		if l.step(now, p, evTick{}); a.heard.Before(began) {
			t.Errorf("a step knows of %v before the last message", began.Sub(a.heard))
		}
		l.step(now, p, evKnock{ike.AuthorizationWanted{SA: 7}}) // he is asked
	})
	await(t, "he has answered", func() (answered bool) {
		of(bob, func(_ time.Time, _ *loop, p *peer, a *association) {
			answered = a.hushed && a.probed.IsZero() && p.latch.doubted.IsZero()
		})
		return answered
	})
}
