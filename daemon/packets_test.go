package daemon

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"tacit/config"
	"tacit/dnssec"
	"tacit/ike"
	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
	"tacit/ipseckey"
	"tacit/pad"
	"tacit/policy"
	"tacit/resolver"
)

// traffic is a loop that does not run, with one rule for all addresses, and a reverse zone of the test's.
type traffic struct {
	*play
	l    *loop
	fake *ipsectest.Fake

	mu     sync.Mutex
	says   reversed
	asked  map[netip.Addr]int
	gate   chan struct{} // lookups wait for it; nil: they do not
	most   int           // under way at once
	flying int
}

var noKey = reversed{why: "it is proven that no key is published"}

func newTraffic(t *testing.T, r policy.Rule) *traffic {
	x := &traffic{play: newPlay(t), fake: ipsectest.NewFake(), asked: map[netip.Addr]int{}, says: noKey}
	x.l = newTestLoop(t, x.fake, x.p.local, "", nil, func() time.Time { return x.now })
	x.l.d.cfg.File.DNS.Hold = time.Minute
	x.rule(r)
	x.l.d.reverse = func(remote netip.Addr) reversed {
		x.mu.Lock()
		x.asked[remote]++
		x.flying++
		x.most = max(x.most, x.flying)
		gate, says := x.gate, x.says
		x.mu.Unlock()
		if gate != nil {
			<-gate
		}
		x.mu.Lock()
		defer x.mu.Unlock()
		x.flying--
		if says.until.IsZero() {
			says.until = x.now.Add(time.Minute)
		}
		return says
	}
	return x
}

func (x *traffic) rule(r policy.Rule) {
	r.Prefixes = policy.Default().Prefixes
	x.l.d.rules.Store(policy.NewTable([]policy.Rule{r}))
}

// packet is one to an address that waits in the data plane.
func (x *traffic) packet(to netip.Addr) {
	x.l.event(x.now, ipsec.Event{Kind: ipsec.Acquire, Selector: ipsec.Host(x.p.local, to)})
}

// settle lets everything beside the loop come to its end.
func (x *traffic) settle() { drain(x.l, func() time.Time { return x.now }) }

// drain does so for a loop that does not run.
func drain(l *loop, now func() time.Time) {
	running, ran := false, make(chan struct{})
	for {
		if !running && len(l.queue) > 0 {
			job := l.queue[0]
			l.queue, running = l.queue[1:], true
			go func() { job(); ran <- struct{}{} }()
		}
		if !running && l.packets.flying == 0 && len(l.done) == 0 && !l.endings.busy {
			return
		}
		select {
		case f := <-l.done:
			f(now())
		case <-ran:
			running = false
		}
	}
}

// try is a packet, and all that follows without the peer's doing.
func (x *traffic) try() {
	x.packet(x.p.remote)
	x.settle()
}

// peer is the address's, if there is one.
func (x *traffic) peer() *peer { return x.l.peers[x.p.key] }

// attempts is how many negotiations have been begun.
func (x *traffic) attempts() int { return x.l.engine.Stats().SAs }

// fails ends the negotiation.
func (x *traffic) fails() {
	p := x.peer()
	x.l.step(x.now, p, ike.Closed{SA: p.attempt.id, Err: ike.ErrTimeout})
	x.settle()
}

// succeeds ends it well, with that key (0: nobody's).
func (x *traffic) succeeds(k byte) {
	p := x.peer()
	e := ike.Established{SA: p.attempt.id, Initiator: true, RemoteID: ike.ID{Kind: ike.IDNull}}
	if k != 0 {
		e.Key = testKey(k)
	}
	x.l.step(x.now, p, e)
	x.l.step(x.now, p, ike.ChildUp{SA: e.SA, Pair: ipsec.Pair{ID: uint32(e.SA)}})
	x.settle()
}

// want checks what stands on the address: "" for nothing.
func (x *traffic) want(what, action string) {
	x.t.Helper()
	got := ""
	if p, ok := x.fake.Policy(ipsec.Host(x.p.local, x.p.remote)); ok {
		got = p.Action.String()
	}
	if got != action {
		x.t.Errorf("%s: %q stands on the address, want %q", what, got, action)
	}
}

