package daemon

import (
	"bytes"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tacit/flows"
	"tacit/ike"
	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
	"tacit/policy"
)

// kinds are the actions since they were asked for last that end something, in order.
func (p *play) kinds() (names []string) {
	for _, a := range p.done {
		switch a.(type) {
		case doEnd:
			names = append(names, "end")
		case doUnhold:
			names = append(names, "unhold")
		case doHold:
			names = append(names, "hold")
		case doRemove:
			names = append(names, "remove")
		case doDelete:
			names = append(names, "delete")
		}
	}
	p.done = nil
	return names
}

// TestFlowsEndBeforeTheirProtection (R9, A-57): connections are ended before what protected them goes, and only then.
func TestFlowsEndBeforeTheirProtection(t *testing.T) {
	anonymous := func(p *play) {
		p.established(7, false, 0)
		p.event(evFirst{107})
		p.done = nil
	}
	proven := func(p *play) {
		p.lookup("bob.example.", 1)
		p.established(1, true, 1)
		p.done = nil
	}
	for _, tt := range []struct {
		name  string
		begin func(*play)
		then  func(*play)
		want  string
	}{
		{"an SA that was never used ends", func(p *play) { p.established(7, false, 0); p.done = nil }, func(p *play) { p.ended(7, nil) }, "remove"},
		{"a proven peer's SA ends: it is held", proven, func(p *play) { p.ended(1, ike.ErrTimeout) }, "hold remove"},
		{"and then released", proven, func(p *play) { p.ended(1, ike.ErrTimeout); p.done = nil; p.pass(testLinger + tick) }, "end unhold"},
		{"a rekey", proven, func(p *play) {
			p.event(ike.ChildUp{SA: 1, Rekey: true, Pair: ipsec.Pair{ID: 101}})
			p.pass(3 * tick)
		}, ""},
		{"an anonymous one ends", anonymous, func(p *play) { p.ended(7, nil) }, "hold remove"},
		{"and does not come back", anonymous, func(p *play) { p.ended(7, nil); p.done = nil; p.pass(armedWithin + tick) }, "end unhold"},
		{"and comes back in time", anonymous, func(p *play) {
			p.ended(7, nil)
			p.established(8, false, 0)
			p.event(evFirst{108})
			p.pass(armedWithin + tick)
		}, "hold remove unhold"},
		{"an anonymous one that we end, since nobody uses it", anonymous, func(p *play) { p.pass(testLinger + tick); p.ended(7, nil) }, "hold delete end unhold remove"},
		{"the rules are others", proven, func(p *play) { p.event(evRules{func(*association) bool { return false }, true}) }, "end delete remove"},
	} {
		p := newPlay(t)
		tt.begin(p)
		tt.then(p)
		if got := strings.Join(p.kinds(), " "); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// R9: a lame SA is kept for its flows, but not for longer than the lifetime of an SA, however often it is rekeyed; its connections go with it.
func TestLameEnds(t *testing.T) {
	p := newPlay(t)
	c := p.claim("bob.example.", 1)
	c.Until = p.now.Add(10 * time.Second)
	p.event(evLookup{waiter{claim: c, reply: make(chan outcome, 1)}})
	p.established(1, true, 1)
	busy := func(d time.Duration) {
		for range int(d / tick) {
			p.event(&evUsage{101, ipsec.Usage{LastIn: p.now, LastOut: p.now, Armed: true}})
			p.pass(tick)
		}
	}
	busy(20 * time.Second)
	p.wantState(lame)
	p.done = nil
	busy(testLifetime - testLifetime/20 - 20*time.Second)
	if got := p.kinds(); len(got) != 0 {
		t.Fatalf("while its lifetime lasts: %q", got)
	}
	busy(30 * time.Second)
	p.ended(1, nil)
	p.pass(testLinger + tick)
	if got := strings.Join(p.kinds(), " "); got != "hold delete hold remove end unhold" {
		t.Errorf("got %q", got)
	}
}

// aborted are two hosts' connections: they remember which were ended.
type aborted struct {
	list  []netip.Addr
	ended []netip.Addr
	err   error
	asked int
}

func (f *aborted) flows() (all []flows.Flow, err error) {
	f.asked++
	for _, remote := range f.list {
		all = append(all, flows.Flow{Local: netip.MustParseAddrPort("192.0.2.1:1"), Remote: netip.AddrPortFrom(remote, 80), End: func() error {
			if f.err == nil {
				f.ended = append(f.ended, remote)
			}
			return f.err
		}})
	}
	return all, nil
}

// Only the peer's own connections are ended, and one list serves all peers of a moment. Where they cannot be ended the address is held on.
func TestEndFlows(t *testing.T) {
	p := newPlay(t)
	l := idleLoop(t, p)
	defer close(l.ended)
	l.peers[p.p.key] = p.p
	dp := l.dp.(*ipsectest.Fake)
	other := netip.MustParseAddr("192.0.2.3")
	f := &aborted{list: []netip.Addr{other, p.p.remote}}
	l.d.cfg.Flows = f.flows
	l.now = time.Now
	run := func(actions ...action) {
		for _, a := range actions {
			l.do(time.Now(), p.p, a)
		}
		drain(l, time.Now)
	}
	s := ipsec.Host(p.p.local, p.p.remote)
	held := func() bool { a, ok := dp.Policy(s); return ok && a.Action == ipsec.Hold }
	run(doHold{time.Now().Add(time.Minute)}, doEnd{}, doUnhold{})
	if !slices.Equal(f.ended, []netip.Addr{p.p.remote}) || held() {
		t.Errorf("ended %v, held %v", f.ended, held())
	}
	f.err = flows.ErrUnsupported
	run(doHold{time.Now().Add(time.Minute)}, doEnd{}, doUnhold{})
	if !held() {
		t.Error("they go on in clear")
	}
	if p.p.state != withheld || !p.p.held.After(p.now) {
		t.Errorf("the peer is %v, held until %v", p.p.state, p.p.held)
	}
	f.err = nil
	run(doEnd{}, doUnhold{})
	if held() {
		t.Error("they have ended, and the address is held")
	}
}

// TestStopTellsFlowsApart (R11): a stop ends the connections that would go on in clear; what is private stays shut, as `on-failure` says.
func TestStopTellsFlowsApart(t *testing.T) {
	for _, tt := range []struct {
		onFailure string
		class     policy.Class
		handOver  bool
		keep      bool
		block     bool
		end       bool
	}{
		{"", policy.PrivateOrClear, false, false, false, true},
		{"", policy.Private, false, true, true, false},
		{"open", policy.Private, false, false, false, true},
		{"closed", policy.PrivateOrClear, false, true, true, false},
		{"", policy.PrivateOrClear, true, true, false, false},
	} {
		alice := newEnd(t, "192.0.2.1", "")
		bob := newEnd(t, "192.0.2.2", "bob.example")
		ipsectest.Wire(alice.Fake, bob.Fake)
		close(alice.gate)
		close(bob.gate)
		if o := outcomeOf(t, alice.lookup(bob)); !o.ok {
			t.Fatalf("%+v", o)
		}
		f := &aborted{list: []netip.Addr{bob.addr, netip.MustParseAddr("192.0.2.9")}}
		var saved []byte
		d := alice.l.d
		alice.do(t, func(time.Time) {
			d.cfg.Flows, d.cfg.File.DNS.OnFailure = f.flows, tt.onFailure
			d.cfg.SaveProofs = func(write func(io.Writer) error) error {
				var text bytes.Buffer
				if write == nil {
					saved = nil
					return nil
				}
				err := write(&text)
				saved = text.Bytes()
				return err
			}
			d.cfg.File.Policy[0].Class, d.cfg.File.Policy[0].Packets = tt.class, true
			d.obey(d.cfg.File)
		})
		if tt.handOver {
			d.HandOver()
		}
		alice.stop()
		f.list = []netip.Addr{netip.MustParseAddr("192.0.2.9")}
		if err := alice.s.end(); err != nil {
			t.Fatal(err)
		}
		a, standing := alice.Policy(ipsec.Host(alice.addr, bob.addr))
		closes := alice.Calls("Close")
		if len(closes) != 1 || closes[0].Keep != tt.keep || (standing && a.Action == ipsec.Block) != tt.block || slices.Equal(f.ended, []netip.Addr{bob.addr}) != tt.end {
			t.Errorf("%+v: %+v, policy %v %v, ended %v", tt, closes, standing, a, f.ended)
		}
		if waits := slices.ContainsFunc(alice.Rules(), func(r ipsec.Rule) bool { return r.Action == ipsec.Hold || r.Action == ipsec.Trap }); tt.keep && !tt.handOver && waits {
			t.Errorf("%+v: packets wait for nobody: %+v", tt, alice.Rules())
		}
		if private := tt.class == policy.Private; tt.keep && !tt.handOver && (len(alice.Rules()) > 0) != private {
			t.Errorf("%+v: rules %+v", tt, alice.Rules())
		}
		if (len(saved) > 0) != tt.keep {
			t.Errorf("%+v: saved %q", tt, saved)
		}
		if n := len(alice.Pairs()); (n > 0) != (tt.handOver || !tt.keep) { // else Close ends them
			t.Errorf("%+v: %d Pairs are left standing", tt, n)
		}
		said := d.trail.after(t.Context(), 0).Events
		if last := said[len(said)-1]; !tt.handOver && (last.Kind != "sa-down" || last.Why != "tacit stops here") {
			t.Errorf("%+v: the last event is %+v", tt, last)
		}
	}
}

// A program whose connection a stop has ended connects anew at once, through the SA, as long as the peer has not heard of its end. That is ended, too, before
// the SA goes.
func TestStopEndsWhatBeganMeanwhile(t *testing.T) {
	alice, bob := newEnd(t, "192.0.2.1", ""), newEnd(t, "192.0.2.2", "bob.example")
	ipsectest.Wire(alice.Fake, bob.Fake)
	close(alice.gate)
	close(bob.gate)
	if o := outcomeOf(t, alice.lookup(bob)); !o.ok {
		t.Fatalf("%+v", o)
	}
	f := &aborted{list: []netip.Addr{bob.addr}}
	alice.do(t, func(time.Time) { alice.l.d.cfg.Flows = f.flows })
	alice.stop()
	if !slices.Equal(f.ended, []netip.Addr{bob.addr}) {
		t.Fatalf("ended at once: %v", f.ended)
	}
	atEnd := func() ([]flows.Flow, error) {
		if n := len(alice.Calls("Close", "Remove")); n > 0 {
			t.Error("what is listed after the SA has gone may have gone on in clear")
		}
		return f.flows()
	}
	alice.l.d.cfg.Flows = atEnd
	if err := alice.s.end(); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(f.ended, []netip.Addr{bob.addr, bob.addr}) {
		t.Errorf("ended are %v, want what began anew too", f.ended)
	}
}

// What a process before us left shut is ours to end: connections first. It is no longer shut than it would have been.
func TestTakenOver(t *testing.T) {
	p := newPlay(t)
	p.event(evLeft{p.now.Add(20 * time.Second)})
	p.wantState(withheld)
	p.pass(19 * time.Second)
	if got := strings.Join(p.kinds(), " "); got != "hold" {
		t.Errorf("while it is shut: %q", got)
	}
	p.pass(tick)
	if got := strings.Join(p.kinds(), " "); got != "end unhold" {
		t.Errorf("at its end: %q", got)
	}
	p.wantState(idle)
	now := time.Now()
	e := newEnd(t, "192.0.2.1", "")
	remote := netip.MustParseAddr("192.0.2.9")
	e.SetExisting(ipsec.Pair{Selector: ipsec.Host(e.addr, remote), Until: now.Add(24 * time.Hour)})
	if err := e.l.d.takeOver(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, "it is held", func() bool { a, ok := e.Policy(ipsec.Host(e.addr, remote)); return ok && a.Action == ipsec.Hold })
	if a, _ := e.Policy(ipsec.Host(e.addr, remote)); a.Until.After(time.Now().Add(e.l.d.cfg.File.Linger + holdMargin)) {
		t.Errorf("held until %v", a.Until)
	}
}
