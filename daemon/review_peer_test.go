package daemon

import (
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tacit/config"
	"tacit/ike"
	"tacit/ipsec"
	"tacit/ipseckey"
	"tacit/pad"
)

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

// A-19, R9: an address that proved a key no longer ago than linger is that key's, also while its SA is gone.
func TestNobodyComesInWhileTheAddressIsHeld(t *testing.T) {
	p := newPlay(t)
	p.lookup("bob.example.", 1)
	p.established(1, true, 1)
	p.ended(1, errors.New("no answer"))
	p.wantState(withheld)

	l := reviewLoop(t, p)
	a := l.authorize(p.now, ike.AuthorizationWanted{Null: true, ID: ike.ID{Kind: ike.IDNull},
		Local: netip.AddrPortFrom(p.p.local, 500), Remote: netip.AddrPortFrom(p.p.remote, 500)})
	if a.Anonymous && !a.Refuse {
		t.Errorf("nobody may have the address of somebody within linger: %+v", a)
	}
	if !a.Refuse && len(a.Keys) != 1 {
		t.Errorf("%d keys, want the one that the address proved", len(a.Keys))
	}
	if p.p.attempt == nil {
		t.Error("the peer that has forgotten us is not keyed anew (A-58)")
	}
}

// a claim that ends while it waits is withheld, and does not keep the address busy.
func TestClaimThatEndsWhileItWaits(t *testing.T) {
	p := newPlay(t)
	evil := waiter{claim: p.claim("evil.example.", 9), reply: make(chan outcome, 1)}
	evil.claim.Until = p.now.Add(time.Second)
	p.event(evLookup{evil})
	p.now = p.now.Add(1100 * time.Millisecond)
	p.ended(1, errors.New("no answer"))
	if n := count[doInitiate](p); n != 1 {
		t.Errorf("%d negotiations for a claim that has ended, want 1", n)
	}
	p.wantWithheld(evil)
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

// R3: an incumbent whose valid ESP came after it was asked has answered; and a second is a second of this question.
func TestIncumbentHasItsSecond(t *testing.T) {
	t.Run("asked before", func(t *testing.T) {
		p := newPlay(t)
		p.lookup("bob.example.", 1)
		p.established(1, true, 1)
		p.event(evClear{}) // probes
		p.now = p.now.Add(900 * time.Millisecond)
		p.lookup("next.example.", 2)
		p.now = p.now.Add(200 * time.Millisecond)
		p.event(evTick{})
		if p.p.sas[1].deleting {
			t.Error("the incumbent lost 200 ms after it was contested")
		}
	})
	t.Run("ESP", func(t *testing.T) {
		p := newPlay(t)
		p.lookup("bob.example.", 1)
		p.established(1, true, 1)
		w := p.lookup("next.example.", 2)
		p.now = p.now.Add(tick)
		p.event(evUsage{101, ipsec.Usage{Armed: true, LastIn: p.now.Add(-100 * time.Millisecond)}})
		p.event(evTick{})
		if p.p.sas[1].deleting {
			t.Error("the incumbent lost although its ESP came after the question")
		}
		p.wantWithheld(w)
	})
}

// Two named hosts look each other up at the same moment: both lookups are answered, and both ends keep an SA that proves the
// other's key.
func TestBothAtOnce(t *testing.T) {
	t.Parallel()
	w := &wire{conns: map[netip.AddrPort]chan memDatagram{}}
	var loops [2]*loop
	var planes [2]*slowPlane
	var ids [2]crypto.Signer
	names := [2]string{"alice.example", "bob.example"}
	for i := range loops {
		id, err := ipseckey.GenerateIdentity()
		if err != nil {
			t.Fatal(err)
		}
		ids[i] = id
		loops[i], planes[i] = startLoop(t, w, []string{"192.0.2.1", "192.0.2.2"}[i], names[i], id)
	}
	answers := [2]chan outcome{make(chan outcome, 1), make(chan outcome, 1)}
	for i := range loops {
		c := pad.Claim{Name: names[1-i] + ".", Addr: planes[1-i].addr, Keys: []pad.Key{pad.KeyOf(ids[1-i].Public())}, Until: time.Now().Add(time.Hour)}
		if err := loops[i].post(t.Context(), func(now time.Time) {
			loops[i].step(now, loops[i].peerOf(now, planes[i].addr, planes[1-i].addr), evLookup{waiter{c, answers[i]}})
		}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range planes { // both responders install before either replies
		for end := time.Now().Add(5 * time.Second); !planes[i].did("inbound") && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
	}
	close(planes[0].gate)
	close(planes[1].gate)
	for i := range answers {
		select {
		case o := <-answers[i]:
			t.Logf("%s: %+v", names[i], o)
		case <-time.After(5 * time.Second):
			t.Errorf("%s: no outcome", names[i])
		}
	}
	time.Sleep(500 * time.Millisecond)
	for i, l := range loops {
		said := make(chan string, 1)
		_ = l.post(t.Context(), func(time.Time) {
			for _, p := range l.peers {
				if p.authenticated() == nil {
					said <- p.state.String() + ": " + p.why
					return
				}
			}
			said <- ""
		})
		if s := <-said; s != "" {
			t.Errorf("%s has no SA that proves the other's key: %s", names[i], s)
		}
	}
}

// I1, R10: an SA that the peer began and has not used enforces nothing. When the SA that did goes, the address is held, and a packet
// that waits has it keyed.
func TestUnusedSAIsNoProtection(t *testing.T) {
	p := newPlay(t)
	p.lookup("bob.example.", 1)
	p.established(1, true, 1)
	p.established(8, false, 1) // the peer begins one too, by its name
	p.done = nil
	p.ended(1, nil)
	if len(p.done) < 2 {
		t.Fatalf("did %v, want a hold and then the removal", p.done)
	}
	if _, ok := p.done[0].(doHold); !ok {
		t.Fatalf("did %#v before a hold stood: nothing else keeps clear packets back", p.done[0])
	}
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

// R7: who comes from behind a NAT has not the whole of the NAT's address.
func TestNobodyHasANATsAddress(t *testing.T) {
	p := newPlay(t)
	for port, want := range map[uint16]bool{500: true, 4500: true, 61234: false} {
		l := reviewLoop(t, p)
		a := l.authorize(p.now, ike.AuthorizationWanted{Null: true, ID: ike.ID{Kind: ike.IDNull},
			Local: netip.AddrPortFrom(p.p.local, 4500), Remote: netip.AddrPortFrom(netip.MustParseAddr("198.51.100.7"), port)})
		if a.Refuse == want {
			t.Errorf("port %d: refused %v", port, a.Refuse)
		}
	}
}

// reviewLoop is a loop that does not run, with p as its peer.
func reviewLoop(t *testing.T, p *play) *loop {
	t.Helper()
	plane := &slowPlane{w: &wire{conns: map[netip.AddrPort]chan memDatagram{}}, addr: p.p.local, gate: make(chan struct{})}
	f := config.Default()
	d := &Daemon{cfg: Config{File: f, Dataplane: plane}, now: func() time.Time { return p.now }, log: slog.New(slog.DiscardHandler), started: p.now, rules: f.Table()}
	d.host = &host{file: f}
	d.host.env.Store(&pad.Environment{Own: []netip.Addr{p.p.local}})
	l, err := newLoop(d)
	if err != nil {
		t.Fatal(err)
	}
	l.peers[p.p.key] = p.p
	return l
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
	if p.p.sas[100].deleting {
		t.Error("the youngest went")
	}
}

// A-20, I3: a page of a thousand names that point at an address does not keep the name of the host there from being proven.
func TestManyNamesDoNotStarveOne(t *testing.T) {
	p := newPlay(t)
	for i := range 1000 {
		p.lookup(fmt.Sprintf("n%d.evil.example.", i), 9)
	}
	good := p.lookup("bob.example.", 1)
	for sa := ike.SAID(1); p.p.attempt != nil && p.p.attempt.claim.Name != "bob.example." && sa < 10; sa++ {
		p.ended(sa, errors.New("authentication failed"))
	}
	if p.p.attempt == nil || p.p.attempt.claim.Name != "bob.example." {
		t.Fatal("bob's turn has not come after ten negotiations")
	}
	p.established(p.p.attempt.id, true, 1)
	p.wantReleased(good)
}
