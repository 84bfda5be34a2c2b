package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"tacit/ike"
	"tacit/pad"
)

// Better than nothing (RFC 5386, by the NULL authentication of RFC 7619): where the rule says `anonymous`, and nobody is to be proven, a host is
// asked for encryption with whoever is there. It counts for nothing but secrecy from those who only listen, is reported anonymous, and never
// stands in the way of somebody (TRUST.md A-19).

// The back-off of addresses that speak no IKE, or refuse.
const (
	firstRefusal = 10 * time.Second
	maxRefusal   = 10 * time.Minute
)

// anybody is what is known of an address in this respect.
type anybody struct {
	waiting []waiter
	failed  int
	until   time.Time // until then nobody asks again
	why     string
}

// pause is how long nobody asks again after so many failures.
func (a *anybody) pause() time.Duration {
	return min(firstRefusal<<min(a.failed-1, 10), maxRefusal)
}

// counts reports whether the failures are to be remembered: after the pause for as long again, so that whoever asks steadily does so ever less often.
func (a *anybody) counts(now time.Time) bool {
	return a.failed > 0 && now.Before(a.until.Add(a.pause()))
}

// nobodyAsked is that of most peers. It is not changed.
var nobodyAsked = &anybody{}

// asking is the peer's anybody, to be changed.
func (p *peer) asking() *anybody {
	if p.anybody == nobodyAsked {
		p.anybody = &anybody{}
	}
	return p.anybody
}

// encrypt asks for encryption without waiting for it: an answer goes out beside it.
func (d *Daemon) encrypt(addr netip.Addr) {
	local, err := source(addr)
	if err != nil {
		return
	}
	l := d.shards.of(addr)
	ctx, cancel := context.WithTimeout(context.Background(), d.cfg.File.DNS.Hold)
	defer cancel()
	_ = l.post(ctx, func(now time.Time) {
		if p := l.peerOf(now, local, addr); p != nil {
			l.step(now, p, evLookup{waiter{claim: pad.Claim{Addr: addr}, reply: make(chan outcome, 1)}})
		}
	})
}

// encrypt is a lookup of a name without a key, whose rule takes anybody.
func (p *peer) encrypt(now time.Time, w waiter) []action {
	for _, a := range p.live() {
		if a.armed && !a.deleting {
			return []action{doReply{w, outcome{ok: true}}}
		}
	}
	switch {
	case p.pad.Held(now):
		return []action{doReply{w, outcome{why: "the host has proved a key lately, and shows it no more", downgrade: true}}}
	case now.Before(p.anybody.until):
		return []action{doReply{w, outcome{why: p.anybody.why}}}
	}
	p.asking().waiting = append(p.anybody.waiting, w)
	return p.askAnybody(now)
}

// askAnybody begins the attempt that somebody waits for, unless another negotiation is under way.
func (p *peer) askAnybody(now time.Time) []action {
	if len(p.anybody.waiting) == 0 || p.attempt != nil {
		return nil
	}
	if p.unknowable() { // whoever answers is another: then it begins
		return p.severs()
	}
	p.attempt = &attempt{anybody: true, called: p.called}
	if len(p.live()) == 0 {
		p.setState(now, keying, "anonymous attempt")
	}
	return []action{doInitiate{anybody: true}}
}

// somebody is its success, or that of another attempt.
func (p *peer) somebody() []action {
	do := p.tell(outcome{ok: true})
	p.anybody = nobodyAsked
	return do
}

// nobody is its failure: the address speaks clear, for those whose rule lets it.
func (p *peer) nobody(now time.Time, err error) []action {
	p.attempt = nil
	if p.talks() { // both ends had begun, and one is enough
		return p.somebody()
	}
	a := p.asking()
	a.failed++
	a.why = fmt.Sprintf("%v does not encrypt: %s", p.remote, reason(err))
	a.until = now.Add(a.pause())
	do := p.tell(outcome{why: a.why})
	if !p.latch.since.IsZero() && errors.Is(err, ike.ErrAuthentication) { // whoever it is, it is not the one whom we spoke with
		do = append(do, p.severs()...)
	}
	if len(p.live()) == 0 {
		do = append(do, p.rest(now, a.why)...)
	}
	return do
}

func (p *peer) tell(o outcome) (do []action) {
	if len(p.anybody.waiting) == 0 {
		return nil
	}
	for _, w := range p.anybody.waiting {
		do = append(do, doReply{w, o})
	}
	p.anybody.waiting = nil
	return do
}
