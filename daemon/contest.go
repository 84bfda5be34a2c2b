package daemon

import (
	"strings"
	"time"

	"tacit/ike"
	"tacit/pad"
)

// Who may have the address: the turn of those who wait, and the incumbent that is asked whether it still stands (TRUST.md R3).

// retry answers the waiters that need wait no longer, and begins the negotiation that the next one needs, once no authenticated SA
// stands in its way.
func (p *peer) retry(now time.Time) (do []action) {
	waiting := p.waiting
	p.waiting = nil
	for _, w := range waiting {
		switch s := p.pad.Ask(now, w.claim); s.State {
		case pad.Satisfied:
			do = append(do, doReply{w, outcome{ok: true, ttl: s.TTL}})
		case pad.Failed, pad.Expired:
			do = append(do, doReply{w, outcome{why: s.Why}})
		default:
			p.waiting = append(p.waiting, w)
		}
	}
	if p.attempt != nil || p.authenticated() != nil {
		return do
	}
	if len(p.waiting) == 0 {
		return append(do, p.askAnybody(now)...)
	}
	return append(do, p.begin(now, p.next())...)
}

// next is the claim whose turn it is: of those of the domain with the fewest the first. Whoever has a thousand names point here keeps
// his own waiting, and hardly another's (A-20, I3).
func (p *peer) next() pad.Claim {
	domain := func(name string) string {
		labels := strings.Split(strings.TrimSuffix(name, "."), ".")
		return strings.Join(labels[max(0, len(labels)-2):], ".")
	}
	many := map[string]int{}
	for _, w := range p.waiting {
		many[domain(w.claim.Name)]++
	}
	best := p.waiting[0].claim
	for _, w := range p.waiting[1:] {
		if many[domain(w.claim.Name)] < many[domain(best.Name)] {
			best = w.claim
		}
	}
	return best
}

// alive is an authenticated message. An incumbent that answered keeps the address (R3).
func (p *peer) alive(now time.Time, id ike.SAID) []action {
	a := p.sa(id)
	if a == nil {
		return nil
	}
	a.probed, a.heard = 0, at(now)
	if a.talks() {
		return p.standsBy()
	}
	if !a.up || !p.isLive(a) {
		return nil
	}
	p.pad.Alive(now)
	return p.remains(now, a)
}

// unasked reports whether nobody wants to know if the peer is there: what is heard of the SA then says when, and no more.
func (p *peer) unasked(a *association) bool {
	return a.up && a.armed && !a.deleting && a.probed.IsZero() && p.contested.IsZero() && p.latch.doubted.IsZero() && len(p.latch.knocks) == 0
}

// hears notes a proof of a peer of whom nobody has asked whether he is there, and reports whether that is all that the message means: what step would do, without
// looking at all that it looks at. Most messages are such, and there may be many peers.
func (l *loop) hears(now time.Time, p *peer, id ike.SAID) bool {
	a := p.sa(id)
	if a == nil || !p.unasked(a) || !p.isLive(a) || now.Before(l.quarantined[p.key]) {
		return false
	}
	a.heard = at(now)
	p.pad.Alive(now)
	l.publish(p)
	l.spread(now, p)
	return true
}

// listen has the engine report signs of life where somebody asks for them, or where they are proofs. Those who are nobody prove nothing, and are the most: of
// them it is asked, before a step for which it counts, when they were heard last. A message of theirs does not bring the peer into the processor's cache.
func (l *loop) listen(now time.Time, p *peer) {
	for _, a := range p.sas {
		if hushed := a.key == nil && p.unasked(a) && !now.Before(l.quarantined[p.key]); hushed != a.hushed {
			a.hushed = hushed
			l.engine.Hush(a.id, hushed)
		}
	}
}

// catchUp notes what was heard without a report of those of the peer's SAs that seem to be silent.
func (l *loop) catchUp(now time.Time, p *peer) {
	for _, a := range p.sas {
		if _, silent := a.silent(now); silent && a.hushed {
			if t := l.engine.Heard(a.id); !t.IsZero() {
				a.heard = max(a.heard, at(t))
			}
		}
	}
}

// remains is a proof by an incumbent. If it was contested it has answered, and keeps the address.
func (p *peer) remains(now time.Time, a *association) []action {
	if p.contested.IsZero() || a.deleting {
		return nil
	}
	p.contested, p.stood = 0, at(now)
	return p.answer(now, a)
}

// stoodFor is how long the answer of an incumbent counts for those who come after it: whoever has a thousand names point to the address could else
// use up what the other host serves an SA, so that it seemed to be silent.
const stoodFor = 200 * time.Millisecond

// contest asks the incumbent: if it answers, it keeps the address, else it loses it after incumbentWait (R3). An address that is
// held without an SA is asked for the key that it proved.
func (p *peer) contest(now time.Time) []action {
	a := p.authenticated()
	if a == nil {
		return p.revive(now)
	}
	if p.contested.IsZero() && at(now).Sub(p.stood) < stoodFor {
		return p.answer(now, a)
	}
	do := p.probeAll(now)
	if p.contested.IsZero() {
		p.contested = at(now)
		do = append(do, doTick{incumbentWait}) // the housekeeping's could be a second late, and who waits has a hold of two
	}
	return do
}

// lose ends an incumbent that did not answer. Its SA's DELETE may take its time; the next name does not wait for it. Without one
// the address may prove its key anew.
func (p *peer) lose(now time.Time, a *association) []action {
	p.contested, p.stood, p.ending = 0, 0, "it did not answer within a second, and another key is claimed for the address"
	do := append(p.end(now, a), p.retry(now)...)
	if p.authenticated() != nil {
		return do
	}
	return append(do, p.revive(now)...)
}

// revive asks a held address for the key that it proved: the key stays good for as long as the hold, whatever became of the records. A client behind a NAT
// cannot be asked.
func (p *peer) revive(now time.Time) []action {
	if p.last.Name == "" || !p.pad.Held(now) || p.outer.IsValid() {
		return nil
	}
	c := p.again()
	c.Until = p.pad.HoldUntil()
	return p.begin(now, c)
}

// again is the claim by which the address is keyed when nobody has looked a name up: what goes on there goes on with the key that it proved (I2). A
// name that this satisfies may list one of its own beside it, as at a roll-over; that one is for those who look the name up.
func (p *peer) again() pad.Claim {
	c := *p.last
	if k, _, ok := p.pad.Key(); ok && c.Source == pad.Forward {
		c.Keys = []pad.Key{k}
	}
	return c
}

// probeAll asks every SA of the peer whether it still stands.
func (p *peer) probeAll(now time.Time) (do []action) {
	for _, a := range p.live() {
		do = append(do, p.probe(now, a)...)
	}
	return do
}

func (p *peer) probe(now time.Time, a *association) []action {
	if !a.probed.IsZero() {
		return nil
	}
	a.probed = at(now)
	return []action{doCommand{a.id, ike.Probe}}
}
