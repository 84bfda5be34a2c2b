package daemon

import (
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tacit/control"
	"tacit/ike"
	"tacit/ike/wire"
	"tacit/ipsec"
	"tacit/pad"
)

// play is a peer with a clock and a record of what it asked for.
type play struct {
	t    *testing.T
	p    *peer
	now  time.Time
	done []action
	said []control.Event
	next uint64
	last time.Time // when it was stepped
}

const (
	testLinger   = 300 * time.Second
	testLifetime = time.Hour
)

func newPlay(t *testing.T) *play {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	k := key{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}
	return &play{t: t, p: newPeer(k, testLinger, testLifetime, now), now: now}
}

func testKey(b byte) crypto.PublicKey {
	seed := make([]byte, ed25519.SeedSize)
	seed[0] = b
	return ed25519.NewKeyFromSeed(seed).Public()
}

// event steps the peer, and answers doInitiate as the loop does.
func (p *play) event(e any) {
	_, early := e.(evTick)
	early = early && !p.last.IsZero() && p.now.Sub(p.last) >= tick && p.now.Before(p.p.turn(p.last))
	do, _ := p.p.step(p.now, e)
	if p.last = p.now; early {
		p.wantUnhurried(do)
	}
	for _, a := range do {
		if a, ok := a.(doAudit); ok {
			p.said = append(p.said, a.e)
			continue
		}
		p.done = append(p.done, a)
		if _, ok := a.(doInitiate); ok {
			p.next++
			p.event(evBegun{ike.SAID(p.next)})
		}
	}
}

// wantUnhurried fails the test where a tick that the housekeeping leaves out does what cannot wait. What can is the end of what is not used any more, behind a
// hold, and what is asked for because of claims that have ended, and SAs that will.
func (p *play) wantUnhurried(do []action) {
	p.t.Helper()
	ends := slices.ContainsFunc(do, func(a action) bool { _, ok := a.(doDelete); return ok })
	for _, a := range do {
		switch a := a.(type) {
		case doDelete, doAsk, doAskReverse, doInitiate, doAudit:
		default:
			if _, holds := a.(doHold); !holds || !ends {
				p.t.Errorf("a tick that is left out does %#v", a)
			}
		}
	}
}

func (p *play) pass(d time.Duration) {
	for end := p.now.Add(d); p.now.Before(end); {
		p.now = p.now.Add(tick)
		p.event(evTick{})
	}
}

func (p *play) claim(name string, keys ...byte) pad.Claim {
	c := pad.Claim{Name: name, Addr: p.p.remote, Until: p.now.Add(time.Hour)}
	for _, k := range keys {
		c.Keys = append(c.Keys, pad.KeyOf(testKey(k)))
	}
	return c
}

// lookup is a lookup; its outcome comes by outcomes.
func (p *play) lookup(name string, keys ...byte) waiter {
	w := waiter{claim: p.claim(name, keys...), reply: make(chan outcome, 1)}
	p.event(evLookup{w})
	return w
}

// established is the whole success of the SA with that key (0: anonymous).
func (p *play) established(sa ike.SAID, initiator bool, k byte) {
	e := ike.Established{SA: sa, Initiator: initiator, RemoteID: ike.ID{Kind: ike.IDNull}}
	if k != 0 {
		e.Key, e.RemoteID = testKey(k), ike.ID{Kind: ike.IDFQDN, Value: "bob.example"}
	}
	p.event(e)
	p.event(ike.ChildUp{SA: sa, Pair: ipsec.Pair{ID: uint32(sa) + 100}})
}

// newProven is a play whose peer has proven the key of bob.example. by SA 1.
func newProven(t *testing.T) *play {
	p := newPlay(t)
	p.lookup("bob.example.", 1)
	p.established(1, true, 1)
	return p
}

func (p *play) ended(sa ike.SAID, err error) {
	if a := p.p.sa(sa); a != nil && a.up {
		p.event(ike.ChildDown{SA: sa, Pair: a.pair.ID, Err: err})
	}
	p.event(ike.Closed{SA: sa, Err: err})
}

func count[T action](p *play) (n int) {
	for _, a := range p.done {
		if _, ok := a.(T); ok {
			n++
		}
	}
	return n
}

