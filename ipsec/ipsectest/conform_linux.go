package ipsectest

import (
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"tacit/ipsec"
	"tacit/lab"
)

// Options is how a Dataplane under test is opened. Linger is how long what stands in the kernel stays after its process died.
type Options struct{ Linger time.Duration }

// Subject is a kind of Dataplane under test.
type Subject struct {
	// Open opens a Dataplane in the network namespace of the calling thread.
	Open func(Options) (ipsec.Dataplane, error)
	// Cleanup removes what a dead process left in the network namespace of the calling thread.
	Cleanup func() error
	// Only names the parts that are run; empty means all.
	Only []string
	// Short leaves out, of the parts about rules, what takes long and one family: where a machine is emulated.
	Short bool
}

// childLinger is the Linger of the process that is killed; see [Main].
const childLinger = 2 * time.Second

// wait bounds everything that should happen at once.
const wait = 3 * time.Second

// world is the hosts of a test: Alice and Bob with a Dataplane each, Mallory with none, and a tap on the cable.
type world struct {
	*testing.T
	subject            Subject
	lab                *lab.Lab
	alice, bob, malory *lab.Host
	tap                *lab.Tap
}

// family is IPv4 or IPv6.
type family int

const (
	v4 family = iota
	v6
)

func (f family) String() string { return [...]string{"v4", "v6"}[f] }

func (f family) of(h *lab.Host) netip.Addr {
	if f == v4 {
		return h.Addr4()
	}
	return h.Addr6()
}

var families = []family{v4, v6}

// TestDataplane is the conformance test. It needs root.
func TestDataplane(t *testing.T, s Subject) {
	for _, c := range []struct {
		name string
		run  func(*world)
	}{
		{"carry", testCarry},
		{"ciphers", testCiphers},
		{"bulk", testBulk},
		{"prefer", testPrefer},
		{"latch", testLatch},
		{"latch race", testLatchRace},
		{"hold", testHold},
		{"hold ends", testHoldEnds},
		{"hold beside a dead peer", testDeadPeer},
		{"block", testBlock},
		{"bypass", testBypass},
		{"pair to hold", testPairToHold},
		{"disarm", testDisarm},
		{"replay", testReplay},
		{"rekey", testRekey},
		{"neighbours", testNeighbours},
		{"rp_filter", testReversePath},
		{"forward", testForward},
		{"foreign marks", testForeignMarks},
		{"ike", testIKE},
		{"dns", testDNS},
		{"trap", testTrap},
		{"watch", testWatch},
		{"watch storm", testWatchStorm},
		{"watch of the dead", testWatchOfTheDead},
		{"watch long", testWatchLong},
		{"bypass of the dead", testBypassOfTheDead},
		{"rule hold", testRuleHold},
		{"rule block", testRuleBlock},
		{"nested rules", testNested},
		{"rules replaced", testReplaceRules},
		{"judged anew", testJudgedAnew},
		{"storm", testStorm},
		{"clear ports", testClearPorts},
		{"exempt kinds", testExemptKinds},
		{"rules of the dead", testRulesOfTheDead},
		{"moved", testMoved},
		{"refused", testRefused},
		{"renew", testRenew},
		{"kill", testKill},
		{"restart", testRestart},
		{"traces", testTraces},
	} {
		if len(s.Only) == 0 || slices.Contains(s.Only, c.name) {
			if s.Short && slices.Contains(long, c.name) {
				continue
			}
			t.Run(c.name, func(t *testing.T) { c.run(newWorld(t, s)) })
		}
	}
}

// long are the parts that Short leaves out.
var long = []string{"storm", "watch storm", "exempt kinds"}

// some are the families that parts about rules are about.
func (w *world) some() []family {
	if w.subject.Short {
		return []family{v6}
	}
	return families
}

