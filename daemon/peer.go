package daemon

import (
	"crypto"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"tacit/control"
	"tacit/ike"
	"tacit/ipsec"
	"tacit/ipseckey"
	"tacit/pad"
	"tacit/wheel"
)

// state is where a peer stands.
//
//	       lookup, Acquire            child up
//	idle ------------------> keying ------------> protected --claims end--> lame
//	 ^                         |                    |   ^                    |
//	 |   failed, never proved  |        child down, |   | keyed again        |
//	 +-------------------------+        key proved  v   |                    |
//	 +------------- linger ended ---------------- withheld <-----------------+
type state uint8

const (
	idle      state = iota // nothing is known of the address, no policy stands on it
	keying                 // an IKE SA is being set up
	protected              // a Child SA is installed
	withheld               // it has no SA and proved a key, or its SA ended in use: nothing passes in clear until linger after that
	lame                   // no name vouches for it any more; the SA is kept for live flows
)

func (s state) String() string {
	return [...]string{"clear", "keying", "protected", "withheld", "lame"}[s]
}

const (
	idleHold      = time.Second     // an address that was protected is held for so long at least: a peer may end an SA to make the next one
	armedWithin   = 5 * time.Second // a responder's SA without ESP is probed after so long (TRUST.md R10)
	incumbentWait = time.Second     // an incumbent that answers no probe for so long loses (R3)
	silence       = 4 * time.Second // we send and hear nothing for so long: probe
	tick          = time.Second
	maxSAs        = 8           // that a peer may have begun at once; the oldest that proved nothing goes (R8, A-23)
	clearLogs     = time.Minute // between two lines of the log about a peer's clear packets
)

// key names a peer: policies are per address of ours.
type key struct{ local, remote netip.Addr }

// waiter is a lookup whose answer waits. Exactly one outcome is sent to reply, which has room for it.
type waiter struct {
	claim  pad.Claim
	reply  chan outcome // nil: no lookup waits, but packets do
	packet *waiting
}

// outcome is what becomes of one address of an answer; ok releases it.
type outcome struct {
	ok        bool
	ttl       time.Duration // ok: how long the client may keep it
	ede       uint16
	why       string
	downgrade bool // less than the address had proved before was offered
}

// association is an IKE SA with the peer, and its Child SA.
type association struct {
	id        ike.SAID
	key       crypto.PublicKey // proven by the peer; nil: anonymous
	raw       string           // anonymous: the fingerprint of the key that it showed, if any
	remoteID  ike.ID
	claim     *pad.Claim // a responder's: the initiator's name, proven by DNS and by its key; asked is when it was looked up last
	asked     moment
	suite     string
	pair      carried   // ID 0: no child yet
	more      []carried // that the peer has asked for beside it
	born      moment    // the IKE SA
	renew     moment    // when one of ours that the engine could not rekey is set up anew
	since     moment    // the Child SA
	usage     usage
	probed    moment // when a probe was sent that was not answered yet
	heard     moment // the last authenticated message, or the last but those that the engine knows of
	hushed    bool   // the engine reports none: loop.listen
	initiator bool
	up        bool
	armed     bool
	parted    bool // we have stopped sending with it, for good
	checked   bool // probed for being unarmed
	deleting  bool
	called    bool // of ours: the peer had begun an SA with us before
	refused   bool // the peer has dropped what came from us in clear: it is sent again when the peer uses this
}

// noClaim is what nobody has claimed. Peers and associations share their claims, which do not change.
var noClaim = &pad.Claim{}

// attempt is the negotiation that we began; at most one is in flight to an address.
type attempt struct {
	id    ike.SAID
	claim pad.Claim
	// unnamed: the peer was asked for no name in particular. A host that is known by many names answers to its own alone, and
	// refuses to be asked for another. The key is what it must prove in any case.
	unnamed bool
	called  bool   // the peer had begun an SA with us before
	anybody bool   // whoever is there will do
	refused moment // peer.refused, if the peer is told in it
}

