package daemon

import (
	"context"
	"crypto"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"tacit/config"
	"tacit/ipsec"
	"tacit/ipseckey"
	"tacit/pad"
)

// wire carries IKE between loops in memory and remembers what was sent.
type wire struct {
	mu    sync.Mutex // loops of two daemons send while the test looks
	conns map[netip.AddrPort]chan memDatagram
	sent  []memDatagram
}

type memDatagram struct {
	from, to netip.AddrPort
	data     []byte
}

// ikeAuthReplies counts the responses of exchange IKE_AUTH (35) from an address.
func (w *wire) ikeAuthReplies(from netip.Addr) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.sent {
		if d.from.Addr() == from && len(d.data) >= 28 && d.data[18] == 35 && d.data[19]&0x20 != 0 {
			n++
		}
	}
	return n
}

// memConn is a port of one host.
type memConn struct {
	w    *wire
	in   chan memDatagram
	done chan struct{}
	once sync.Once
}

func (c *memConn) Read(b []byte) (int, netip.AddrPort, netip.AddrPort, error) {
	select {
	case d := <-c.in:
		return copy(b, d.data), d.to, d.from, nil
	case <-c.done:
		return 0, netip.AddrPort{}, netip.AddrPort{}, net.ErrClosed
	}
}

func (c *memConn) Write(b []byte, local, remote netip.AddrPort) error {
	d := memDatagram{local, remote, append([]byte(nil), b...)}
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.w.sent = append(c.w.sent, d)
	if to := c.w.conns[remote]; to != nil {
		to <- d
	}
	return nil
}

func (c *memConn) Close() error { c.once.Do(func() { close(c.done) }); return nil }

// slowPlane is a data plane whose installations return when the test lets them.
type slowPlane struct {
	w      *wire
	addr   netip.Addr
	events chan ipsec.Event
	gate   chan struct{} // closed: installations go through

	mu      sync.Mutex // the loop's worker writes, the test reads
	calls   []string
	failing map[string]error
}

func (p *slowPlane) call(name string, slow bool) error {
	p.mu.Lock()
	p.calls = append(p.calls, name)
	err := p.failing[name]
	p.mu.Unlock()
	if slow {
		<-p.gate
		p.mu.Lock()
		p.calls = append(p.calls, name+" done")
		p.mu.Unlock()
	}
	return err
}

func (p *slowPlane) did(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.calls {
		if c == name {
			return true
		}
	}
	return false
}

func (p *slowPlane) Conn(local netip.AddrPort) (ipsec.Conn, error) {
	c := &memConn{w: p.w, in: make(chan memDatagram, 64), done: make(chan struct{})}
	if local.Addr().Is4() {
		p.w.mu.Lock()
		p.w.conns[netip.AddrPortFrom(p.addr, local.Port())] = c.in
		p.w.mu.Unlock()
	}
	return c, nil
}

func (p *slowPlane) InstallInbound(ipsec.Pair) error                       { return p.call("inbound", true) }
func (p *slowPlane) InstallOutbound(ipsec.Pair) error                      { return p.call("outbound", true) }
func (p *slowPlane) Retire(uint32, ipsec.SPI) error                        { return p.call("retire", false) }
func (p *slowPlane) Remove(uint32) error                                   { return p.call("remove", false) }
func (p *slowPlane) Redirect(uint32, netip.AddrPort, netip.AddrPort) error { return nil }
func (p *slowPlane) Existing() ([]ipsec.Pair, error)                       { return nil, nil }
func (p *slowPlane) SetPolicy(ipsec.Selector, ipsec.Action, time.Time) error {
	return p.call("policy", false)
}
func (p *slowPlane) ClearPolicy(ipsec.Selector) error  { return p.call("clear", false) }
func (p *slowPlane) Usage(uint32) (ipsec.Usage, error) { return ipsec.Usage{}, nil }
func (p *slowPlane) Events() <-chan ipsec.Event        { return p.events }
func (p *slowPlane) Close(bool) error                  { return nil }

// startLoop runs a daemon's loop without a resolver on the wire.
func startLoop(t *testing.T, w *wire, addr, name string, signer crypto.Signer) (*loop, *slowPlane) {
	t.Helper()
	f := config.Default()
	f.Name = name
	p := &slowPlane{w: w, addr: netip.MustParseAddr(addr), events: make(chan ipsec.Event), gate: make(chan struct{}), failing: map[string]error{}}
	d := &Daemon{cfg: Config{File: f, Signer: signer, Dataplane: p}, now: time.Now, log: slog.New(slog.DiscardHandler), started: time.Now(), rules: f.Table()}
	d.host = &host{file: f}
	d.host.env.Store(&pad.Environment{Own: []netip.Addr{p.addr}})
	l, err := newLoop(d)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = l.run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	return l, p
}

