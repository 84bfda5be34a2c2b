// Package ipsectest holds what every [ipsec.Dataplane] must do, as a test over real hosts (TestDataplane, on Linux), and a double
// of a Dataplane for the tests of those who use one ([Fake]).
package ipsectest

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"tacit/ipsec"
)

// Call is one call of a method of a Fake, with the arguments that the method has.
type Call struct {
	Method   string // "InstallInbound" and so on
	ID       uint32
	SPI      ipsec.SPI
	Pair     ipsec.Pair
	Selector ipsec.Selector
	Action   ipsec.Action
	Until    time.Time
	Local    netip.AddrPort
	Remote   netip.AddrPort
	Keep     bool
	Rules    []ipsec.Rule
	Err      error // what the call returned
}

func (c Call) String() string {
	switch c.Method {
	case "SetPolicy":
		return fmt.Sprintf("SetPolicy %v %v", c.Selector, c.Action)
	case "ClearPolicy":
		return fmt.Sprintf("ClearPolicy %v", c.Selector)
	case "SetRules":
		return fmt.Sprintf("SetRules %v", c.Rules)
	}
	return fmt.Sprintf("%s %d", c.Method, c.ID)
}

// ErrInjected is what a call returns that FailAt asked to fail.
var ErrInjected = errors.New("ipsectest: this call was to fail")

// errFake is returned where a real Dataplane would refuse too.
var errFake = errors.New("ipsectest")

// Policy is a policy that stands in a Fake.
type Policy struct {
	Action ipsec.Action
	Until  time.Time
}

// fakeEvents is how many events may wait for the reader.
const fakeEvents = 1024

// Fake is an [ipsec.Dataplane] in memory: it records what it is asked to do, lets a test raise events, and fails the call
// that the test chooses. It carries no packets; its Conns exchange datagrams with the test, or with another Fake (Wire).
type Fake struct {
	mu       sync.Mutex // a daemon's loops, its signature workers and the test call at once
	calls    []Call
	failAt   int
	failOn   map[string]error
	pairs    map[uint32]ipsec.Pair
	armed    map[uint32]bool
	ins      map[uint32][]ipsec.SPI
	policies map[ipsec.Selector]Policy
	rules    []ipsec.Rule
	usage    map[uint32]ipsec.Usage
	used     map[uint32]bool
	left     []ipsec.Pair
	events   chan ipsec.Event
	closed   bool
	conns    []*fakeConn
	send     func(Datagram)
}

// Datagram is an IKE message on its way.
type Datagram struct {
	Local, Remote netip.AddrPort // as the receiver of it sees them
	Data          []byte
}

// NewFake returns an empty Fake.
func NewFake() *Fake {
	return &Fake{failOn: make(map[string]error), pairs: make(map[uint32]ipsec.Pair), armed: make(map[uint32]bool),
		ins: make(map[uint32][]ipsec.SPI), policies: make(map[ipsec.Selector]Policy), usage: make(map[uint32]ipsec.Usage), used: make(map[uint32]bool),
		events: make(chan ipsec.Event, fakeEvents)}
}

// FailAt makes the nth call from now, counted from 1, fail with ErrInjected, and change nothing.
func (f *Fake) FailAt(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failAt = n
}

// FailOn makes every call of a method fail with err, until it is called with nil.
func (f *Fake) FailOn(method string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		delete(f.failOn, method)
	} else {
		f.failOn[method] = err
	}
}

// Calls are the calls until now, of all methods or of the given ones.
func (f *Fake) Calls(methods ...string) []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []Call
	for _, c := range f.calls {
		if len(methods) == 0 || slices.Contains(methods, c.Method) {
			out = append(out, c)
		}
	}
	return out
}

// Pairs are the Pairs that stand, by their ID, without keys.
func (f *Fake) Pairs() map[uint32]ipsec.Pair {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make(map[uint32]ipsec.Pair, len(f.pairs))
	for id, p := range f.pairs {
		out[id] = p
	}
	return out
}

// Armed reports whether a Pair sends.
func (f *Fake) Armed(id uint32) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.armed[id]
}

// Inbound are the inbound SAs of a Pair, the oldest first.
func (f *Fake) Inbound(id uint32) []ipsec.SPI {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.ins[id])
}

// Policy is the policy on a selector, if there is one. A Fake has no clock: a policy stands until it is cleared.
func (f *Fake) Policy(s ipsec.Selector) (Policy, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, ok := f.policies[s]
	return p, ok
}

// Rules are those that SetRules set last.
func (f *Fake) Rules() []ipsec.Rule {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.rules)
}

// SetUsage sets what Usage returns for a Pair; Armed is the Fake's own.
func (f *Fake) SetUsage(id uint32, u ipsec.Usage) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.usage[id], f.used[id] = u, true
}

// SetExisting sets what Existing returns.
func (f *Fake) SetExisting(left ...ipsec.Pair) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left = left
}

// Raise raises an event. FirstPacket arms its Pair first, as the packet path does.
func (f *Fake) Raise(e ipsec.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	if _, ok := f.pairs[e.ID]; ok && e.Kind == ipsec.FirstPacket {
		f.armed[e.ID], f.used[e.ID] = true, true
	}
	f.events <- e
}