func (x *traffic) reverseClaim(k byte) reversed {
	c := x.claim("2.2.0.192.in-addr.arpa.", k)
	c.Source = pad.Reverse
	return reversed{claims: []pad.Claim{c}}
}

// What the rule and the reverse zone make of a packet.
func TestPacketsWithoutALookup(t *testing.T) {
	shut := reversed{shut: true, why: "the key is bogus"}
	rule := func(c policy.Class, packets, anonymous bool) policy.Rule {
		return policy.Rule{Class: c, Packets: packets, Anonymous: anonymous}
	}
	for _, tt := range []struct {
		rule     policy.Rule
		says     reversed
		key      byte
		lookups  int
		attempts int
		first    string // what stands then
		failed   string // and when the attempt has failed
	}{
		{rule: rule(policy.PrivateOrClear, false, true), lookups: 0},
		{rule: rule(policy.Private, false, false), lookups: 0},
		{rule: rule(policy.ClearOrPrivate, true, true), lookups: 0},
		{rule: rule(policy.Clear, true, true), lookups: 0},
		{rule: rule(policy.Block, true, true), lookups: 0},
		{rule: rule(policy.PrivateOrClear, true, false), lookups: 1, first: "bypass"},
		{rule: rule(policy.PrivateOrClear, true, false), says: shut, lookups: 1, first: "block"},
		{rule: rule(policy.PrivateOrClear, true, true), says: shut, lookups: 1, first: "block"},
		{rule: rule(policy.PrivateOrClear, true, false), key: 1, lookups: 1, attempts: 1, first: "hold", failed: "hold"},
		{rule: rule(policy.PrivateOrClear, true, true), key: 1, lookups: 1, attempts: 1, first: "hold", failed: "hold"},
		{rule: rule(policy.PrivateOrClear, true, true), lookups: 1, attempts: 1, failed: "bypass"},
		{rule: rule(policy.Private, true, false), lookups: 1, first: "block"},
		{rule: rule(policy.Private, true, true), lookups: 1, attempts: 1, failed: "block"},
		{rule: rule(policy.Private, true, true), says: shut, lookups: 1, first: "block"},
		{rule: rule(policy.Private, true, false), key: 1, lookups: 1, attempts: 1, first: "hold", failed: "hold"},
	} {
		what := fmt.Sprintf("%v packets=%v anonymous=%v key %d %s", tt.rule.Class, tt.rule.Packets, tt.rule.Anonymous, tt.key, tt.says.why)
		x := newTraffic(t, tt.rule)
		if tt.says.why != "" {
			x.says = tt.says
		}
		if tt.key != 0 {
			x.says = x.reverseClaim(tt.key)
		}
		x.try()
		if x.asked[x.p.remote] != tt.lookups || x.attempts() != tt.attempts {
			t.Errorf("%s: %d lookups and %d attempts, want %d and %d", what, x.asked[x.p.remote], x.attempts(), tt.lookups, tt.attempts)
			continue
		}
		x.want(what, tt.first)
		if tt.attempts == 0 {
			continue
		}
		x.fails()
		x.want(what+", failed", tt.failed)
		x.try()
		x.want(what+", failed, again", tt.failed)
		if n := x.asked[x.p.remote]; n != 1 {
			t.Errorf("%s: %d lookups in all", what, n)
		}
	}
}

// The reverse zone's key is keyed: the address is asked for no name, counts as its own word, and is protected like any other.
func TestReverseKeyed(t *testing.T) {
	x := newTraffic(t, policy.Rule{Class: policy.PrivateOrClear, Packets: true, Anonymous: true})
	x.says = x.reverseClaim(1)
	x.try()
	p := x.peer()
	if p == nil || p.attempt == nil || !p.attempt.unnamed || p.attempt.claim.Source != pad.Reverse {
		t.Fatalf("got %+v", p)
	}
	x.succeeds(1)
	if p.state != protected || !p.pad.Live() {
		t.Errorf("%v: %s", p.state, p.why)
	}
	if names, _ := p.pad.Names(x.now); !slices.Equal(names, []string{"2.2.0.192.in-addr.arpa."}) {
		t.Errorf("satisfied: %v", names)
	}
	// A name with the same key needs no negotiation, one with another does not get the SA.
	same, other := x.claim("bob.example.", 1), x.claim("evil.example.", 2)
	if s := p.pad.Ask(x.now, same); s.State != pad.Satisfied {
		t.Errorf("the same key: %v", s.State)
	}
	if s := p.pad.Ask(x.now, other); s.State != pad.Conflict || p.pad.Outranks(x.now, other) {
		t.Errorf("another key: %v", s.State)
	}
}

