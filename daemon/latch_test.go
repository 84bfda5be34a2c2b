package daemon

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"tacit/ike"
	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
	"tacit/ipseckey"
	"tacit/pad"
)

// nobody is an anonymous SA in use: with the key that it showed (0: none).
func (p *play) nobody(sa ike.SAID, initiator bool, raw byte) {
	e := ike.Established{SA: sa, Initiator: initiator, RemoteID: ike.ID{Kind: ike.IDNull}}
	if raw != 0 {
		e.Raw = testKey(raw)
	}
	p.event(e)
	p.event(ike.ChildUp{SA: sa, Pair: ipsec.Pair{ID: uint32(sa) + 100}})
	p.uses(sa)
}

// uses is a packet of the SA's.
func (p *play) uses(sa ike.SAID) {
	p.event(&evUsage{pair: uint32(sa) + 100, u: ipsec.Usage{Armed: true, LastIn: p.now}})
}

// asks is an initiator at the address, and whether he may come in at once.
func (p *play) asks(raw byte) bool {
	same := p.p.same(p.now)
	switch {
	case same == nil:
		return true
	case raw == 0:
		return same(nil)
	}
	return same(testKey(raw))
}

// knocks is what becomes of one who may not: "" if he is let in now, or why not; "waits".
func (p *play) knocks() string {
	from := len(p.done)
	p.event(evKnock{ike.AuthorizationWanted{SA: 99}})
	return p.answered(from)
}

func (p *play) answered(from int) string {
	for _, a := range p.done[from:] {
		if d, ok := a.(doAdmit); ok {
			return d.why
		}
	}
	return "waits"
}

// RFC 5660: while a conversation lives, only the nobody that it began with comes in again; where it showed no key, that is no other IKE SA at all.
func TestLatch(t *testing.T) {
	for _, tt := range []struct {
		raw        byte
		same, none bool // the key 1, and no key, may come in
	}{{1, true, false}, {0, false, false}} {
		p := newPlay(t)
		if !p.asks(1) || !p.asks(0) {
			t.Fatal("nobody is there, and somebody is kept out")
		}
		p.nobody(1, false, tt.raw)
		p.now = p.now.Add(time.Second)
		if p.asks(1) != tt.same || p.asks(0) != tt.none || p.asks(2) {
			t.Errorf("key %d in use: may come in 1 %v, none %v, 2 %v", tt.raw, p.asks(1), p.asks(0), p.asks(2))
		}
		if p.p.same(p.now.Add(-2*time.Second)) != nil {
			t.Error("what began before the conversation is kept out")
		}
		// Its end keeps it for as long as it is held, and no longer.
		p.uses(1)
		p.ended(1, nil)
		if p.p.held.IsZero() || p.asks(2) || p.asks(1) != tt.same {
			t.Errorf("key %d ended: held until %v, may come in 1 %v, 2 %v", tt.raw, p.p.held, p.asks(1), p.asks(2))
		}
		p.pass(armedWithin + tick)
		if !p.asks(2) || !p.asks(0) || !p.p.held.IsZero() {
			t.Errorf("key %d: the conversation has ended, and lives on", tt.raw)
		}
	}
}

// Another nobody has the conversation asked. It answers, or is heard, and he is turned away.
func TestAnotherNobodyIsTurnedAway(t *testing.T) {
	for what, answer := range map[string]func(p *play){
		"an answer": func(p *play) { p.event(ike.Alive{SA: 1}) },
		"a packet":  func(p *play) { p.uses(1) },
	} {
		p := newPlay(t)
		p.nobody(1, false, 1)
		p.now = p.now.Add(time.Minute)
		if r := p.knocks(); r != "waits" || count[doCommand](p) != 1 {
			t.Fatalf("%s: before it %q, %d probes", what, r, count[doCommand](p))
		}
		for range maxKnocks {
			p.knocks()
		}
		if n := len(p.p.latch.knocks); n > maxKnocks {
			t.Errorf("%d wait", n)
		}
		p.now = p.now.Add(time.Second / 2)
		from := len(p.done)
		answer(p)
		if r := p.answered(from); r == "" || r == "waits" {
			t.Errorf("%s: he is let in: %q", what, r)
		}
		p.pass(5 * time.Second)
		if count[doSever](p) != 0 || !p.p.talks() {
			t.Errorf("%s: the conversation was ended all the same", what)
		}
	}
}