// peer is an address that we negotiate with. It does nothing itself: step says what to do.
type peer struct {
	key
	state   state
	called  bool // the address has begun an SA with us: it knows our name, and asks us to prove it
	since   moment
	why     string
	linger  time.Duration
	renew   time.Duration // the age at which an IKE SA of ours is set up anew if it could not be rekeyed, before it expires
	pad     *pad.Address
	last    *pad.Claim // the claim that the address proved last: whom an Acquire means
	attempt *attempt
	sas     []*association  // the oldest first
	one     [1]*association // where the list is as long as most peers' are
	waiting []waiter
	anybody *anybody
	latch   *latch
	outer   netip.AddrPort // of a client behind a NAT, whose remote is assigned by us: where it is seen; else not valid
	held    time.Time      // until when a Hold policy of ours stands; zero: none
	shut    moment         // since when it does
	broken  time.Time      // until when it is to stand because an SA ended in the middle of a conversation; zero: none did
	parting moment         // until when it is to stand because the peer has not answered our DELETE; zero: there is none
	// standing is what lookups see of the live key; nil: there is none. The loop's.
	standing *standing
	spreadAt time.Time        // the proof that the peers at our other addresses know of
	spreadTo *pad.Environment // our addresses then
	// contested: somebody without the live key wants the address, and the incumbent was asked (R3).
	contested   moment // when it was asked; zero: nobody does
	stood       moment // when an incumbent that was asked has answered last
	ending      string // why an SA is being ended by us, in the step under way
	refused     moment // when packets of it were dropped last since they came in clear
	clearLogged moment // when dropped clear packets were logged last
	stop        wheel.Place
}

// action is one of the types below: what the loop does for a peer.
type action interface{}

type (
	doReply struct {
		w waiter
		o outcome
	}
	doInitiate struct {
		claim   pad.Claim
		unnamed bool
		anybody bool
	}
	doCommand struct {
		sa ike.SAID
		c  ike.Command
	}
	doHold   struct{ until time.Time }
	doUnhold struct{}
	doAsk    struct{ name string } // whether DNS still says what it said of an initiator

	doAskReverse struct{}                   // or what the reverse zone did
	doTick       struct{ in time.Duration } // evTick then, and not only when it is the peer's turn
)

// The events of a peer. Those of ike come as they are.
type (
	evLookup  struct{ w waiter }
	evGone    struct{ w waiter }    // its deadline passed: nobody waits any more
	evBegun   struct{ id ike.SAID } // answers doInitiate
	evFirst   struct{ pair uint32 }
	evAcquire struct{}
	evClear   struct{} // it spoke clear to us
	evContest struct{} // somebody at the address, who did not prove its live key, was refused
	evUsage   struct {
		pair uint32
		u    ipsec.Usage
	}
	evTick  struct{}
	evNamed struct { // DNS has proven the name that the SA's initiator told; it comes behind Established
		sa    ike.SAID
		claim pad.Claim
	}
	evClaim struct{ claim pad.Claim } // DNS says it again
)

func newPeer(k key, linger, lifetime time.Duration, now time.Time) *peer {
	p := &peer{key: k, last: noClaim, latch: noLatch, anybody: nobodyAsked, linger: linger, renew: lifetime - lifetime/20, pad: pad.NewAddress(linger), since: at(now)}
	p.sas = p.one[:0]
	return p
}

// setState is the only place where the state changes. why is a sentence for people.
func (p *peer) setState(now time.Time, s state, why string) {
	if p.state != s {
		p.state, p.since = s, at(now)
	}
	p.why = why
}

// step takes one event and says what to do, and when to come back at the latest (zero: only with an event).
func (p *peer) step(now time.Time, e any) (do []action, wake time.Time) {
	before, shut := p.face(), p.shuts()
	switch e := e.(type) {
	case evLookup:
		do = p.lookup(now, e.w)
	case evGone:
		p.forget(e.w)
	case evBegun:
		p.attempt.id = e.id
	case ike.Established:
		do = p.established(now, e)
	case evNamed:
		p.named(now, e)
	case ike.Promoted:
		do = p.promoted(now, e)
	case ike.ClearRefused:
		do = p.hearsRefusal(e.SA)
	case ike.ChildUp:
		do = p.childUp(now, e)
	case ike.ChildDown:
		do = p.childDown(now, e)
	case ike.Closed:
		do = p.closed(now, e)
	case ike.Rekeyed:
		p.rekeyed(now, e)
	case ike.ChildPreferred:
		p.preferred(e)
	case ike.Alive:
		do = p.alive(now, e.SA)
	case evFirst:
		do = p.first(now, e.pair)
	case evAcquire:
		do = p.acquire(now)
	case evClear:
		do = p.spokeClear(now)
	case evContest:
		do = p.contest(now)
	case *evUsage:
		do = p.used(now, e)
	case evElsewhere:
		do = p.elsewhere(e)
	case evClaim:
		p.pad.Ask(now, e.claim)
	case evRules:
		do = p.reconsider(now, e)
	case evKnock:
		do = p.knock(now, e.e)
	case evSevered:
		do = p.severed(now, e.err)
	case evPinned:
		p.repinned(e)
	case evRoom:
		do = p.giveWay()
	case evRequired:
		p.required(now, e.claim)
	case evStuck:
		p.broken = latest(p.broken, e.until)
		p.setState(now, withheld, "connections that were protected cannot be ended here")
	case evLeft:
		p.broken = latest(p.broken, e.until)
		p.setState(now, withheld, "a process before us protected or held it")
	case evLeave:
		p.leave()
	case evTick:
		do = p.tick(now)
	}
	do = append(do, p.latched(now)...)
	do = append(do, p.settle(now)...)
	do = append(p.opened(shut, do), p.changed(before, e)...)
	if !p.quiet(now) {
		wake = p.turn(now)
	}
	return do, wake
}