func (p *play) outcome(w waiter) (released, withheld bool, why string) {
	for _, a := range p.done {
		if r, ok := a.(doReply); ok && r.w.reply == w.reply {
			return r.o.ok, !r.o.ok, r.o.why
		}
	}
	return false, false, ""
}

func (p *play) wantReleased(w waiter) {
	p.t.Helper()
	if ok, _, why := p.outcome(w); !ok {
		p.t.Errorf("%s is not released (%s)", w.claim.Name, why)
	}
}

func (p *play) wantWithheld(w waiter) {
	p.t.Helper()
	if _, no, _ := p.outcome(w); !no {
		p.t.Errorf("%s is not withheld", w.claim.Name)
	}
}

func (p *play) wantState(s state) {
	p.t.Helper()
	if p.p.state != s {
		p.t.Errorf("the peer is %v (%s), want %v", p.p.state, p.p.why, s)
	}
}

// wantHoldFirst wants a hold before all else, and then the removal of the Pair: without both nothing keeps clear packets back.
func (p *play) wantHoldFirst() {
	p.t.Helper()
	if len(p.done) < 2 {
		p.t.Fatalf("did %v, want a hold and then the removal", p.done)
	}
	if _, ok := p.done[0].(doHold); !ok {
		p.t.Fatalf("did %#v before the hold stood", p.done[0])
	}
}

func TestLookupIsReleasedWhenTheSAIsInstalled(t *testing.T) {
	p := newPlay(t)
	w := p.lookup("bob.example.", 1)
	if n := count[doInitiate](p); n != 1 {
		t.Fatalf("%d negotiations, want 1", n)
	}
	p.wantState(keying)
	p.event(ike.Established{SA: 1, Initiator: true, Key: testKey(1)})
	if ok, no, _ := p.outcome(w); ok || no {
		t.Fatal("the answer left before the data plane acknowledged the SA")
	}
	p.event(ike.ChildUp{SA: 1, Pair: ipsec.Pair{ID: 101}})
	p.wantReleased(w)
	p.wantState(protected)

	p.wantReleased(p.lookup("bob.example.", 1))
	p.wantReleased(p.lookup("also.example.", 2, 1)) // R2: its set holds the live key
	if n := count[doInitiate](p); n != 1 {
		t.Errorf("%d negotiations for three lookups, want 1", n)
	}
}

func TestOneNegotiationPerAddress(t *testing.T) {
	p := newPlay(t)
	a, b := p.lookup("a.example.", 1), p.lookup("b.example.", 1)
	if n := count[doInitiate](p); n != 1 {
		t.Fatalf("%d negotiations in flight, want 1", n)
	}
	p.established(1, true, 1)
	p.wantReleased(a)
	p.wantReleased(b)
}

// R1: a failed negotiation withholds its name and leaves nothing on the address.
func TestFailureWithholdsTheNameOnly(t *testing.T) {
	p := newPlay(t)
	evil := p.lookup("evil.example.", 9)
	p.ended(1, errors.New("authentication failed"))
	p.wantWithheld(evil)
	p.wantState(idle)
	if count[doHold](p) != 0 {
		t.Error("a hold stands on an address that proved nothing")
	}
	if w := p.lookup("evil.example.", 9); true {
		p.wantWithheld(w) // the negative cache of (N, X, K)
	}
	good := p.lookup("bob.example.", 1) // not touched by the other's failure
	p.established(2, true, 1)
	p.wantReleased(good)
}

// A host that cannot be keyed for a NAT may well have proved its key: the reason does not say otherwise.
func TestNATWithholdsWithTheReason(t *testing.T) {
	p := newPlay(t)
	w := p.lookup("bob.example.", 1)
	p.ended(1, fmt.Errorf("%w: we are %w", ike.NotifyError{Type: wire.TSUnacceptable}, ike.ErrNAT))
	p.wantWithheld(w)
	if _, _, why := p.outcome(w); !strings.Contains(why, "we are behind a NAT") || strings.Contains(why, "prove") {
		t.Errorf("the reason is %q", why)
	}
	p.wantState(idle)
}

