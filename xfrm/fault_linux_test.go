package xfrm

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tacit/guard"
	"tacit/ipsec"
	"tacit/lab"
)

var errBoom = errors.New("boom")

// faults makes the nth request to the kernel, of xfrm or of nftables, fail.
type faults struct {
	count, at atomic.Int64
	harmless  string // requests that may fail without an error to the caller
}

func (f *faults) hit(op string) error {
	if f.harmless != "" && strings.HasPrefix(op, f.harmless) {
		return nil
	}
	if f.count.Add(1) == f.at.Load() {
		return errBoom
	}
	return nil
}

// each calls do with each of its requests failing in turn, until none did. check looks at what is left each time.
func (f *faults) each(t *testing.T, name string, do func() error, check func(n int64)) {
	t.Helper()
	for n := int64(1); ; n++ {
		f.count.Store(0)
		f.at.Store(n)
		err := do()
		f.at.Store(0)
		if f.count.Load() < n {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if n < 3 {
				t.Errorf("%s: only %d requests", name, n-1)
			}
			return
		}
		if !errors.Is(err, errBoom) {
			t.Errorf("%s, request %d: got %v", name, n, err)
		}
		check(n)
	}
}

// TestFaults: whichever request to the kernel fails while a Pair is set up, nothing half-installed stays, and afterwards the same works.
// Tunnel mode asks for everything that transport mode does, and for policies in.
func TestFaults(t *testing.T) {
	h := labHost(t)
	f := &faults{harmless: "read SA"} // for the counters
	p := needPlane(t, h, Config{fault: f.hit})
	state := func() string { // a table that nothing stands in may sleep, or not yet again
		return strings.Replace(all(t, h), "\tflags dormant\n\n", "", 1)
	}
	clean := state()
	compare := func(what string) {
		if after := state(); after != clean {
			t.Errorf("%s: left\n%s\nwant\n%s", what, after, clean)
		}
	}
	// Both SAs, the policies, the latch, the verdict.
	f.each(t, "install", func() error { return p.InstallOutbound(examplePair(7, ipsec.Tunnel)) }, func(n int64) {
		compare(fmt.Sprintf("install, request %d failed", n))
	})
	f.each(t, "remove", func() error { return p.Remove(7) }, func(n int64) {
		p.mu.Lock()
		err := errors.Join(p.turn(p.now())...)
		p.mu.Unlock()
		if err := errors.Join(err, p.Remove(7)); err != nil {
			t.Errorf("remove after request %d failed: %v", n, err)
		}
		compare(fmt.Sprintf("remove after request %d failed", n))
		if err := p.InstallOutbound(examplePair(7, ipsec.Tunnel)); err != nil {
			t.Fatal(err)
		}
	})
	compare("after Remove")
}

// TestFaultsOfPolicies: a policy is there or not, and the old one stands if a new one cannot be.
func TestFaultsOfPolicies(t *testing.T) {
	h := labHost(t)
	f := &faults{}
	p := needPlane(t, h, Config{fault: f.hit})
	s := examplePair(7, ipsec.Transport).Selector
	set := func(a ipsec.Action) error { return p.SetPolicy(s, a, time.Now().Add(time.Minute)) }
	for _, a := range []ipsec.Action{ipsec.Hold, ipsec.Block} {
		before := elements(t, h)
		f.at.Store(1)
		f.count.Store(0)
		if err := set(a); !errors.Is(err, errBoom) {
			t.Errorf("%v: got %v", a, err)
		}
		f.at.Store(0)
		if after := elements(t, h); after != before {
			t.Errorf("%v failed: left %s, want %s", a, after, before)
		}
		if err := set(a); err != nil {
			t.Error(err)
		}
		if after := elements(t, h); after == before {
			t.Errorf("%v: nothing in force", a)
		}
	}
}

// elements are those that are in force, without their times.
func elements(t *testing.T, h *lab.Host) string {
	var b strings.Builder
	for _, set := range []string{"divert4", "block4"} {
		_, list, _ := strings.Cut(text(t, h, "nft list set inet "+guard.TableName+" "+set), "elements = ")
		fields := strings.Fields(list)
		fmt.Fprintf(&b, "%s %s; ", set, strings.Join(fields[:min(4, len(fields))], " "))
	}
	return b.String()
}

// TestRedirectLive: ports change in place and addresses by a new SA; whichever request fails, both SAs are there, and the next try works.
func TestRedirectLive(t *testing.T) {
	h := labHost(t)
	f := &faults{}
	p := needPlane(t, h, Config{fault: f.hit})
	spec := examplePair(7, ipsec.Tunnel)
	if err := p.InstallOutbound(spec); err != nil {
		t.Fatal(err)
	}
	port := uint16(4500)
	peers := []string{"192.0.2.2", "192.0.2.3"}
	for k, change := range []func(){func() { port++ }, func() { peers[0], peers[1] = peers[1], peers[0] }} {
		move := func() error {
			return p.Redirect(7, spec.Local, netip.AddrPortFrom(netip.MustParseAddr(peers[0]), port))
		}
		change()
		f.each(t, "redirect", move, func(n int64) {
			if got := strings.Count(text(t, h, "ip xfrm state"), "proto esp"); got != 2 {
				t.Errorf("change %d, request %d failed: %d SAs", k, n, got)
			}
			if err := move(); err != nil {
				t.Errorf("change %d, after request %d failed: %v", k, n, err)
			}
			change()
		})
		states, policy := text(t, h, "ip xfrm state"), text(t, h, "ip xfrm policy list dir out src 192.0.2.1/32")
		if !strings.Contains(states, fmt.Sprintf("dst %s\n", peers[0])) || !strings.Contains(states, fmt.Sprintf("sport 4500 dport %d", port)) ||
			!strings.Contains(states, fmt.Sprintf("sport %d dport 4500", port)) || !strings.Contains(policy, "dst "+peers[0]) {
			t.Errorf("change %d: the kernel has\n%s\n%s", k, states, policy)
		}
	}
}