// R3: where the administrator says who is at an address its zone is not asked.
func TestPinnedAddressWithoutALookup(t *testing.T) {
	x := newTraffic(t, policy.Rule{})
	f := *x.l.d.cfg.File
	f.Policy = []policy.Rule{{Prefixes: policy.Default().Prefixes, Class: policy.PrivateOrClear, Packets: true}}
	f.Pins = config.Pins{x.p.remote.String(): {id(3)}}
	if err := x.l.d.obey(&f); err != nil {
		t.Fatal(err)
	}
	x.says = x.reverseClaim(1)
	x.try()
	p := x.peer()
	if len(x.asked) != 0 || p == nil || p.attempt == nil || !p.attempt.claim.Has(id(3)) || p.attempt.claim.Has(id(1)) {
		t.Fatalf("asked %v, peer %+v", x.asked, p)
	}
	x.fails()
	x.want("failed", "hold")
}

// R3: who stands at the address by a name's word alone makes room for the key of the address's own zone, and nothing leaves in clear meanwhile.
func TestReverseZoneBeforeTheProver(t *testing.T) {
	p := newProven(t)
	c := p.claim("2.2.0.192.in-addr.arpa.", 2)
	c.Source = pad.Reverse
	w := waiter{claim: c, reply: make(chan outcome, 1)}
	begun := count[doInitiate](p)
	p.event(evLookup{w})
	if !p.p.sa(1).deleting || count[doInitiate](p) != begun+1 {
		t.Fatalf("the incumbent stays: %v", p.done)
	}
	p.ended(1, nil)
	if !p.p.pad.Held(p.now) || p.p.held.IsZero() {
		t.Error("the address is not held")
	}
	p.established(2, true, 2)
	p.wantReleased(w)
	evil := p.lookup("bob.example.", 1)
	p.event(ike.Alive{SA: 2})
	p.wantWithheld(evil)
}

// A packet that may leave in clear waits for anybody no longer than the hold; those after it do not wait at all, and an attempt that succeeds later is used.
func TestAnybodyWithinTheHold(t *testing.T) {
	x := newTraffic(t, policy.Rule{Class: policy.PrivateOrClear, Packets: true, Anonymous: true})
	x.l.d.cfg.File.DNS.Hold = 10 * time.Millisecond
	x.try()
	x.want("at first", "")
	(<-x.l.done)(x.now)
	x.settle()
	x.want("after the hold", "bypass")
	x.succeeds(0)
	if x.peer().state != protected {
		t.Errorf("%v", x.peer().state)
	}
	// A private one waits until there is an outcome.
	x = newTraffic(t, policy.Rule{Class: policy.Private, Packets: true, Anonymous: true})
	x.l.d.cfg.File.DNS.Hold = time.Millisecond
	x.try()
	time.Sleep(20 * time.Millisecond)
	if len(x.l.done) > 0 {
		t.Error("a private address is not waited for")
	}
	x.want("private", "")
}

// A peer whose clear packets are held back by a rule is asked as if we had something to say, and shown the SA, or it would go on in clear: but not for any number
// of made-up senders at once.
func TestClearPacketsAskToo(t *testing.T) {
	for _, k := range []byte{0, 1} {
		x := newTraffic(t, policy.Rule{Class: policy.Private, Packets: true, Anonymous: true})
		if k != 0 {
			x.says = x.reverseClaim(k)
		}
		nudged := 0
		x.l.nudge = func(local, remote netip.Addr) error {
			if local != x.p.local || remote != x.p.remote || !x.peer().covers() {
				t.Errorf("nudged %v from %v, SA in use %v", remote, local, x.peer().covers())
			}
			nudged++
			return nil
		}
		x.l.event(x.now, ipsec.Event{Kind: ipsec.ClearSeen, Selector: ipsec.Host(x.p.local, x.p.remote)})
		x.settle()
		if nudged != 0 || x.attempts() != 1 {
			t.Fatalf("key %d: nudged %d times, %d attempts", k, nudged, x.attempts())
		}
		x.succeeds(k)
		if nudged != 1 {
			t.Errorf("key %d: nudged %d times", k, nudged)
		}
	}
	x := newTraffic(t, policy.Rule{Class: policy.Private, Packets: true})
	x.gate = make(chan struct{})
	for i := range 1000 {
		x.l.event(x.now, ipsec.Event{Kind: ipsec.ClearSeen, Selector: ipsec.Host(x.p.local, nth(256*(i%4)+i/4))})
	}
	if n := len(x.l.packets.quests); n != maxProvoked {
		t.Errorf("%d lookups for clear packets, want %d", n, maxProvoked)
	}
	close(x.gate)
	x.settle()
	if x.l.packets.provoked != 0 {
		t.Errorf("%d are counted yet", x.l.packets.provoked)
	}
}