// R9: without an SA an address that proved its key is held until linger after the last proof, and a packet keys it again.
func TestHeldAfterTheSA(t *testing.T) {
	p := newProven(t)
	p.done = nil
	p.event(ike.ChildDown{SA: 1, Pair: 101})
	p.wantHoldFirst()
	p.event(ike.Closed{SA: 1})
	p.wantState(withheld)
	p.event(evAcquire{})
	if n := count[doInitiate](p); n != 1 {
		t.Fatalf("%d negotiations after a held packet, want 1", n)
	}
	p.ended(2, errors.New("no answer"))
	p.wantState(withheld)
	p.pass(testLinger + 2*tick)
	p.wantState(idle)
	if count[doUnhold](p) != 1 {
		t.Error("the hold did not end")
	}
}

// The client that asked may be gone when the key is proven. A packet that waits later means its claim all the same.
func TestAcquireAfterTheClientIsGone(t *testing.T) {
	p := newPlay(t)
	w := p.lookup("bob.example.", 1)
	p.event(evGone{w})
	p.established(1, true, 1)
	p.ended(1, errors.New("no answer"))
	p.wantState(withheld)
	p.event(evAcquire{})
	if n := count[doInitiate](p); n != 2 {
		t.Errorf("%d negotiations, want another for the held packet", n)
	}
}

// I1, R10: an SA that the peer began and has not used enforces nothing. When the SA that did goes, the address is held, and a packet
// that waits has it keyed.
func TestUnusedSAIsNoProtection(t *testing.T) {
	p := newProven(t)
	p.established(8, false, 1) // the peer begins one too, by its name
	p.done = nil
	p.ended(1, nil)
	p.wantHoldFirst()
	p.event(evAcquire{})
	if n := count[doInitiate](p); n != 1 {
		t.Errorf("%d negotiations for the packet that waits, want 1", n)
	}
	p.now = p.now.Add(100 * time.Second)
	p.done = nil
	p.event(ike.Alive{SA: 8}) // a proof: answers may be kept for linger from now on, and so long the hold must stand
	if until := p.p.held; until.Before(p.now.Add(testLinger)) {
		t.Errorf("held until %v, the proof counts until %v", until, p.now.Add(testLinger))
	}
	p.event(evFirst{108})
	p.wantState(protected)
}

// An anonymous client's SA ends and leaves nothing: it proved no key.
func TestAnonymousLeavesNothing(t *testing.T) {
	p := newPlay(t)
	p.established(7, false, 0)
	p.wantState(protected)
	p.ended(7, nil)
	p.wantState(idle)
	if count[doHold](p) != 0 {
		t.Error("an address that proved no key is held")
	}
}

// I1: the SA of a client that proved no key ends while both talk: by our lifetime, since the client does not rekey, or by its own. What we
// say next waits for its next SA, and is not said in clear.
func TestConversationDoesNotGoOnInClear(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		idle time.Duration // since its last packet
		hold time.Duration
	}{
		"our lifetime":          {ike.ErrExpired, 0, testLinger},
		"its lifetime":          {nil, 0, armedWithin},
		"deaf, but it talks":    {ike.ErrTimeout, time.Second, testLinger},
		"gone":                  {ike.ErrTimeout, 15 * time.Second, idleHold},
		"nobody talks, deleted": {nil, 15 * time.Second, idleHold},
		"started again":         {ike.ErrCrashed, 0, idleHold},
	} {
		p := newPlay(t)
		p.established(7, false, 0)
		p.event(evFirst{107})
		p.now = p.now.Add(time.Minute)
		p.event(&evUsage{107, ipsec.Usage{LastIn: p.now, Armed: true}})
		p.now = p.now.Add(c.idle)
		p.ended(7, c.err)
		p.wantState(withheld)
		p.wantHoldFirst()
		if !p.p.held.Equal(p.now.Add(c.hold)) {
			t.Errorf("%s: held for %v, want %v", name, p.p.held.Sub(p.now), c.hold)
		}
		p.established(8, false, 0)
		p.wantState(protected)
		p.pass(c.hold + tick)
		p.ended(8, nil)
		if p.wantState(idle); count[doUnhold](p) != 1 || !p.p.quiet(p.now) {
			t.Errorf("%s: the hold does not end", name)
		}
	}
}

