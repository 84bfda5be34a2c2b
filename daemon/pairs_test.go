package daemon

import (
	"testing"
	"time"

	"tacit/ike"
	"tacit/ipsec"
)

// An IKE SA that is rekeyed is the same one: nothing is set up anew.
func TestRekeyedIsNotRenewed(t *testing.T) {
	p := newProven(t)
	for range 10 {
		for end := p.now.Add(testLifetime * 8 / 10); p.now.Before(end); p.pass(tick) {
			p.event(&evUsage{101, ipsec.Usage{Armed: true, LastIn: p.now, LastOut: p.now}})
		}
		p.lookup("bob.example.", 1)
		p.event(ike.Rekeyed{SA: 1, Initiator: true, Summary: "new"})
	}
	if n := count[doInitiate](p); n != 1 || p.p.sa(1).suite != "new" {
		t.Errorf("%d negotiations, suite %q", n, p.p.sa(1).suite)
	}
	p.event(ike.Rekeyed{SA: 1, Summary: "new"}) // now the peer is to rekey, half as long again
	if got, want := p.p.sa(1).renew.Sub(at(p.now)), p.p.renew*3/2; got != want {
		t.Errorf("renewed in %v, want %v", got, want)
	}
}

// A peer has as many Child SAs as it likes: the address is protected until the last is gone.
func TestMorePairs(t *testing.T) {
	p := newProven(t)
	p.event(ike.ChildUp{SA: 1, Pair: ipsec.Pair{ID: 7}})
	p.event(ike.ChildUp{SA: 1, Pair: ipsec.Pair{ID: 8}})
	p.event(ike.ChildUp{SA: 1, Pair: ipsec.Pair{ID: 8}, Rekey: true})
	p.event(ike.ChildDown{SA: 1, Pair: 8})
	p.event(ike.ChildDown{SA: 1, Pair: 101})
	p.wantState(protected)
	if a := p.p.sa(1); a.pair.ID != 7 || len(a.more) != 0 || count[doHold](p) != 0 {
		t.Errorf("pair %d, %d more, %d holds", a.pair.ID, len(a.more), count[doHold](p))
	}
	p.event(ike.ChildDown{SA: 1, Pair: 7})
	p.wantState(withheld)
	if count[doRemove](p) != 3 {
		t.Errorf("%d Pairs removed, want 3", count[doRemove](p))
	}
}

// Nobody's SA goes with all of its Pairs when somebody comes.
func TestDismissedWithAllPairs(t *testing.T) {
	p := newPlay(t)
	p.established(1, false, 0)
	p.event(ike.ChildUp{SA: 1, Pair: ipsec.Pair{ID: 7}})
	p.established(2, true, 1)
	if count[doRemove](p) != 2 {
		t.Errorf("%d Pairs removed, want 2", count[doRemove](p))
	}
}

// A responder's Pair is not in use before the peer has sent with it (TRUST.md R10).
func TestUsesWhatIsArmed(t *testing.T) {
	p := newPlay(t)
	p.established(1, false, 0)
	if p.p.uses(1, 101) {
		t.Error("in use before the first packet")
	}
	p.event(evFirst{101})
	if !p.p.uses(1, 101) || p.p.uses(1, 102) || p.p.uses(2, 101) {
		t.Error("not in use after the first packet")
	}
}

// Of two SAs that both ends began at once one goes. The other, which the data plane was told to send with, covers the address at once.
func TestPreferredCovers(t *testing.T) {
	p := newProven(t)
	p.established(2, false, 1)
	p.event(ike.ChildPreferred{SA: 2, Pair: ipsec.Pair{ID: 102}})
	p.ended(1, nil)
	p.pass(time.Second)
	p.wantState(protected)
	if count[doHold](p) != 0 || count[doInitiate](p) != 1 {
		t.Errorf("%d holds, %d negotiations", count[doHold](p), count[doInitiate](p))
	}
}
