package daemon

import (
	"crypto"
	"fmt"
	"slices"
	"strings"
	"time"

	"tacit/ike"
	"tacit/ipseckey"
	"tacit/pad"
)

// What an address proves, and what follows from it. An initiator of ours proves its key with IKE_AUTH. Somebody who has begun an SA with us has
// not shown yet that he uses it (TRUST.md R10): he counts from the first valid packet on.

// askedAgain is the time between two lookups of a client's name, whatever its TTL.
const askedAgain = time.Minute

// childUp is the data plane's acknowledgement: what waits for this key may leave.
func (p *peer) childUp(now time.Time, e ike.ChildUp) (do []action) {
	a := p.sa(e.SA)
	if a == nil {
		return nil
	}
	stands := a.carry(e.Pair)
	a.armed = a.armed || a.initiator
	if e.Rekey || !stands {
		return nil
	}
	a.since = at(now)
	if p.attempt != nil && p.attempt.id == e.SA {
		if a.key != nil {
			p.claimed(p.attempt.claim)
		}
		unsaid := p.refused > p.attempt.refused // what was dropped since we began
		a.called, p.attempt = p.attempt.called, nil
		if do = p.somebody(); unsaid {
			do = append(do, p.probe(now, a)...)
		}
	}
	p.setState(now, protected, p.describe(a))
	switch {
	case a.key == nil && a.initiator:
		return append(do, p.retry(now)...) // names may have waited for their turn
	case a.key == nil || !a.armed && !p.pad.Held(now):
		return do
	}
	return append(do, p.shown(now, a)...)
}

// shown: the address speaks with the association's key. Who came in by another than the live one takes its place only if he still may.
func (p *peer) shown(now time.Time, a *association) (do []action) {
	if live, _, _ := p.pad.Key(); !a.initiator && p.pad.Live() && !live.Is(a.key) {
		if keys, _ := p.pad.Initiator(now, *a.claim); !contains(keys, a.key) {
			return p.dismiss(a)
		}
	}
	p.prove(now, a)
	if a.claim.Name != "" {
		p.last = a.claim
		p.pad.Ask(now, *a.claim)
	}
	p.setState(now, protected, p.describe(a))
	for _, other := range p.sas {
		if other != a && other.key == nil {
			do = append(do, p.dismiss(other)...)
		}
	}
	return append(do, p.answer(now, a)...)
}

// claimed notes a claim as the last that was proven.
func (p *peer) claimed(c pad.Claim) { p.last = &c }

func contains(keys []crypto.PublicKey, k crypto.PublicKey) bool {
	return slices.ContainsFunc(keys, pad.KeyOf(k).Is)
}

// isLive reports whether the association's key is the live one.
func (p *peer) isLive(a *association) bool {
	k, _, _ := p.pad.Key()
	return a.key != nil && p.pad.Live() && k.Is(a.key)
}

// named notes whom DNS says the initiator to be.
func (p *peer) named(now time.Time, e evNamed) {
	if a := p.sa(e.sa); a != nil {
		a.claim, a.asked = &e.claim, at(now)
	}
}

// promoted: who came in as nobody has proved a key by now (R7).
func (p *peer) promoted(now time.Time, e ike.Promoted) []action {
	a := p.sa(e.SA)
	if a == nil {
		return nil
	}
	a.key, a.remoteID = e.Key, e.RemoteID
	switch {
	case !a.up:
		return nil
	case a.armed:
		return p.shown(now, a)
	}
	p.setState(now, p.state, p.describe(a))
	return nil
}

// askAgain has the names of clients looked up again whose claims have ended (R9), and the reverse zone that nobody looks up: what holds goes on, and what does
// not is lame.
func (p *peer) askAgain(now time.Time) (do []action) {
	if !p.pad.Lame(now) {
		return nil
	}
	for _, a := range p.live() {
		if a.claim.Name != "" && p.isLive(a) && at(now).Sub(a.asked) >= askedAgain {
			a.asked = at(now)
			do = append(do, doAsk{a.claim.Name})
		}
		if a.initiator && p.last.Source == pad.Reverse && p.isLive(a) && at(now).Sub(a.asked) >= askedAgain {
			a.asked = at(now)
			do = append(do, doAskReverse{})
		}
	}
	return do
}