// R10: a responder's SA without ESP is probed after five seconds.
func TestUnarmedIsProbed(t *testing.T) {
	p := newPlay(t)
	p.established(7, false, 0)
	p.pass(armedWithin - tick)
	if count[doCommand](p) != 0 {
		t.Fatal("probed too early")
	}
	p.pass(2 * tick)
	if n := count[doCommand](p); n != 1 {
		t.Fatalf("%d commands, want a probe", n)
	}
}

// somebody displaces nobody, and ends the SAs that nobody made.
func TestAuthenticatedEndsAnonymous(t *testing.T) {
	p := newPlay(t)
	p.established(7, false, 0)
	p.lookup("bob.example.", 1)
	p.established(1, true, 1)
	for _, a := range p.done {
		if d, ok := a.(doDelete); ok && d.sa == 7 {
			return
		}
	}
	t.Error("the anonymous SA beside the authenticated one stays")
}

// A-19, I2: the Pair that nobody made goes with the acknowledgement of somebody's. The answer to our DELETE is the other's to give,
// and he who holds the anonymous SA would take his time: packets of it go on until the Pair is removed.
func TestAnonymousPairIsRemovedAtOnce(t *testing.T) {
	p := newPlay(t)
	p.established(7, false, 0)
	w := p.lookup("bob.example.", 1)
	p.established(1, true, 1)
	p.wantReleased(w)
	for i, a := range p.done {
		switch a := a.(type) {
		case doRemove:
			if a.pair == 107 {
				return
			}
		case doReply:
			t.Fatalf("action %d releases the answer while the anonymous Pair still carries packets: %v", i, p.done)
		}
	}
	t.Error("the anonymous Pair stays until the peer answers our DELETE")
}

// R8, A-23, I4: a client that begins SA after SA keeps no more of them than a few: its oldest goes.
func TestSAsOfAPeerAreBounded(t *testing.T) {
	p := newPlay(t)
	for i := range 100 {
		p.now = p.now.Add(time.Millisecond)
		p.established(ike.SAID(i+1), false, 0)
	}
	kept := 0
	for _, a := range p.p.sas {
		if !a.deleting {
			kept++
		}
	}
	if kept > maxSAs || count[doRemove](p) != 100-kept {
		t.Errorf("%d SAs kept and %d Pairs removed of 100", kept, count[doRemove](p))
	}
	if p.p.sa(100).deleting {
		t.Error("the youngest went")
	}
}

func TestSilenceIsProbed(t *testing.T) {
	p := newProven(t)
	p.pass(10 * tick)
	p.event(&evUsage{101, ipsec.Usage{Armed: true, LastIn: p.now.Add(-5 * time.Second), LastOut: p.now}})
	p.event(evTick{})
	if n := count[doCommand](p); n != 1 {
		t.Errorf("%d commands for a peer that does not answer our packets, want a probe", n)
	}
}

func TestWhyIsASentence(t *testing.T) {
	p := newPlay(t)
	w := p.lookup("bob.example.", 1)
	p.ended(1, errors.New("no answer"))
	if _, _, why := p.outcome(w); !strings.Contains(why, "bob.example.") || !strings.Contains(why, "no answer") {
		t.Errorf("why is %q", why)
	}
}

// I8: what a peer says its name is, is not proven by the key of another name.
func TestWhyNamesNobodyUnproven(t *testing.T) {
	p := newPlay(t)
	p.lookup("evil.example.", 9)
	p.event(ike.Established{SA: 1, Initiator: true, Key: testKey(9), RemoteID: ike.ID{Kind: ike.IDFQDN, Value: "bank.example"}})
	p.event(ike.ChildUp{SA: 1, Pair: ipsec.Pair{ID: 101}})
	if strings.Contains(p.p.why, "key of bank.example") {
		t.Errorf("status says %q of a host that proved the key of evil.example", p.p.why)
	}
}

func TestForgottenWhenQuiet(t *testing.T) {
	p := newPlay(t)
	p.lookup("bob.example.", 1)
	p.ended(1, errors.New("no answer"))
	p.pass(2 * time.Hour)
	if !p.p.quiet(p.now) {
		t.Error("a peer of which nothing is left is not forgotten")
	}
}

