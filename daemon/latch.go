package daemon

import (
	"crypto"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"net/netip"
	"slices"
	"time"

	"tacit/ike"
	"tacit/ipsec"
	"tacit/ipseckey"
)

// The latch (RFC 5660; RFC 5386 calls what is latched better than nothing). Nobody knows whom an anonymous SA is with, but what was begun on it is not
// handed to anybody else: while a conversation lives, no other nobody comes in. Who shows a key in CERT is the same nobody in every SA in which he proves it;
// who shows none is so in one IKE SA and its rekeys only. Another one has the conversation's SAs asked whether they stand, and where
// they do not, its connections are ended before he comes in, or he waits until nothing of it is held any more. Who proves himself to be somebody is let
// in at any time: what was anonymous is authenticated from then on.

const (
	maxLatched = 8 // keys of a conversation: the ends may begin several SAs at once
	maxKnocks  = 4 // who waits to be let in
)

// latch is whom the conversation with an address is with.
type latch struct {
	since   time.Time                 // when its first SA was in use; zero: there is none
	keys    []string                  // the fingerprints that its SAs showed
	ours    bool                      // we have begun one of them: we may begin the next
	sever   bool                      // the connections are being ended
	doubted time.Time                 // when they were asked whether they stand; zero: they need not answer
	knocks  []ike.AuthorizationWanted // who waits for that
}

// noLatch is that of most peers, which have no conversation with nobody. It is not changed.
var noLatch = &latch{}

// conversation is the peer's latch, to be changed.
func (p *peer) conversation() *latch {
	if p.latch == noLatch {
		p.latch = &latch{}
	}
	return p.latch
}

type (
	// doAdmit answers those who have knocked.
	doAdmit struct {
		e   ike.AuthorizationWanted
		why string // they do not come in; "": they may try
	}
	doSever   struct{}                            // end the connections with the address: evSevered
	evKnock   struct{ e ike.AuthorizationWanted } // an initiator who is another nobody
	evSevered struct{ err error }
)

var errSilent = errors.New("it does not answer")

// same is who may be nobody in a negotiation that began at a time: nil: whoever it is. What began before the conversation is a part of it: the ends may
// have begun at once.
func (p *peer) same(began time.Time) func(crypto.PublicKey) bool {
	if p.latch.since.IsZero() || began.Before(p.latch.since) {
		return nil
	}
	keys := slices.Clone(p.latch.keys)
	return func(raw crypto.PublicKey) bool { return raw != nil && slices.Contains(keys, ipseckey.Fingerprint(raw)) }
}

// talks reports whether an anonymous SA is in use.
func (a *association) talks() bool { return a.up && a.armed && a.key == nil }

func (p *peer) talks() bool { return slices.ContainsFunc(p.sas, (*association).talks) }

// latched follows the conversation: it begins with the first anonymous SA that is in use, and ends when none is and nothing is held for it, or when the
// address proves a key.
func (p *peer) latched(now time.Time) (do []action) {
	talks := false
	for _, a := range p.sas {
		if !a.talks() || a.deleting {
			continue
		}
		talks = true
		if p.latch.since.IsZero() {
			p.conversation().since = now
		}
		p.latch.ours = p.latch.ours || a.initiator
		if a.raw != "" && !slices.Contains(p.latch.keys, a.raw) && len(p.latch.keys) < maxLatched {
			p.conversation().keys = append(p.latch.keys, a.raw)
		}
	}
	if p.latch.since.IsZero() || !p.covered() && (talks || now.Before(p.broken)) {
		return nil
	}
	do = p.admit()
	p.latch = noLatch
	return do
}

// admit lets those who have knocked try.
func (p *peer) admit() (do []action) {
	for _, e := range p.latch.knocks {
		do = append(do, doAdmit{e: e})
	}
	return do
}

// knock is another nobody: he waits until it is known whether the conversation stands.
func (p *peer) knock(now time.Time, e ike.AuthorizationWanted) []action {
	if len(p.latch.knocks) >= maxKnocks {
		return []action{doAdmit{e, "others wait already"}}
	}
	p.conversation().knocks = append(p.latch.knocks, e)
	if !p.talks() {
		return p.severs()
	}
	do := p.probeAll(now)
	if p.latch.doubted.IsZero() {
		p.conversation().doubted = now
		do = append(do, doTick{incumbentWait}) // as contest does
	}
	return do
}

