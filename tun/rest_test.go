package tun

import (
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tacit/ipsec"
	"tacit/lab"
)

// inTheWay is what packets of any host meet: our rules of routing, of both families, and whether nftables has hooks of ours.
func inTheWay(t *testing.T, h *lab.Host) (rules int, hooks bool) {
	t.Helper()
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := h.Netlink().RuleList(family)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list {
			if r.Table == DefaultTable || r.Table == DefaultTable+1 {
				rules++
			}
		}
	}
	text, err := h.Command(t.Context(), "nft", "list", "ruleset").Output()
	if err != nil {
		t.Fatalf("nft: %v", err)
	}
	return rules, strings.Contains(string(text), " hook ") && !strings.Contains(string(text), "flags dormant")
}

// TestNothingInTheWay: rules of routing and hooks come with what stands first and go a minute after the last; what a dead process left has them, and a successor
// takes them over, or away if nothing stands.
func TestNothingInTheWay(t *testing.T) {
	h := newHost(t, "rest")
	var late atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(late.Load())) }
	var p *Plane
	open := func() {
		t.Helper()
		if err := h.Do(func() (err error) { p, err = Open(Config{Now: now}); return err }); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string, there bool) {
		t.Helper()
		rules, hooks := inTheWay(t, h)
		if want := map[bool]int{true: 4}[there]; rules != want || hooks != there {
			t.Errorf("%s: %d rules, hooks: %v; want %d, %v", when, rules, hooks, want, there)
		}
	}
	peer := ipsec.Host(netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"))
	open()
	check("at first", false)
	for range 2 {
		if err := p.SetPolicy(peer, ipsec.Hold, now().Add(10*time.Second)); err != nil {
			t.Fatal(err)
		}
		check("held", true)
		late.Add(int64(11 * time.Second))
		time.Sleep(time.Second)
		check("after the hold", true)
		late.Add(int64(time.Minute))
		for until := time.Now().Add(5 * time.Second); time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
			if rules, hooks := inTheWay(t, h); rules == 0 && !hooks {
				break
			}
		}
		check("a minute later", false)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(errors.Join(p.SetPolicy(peer, ipsec.Hold, now().Add(time.Hour)), p.Close(true)))
	check("left", true)
	open()
	check("taken over", true)
	must(errors.Join(p.ClearPolicy(peer), p.Close(true)))
	check("left with nothing", true)
	open()
	check("taken over with nothing", false)
	must(p.SetPolicy(peer, ipsec.Hold, now().Add(time.Hour)))
	check("before the stop", true)
	must(p.Close(false))
	check("stopped", false)
	open()
	must(errors.Join(p.SetPolicy(peer, ipsec.Hold, now().Add(time.Hour)), p.Close(true), h.Do(func() error { return Cleanup(Config{}) })))
	check("cleaned up", false)
}