// do records a call and runs its change, unless the call shall fail.
func (f *Fake) do(c Call, change func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		c.Err = os.ErrClosed
	case f.failAt == 1:
		c.Err = ErrInjected
	case f.failOn[c.Method] != nil:
		c.Err = f.failOn[c.Method]
	default:
		c.Err = change()
	}
	f.failAt = max(f.failAt-1, 0)
	f.calls = append(f.calls, c)
	return c.Err
}

// InstallInbound records the Pair, without arming it.
func (f *Fake) InstallInbound(p ipsec.Pair) error {
	return f.do(Call{Method: "InstallInbound", ID: p.ID, SPI: p.In.SPI, Pair: p}, func() error {
		if slices.Contains(f.ins[p.ID], p.In.SPI) {
			return fmt.Errorf("%w: SPI %v is in use", errFake, p.In.SPI)
		}
		f.pairs[p.ID] = p.WithoutKeys()
		f.ins[p.ID] = append(f.ins[p.ID], p.In.SPI)
		return nil
	})
}

// Prepare has nothing to do, and is recorded.
func (f *Fake) Prepare() error {
	return f.do(Call{Method: "Prepare"}, func() error { return nil })
}

// InstallOutbound records the Pair and arms it.
func (f *Fake) InstallOutbound(p ipsec.Pair) error {
	return f.do(Call{Method: "InstallOutbound", ID: p.ID, SPI: p.Out.SPI, Pair: p}, func() error {
		if !slices.Contains(f.ins[p.ID], p.In.SPI) {
			f.ins[p.ID] = append(f.ins[p.ID], p.In.SPI)
		}
		f.pairs[p.ID], f.armed[p.ID], f.used[p.ID] = p.WithoutKeys(), true, true
		return nil
	})
}

// Retire ends an inbound SA.
func (f *Fake) Retire(id uint32, in ipsec.SPI) error {
	return f.do(Call{Method: "Retire", ID: id, SPI: in}, func() error {
		i := slices.Index(f.ins[id], in)
		if i < 0 {
			return fmt.Errorf("%w: pair %d has no inbound SA %v", errFake, id, in)
		}
		f.ins[id] = slices.Delete(f.ins[id], i, i+1)
		return nil
	})
}

// Disarm stops sending with a Pair. It is no error if there is none.
func (f *Fake) Disarm(id uint32) error {
	return f.do(Call{Method: "Disarm", ID: id}, func() error {
		delete(f.armed, id)
		return nil
	})
}

// Repeat records that.
func (f *Fake) Repeat(id uint32) error {
	return f.do(Call{Method: "Repeat", ID: id}, func() error { return nil })
}

// Remove ends a Pair. It is no error if there is none.
func (f *Fake) Remove(id uint32) error {
	return f.do(Call{Method: "Remove", ID: id}, func() error {
		delete(f.pairs, id)
		delete(f.armed, id)
		delete(f.ins, id)
		return nil
	})
}

// Redirect moves the outer addresses of a Pair.
func (f *Fake) Redirect(id uint32, local, remote netip.AddrPort) error {
	return f.do(Call{Method: "Redirect", ID: id, Local: local, Remote: remote}, func() error {
		p, ok := f.pairs[id]
		if !ok {
			return fmt.Errorf("%w: no pair %d", errFake, id)
		}
		p.Local, p.Remote = local, remote
		f.pairs[id] = p
		return nil
	})
}

// Existing returns what SetExisting set.
func (f *Fake) Existing() (left []ipsec.Pair, err error) {
	err = f.do(Call{Method: "Existing"}, func() error { left = slices.Clone(f.left); return nil })
	return left, err
}

// SetPolicy records a policy. Trap and Watch are refused: they are actions of rules.
func (f *Fake) SetPolicy(s ipsec.Selector, a ipsec.Action, until time.Time) error {
	return f.do(Call{Method: "SetPolicy", Selector: s, Action: a, Until: until}, func() error {
		if a > ipsec.Block {
			return fmt.Errorf("%w: %v is no action of a policy", errFake, a)
		}
		f.policies[s] = Policy{a, until}
		return nil
	})
}

// ClearPolicy forgets a policy.
func (f *Fake) ClearPolicy(s ipsec.Selector) error {
	return f.do(Call{Method: "ClearPolicy", Selector: s}, func() error {
		delete(f.policies, s)
		return nil
	})
}

// SetRules records the rules.
func (f *Fake) SetRules(rules []ipsec.Rule) error {
	rules = slices.Clone(rules)
	return f.do(Call{Method: "SetRules", Rules: rules}, func() error {
		f.rules = rules
		return nil
	})
}

// Used returns the Pairs whose usage was set, or that were armed, since it was called before. It is not recorded.
func (f *Fake) Used() []uint32 {
	f.mu.Lock()
	defer f.mu.Unlock()
	ids := slices.Collect(maps.Keys(f.used))
	clear(f.used)
	return ids
}

// Usage returns what SetUsage set. It is not recorded.
func (f *Fake) Usage(id uint32) (ipsec.Usage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.pairs[id]; !ok {
		return ipsec.Usage{}, fmt.Errorf("%w: no pair %d", errFake, id)
	}
	u := f.usage[id]
	u.Armed = f.armed[id]
	return u, nil
}

// Events is closed by Close.
func (f *Fake) Events() <-chan ipsec.Event { return f.events }

// Close closes the events and all Conns.
func (f *Fake) Close(keep bool) error {
	err := f.do(Call{Method: "Close", Keep: keep}, func() error { return nil })
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.closed = true
		close(f.events)
		for _, c := range f.conns {
			c.shut()
		}
	}
	return err
}