// I1: who has proved a key while the reverse zone was being asked is not let go because that knows none; nor is a conversation that broke off.
func TestNobodyIsLetGoWhoIsHeld(t *testing.T) {
	for _, held := range []string{"by a proof", "since a conversation broke"} {
		x := newTraffic(t, policy.Rule{Class: policy.PrivateOrClear, Packets: true})
		x.gate = make(chan struct{})
		x.packet(x.p.remote)
		p := x.l.peerOf(x.now, x.p.local, x.p.remote)
		if held == "by a proof" {
			x.l.step(x.now, p, evLookup{waiter{claim: x.claim("bob.example.", 1), reply: make(chan outcome, 1)}})
			e := ike.Established{SA: p.attempt.id, Initiator: true, Key: testKey(1)}
			x.l.step(x.now, p, e)
			pair := ipsec.Pair{ID: 77}
			x.l.step(x.now, p, ike.ChildUp{SA: e.SA, Pair: pair})
			x.l.step(x.now, p, ike.ChildDown{SA: e.SA, Pair: 77, Err: ike.ErrTimeout})
		} else {
			p.broken = x.now.Add(time.Minute)
			x.l.step(x.now, p, evTick{})
		}
		close(x.gate)
		x.settle()
		if x.asked[x.p.remote] != 1 {
			t.Fatalf("held %s: %d lookups", held, x.asked[x.p.remote])
		}
		x.want("held "+held, "hold")
	}
}

// What could not be found out is asked again soon, since DNS may only be slow, but not for ever at the same pace; and a denial that is proven ends that.
func TestUnansweredIsAskedAgain(t *testing.T) {
	x := newTraffic(t, policy.Rule{Class: policy.PrivateOrClear, Packets: true})
	x.says = reversed{shut: true, why: "no answer in time"}
	pauses := []time.Duration{firstShut, 2 * firstShut, 4 * firstShut, 8 * firstShut, 16 * firstShut, 32 * firstShut, mostShut, mostShut}
	for i, pause := range pauses {
		x.try()
		x.want("unanswered", "block")
		for range int(pause/time.Second) - 1 {
			x.now = x.now.Add(time.Second)
			x.l.packets.denials.expire(x.now, 10)
			x.try()
		}
		if n := x.asked[x.p.remote]; n != i+1 {
			t.Fatalf("%d lookups within pause %d (%v), want %d", n, i, pause, i+1)
		}
		x.now = x.now.Add(time.Second)
		x.l.packets.denials.expire(x.now, 10)
	}
	x.says = noKey
	x.try()
	x.want("answered at last", "bypass")
	x.now = x.now.Add(time.Hour)
	x.l.packets.denials.expire(x.now, 10)
	if len(x.l.packets.denials.of) != 0 {
		t.Error("it is not forgotten")
	}
}

// An SA that ended while nobody used it is set up again by the next packet, with no other lookup while what was found counts.
func TestNextPacketKeysAgain(t *testing.T) {
	for _, k := range []byte{0, 1} {
		x := newTraffic(t, policy.Rule{Class: policy.PrivateOrClear, Packets: true, Anonymous: true})
		if k != 0 {
			x.says = x.reverseClaim(k)
		}
		for round := range 3 {
			x.try()
			p := x.peer()
			if p == nil || p.attempt == nil {
				t.Fatalf("key %d, round %d: nobody is asked", k, round)
			}
			id := p.attempt.id
			x.succeeds(k)
			x.l.step(x.now, p, ike.ChildDown{SA: id, Pair: uint32(id)})
			x.l.step(x.now, p, ike.Closed{SA: id})
			x.settle()
			x.now = x.now.Add(10 * time.Second)
		}
		if n := x.asked[x.p.remote]; n != 1 {
			t.Errorf("key %d: %d lookups, want 1", k, n)
		}
	}
}