// newWorld makes the hosts of one part. They go with it.
func newWorld(t *testing.T, s Subject) *world {
	t.Helper()
	l, err := lab.New("dp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &world{T: t, subject: s, lab: l}
	host := func(name, addr4, addr6 string) *lab.Host {
		h, err := l.Host(name, lab.Prefixes(addr4, addr6)...)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	w.alice = host("alice", "192.0.2.1/24", "2001:db8::1/64")
	w.bob = host("bob", "192.0.2.2/24", "2001:db8::2/64")
	w.malory = host("mallory", "192.0.2.66/24", "2001:db8::66/64")
	if w.tap, err = l.Tap(); err != nil {
		t.Fatal(err)
	}
	return w
}

// open opens a Dataplane on a host and closes it with the test.
func (w *world) open(h *lab.Host) ipsec.Dataplane {
	w.Helper()
	return w.openWith(h, Options{Linger: time.Minute})
}

// openWith opens a Dataplane on a host, and closes it with the test.
func (w *world) openWith(h *lab.Host, o Options) (d ipsec.Dataplane) {
	w.Helper()
	err := h.Do(func() (err error) { d, err = w.subject.Open(o); return err })
	if err != nil {
		w.Fatalf("open on %s: %v", h.Name, err)
	}
	w.Cleanup(func() { w.must(d.Close(false)) })
	return d
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// shape is how a Pair carries packets.
type shape struct {
	family family
	mode   ipsec.Mode
	udp    bool
}

var spis atomic.Uint32

// pairs makes the two ends of a Child SA between Alice and Bob.
func (w *world) pairs(id uint32, s shape) (alice, bob ipsec.Pair) { return w.pairsOf(id, s, preferred) }

// pairsOf is pairs with a suite.
func (w *world) pairsOf(id uint32, s shape, c suite) (alice, bob ipsec.Pair) {
	a, b := s.family.of(w.alice), s.family.of(w.bob)
	var port uint16
	if s.udp {
		port = 4500
	}
	out, in := newSA(c), newSA(c)
	alice = ipsec.Pair{ID: id, Local: netip.AddrPortFrom(a, port), Remote: netip.AddrPortFrom(b, port), Mode: s.mode,
		Selector: ipsec.Host(a, b), In: in, Out: out}
	bob = ipsec.Pair{ID: id, Local: alice.Remote, Remote: alice.Local, Mode: s.mode, Selector: ipsec.Host(b, a), In: out, Out: in}
	return alice, bob
}

// up installs both ends as IKE does: the responder's inbound, then the initiator's both.
func (w *world) up(da, db ipsec.Dataplane, alice, bob ipsec.Pair) {
	w.Helper()
	w.must(db.InstallInbound(bob))
	w.must(da.InstallInbound(alice))
	w.must(da.InstallOutbound(alice))
}

// event waits for an event of a kind and returns it; others are passed over.
func (w *world) event(d ipsec.Dataplane, k ipsec.EventKind, within time.Duration) ipsec.Event {
	w.Helper()
	timer := time.After(within)
	for {
		select {
		case e := <-d.Events():
			if e.Kind == k {
				return e
			}
		case <-timer:
			w.Fatalf("no %v within %v", k, within)
		}
	}
}

// silence fails the test if an event of the kind is waiting.
func (w *world) silence(d ipsec.Dataplane, k ipsec.EventKind) {
	w.Helper()
	for {
		select {
		case e := <-d.Events():
			if e.Kind == k {
				w.Fatalf("got %v of %v, want none", e.Kind, e.Selector)
			}
		default:
			return
		}
	}
}

// counts is what the tap saw between Alice and Bob, once everything sent until now has passed it.
func (w *world) counts(f family) lab.Counts {
	w.Helper()
	w.sync()
	return w.tap.Between(f.of(w.alice), f.of(w.bob))
}

// sync waits until the tap has seen what was sent until now.
func (w *world) sync() {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	w.must(w.tap.Sync(ctx))
}

// await waits until the tap has seen what cond looks for.
func (w *world) await(cond func() bool) {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	if err := w.tap.Wait(ctx, cond); err != nil {
		w.Fatalf("the tap waited in vain: %v", err)
	}
}

// reset forgets what the tap saw until now.
func (w *world) reset() {
	w.Helper()
	w.sync()
	w.tap.Reset()
}

// noClear fails the test if anything passed in clear between Alice and Bob.
func (w *world) noClear(f family) {
	w.Helper()
	if c := w.counts(f); c.Clear() != 0 {
		w.Errorf("tap: got %v between alice and bob, want nothing in clear", c)
	}
}

// sequenceOf reads a number that a test put at the head of a payload.
func sequenceOf(b []byte) uint32 { return binary.BigEndian.Uint32(b) }