// It does not answer: its address is held before its SAs go, its sockets are closed, and only then he comes in. Where they cannot be closed what was in use
// just now is held for linger, and he does not.
func TestAnotherNobodyAfterTheEnd(t *testing.T) {
	for _, tt := range []struct {
		silent time.Duration // before he came
		err    error
		in     bool
	}{
		{0, nil, true},
		{time.Minute, nil, true},
		{0, errors.New("not here"), false},
		{time.Minute, errors.New("not here"), false},
	} {
		p := newPlay(t)
		p.nobody(1, false, 1)
		p.now = p.now.Add(tt.silent)
		if r := p.knocks(); r != "waits" {
			t.Fatalf("%+v: %q", tt, r)
		}
		if n := count[doTick](p); n != 1 {
			t.Errorf("%+v: %d looks at whether it has answered are set, want 1", tt, n)
		}
		p.done = nil
		p.pass(incumbentWait + tick)
		p.wantHoldFirst()
		if count[doSever](p) != 1 || count[doRemove](p) != 1 || count[doAdmit](p) != 0 {
			t.Fatalf("%+v: did %v", tt, p.done)
		}
		p.event(evSevered{tt.err})
		if r := p.answered(0); (r == "") != tt.in || r == "waits" {
			t.Errorf("%+v: %q", tt, r)
		}
		if p.asks(2) != tt.in || p.p.held.IsZero() { // what is no connection does not go on in clear either
			t.Errorf("%+v: may come in %v, held until %v", tt, p.asks(2), p.p.held)
		}
		p.pass(testLinger + tick)
		if !p.asks(2) || !p.p.held.IsZero() {
			t.Errorf("%+v: held for ever", tt)
		}
	}
}

// A19: somebody is no other nobody: he comes in, and the latch ends.
func TestLatchEndsWithSomebody(t *testing.T) {
	p := newPlay(t)
	p.nobody(9, true, 1)
	p.lookup("bob.example.", 1)
	p.established(1, true, 1)
	if !p.p.latch.since.IsZero() || p.p.authenticated() == nil {
		t.Errorf("latch %+v", p.p.latch)
	}
}

// Our half of a broken conversation is resumed by the next packet, with the same nobody; if another answers, it is ended.
func TestConversationIsResumed(t *testing.T) {
	p := newPlay(t)
	p.event(evLookup{waiter{claim: pad.Claim{Addr: p.p.remote}, reply: make(chan outcome, 1)}})
	p.nobody(1, true, 1)
	p.ended(1, errors.New("no answer"))
	p.done = nil
	p.event(evAcquire{})
	p.event(evAcquire{})
	if n := count[doInitiate](p); n != 1 || p.asks(2) || !p.asks(1) {
		t.Fatalf("%d negotiations, the next may be with 2: %v, 1: %v", n, p.asks(2), p.asks(1))
	}
	p.ended(2, ike.ErrAuthentication)
	if count[doSever](p) != 1 {
		t.Errorf("did %v", p.done)
	}
	p.event(evSevered{})
	if !p.asks(2) || p.p.held.IsZero() {
		t.Error("what was ended is kept, or what is no connection goes on in clear")
	}
}

