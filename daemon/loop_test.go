package daemon

import (
	"context"
	"crypto"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"tacit/config"
	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
	"tacit/ipseckey"
	"tacit/pad"
)

// gatedPlane is a Fake whose installations return when the test lets them.
type gatedPlane struct {
	*ipsectest.Fake
	gate chan struct{} // a value lets one through; closed: all
}

func (p gatedPlane) InstallInbound(pair ipsec.Pair) error {
	err := p.Fake.InstallInbound(pair)
	<-p.gate
	return err
}

func (p gatedPlane) InstallOutbound(pair ipsec.Pair) error {
	err := p.Fake.InstallOutbound(pair)
	<-p.gate
	return err
}

// did reports whether a method was called, though it may not have returned yet.
func (p gatedPlane) did(method string) bool { return len(p.Calls(method)) > 0 }

// newTestLoop is the only loop of a daemon without a resolver, which does not run yet.
func newTestLoop(t *testing.T, dp ipsec.Dataplane, own netip.Addr, name string, signer crypto.Signer, now func() time.Time) *loop {
	t.Helper()
	return newTestShards(t, dp, own, name, signer, now, 1).loops[0]
}

func newTestShards(t *testing.T, dp ipsec.Dataplane, own netip.Addr, name string, signer crypto.Signer, now func() time.Time, n int) *shards {
	t.Helper()
	f := config.Default()
	f.Name = name
	d := &Daemon{cfg: Config{File: f, Signer: signer, Dataplane: dp, Inner: true}, now: now, log: slog.New(slog.DiscardHandler), started: now(),
		host: &host{file: f}}
	d.obey(f)
	d.host.env.Store(&pad.Environment{Own: []netip.Addr{own}, Pools: f.NATPool})
	s, err := newShards(d, n)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// end is a daemon's loop that runs, on a data plane that waits for the test.
type end struct {
	gatedPlane
	t     *testing.T
	s     *shards
	l     *loop // the first, and as a rule the only one
	addr  netip.Addr
	claim pad.Claim // what a lookup of its name finds
	stop  func()    // ends the loops, as a stop does
}

// newEnd starts one; without a name it has no key.
func newEnd(t *testing.T, addr, name string) *end {
	t.Helper()
	return newEndOn(t, addr, name, 1, func(p gatedPlane) ipsec.Dataplane { return p })
}

// newEndOn is newEnd with a data plane made of the one that waits.
func newEndOn(t *testing.T, addr, name string, shards int, plane func(gatedPlane) ipsec.Dataplane) *end {
	t.Helper()
	e := &end{gatedPlane: gatedPlane{ipsectest.NewFake(), make(chan struct{})}, t: t, addr: netip.MustParseAddr(addr)}
	var signer crypto.Signer
	if name != "" {
		id, err := ipseckey.GenerateIdentity()
		if err != nil {
			t.Fatal(err)
		}
		signer = id
		e.claim = pad.Claim{Name: name + ".", Addr: e.addr, Keys: []pad.Key{pad.KeyOf(id.Public())}, Until: time.Now().Add(time.Hour)}
	}
	s := newTestShards(t, plane(e.gatedPlane), e.addr, name, signer, time.Now, shards)
	e.s, e.l = s, s.loops[0]
	s.d.shards = s
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.run(ctx) }()
	e.stop = func() { cancel(); <-ended }
	t.Cleanup(e.stop)
	return e
}

// lookup has the end look another one up, and returns where the outcome comes.
func (e *end) lookup(other *end) chan outcome {
	e.t.Helper()
	w := waiter{claim: other.claim, reply: make(chan outcome, 1)}
	l := e.s.of(other.addr)
	if err := l.post(e.t.Context(), func(now time.Time) {
		l.step(now, l.peerOf(now, e.addr, other.addr), evLookup{w})
	}); err != nil {
		e.t.Fatal(err)
	}
	return w.reply
}

// unproven says which peer of the end has no SA that proves its key; "" if all have one.
func (e *end) unproven() string {
	said := make(chan string, 1)
	if err := e.l.post(e.t.Context(), func(time.Time) {
		for _, p := range e.l.peers {
			if p.authenticated() == nil {
				said <- p.state.String() + ": " + p.why
				return
			}
		}
		said <- ""
	}); err != nil {
		e.t.Fatal(err)
	}
	return <-said
}

// await waits for something that is sure to come.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// outcomeOf waits for the outcome of a lookup.
func outcomeOf(t *testing.T, answer <-chan outcome) outcome {
	t.Helper()
	select {
	case o := <-answer:
		return o
	case <-time.After(10 * time.Second):
		t.Fatal("no outcome")
		return outcome{}
	}
}

// Two named hosts look each other up at the same moment: both lookups are answered, and both ends keep an SA that proves the
// other's key.
func TestBothAtOnce(t *testing.T) {
	t.Parallel()
	alice, bob := newEnd(t, "192.0.2.1", "alice.example"), newEnd(t, "192.0.2.2", "bob.example")
	ipsectest.Wire(alice.Fake, bob.Fake)
	answers := []chan outcome{alice.lookup(bob), bob.lookup(alice)}
	await(t, "both responders install before either replies", func() bool { return alice.did("InstallInbound") && bob.did("InstallInbound") })
	close(alice.gate)
	close(bob.gate)
	for _, a := range answers {
		t.Logf("%+v", outcomeOf(t, a))
	}
	time.Sleep(500 * time.Millisecond) // for what the ends settle between them afterwards
	for _, e := range []*end{alice, bob} {
		if why := e.unproven(); why != "" {
			t.Errorf("%v has no SA that proves the other's key: %s", e.addr, why)
		}
	}
}