// lookup is a name that claims the address: TRUST.md 2, R1 to R4.
func (p *peer) lookup(now time.Time, w waiter) []action {
	if len(w.claim.Keys) == 0 {
		return p.encrypt(now, w)
	}
	switch s := p.pad.Ask(now, w.claim); s.State {
	case pad.Satisfied:
		return []action{doReply{w, outcome{ok: true, ttl: s.TTL}}}
	case pad.Failed, pad.Expired:
		return []action{doReply{w, outcome{why: s.Why}}}
	case pad.Conflict: // R3: the incumbent must answer, or it loses
		p.waiting = append(p.waiting, w)
		if a := p.authenticated(); a != nil && p.pad.Outranks(now, w.claim) {
			do := p.lose(now, a)
			p.ending = "another key is claimed for the address by a word that goes before"
			return do
		}
		f := p.face()
		f.name = w.claim.Name
		return append(p.contest(now), p.event(control.Conflict, f, s.Why+", which this name does not publish; it is asked whether it still stands"))
	}
	p.waiting = append(p.waiting, w)
	return p.begin(now, w.claim)
}

// begin starts a negotiation unless one is in flight.
func (p *peer) begin(now time.Time, c pad.Claim) []action {
	if p.attempt != nil {
		return nil
	}
	p.attempt = &attempt{claim: c, called: p.called, unnamed: c.Source == pad.Reverse} // no host is known by a reverse name
	if len(p.live()) == 0 {
		p.setState(now, keying, "looked up "+c.Name)
	}
	return []action{doInitiate{claim: c, unnamed: p.attempt.unnamed}}
}

// forget drops a waiter whose client is gone. The negotiation goes on for the next lookup.
func (p *peer) forget(w waiter) {
	gone := func(o waiter) bool { return o.reply == w.reply }
	p.waiting = slices.DeleteFunc(p.waiting, gone)
	if len(p.anybody.waiting) > 0 {
		p.anybody.waiting = slices.DeleteFunc(p.anybody.waiting, gone)
	}
}

// established notes what the peer proved. An address has one live authenticated key (R2): anonymous SAs beside it end, so that
// nobody can speak as the one who proved himself.
func (p *peer) established(now time.Time, e ike.Established) (do []action) {
	p.called = p.called || !e.Initiator
	raw := ""
	if e.Raw != nil {
		raw = ipseckey.Fingerprint(e.Raw)
	}
	p.sas = append(p.sas, &association{claim: noClaim, raw: raw, id: e.SA, initiator: e.Initiator, key: e.Key, remoteID: e.RemoteID, suite: e.Summary, born: at(now), renew: at(now).Add(p.renew), since: at(now)})
	if len(p.sas) > 1 { // the list is elsewhere
		p.one[0] = nil
	}
	if e.Initiator {
		return nil
	}
	var oldest *association
	n := 0
	for _, a := range p.sas {
		if a.initiator || a.deleting {
			continue
		}
		n++
		if a.id != e.SA && a.key == nil && (oldest == nil || a.born.Before(oldest.born)) {
			oldest = a
		}
	}
	if n <= maxSAs || oldest == nil {
		return nil
	}
	return p.dismiss(oldest)
}

