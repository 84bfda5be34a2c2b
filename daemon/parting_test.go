package daemon

import (
	"slices"
	"testing"
	"time"

	"tacit/ike"
	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
	"tacit/policy"
)

// partingPlane is a Fake whose Disarm returns when the test lets it.
type partingPlane struct {
	gatedPlane
	disarm chan struct{}
}

func (p partingPlane) Disarm(id uint32) error {
	err := p.Fake.Disarm(id)
	<-p.disarm
	return err
}

// What is sent while an SA of ours ends is not lost: it is held, then nothing is sent with the SA any more, and then the peer is told. What the peer
// has sent before it knew is heard for a moment after its answer.
func TestNothingIsSentOnAnSAThatEnds(t *testing.T) {
	t.Parallel()
	disarm := make(chan struct{})
	alice := newEndOn(t, "192.0.2.1", "", 1, func(p gatedPlane) ipsec.Dataplane { return partingPlane{p, disarm} })
	bob := newEnd(t, "192.0.2.2", "bob.example")
	close(alice.gate)
	close(bob.gate)
	ipsectest.Wire(alice.Fake, bob.Fake)
	if o := outcomeOf(t, alice.lookup(bob)); !o.ok {
		t.Fatalf("%+v", o)
	}
	if err := alice.l.post(t.Context(), func(now time.Time) {
		p := alice.l.peers[key{alice.addr, bob.addr}]
		for _, a := range p.end(now, p.sas[0]) {
			alice.l.do(now, p, a)
		}
	}); err != nil {
		t.Fatal(err)
	}
	await(t, "it is disarmed", func() bool { return alice.did("Disarm") })
	if calls := alice.Calls("SetPolicy", "Disarm"); calls[0].Method != "SetPolicy" || calls[0].Action != ipsec.Hold {
		t.Errorf("before it is disarmed: %v", calls)
	}
	time.Sleep(50 * time.Millisecond)
	if bob.did("Remove") {
		t.Fatal("bob was told while alice may still send")
	}
	close(disarm)
	await(t, "bob removes it", func() bool { return bob.did("Remove") })
	told := time.Now()
	await(t, "alice does", func() bool { return alice.did("Remove") })
	if heard := time.Since(told); heard < lastPackets/2 {
		t.Errorf("alice heard bob's last packets for %v", heard)
	}
}

// The packets that are sent while an SA of ours ends key the address again, and do not wait for the answer to our DELETE.
func TestPacketKeysWhileAnSAEnds(t *testing.T) {
	for _, k := range []byte{0, 1} {
		x := newTraffic(t, policy.Rule{Class: policy.Private, Packets: true, Anonymous: true})
		if k != 0 {
			x.says = x.reverseClaim(k)
		}
		x.try()
		x.succeeds(k)
		p := x.peer()
		id := p.sas[0].id
		for _, a := range p.end(x.now, p.sas[0]) {
			if _, told := a.(doDelete); !told { // the engine knows no SA that was not negotiated
				x.l.do(x.now, p, a)
			}
		}
		x.l.step(x.now, p, &evUsage{uint32(id), ipsec.Usage{Armed: true, LastIn: x.now}}) // measured before
		x.settle()
		x.want("while it ends", "hold")
		if p.covered() || p.covers() {
			t.Errorf("key %d: the SA that ends covers the address", k)
		}
		if x.try(); p.attempt == nil {
			t.Fatalf("key %d: nobody is asked", k)
		}
		x.succeeds(k)
		x.l.step(x.now, p, ike.ChildDown{SA: id, Pair: uint32(id)})
		x.l.step(x.now, p, ike.Closed{SA: id})
		x.settle()
		if !p.covers() || !p.parting.IsZero() {
			t.Errorf("key %d: covered %v, held until %v", k, p.covers(), p.parting)
		}
		if k == 0 {
			x.want("the next SA is there", "")
		}
	}
}

// A hold for the time of an ending ends with it, also where the peer never answers.
func TestPartingEnds(t *testing.T) {
	p := newPlay(t)
	p.anyone()
	p.established(1, true, 0)
	p.done = nil
	p.pass(testLinger + tick)
	if got := p.kinds(); !slices.Equal(got, []string{"hold", "delete"}) {
		t.Fatalf("got %q", got)
	}
	p.pass(testLinger + tick)
	if got := p.kinds(); !slices.Equal(got, []string{"end", "unhold"}) {
		t.Errorf("nobody answers: got %q", got)
	}
	p.ended(1, nil)
	p.wantState(idle)
	for _, a := range p.done {
		if r, ok := a.(doRemove); ok && !r.late {
			t.Error("the Pair goes at once")
		}
	}
	p.pass(time.Minute)
	if !p.p.quiet(p.now) {
		t.Error("it is not forgotten")
	}
}
