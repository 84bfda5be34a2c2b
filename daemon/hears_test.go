package daemon

import (
	"reflect"
	"testing"
	"time"

	"tacit/ike"
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
		"anonymous":       {func(p *play) { p.established(1, false, 0); p.event(evFirst{101}) }, true},
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