// contact is two daemons of which Alice has just looked Bob up.
type contact struct {
	t          *testing.T
	w          *wire
	alice, bob *slowPlane
	answer     chan outcome
}

func newContact(t *testing.T, prepare func(alice, bob *slowPlane)) *contact {
	t.Helper()
	id, err := ipseckey.GenerateIdentity()
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{conns: map[netip.AddrPort]chan memDatagram{}}
	la, alice := startLoop(t, w, "192.0.2.1", "", nil)
	_, bob := startLoop(t, w, "192.0.2.2", "bob.example", id)
	prepare(alice, bob)
	c := &contact{t: t, w: w, alice: alice, bob: bob, answer: make(chan outcome, 1)}
	claim := pad.Claim{Name: "bob.example.", Addr: bob.addr, Keys: []pad.Key{pad.KeyOf(id.Public())}, Until: time.Now().Add(time.Hour)}
	if err := la.post(t.Context(), func(now time.Time) {
		la.step(now, la.peerOf(now, alice.addr, bob.addr), evLookup{waiter{claim, c.answer}})
	}); err != nil {
		t.Fatal(err)
	}
	return c
}

// await waits for something that is sure to come.
func (c *contact) await(what string, cond func() bool) {
	c.t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("never: %s", what)
		}
	}
}

// silent waits longer than it takes the initiator to repeat its request, and wants no answer and, if it is Bob who is slow, no
// reply of his.
func (c *contact) silent(replies int) {
	c.t.Helper()
	select {
	case o := <-c.answer:
		c.t.Fatalf("the answer did not wait: %+v", o)
	case <-time.After(700 * time.Millisecond):
	}
	if n := c.w.ikeAuthReplies(c.bob.addr); n != replies {
		c.t.Fatalf("%d replies to IKE_AUTH, want %d", n, replies)
	}
}

func (c *contact) outcome() outcome {
	c.t.Helper()
	select {
	case o := <-c.answer:
		return o
	case <-time.After(10 * time.Second):
		c.t.Fatal("no outcome")
		return outcome{}
	}
}

// A-39, the responder's side: no reply to IKE_AUTH, not even to its repeats, before the data plane has acknowledged.
func TestReplyWaitsForTheDataPlane(t *testing.T) {
	t.Parallel()
	c := newContact(t, func(alice, _ *slowPlane) { close(alice.gate) })
	c.await("bob installs", func() bool { return c.bob.did("inbound") })
	c.silent(0)
	if c.alice.did("inbound") {
		t.Error("alice installed before bob replied")
	}
	close(c.bob.gate)
	if o := c.outcome(); !o.ok {
		t.Errorf("withheld: %s", o.why)
	}
	if c.bob.did("outbound") {
		t.Error("the responder armed itself before the peer's first packet (R10)")
	}
}

// A-39, the initiator's side: no answer before the data plane has acknowledged both directions.
func TestAnswerWaitsForTheDataPlane(t *testing.T) {
	t.Parallel()
	c := newContact(t, func(_, bob *slowPlane) { close(bob.gate) })
	c.await("alice installs", func() bool { return c.alice.did("inbound") })
	c.silent(1)
	c.alice.gate <- struct{}{}
	c.await("alice installs the other way", func() bool { return c.alice.did("outbound") })
	c.silent(1)
	close(c.alice.gate)
	if o := c.outcome(); !o.ok {
		t.Errorf("withheld: %s", o.why)
	}
	if !c.alice.did("outbound done") {
		t.Error("the answer left before the data plane acknowledged")
	}
}

// An installation that fails withholds the name and leaves nothing behind, on either side.
func TestFailedInstallationWithholds(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		what    string
		prepare func(alice, bob *slowPlane)
		removed bool
	}{
		{"bob inbound", func(_, bob *slowPlane) { bob.failing["inbound"] = errors.New("no memory") }, false},
		{"alice inbound", func(alice, _ *slowPlane) { alice.failing["inbound"] = errors.New("no memory") }, false},
		{"alice outbound", func(alice, _ *slowPlane) { alice.failing["outbound"] = errors.New("no memory") }, true},
	} {
		c := newContact(t, func(alice, bob *slowPlane) {
			tt.prepare(alice, bob)
			close(alice.gate)
			close(bob.gate)
		})
		o := c.outcome()
		if o.ok || !strings.Contains(o.why, "bob.example") {
			t.Errorf("%s: %+v, want withheld with a reason", tt.what, o)
		}
		t.Logf("%s: %s", tt.what, o.why)
		if tt.removed && !c.alice.did("remove") {
			t.Errorf("%s: alice's half of the Pair stays", tt.what)
		}
		if tt.what != "bob inbound" {
			c.await(tt.what+": bob forgets what alice could not install", func() bool { return c.bob.did("remove") })
		}
		if c.alice.did("policy") {
			t.Errorf("%s: a policy stands on an address that got no SA", tt.what)
		}
	}
}
