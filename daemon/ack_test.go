package daemon

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tacit/ike/wire"
	"tacit/ipsec/ipsectest"
)

// contact is two daemons of which Alice has just looked Bob up.
type contact struct {
	t          *testing.T
	alice, bob *end
	replies    atomic.Int32 // that Bob sent in IKE_AUTH
	answer     chan outcome
}

func newContact(t *testing.T, prepare func(alice, bob *end)) *contact {
	t.Helper()
	c := &contact{t: t, alice: newEnd(t, "192.0.2.1", ""), bob: newEnd(t, "192.0.2.2", "bob.example")}
	ipsectest.Wire(c.alice.Fake, c.bob.Fake)
	c.bob.OnSend(func(d ipsectest.Datagram) {
		if h, err := wire.ParseHeader(d.Data); err == nil && h.Exchange == wire.IKEAuth && h.Flags&wire.FlagResponse != 0 {
			c.replies.Add(1)
		}
		c.alice.Deliver(d)
	})
	prepare(c.alice, c.bob)
	c.answer = c.alice.lookup(c.bob)
	return c
}

func (c *contact) await(what string, cond func() bool) {
	c.t.Helper()
	await(c.t, what, cond)
}

// silent waits longer than it takes the initiator to repeat its request, and wants no answer and so many replies of Bob's.
func (c *contact) silent(replies int32) {
	c.t.Helper()
	select {
	case o := <-c.answer:
		c.t.Fatalf("the answer did not wait: %+v", o)
	case <-time.After(700 * time.Millisecond):
	}
	if n := c.replies.Load(); n != replies {
		c.t.Fatalf("%d replies to IKE_AUTH, want %d", n, replies)
	}
}

// A-39, the responder's side: no reply to IKE_AUTH, not even to its repeats, before the data plane has acknowledged.
//
//tacit:attack A-39 no reply to IKE_AUTH before the acknowledgement, not even to repeats
func TestReplyWaitsForTheDataPlane(t *testing.T) {
	t.Parallel()
	c := newContact(t, func(alice, _ *end) { close(alice.gate) })
	c.await("bob installs", func() bool { return c.bob.did("InstallInbound") })
	c.silent(0)
	if c.alice.did("InstallInbound") {
		t.Error("alice installed before bob replied")
	}
	close(c.bob.gate)
	if o := outcomeOf(t, c.answer); !o.ok {
		t.Errorf("withheld: %s", o.why)
	}
	if c.bob.did("InstallOutbound") {
		t.Error("the responder armed itself before the peer's first packet (R10)")
	}
}

// A-39, the initiator's side: no answer before the data plane has acknowledged both directions.
//
//tacit:attack A-39 no answer before both directions are acknowledged
func TestAnswerWaitsForTheDataPlane(t *testing.T) {
	t.Parallel()
	c := newContact(t, func(_, bob *end) { close(bob.gate) })
	c.await("alice installs", func() bool { return c.alice.did("InstallInbound") })
	c.silent(1)
	c.alice.gate <- struct{}{}
	c.await("alice installs the other way", func() bool { return c.alice.did("InstallOutbound") })
	c.silent(1)
	close(c.alice.gate)
	if o := outcomeOf(t, c.answer); !o.ok {
		t.Errorf("withheld: %s", o.why)
	}
}

// An installation that fails withholds the name and leaves nothing behind, on either side.
func TestFailedInstallationWithholds(t *testing.T) {
	t.Parallel()
	noMemory := errors.New("no memory")
	for _, tt := range []struct {
		what    string
		prepare func(alice, bob *end)
		bobUp   bool // bob has installed his half before
	}{
		{"bob inbound", func(_, bob *end) { bob.FailOn("InstallInbound", noMemory) }, false},
		{"alice inbound", func(alice, _ *end) { alice.FailOn("InstallInbound", noMemory) }, true},
		{"alice outbound", func(alice, _ *end) { alice.FailOn("InstallOutbound", noMemory) }, true},
	} {
		c := newContact(t, func(alice, bob *end) {
			tt.prepare(alice, bob)
			close(alice.gate)
			close(bob.gate)
		})
		o := outcomeOf(t, c.answer)
		if o.ok || !strings.Contains(o.why, "bob.example") {
			t.Errorf("%s: %+v, want withheld with a reason", tt.what, o)
		}
		t.Logf("%s: %s", tt.what, o.why)
		if n := len(c.alice.Pairs()); n != 0 {
			t.Errorf("%s: alice's half of the Pair stays", tt.what)
		}
		if tt.bobUp {
			c.await(tt.what+": bob forgets what alice could not install", func() bool { return c.bob.did("Remove") && len(c.bob.Pairs()) == 0 })
		}
		if c.alice.did("SetPolicy") {
			t.Errorf("%s: a policy stands on an address that got no SA", tt.what)
		}
	}
}