// childDown ends a Child SA. The Hold policy, if the address proved its key, stands before the Pair goes.
func (p *peer) childDown(now time.Time, e ike.ChildDown) (do []action) {
	for _, a := range p.sas {
		if a.lose(e.Pair) {
			if p.authenticated() == nil {
				p.pad.Lost()
				if p.outer.IsValid() { // an address that we have assigned is its SA's: the pool is shut, and nobody else gets it before its connections are ended
					p.pad, p.last = pad.NewAddress(p.linger), noClaim
				}
				p.contested, p.stood = 0, 0
			}
			p.broken = latest(p.broken, p.breaks(now, a, e.Err))
			p.parts(now)
			if len(p.live()) == 0 || p.pad.Held(now) && !p.covered() {
				do = p.rest(now, "the SA ended: "+reason(e.Err))
			}
		}
	}
	a := p.sa(e.SA)
	return append(do, doRemove{pair: e.Pair, late: a != nil && a.parted})
}

// breaks is until when the address is held because of the end of an SA that was in use (I1): our half of a conversation does not go on in
// clear while the peer keys again. That takes no time where it asked for the end itself, and until it has something to say where
// our lifetime ended or it did not answer. A peer that has not spoken lately is gone, or nobody
// talks: it has a moment to begin anew, and then the address is open.
func (p *peer) breaks(now time.Time, a *association, err error) time.Time {
	switch {
	case a.deleting || !a.armed:
		return time.Time{}
	case now.Sub(a.usage.in.time()) >= silence || errors.Is(err, ike.ErrCrashed):
		return now.Add(idleHold)
	case err == nil:
		return now.Add(armedWithin)
	}
	return now.Add(p.linger)
}

// holdUntil is when the hold of an address without an SA ends.
func (p *peer) holdUntil(now time.Time) time.Time {
	return latest(p.broken, timeOf(now, p.parting), p.pad.HoldUntil())
}

// rest is what an address without an SA comes to: held until linger after the last proof, or clear.
func (p *peer) rest(now time.Time, why string) []action {
	if until := p.holdUntil(now); until.After(now) {
		p.setState(now, withheld, why)
		return p.hold(now, until)
	}
	if p.attempt == nil {
		p.setState(now, idle, why)
	} else {
		p.setState(now, keying, why)
	}
	if !p.held.IsZero() {
		p.held = time.Time{}
		return []action{doUnhold{}}
	}
	return nil
}

// closed ends an IKE SA; if it was our attempt, the next name's turn comes.
func (p *peer) closed(now time.Time, e ike.Closed) (do []action) {
	a := p.sa(e.SA)
	p.sas = slices.DeleteFunc(p.sas, func(a *association) bool { return a.id == e.SA })
	p.parts(now)
	if p.attempt == nil || p.attempt.id != e.SA {
		do = p.retry(now)
		if errors.Is(e.Err, ike.ErrCrashed) && !p.covered() {
			return append(do, p.revive(now)...)
		}
		if a != nil && a.initiator && !a.deleting && !a.called && p.called && e.Err == nil && !p.covered() { // crossed, as below
			do = append(do, p.revive(now)...)
		}
		return do
	}
	if p.attempt.anybody {
		return append(p.nobody(now, e.Err), p.retry(now)...)
	}
	tried := p.attempt.claim
	if !p.attempt.unnamed && errors.As(e.Err, new(ike.NotifyError)) && errors.Is(e.Err, ike.ErrAuthentication) {
		p.attempt = &attempt{claim: tried, unnamed: true, called: p.attempt.called}
		return []action{doInitiate{claim: tried, unnamed: true}}
	}
	crossed := p.called && !p.attempt.called && (e.Err == nil || errors.Is(e.Err, ike.ErrAuthentication))
	p.attempt = nil
	if crossed { // both ends began at once, and the peer takes us for nobody beside us: now it is told who we are
		return p.begin(now, tried)
	}
	why := fmt.Sprintf("%v did not prove the key of %s: %s", p.remote, tried.Name, reason(e.Err))
	if errors.Is(e.Err, ike.ErrNAT) { // it may well have
		why = fmt.Sprintf("no SA with %v for %s: %s", p.remote, tried.Name, reason(e.Err))
	}
	p.pad.Fail(now, tried, why)
	if len(p.live()) == 0 {
		do = append(do, p.rest(now, why)...)
	}
	return append(do, p.retry(now)...)
}