// R9: the reverse zone's word ends with its TTL, and nobody looks it up while an SA serves. It is asked again then: the SA goes on, or is lame.
func TestReverseZoneIsAskedAgain(t *testing.T) {
	for _, stands := range []bool{true, false} {
		x := newTraffic(t, policy.Rule{Class: policy.PrivateOrClear, Packets: true})
		x.says = x.reverseClaim(1)
		x.says.claims[0].Until = x.now.Add(time.Minute)
		x.try()
		x.succeeds(1)
		p := x.peer()
		if x.says = noKey; stands {
			x.says = x.reverseClaim(1)
			x.says.claims[0].Until = x.now.Add(time.Hour)
		}
		for range 150 { // seconds, in which the peer speaks
			x.now = x.now.Add(time.Second)
			p.sas[0].usage.in = readingOf(x.now)
			p.pad.Alive(x.now)
			x.l.step(x.now, p, evTick{})
			x.settle()
		}
		want, lookups := lame, 3
		if stands {
			want, lookups = protected, 2
		}
		if p.state != want || x.asked[x.p.remote] != lookups {
			t.Errorf("it still says so %v: %v (%s) after %d lookups, want %v after %d", stands, p.state, p.why, x.asked[x.p.remote], want, lookups)
		}
	}
}

// A denial counts as long as its TTL says, within bounds; and no packet asks before it has ended.
func TestDenialsLast(t *testing.T) {
	for ttl, want := range map[time.Duration]time.Duration{time.Second: leastDenial, 5 * time.Minute: 5 * time.Minute, 24 * time.Hour: mostDenial} {
		x := newTraffic(t, policy.Rule{Class: policy.PrivateOrClear, Packets: true})
		x.says.until = x.now.Add(ttl)
		x.try()
		if p, _ := x.fake.Policy(ipsec.Host(x.p.local, x.p.remote)); p.Action != ipsec.Bypass || p.Until.Sub(x.now) != want {
			t.Errorf("TTL %v: %v for %v, want it let go for %v", ttl, p.Action, p.Until.Sub(x.now), want)
		}
		x.now = x.now.Add(want - time.Second)
		x.try()
		if n := x.asked[x.p.remote]; n != 1 {
			t.Errorf("TTL %v: %d lookups before it has ended", ttl, n)
		}
		x.now = x.now.Add(time.Second)
		x.try()
		if n := x.asked[x.p.remote]; n != 2 {
			t.Errorf("TTL %v: %d lookups when it has ended, want another", ttl, n)
		}
	}
}

// A storm to addresses without keys costs a lookup each at most, then nothing; what is remembered of it is bounded.
func TestStorm(t *testing.T) {
	const storm = 10_000
	x := newTraffic(t, policy.Rule{Class: policy.PrivateOrClear, Packets: true})
	for round := range 3 {
		for i := range storm {
			x.packet(nth(i))
			if i%64 == 0 {
				x.settle()
			}
		}
		x.settle()
		if n := int(x.l.packets.lookups); n != storm {
			t.Fatalf("round %d: %d lookups, want %d", round, n, storm)
		}
		x.now = x.now.Add(5 * time.Second)
	}
	if len(x.l.peers) != 0 || len(x.l.packets.quests) != 0 || len(x.l.packets.queue) != 0 || len(x.l.packets.networks) != 0 {
		t.Errorf("left: %d peers, %d quests, %d in the queue", len(x.l.peers), len(x.l.packets.quests), len(x.l.packets.queue))
	}
	for i := range storm {
		if p, _ := x.fake.Policy(ipsec.Host(x.p.local, nth(i))); p.Action != ipsec.Bypass || !p.Until.After(x.now) {
			t.Fatalf("%v: %+v", nth(i), p)
		}
	}
	for i := range maxDenials {
		x.packet(netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)}))
		x.settle()
	}
	if n := len(x.l.packets.denials.of); n != maxDenials {
		t.Errorf("%d denials, want %d", n, maxDenials)
	}
	if _, stands := x.fake.Policy(ipsec.Host(x.p.local, nth(0))); stands {
		t.Error("what was forgotten is still let go")
	}
}