// The loop asks the latch before anybody is installed, and the mask is one for two addresses only.
func TestLatchKeepsAnotherOut(t *testing.T) {
	p := newPlay(t)
	l := idleLoop(t, p)
	defer close(l.ended)
	p.nobody(1, false, 1)
	p.now = p.now.Add(time.Second)
	e := ike.AuthorizationWanted{SA: 7, Null: true, ID: ike.ID{Kind: ike.IDNull}, Began: p.now, Local: netip.AddrPortFrom(p.p.local, 500), Remote: netip.AddrPortFrom(p.p.remote, 500)}
	if a, _ := l.verdict(p.now, e, pad.Claim{}); !a.Anonymous || a.Same == nil || a.Same(nil) || !a.Same(testKey(1)) || a.Mask == nil {
		t.Errorf("got %+v", a)
	}
	l.admit(p.now, e)
	if len(p.p.latch.knocks) != 1 {
		t.Error("he does not wait")
	}
	e.Null, e.Raw = false, testKey(1)
	l.admit(p.now, e)
	if len(p.p.latch.knocks) != 1 {
		t.Error("the same one waits")
	}
	mask := func(local, remote string) string {
		return ipseckey.Fingerprint(l.mask(netip.MustParseAddr(local), netip.MustParseAddr(remote)).Public())
	}
	other := newTestLoop(t, ipsectest.NewFake(), p.p.local, "", nil, time.Now)
	mine := mask("192.0.2.1", "192.0.2.2")
	if mine != mask("192.0.2.1", "192.0.2.2") || mine == mask("192.0.2.1", "192.0.2.3") || mine == mask("192.0.2.7", "192.0.2.2") ||
		mine == ipseckey.Fingerprint(other.mask(p.p.local, p.p.remote).Public()) {
		t.Error("the mask tells more than the addresses do, or not as much")
	}
}

// Two hosts without names, which both begin: they stay with each other, and the mask is known again.
func TestNobodiesKnowEachOther(t *testing.T) {
	t.Parallel()
	alice, bob := newEnd(t, "192.0.2.1", ""), newEnd(t, "192.0.2.2", "bob.example")
	ipsectest.Wire(alice.Fake, bob.Fake)
	close(alice.gate)
	close(bob.gate)
	anybody := func(e, other *end) chan outcome {
		w := waiter{claim: pad.Claim{Addr: other.addr}, reply: make(chan outcome, 1)}
		if err := e.l.post(t.Context(), func(now time.Time) { e.l.step(now, e.l.peerOf(now, e.addr, other.addr), evLookup{w}) }); err != nil {
			t.Fatal(err)
		}
		return w.reply
	}
	first, second := anybody(alice, bob), anybody(bob, alice)
	if a, b := outcomeOf(t, first), outcomeOf(t, second); !a.ok || !b.ok {
		t.Fatalf("%+v, %+v", a, b)
	}
	for id := range bob.Pairs() {
		bob.Raise(ipsec.Event{Kind: ipsec.FirstPacket, ID: id})
	}
	time.Sleep(100 * time.Millisecond)
	if o := outcomeOf(t, alice.lookup(bob)); !o.ok { // and somebody is no other
		t.Errorf("%+v", o)
	}
	want := map[*end]string{bob: ipseckey.Fingerprint(alice.l.mask(alice.addr, bob.addr).Public()), alice: bob.claim.Keys[0].ID}
	for _, e := range []*end{alice, bob} {
		var got []string
		if err := e.l.ask(t.Context(), func(time.Time) {
			for _, p := range e.l.peers {
				for _, a := range p.sas {
					got = append(got, a.raw)
				}
			}
		}); err != nil {
			t.Fatal(err)
		}
		known := false
		for _, raw := range got {
			known = known || raw == want[e]
		}
		if !known && e == bob {
			t.Errorf("%v has seen %v, want %s", e.addr, got, want[e])
		}
	}
}

// Who showed no key cannot be known again: what was begun with him is ended, and then whoever is there will do, at once.
func TestConversationWithoutAKeyIsNotResumed(t *testing.T) {
	for _, err := range []error{nil, errors.New("not here")} {
		p := newPlay(t)
		ask := func() waiter {
			w := waiter{claim: pad.Claim{Addr: p.p.remote}, reply: make(chan outcome, 1)}
			p.event(evLookup{w})
			return w
		}
		ask()
		p.nobody(1, true, 0)
		p.ended(1, nil)
		p.done = nil
		p.event(evAcquire{})
		w := ask()
		if count[doInitiate](p) != 0 || count[doSever](p) != 1 {
			t.Fatalf("%v: did %v", err, p.done)
		}
		p.event(evSevered{err})
		if n := count[doInitiate](p); (n == 1) != (err == nil) || n == 1 && !p.asks(0) {
			t.Errorf("%v: %d negotiations, with whoever is there: %v", err, n, p.asks(0))
		}
		if _, withheld, _ := p.outcome(w); withheld != (err != nil) || p.p.held.IsZero() {
			t.Errorf("%v: withheld %v, held until %v", err, withheld, p.p.held)
		}
	}
}