// dismiss ends an SA that nobody's key is behind, and its Pair at once: whoever holds it may take his time over our DELETE.
func (p *peer) dismiss(a *association) []action {
	return append(p.finish(a), a.removal()...)
}

// prove records that the address showed the association's key just now.
func (p *peer) prove(now time.Time, a *association) {
	p.pad.Prove(now, pad.KeyOf(a.key))
}

// answer releases the lookups that the live key satisfies. The others' names have a key that the host at this address has just
// shown not to be the live one: they are withheld (R3).
func (p *peer) answer(now time.Time, a *association) (do []action) {
	waiting := p.waiting
	p.waiting = nil
	for _, w := range waiting {
		if p.pad.Satisfied(now, w.claim) {
			p.claimed(w.claim)
			do = append(do, doReply{w, outcome{ok: true, ttl: p.pad.TTL(now, w.claim)}})
			continue
		}
		why := fmt.Sprintf("the host at %v proved the key %s, which %s does not publish", p.remote, ipseckey.Fingerprint(a.key), w.claim.Name)
		p.pad.Fail(now, w.claim, why)
		do = append(do, doReply{w, outcome{why: why}})
	}
	return do
}

func (p *peer) describe(a *association) string {
	switch {
	case a.key != nil && a.initiator: // what the peer calls itself is not proven; the key of the name that we asked for is (I8)
		return "proved the key of " + strings.TrimSuffix(p.last.Name, ".")
	case a.key != nil && a.claim.Name != "":
		return "proved the key of " + strings.TrimSuffix(a.claim.Name, ".")
	case a.key != nil:
		return "proved its key"
	case a.remoteID.Kind == ike.IDFQDN:
		return fmt.Sprintf("says that it is %s, which is not proven: anonymous", a.remoteID.Value)
	}
	return "anonymous"
}

// first is the first valid packet of an inbound SA: the data plane has armed it (R10).
func (p *peer) first(now time.Time, pair uint32) (do []action) {
	for _, a := range p.sas {
		if a.pair.ID == pair && a.up {
			a.usage.in = max(a.usage.in, readingOf(now))
			do = append(do, p.arm(now, a)...)
		}
	}
	return do
}

// arm: the peer has used the association.
func (p *peer) arm(now time.Time, a *association) (do []action) {
	if a.parted {
		return nil
	}
	a.armed = true
	do = a.repeats()
	switch {
	case a.key == nil:
	case p.isLive(a):
		p.pad.Alive(now)
	default:
		do = append(do, p.shown(now, a)...)
	}
	if a.up && p.state == withheld {
		p.setState(now, protected, p.describe(a))
	}
	return do
}

// used takes a Pair's counters. Valid ESP is a proof (TRUST.md 2).
func (p *peer) used(now time.Time, e *evUsage) (do []action) {
	for _, a := range p.sas {
		if a.pair.ID != e.pair || !a.up {
			continue
		}
		if e.u.Armed && !a.armed {
			do = append(do, p.arm(now, a)...)
		}
		if p.isLive(a) && e.u.LastIn.After(a.usage.in.time()) {
			p.pad.Alive(e.u.LastIn)
			if momentOf(now, e.u.LastIn).After(p.contested) {
				do = append(do, p.remains(now, a)...)
			}
		}
		if a.talks() && e.u.LastIn.After(p.latch.doubted) && !p.latch.doubted.IsZero() {
			do = append(do, p.standsBy()...)
		}
		a.usage = usage{readingOf(e.u.LastIn), readingOf(e.u.LastOut)}
	}
	return do
}