// Slow reverse zones: lookups under way are bounded, in all and of a network; what cannot wait asks again.
func TestStormOfSlowLookups(t *testing.T) {
	x := newTraffic(t, policy.Rule{Class: policy.PrivateOrClear, Packets: true})
	x.gate = make(chan struct{})
	for i := range 200 {
		x.packet(nth(i)) // of one network
	}
	if x.l.packets.flying != maxNetQuests {
		t.Errorf("%d lookups in one network, want %d", x.l.packets.flying, maxNetQuests)
	}
	for i := range 3 * maxQueued {
		x.packet(nth(1 + 7*i%0x10000))
	}
	if x.l.packets.flying != maxQuests || len(x.l.packets.queue) > maxQueued || x.l.packets.overflow == 0 {
		t.Errorf("%d flying, %d in the queue, %d too many", x.l.packets.flying, len(x.l.packets.queue), x.l.packets.overflow)
	}
	x.now = x.now.Add(maxWait)
	close(x.gate)
	x.settle()
	if x.most > maxQuests {
		t.Errorf("%d at once", x.most)
	}
	if len(x.l.packets.queue) != 0 || len(x.l.packets.quests) != 0 || int(x.l.packets.lookups) != maxQuests {
		t.Errorf("%d in the queue, %d quests, %d lookups", len(x.l.packets.queue), len(x.l.packets.quests), x.l.packets.lookups)
	}
}

// What was found under other rules does not count, and what stands because of it is taken back; the rest is not touched.
func TestReloadForgetsDenials(t *testing.T) {
	x := newTraffic(t, policy.Rule{Class: policy.PrivateOrClear, Packets: true})
	x.try()
	x.want("let go", "bypass")
	old := x.l.d.rules.Load()
	x.rule(policy.Rule{Class: policy.PrivateOrClear, Packets: true, AcceptAnonymous: true})
	x.l.reconsider(x.now, old, x.l.d.rules.Load())
	x.settle()
	x.want("after a reload that says the same of packets", "bypass")
	old = x.l.d.rules.Load()
	x.rule(policy.Rule{Class: policy.Private, Packets: true})
	x.l.reconsider(x.now, old, x.l.d.rules.Load())
	x.settle()
	x.want("private by now", "")
	x.try()
	x.want("the next packet", "block")
}

// A gateway of the reverse zone's is asked in the address's place, for a tunnel; the next one when it fails.
func TestGatewaysInTurn(t *testing.T) {
	x := newTraffic(t, policy.Rule{Class: policy.PrivateOrClear, Packets: true})
	r := x.reverseClaim(1)
	r.claims = append(r.claims, r.claims[0])
	r.claims[0].Gateway, r.claims[1].Gateway = netip.MustParseAddr("127.0.0.8"), netip.MustParseAddr("127.0.0.9")
	x.says = r
	var sent []netip.Addr
	x.fake.OnSend(func(d ipsectest.Datagram) { sent = append(sent, d.Local.Addr()) }) // as the receiver sees it
	x.try()
	if !slices.Equal(sent, []netip.Addr{r.claims[0].Gateway}) {
		t.Fatalf("sent to %v", sent)
	}
	x.fails()
	if len(sent) != 2 || sent[1] != r.claims[1].Gateway {
		t.Fatalf("sent to %v", sent)
	}
	x.fails()
	x.want("both failed", "hold")
}

