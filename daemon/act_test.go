package daemon

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tacit/ike"
	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
	"tacit/pad"
)

// A Pair whose hold could not be set stays until it can: without both, packets would leave in clear.
func TestPairStaysUntilTheHoldStands(t *testing.T) {
	fake := ipsectest.NewFake()
	l := &loop{shared: &shared{dp: fake, log: slog.New(slog.DiscardHandler), now: time.Now}, unheld: map[ipsec.Selector]time.Time{},
		done: make(chan func(time.Time), 1), ended: make(chan struct{})}
	defer close(l.ended)
	work := func() {
		for len(l.queue) > 0 {
			job := l.queue[0]
			l.queue = l.queue[1:]
			job()
			(<-l.done)(l.now())
		}
	}
	p := newPeer(key{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}, testLinger, testLifetime, l.now())
	s := ipsec.Host(p.local, p.remote)
	pair := ipsec.Pair{ID: 1, Selector: s, In: ipsec.SA{SPI: 300}, Out: ipsec.SA{SPI: 301}}
	if err := errors.Join(fake.InstallInbound(pair), fake.InstallOutbound(pair)); err != nil {
		t.Fatal(err)
	}

	fake.FailOn("SetPolicy", errors.New("no memory"))
	l.do(l.now(), p, doHold{l.now().Add(time.Minute)})
	l.do(l.now(), p, doRemove{pair: 1})
	work()
	if len(fake.Pairs()) != 1 {
		t.Fatal("the Pair is removed although nothing holds the address")
	}
	fake.FailOn("SetPolicy", nil)
	(<-l.done)(l.now()) // a second later
	work()
	if _, held := fake.Policy(s); !held || len(fake.Pairs()) != 0 {
		t.Errorf("held %v, Pairs %v; want the hold, and then the Pair removed", held, fake.Pairs())
	}
}

// A-19, R9: an address that proved a key no longer ago than linger is that key's, also while its SA is gone.
//
//tacit:attack A-19 nobody comes in from an address that proved a key within linger
func TestNobodyComesInWhileTheAddressIsHeld(t *testing.T) {
	p := newProven(t)
	p.ended(1, errors.New("no answer"))
	p.wantState(withheld)

	l := idleLoop(t, p)
	e := ike.AuthorizationWanted{Null: true, ID: ike.ID{Kind: ike.IDNull},
		Local: netip.AddrPortFrom(p.p.local, 500), Remote: netip.AddrPortFrom(p.p.remote, 500)}
	a, _ := l.verdict(p.now, e, pad.Claim{})
	if a.Anonymous {
		t.Errorf("nobody may have the address of somebody within linger: %+v", a)
	}
	l.judge(p.now, e, pad.Claim{}, "")
	if len(a.Keys) != 1 {
		t.Errorf("%d keys, want the one that the address proved", len(a.Keys))
	}
	if p.p.attempt == nil {
		t.Error("the peer that has forgotten us is not keyed anew (A-58)")
	}
}

// R7: who comes from behind a NAT has not the whole of the NAT's address.
func TestNobodyHasANATsAddress(t *testing.T) {
	p := newPlay(t)
	for port, want := range map[uint16]bool{500: true, 4500: true, 61234: false} {
		l := idleLoop(t, p)
		why := l.barred(ike.AuthorizationWanted{Null: true, ID: ike.ID{Kind: ike.IDNull},
			Local: netip.AddrPortFrom(p.p.local, 4500), Remote: netip.AddrPortFrom(netip.MustParseAddr("198.51.100.7"), port)})
		if (why == "") != want {
			t.Errorf("port %d: refused: %q", port, why)
		}
	}
}