// An IKE SA that will expire, because it could not be rekeyed, is set up anew before, once, and the old one is left to serve until then.
func TestRenewedBeforeItExpires(t *testing.T) {
	p := newProven(t)
	busy := func(d time.Duration) {
		for end := p.now.Add(d); p.now.Before(end); p.pass(tick) {
			p.event(&evUsage{101, ipsec.Usage{Armed: true, LastIn: p.now, LastOut: p.now}})
		}
	}
	busy(testLifetime * 8 / 10)
	if n := count[doInitiate](p); n != 1 {
		t.Fatalf("%d negotiations long before the SA expires, want the first alone", n)
	}
	p.lookup("bob.example.", 1) // the claim is fresh
	busy(testLifetime * 18 / 100)
	if n := count[doInitiate](p); n != 2 {
		t.Fatalf("%d negotiations, want one more", n)
	}
	p.wantState(protected)
	p.established(2, true, 1)
	p.ended(1, ike.ErrExpired)
	p.wantState(protected)
	if count[doHold](p) != 0 {
		t.Error("held although an SA is up")
	}
}

// silentPeer has an SA that sends and hears nothing, so that it is probed.
func silentPeer(t *testing.T) *play {
	p := newProven(t)
	p.pass(10 * tick)
	p.event(&evUsage{101, ipsec.Usage{Armed: true, LastIn: p.now.Add(-2 * silence), LastOut: p.now}})
	p.event(evTick{})
	if n := count[doCommand](p); n != 1 {
		t.Fatalf("%d commands, want a probe", n)
	}
	return p
}

// A peer that was started again knows nothing of its SA: a new one is set up beside it, without waiting for the end of the old.
func TestUnansweredIsSetUpAnew(t *testing.T) {
	p := silentPeer(t)
	p.pass(incumbentWait)
	if n := count[doInitiate](p); n != 2 {
		t.Fatalf("%d negotiations, want a second one a second after the probe", n)
	}
	p.wantState(protected)
	p.established(2, true, 1)
	p.ended(1, nil) // the old one's probe has run out
	p.wantState(protected)
	p.pass(5 * tick)
	if n := count[doInitiate](p); n != 2 {
		t.Errorf("%d negotiations, want 2", n)
	}
	if count[doHold](p) != 0 {
		t.Error("held although an SA is up")
	}
}

// One that answers is left alone.
func TestAnsweredIsLeftAlone(t *testing.T) {
	p := silentPeer(t)
	p.event(ike.Alive{SA: 1})
	p.pass(2 * time.Second)
	if n := count[doInitiate](p); n != 1 {
		t.Errorf("%d negotiations, want 1", n)
	}
}

// If nobody answers at all the address is held until linger after its last proof, as without the attempt.
func TestUnansweredAndGone(t *testing.T) {
	p := silentPeer(t)
	p.pass(incumbentWait)
	p.event(ike.ChildDown{SA: 1, Pair: 101})
	p.event(ike.Closed{SA: 1})
	if count[doHold](p) != 1 {
		t.Error("not held")
	}
	p.ended(2, nil)
	p.wantState(withheld)
	p.pass(testLinger + 2*tick)
	p.wantState(idle)
}

// A host of many names refuses to be asked for another than its own. What counts is the key: it is asked again for no name.
func TestHostOfManyNames(t *testing.T) {
	p := newPlay(t)
	w := p.lookup("second.example.", 1)
	refused := ike.NotifyError{Type: wire.AuthenticationFailed}
	p.ended(1, refused)
	last, ok := p.done[len(p.done)-1].(doInitiate)
	if !ok || !last.unnamed {
		t.Fatalf("did %#v, want a negotiation for no name", p.done[len(p.done)-1])
	}
	p.established(2, true, 1)
	p.wantReleased(w)

	evil := newPlay(t)
	w = evil.lookup("evil.example.", 9)
	evil.ended(1, refused)
	evil.ended(2, refused)
	evil.wantWithheld(w)
	if n := count[doInitiate](evil); n != 2 {
		t.Errorf("%d negotiations, want 2", n)
	}
}

// A peer that has proved that it was started anew is keyed again at once, and held until then.
func TestCrashedPeerIsKeyedAgain(t *testing.T) {
	p := newProven(t)
	p.done = nil
	p.ended(1, ike.ErrCrashed)
	p.wantState(keying)
	p.wantHoldFirst()
	if n := count[doInitiate](p); n != 1 {
		t.Errorf("%d negotiations, want 1", n)
	}
}