// A gateway that a reverse zone names for any number of addresses is not asked for all of them at once; the others' turn comes.
func TestGatewayIsNotFlooded(t *testing.T) {
	x := newTraffic(t, policy.Rule{Class: policy.PrivateOrClear, Packets: true})
	gateway := netip.MustParseAddr("127.0.0.8")
	x.says = x.reverseClaim(1)
	x.says.claims[0].Gateway = gateway
	sent := 0
	x.fake.OnSend(func(ipsectest.Datagram) { sent++ })
	for i := range 50 {
		x.packet(nth(i))
		x.settle()
	}
	if sent != maxAsked || x.l.gateways.under[gateway] != maxAsked {
		t.Fatalf("%d negotiations with one gateway, %d are counted, want %d", sent, x.l.gateways.under[gateway], maxAsked)
	}
	for id := range x.l.gateways.asked {
		x.l.engineEvent(x.now, ike.Closed{SA: id, Err: ike.ErrTimeout})
	}
	x.settle()
	if len(x.l.gateways.asked) != 0 || len(x.l.gateways.under) != 0 {
		t.Errorf("%d are under way yet", len(x.l.gateways.asked))
	}
	x.packet(nth(49))
	x.settle()
	if sent != maxAsked+1 {
		t.Errorf("%d negotiations, want one more", sent)
	}
	x.want("never in clear", "")
	for i := range 50 {
		if p, _ := x.fake.Policy(ipsec.Host(x.p.local, nth(i))); p.Action != ipsec.Hold {
			t.Fatalf("%v: %v", nth(i), p.Action)
		}
	}
}

// The rows of TRUST.md 1 for the answer at a reverse name.
func TestJudgeReverse(t *testing.T) {
	remote := netip.MustParseAddr("203.0.113.7")
	good := []ipseckey.Record{{GatewayType: ipseckey.GatewayNone, Algorithm: ipseckey.AlgEdDSA, Key: testKey(1)}}
	weak := []ipseckey.Record{{Unusable: "RSA modulus of 1024 bits"}}
	for _, tt := range []struct {
		what   string
		f      resolver.Found
		remote netip.Addr
		ways   int
		shut   bool
	}{
		{"secure key", resolver.Found{KeyStatus: dnssec.Secure, Keys: good}, remote, 1, false},
		{"secure denial", resolver.Found{KeyStatus: dnssec.Secure, Denied: true}, remote, 0, false},
		{"unusable", resolver.Found{KeyStatus: dnssec.Secure, Keys: weak}, remote, 0, false},
		{"unsigned key", resolver.Found{KeyStatus: dnssec.Insecure, Keys: good}, remote, 0, false},
		{"unsigned denial", resolver.Found{KeyStatus: dnssec.Insecure, Denied: true}, remote, 0, false},
		{"bogus", resolver.Found{KeyStatus: dnssec.Bogus, Keys: good}, remote, 0, true},
		{"no answer", resolver.Found{KeyStatus: dnssec.Indeterminate}, remote, 0, true},
		{"unchecked", resolver.Found{}, remote, 0, true},
		{"a private address", resolver.Found{Owner: "7.0.0.10.in-addr.arpa.", KeyStatus: dnssec.Secure, Keys: good}, netip.MustParseAddr("10.0.0.7"), 0, true},
	} {
		r, ways := judgeReverse(tt.f, pad.Environment{}, tt.remote)
		if len(ways) != tt.ways || r.shut != tt.shut || r.why == "" {
			t.Errorf("%s: %d ways, %+v", tt.what, len(ways), r)
		}
	}
}

// pass lets time pass, with the housekeeping of each second.
func (x *traffic) pass(d time.Duration) {
	for end := x.now.Add(d); x.now.Before(end); x.settle() {
		x.now = x.now.Add(tick)
		keep(x.l, x.now)
	}
}

// The packets of a steady flow to an address that speaks no IKE wait for an attempt less and less often, though nothing but that is known of it.
func TestPacketsWaitForNobodyLessAndLess(t *testing.T) {
	x := newTraffic(t, policy.Rule{Class: policy.PrivateOrClear, Packets: true, Anonymous: true})
	for round, pause := range []time.Duration{firstRefusal, 2 * firstRefusal, 4 * firstRefusal, 8 * firstRefusal} {
		x.try()
		if n := x.attempts(); n != round+1 {
			t.Fatalf("round %d: %d attempts", round, n)
		}
		x.fails()
		x.want("after it has failed", "bypass")
		x.pass(pause - tick)
		if x.try(); x.attempts() != round+1 {
			t.Errorf("round %d: asked again within %v", round, pause)
		}
		x.pass(tick)
	}
	x.pass(maxRefusal)
	if x.peer() != nil {
		t.Error("it is not forgotten")
	}
}