// A peer that has deleted the SA before a rekey is answered when the data plane sends with the one after it, and not before.
func TestAnswerWaitsForTheSuccessor(t *testing.T) {
	fake := ipsectest.NewFake()
	p := newProven(t)
	p.p.sa(1).armed = true
	l := newTestLoop(t, fake, p.p.local, "", nil, func() time.Time { return p.now })
	l.peers[p.p.key], l.bySA[1] = p.p, p.p
	var order []string
	fake.OnSend(func(ipsectest.Datagram) { order = append(order, "answer") })
	pair := ipsec.Pair{ID: p.p.sa(1).pair.ID, Selector: ipsec.Host(p.p.local, p.p.remote)}
	pair.In.SPI, pair.Out.SPI = 300, 301
	if err := fake.InstallInbound(pair); err != nil {
		t.Fatal(err)
	}
	l.output(p.now, ike.Output{
		Send:   []ike.Datagram{{Local: netip.AddrPortFrom(p.p.local, 500), Remote: netip.AddrPortFrom(p.p.remote, 500), Data: []byte{1}}},
		Events: []ike.Event{ike.ChildPreferred{SA: 1, Pair: pair, Rekey: true}},
	})
	if len(order) != 0 {
		t.Error("answered before the data plane was asked")
	}
	for len(l.queue) > 0 {
		job := l.queue[0]
		l.queue = l.queue[1:]
		for _, c := range fake.Calls() {
			if c.Method == "InstallOutbound" {
				order = append(order, "switch")
			}
		}
		go job()
		(<-l.done)(p.now)
	}
	if !slices.Equal(order, []string{"switch", "answer"}) {
		t.Errorf("got %v, want the switch and then the answer", order)
	}
}

// idleLoop is a loop that does not run, with p as its peer.
func idleLoop(t *testing.T, p *play) *loop {
	t.Helper()
	l := newTestLoop(t, ipsectest.NewFake(), p.p.local, "", nil, func() time.Time { return p.now })
	l.peers[p.p.key] = p.p
	l.rota.Set(p.p, p.now, p.now)
	return l
}

// The data plane hears that an SA is coming when IKE begins, not when it has ended, and beside it: the message does not wait, and a failure is none of the SA.
func TestDataplaneIsPreparedWhenIKEBegins(t *testing.T) {
	t.Parallel()
	for _, fails := range []error{nil, errors.New("no hooks")} {
		alice, bob := newEnd(t, "192.0.2.1", ""), newEnd(t, "192.0.2.2", "bob.example")
		alice.FailOn("Prepare", fails)
		close(alice.gate)
		close(bob.gate)
		said := make(chan ipsectest.Datagram, 100) // bob has heard nothing of it
		alice.OnSend(func(d ipsectest.Datagram) { said <- d })
		reply := alice.lookup(bob)
		first := <-said
		await(t, "the data plane is prepared", func() bool { return alice.did("Prepare") })
		ipsectest.Wire(alice.Fake, bob.Fake)
		bob.Deliver(first)
		if o := outcomeOf(t, reply); !o.ok {
			t.Errorf("where it says %v: withheld: %s", fails, o.why)
		}
		if n := len(alice.Calls("Prepare")); n != 1 {
			t.Errorf("prepared %d times for one SA", n)
		}
	}
}

// Whoever leaves keys nobody anew: a peer whose SA had crossed another would be left with one that nobody has.
func TestNothingBeginsWhileLeaving(t *testing.T) {
	p := newProven(t)
	l := newTestLoop(t, ipsectest.NewFake(), p.p.local, "", nil, func() time.Time { return p.now })
	initiate := doInitiate{claim: p.claim("bob.example.", 1)}
	p.p.attempt = &attempt{claim: initiate.claim}
	l.stop()
	l.do(p.now, p.p, initiate)
	if n := l.engine.Stats().SAs; n != 0 {
		t.Errorf("%d IKE SAs", n)
	}
	l.leaving = false
	l.do(p.now, p.p, initiate)
	if n := l.engine.Stats().SAs; n != 1 {
		t.Errorf("%d IKE SAs otherwise, want 1", n)
	}
}

// A hold that is asked for of every peer at once, of as many as max-peers allows, and the end of an SA of each, find room: a hold that is dropped would leave an address open.
func TestQueueHoldsAllPeers(t *testing.T) {
	p := newPlay(t)
	l := idleLoop(t, p)
	for range 200_000 {
		l.do(p.now, p.p, doHold{until: p.now.Add(time.Minute)})
		l.do(p.now, p.p, doRemove{pair: 7})
	}
	if len(l.queue) != 2*200_000 {
		t.Errorf("%d calls wait, want %d", len(l.queue), 2*200_000)
	}
}