// acquire is a packet that waits for an address without an SA, or with one that the peer has not used yet: it may not have it.
func (p *peer) acquire(now time.Time) []action {
	for _, a := range p.live() {
		if a.armed {
			return nil
		}
	}
	if do := p.resume(now); do != nil {
		return do
	}
	return p.revive(now)
}

// tick is the housekeeping, when it is the peer's turn: unarmed SAs, silent peers, incumbents that lost, claims and linger that ended.
func (p *peer) tick(now time.Time) (do []action) {
	for _, a := range p.live() {
		heard, silent := a.silent(now)
		switch {
		case a.deleting:
		case !p.contested.IsZero() && a.key != nil && at(now).Sub(p.contested) >= incumbentWait:
			do = append(do, p.lose(now, a)...)
		case !a.armed && !a.checked && at(now).Sub(a.since) >= armedWithin:
			a.checked = true
			do = append(do, p.probe(now, a)...)
		case silent && at(now).Sub(heard) >= silence:
			do = append(do, p.probe(now, a)...)
		case at(now).Sub(a.talked(now)) >= p.linger && (a.key == nil || p.pad.Lame(now)):
			p.ending = "it was not used for " + p.linger.String()
			do = append(do, p.end(now, a)...)
		}
	}
	do = append(append(do, p.abandon(now)...), p.renewal(now)...)
	if p.authenticated() != nil && p.attempt == nil {
		do = append(do, p.askAgain(now)...)
		if p.pad.Lame(now) {
			p.setState(now, lame, "no name vouches for it any more; the SA is kept for its flows")
			if at(now).Sub(p.since) >= p.renew { // R9: "kept until no flow uses it or its lifetime ends"
				p.ending = "no name has vouched for it for the lifetime of an SA"
				do = append(do, p.end(now, p.authenticated())...)
			}
		} else if p.state == lame {
			p.setState(now, protected, "claimed again")
		}
	}
	return do
}

// renewal sets the IKE SA up anew while the old one still serves: before it expires, if it could not be rekeyed, or when it does not answer a probe. A peer
// that was started again has lost it, and would be missed until the probe's last repeat. The end that began it does.
func (p *peer) renewal(now time.Time) []action {
	if p.attempt != nil || p.last.Name == "" || p.pad.Lame(now) || p.pad.Failing(now, p.again()) {
		return nil
	}
	due := false
	for _, a := range p.live() {
		if a.key == nil || a.deleting {
			continue
		}
		if !a.initiator || at(now).Before(a.renew) && !a.unanswered(now) {
			return nil
		}
		due = true
	}
	if !due {
		return nil
	}
	return p.begin(now, p.again())
}

// unanswered reports whether a probe of the SA had no answer for some time.
func (a *association) unanswered(now time.Time) bool {
	return !a.probed.IsZero() && at(now).Sub(a.probed) >= incumbentWait
}

// hold holds the address.
func (p *peer) hold(now, until time.Time) []action {
	if p.held.IsZero() {
		p.shut = at(now)
	}
	p.held = until
	return []action{doHold{until}}
}

// settle keeps a hold where the address proved its key and no SA of it is in use, for as long as the proof counts.
func (p *peer) settle(now time.Time) []action {
	if p.covered() {
		return nil
	}
	until := p.holdUntil(now)
	switch {
	case until.After(now) && until.After(p.held):
		return p.hold(now, until)
	case !p.held.IsZero() && !now.Before(p.held):
		p.held = time.Time{}
		if p.attempt == nil && len(p.live()) == 0 {
			p.setState(now, idle, "linger ended after the last proof")
		}
		return []action{doUnhold{}}
	}
	return nil
}

// covered reports whether an SA that a key authenticated is in use: the data plane lets no clear packet pass. A responder's SA is
// not before its first ESP (R10).
func (p *peer) covered() bool {
	for _, a := range p.sas {
		if a.up && a.armed && a.key != nil {
			return true
		}
	}
	return false
}

// live are the associations whose Child SA is installed.
func (p *peer) live() (as []*association) {
	for _, a := range p.sas {
		if a.up {
			as = append(as, a)
		}
	}
	return as
}

// authenticated is the association that proved the live key; nil: none.
func (p *peer) authenticated() *association {
	for _, a := range p.sas {
		if a.up && a.key != nil && !a.deleting {
			return a
		}
	}
	return nil
}

func reason(err error) string {
	if err == nil {
		return "deleted"
	}
	return err.Error()
}