// standsBy: an SA of the conversation has answered, or was used. Nobody else comes in.
func (p *peer) standsBy() []action {
	if p.latch != noLatch {
		p.latch.doubted = time.Time{}
	}
	return p.turnAway("the address has a conversation with another")
}

func (p *peer) turnAway(why string) (do []action) {
	for _, e := range p.latch.knocks {
		do = append(do, doAdmit{e, why})
	}
	if p.latch != noLatch {
		p.latch.knocks = nil
	}
	return do
}

// abandon ends the SAs of a conversation that have not answered in time, behind a hold, and closes its sockets.
func (p *peer) abandon(now time.Time) []action {
	if p.latch.doubted.IsZero() || now.Sub(p.latch.doubted) < incumbentWait {
		return nil
	}
	p.conversation().doubted = time.Time{}
	p.broken = latest(p.broken, now.Add(armedWithin)) // until it is known what became of the sockets
	var ends []action
	for _, a := range p.sas {
		if a.talks() {
			p.broken = latest(p.broken, p.breaks(now, a, errSilent))
			ends = append(ends, p.dismiss(a)...)
		}
	}
	return append(append(p.rest(now, "the SA ended: "+errSilent.Error()), ends...), p.severs()...)
}

func (p *peer) severs() []action {
	if p.latch.sever {
		return nil
	}
	p.conversation().sever = true
	return []action{doSever{}}
}

// severed: no connection of the conversation is left, and the next may begin; its hold stands until then, for what is no connection. Or they could not be
// ended: nobody else comes in while they are held.
func (p *peer) severed(now time.Time, err error) (do []action) {
	if !p.latch.sever { // it has ended meanwhile
		return nil
	}
	p.conversation().sever = false
	if err != nil {
		why := "a conversation with another is held: " + err.Error()
		return append(p.turnAway(why), p.tell(outcome{why: why})...)
	}
	do = p.admit()
	p.latch, p.anybody = noLatch, &anybody{waiting: p.anybody.waiting}
	return append(do, p.askAnybody(now)...)
}

// resume asks an address, whose conversation was broken, to go on with it: the SA was ours.
func (p *peer) resume(now time.Time) []action {
	if !p.latch.ours || p.unknowable() || !now.Before(p.broken) || p.attempt != nil || now.Before(p.anybody.until) {
		return nil
	}
	p.attempt = &attempt{anybody: true, called: p.called}
	return []action{doInitiate{anybody: true}}
}

// unknowable reports whether a conversation was broken with one who showed no key: he cannot be known again.
func (p *peer) unknowable() bool {
	return !p.latch.since.IsZero() && len(p.latch.keys) == 0 && !p.talks()
}

// admitted answers one who has knocked.
func (l *loop) admitted(now time.Time, a doAdmit) {
	if a.why != "" {
		l.refuse(now, a.e, a.why)
		return
	}
	l.admit(now, a.e)
}

// severs ends the conversation's connections (sever.go).
func (l *loop) severs(p *peer) {
	l.endAt(ipsec.Host(p.local, p.remote), time.Time{}, func(now time.Time, n int, err error) {
		if l.d.cfg.Flows == nil {
			err = errors.New("its connections cannot be ended on this system")
		}
		l.saidEnded(now, p, n)
		if l.peers[p.key] == p {
			l.step(now, p, evSevered{err})
		}
	})
}

// mask is the key that an address is shown by one of ours where we are nobody. It is of this process, or of those that crashed before it, and these two addresses: nobody can
// tell by it what the addresses do not tell him.
func (s *shared) mask(local, remote netip.Addr) crypto.Signer {
	h := hmac.New(sha256.New, s.masks[:])
	for _, a := range []netip.Addr{local, remote} {
		b := a.As16()
		h.Write(b[:])
	}
	return ed25519.NewKeyFromSeed(h.Sum(nil))
}
