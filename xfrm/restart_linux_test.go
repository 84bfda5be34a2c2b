package xfrm

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tacit/guard"
	"tacit/ipsec"
)

// TestHandOver: a Plane finds what the one before it left, tells it from another daemon's, adopts what a policy uses and ends the rest. What
// it adopted goes when a Pair takes its place, and the other daemon's stays as it is.
func TestHandOver(t *testing.T) {
	h := labHost(t)
	first := needPlane(t, h, Config{})
	for _, line := range []string{
		"ip xfrm state add src 192.0.2.1 dst 192.0.2.9 proto esp spi 0x99 reqid 9 mode transport aead rfc4106(gcm(aes)) 0x0000000000000000000000000000000000000001 128",
		"ip xfrm policy add src 192.0.2.1 dst 192.0.2.9 dir out tmpl src 192.0.2.1 dst 192.0.2.9 proto esp reqid 9 mode transport",
	} {
		text(t, h, line)
	}
	foreign := text(t, h, "ip xfrm state list reqid 9") + text(t, h, "ip xfrm policy list dst 192.0.2.9/32")
	used, unused := examplePair(7, ipsec.Transport), examplePair(8, ipsec.Transport)
	unused.Selector = ipsec.Host(unused.Local.Addr(), netip.MustParseAddr("192.0.2.3"))
	unused.Remote = netip.MustParseAddrPort("192.0.2.3:4500")
	held := ipsec.Host(used.Local.Addr(), netip.MustParseAddr("192.0.2.4"))
	for _, err := range []error{first.InstallOutbound(used), first.InstallInbound(unused), first.SetPolicy(held, ipsec.Hold, time.Now().Add(time.Minute)),
		first.Close(true)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	second := needPlane(t, h, Config{})
	left, err := second.Existing()
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(left, func(a, b ipsec.Pair) int { return a.Selector.Remote.Addr().Compare(b.Selector.Remote.Addr()) })
	if len(left) != 2 || left[0].Selector != used.Selector || left[0].In.SPI != used.In.SPI || left[0].Out.SPI != used.Out.SPI ||
		left[0].Remote != used.Remote || len(left[0].Out.Key) != 0 || left[1].Selector != held || left[1].Out.SPI != 0 {
		t.Errorf("existing: got %v", left)
	}
	if states := text(t, h, "ip xfrm state"); strings.Contains(states, "192.0.2.3") || strings.Count(states, "proto esp") != 3 {
		t.Errorf("SAs that no policy uses stay, or others are gone:\n%s", states)
	}
	next := examplePair(9, ipsec.Transport)
	if err := second.InstallOutbound(next); err != nil {
		t.Fatal(err)
	}
	if states := text(t, h, "ip xfrm state"); strings.Contains(states, "spi 0x00007000") || !strings.Contains(states, "spi 0x00009000") {
		t.Errorf("after it was keyed anew: got\n%s", states)
	}
	if err := second.Close(false); err != nil {
		t.Error(err)
	}
	if after := text(t, h, "ip xfrm state list reqid 9") + text(t, h, "ip xfrm policy list dst 192.0.2.9/32"); after != foreign {
		t.Errorf("the other daemon's: got\n%s\nwant\n%s", after, foreign)
	}
}

// TestLostNews: when the kernel told more than the socket holds, policies are set again and what waits is asked for again.
func TestLostNews(t *testing.T) {
	h := labHost(t)
	now := time.Now()
	p := needPlane(t, h, Config{Now: func() time.Time { return now }}) // so that nothing is asked for again by time
	if err := p.InstallOutbound(examplePair(7, ipsec.Transport)); err != nil {
		t.Fatal(err)
	}
	peer := netip.MustParseAddr("192.0.2.3")
	s := ipsec.Host(netip.MustParseAddr("192.0.2.1"), peer)
	if err := p.SetPolicy(s, ipsec.Hold, now.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	c, err := h.Dial(t.Context(), "udp4", "192.0.2.3:7")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write([]byte("x"))
	expect := func(what string) {
		t.Helper()
		select {
		case e := <-p.Events():
			if e.Kind != ipsec.Acquire || e.Selector != s {
				t.Errorf("%s: got %v of %v", what, e.Kind, e.Selector)
			}
		case <-time.After(3 * time.Second):
			t.Errorf("%s: no Acquire", what)
		}
	}
	expect("held")
	text(t, h, "ip xfrm policy flush")
	if err := p.news.SetReadBuffer(1); err != nil { // the kernel's least
		t.Fatal(err)
	}
	// While the Plane is busy, more policies end than the socket holds news of.
	p.mu.Lock()
	err = h.Do(func() error {
		k, err := dialKernel()
		if err != nil {
			return err
		}
		defer k.close()
		own := netip.MustParseAddr("192.0.2.1")
		for at := netip.MustParseAddr("198.51.100.1"); at.As4()[3] < 40; at = at.Next() {
			if err := k.setPolicy(outPolicy(State{Src: own, Dst: at, ReqID: 0x7a000001}, own, at, 1)); err != nil {
				return err
			}
		}
		return nil
	})
	time.Sleep(2500 * time.Millisecond)
	p.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	expect("after the news were lost")
	p.mu.Lock()
	resyncs := p.counts.resyncs
	p.mu.Unlock()
	if resyncs == 0 {
		t.Errorf("no news were lost (%v)", unix.ENOBUFS)
	}
	if got := text(t, h, "ip xfrm policy"); !strings.Contains(got, "spi 0x00007001") {
		t.Errorf("the policy is not back:\n%s", got)
	}
}

// TestLatchEnds: what an SA that nobody has used yet has in nftables is renewed while the process lives, also where it has timed out, and ends soon after it died
// (TRUST.md I7).
func TestLatchEnds(t *testing.T) {
	h := labHost(t)
	p := needPlane(t, h, Config{Linger: time.Second})
	if err := p.InstallInbound(examplePair(7, ipsec.Transport)); err != nil {
		t.Fatal(err)
	}
	stands := func() bool {
		return strings.Contains(text(t, h, "nft list set inet "+guard.TableName+" latch4"), "192.0.2.1 . 192.0.2.2")
	}
	lasts := p.policies.Lasting()
	time.Sleep(2 * lasts)
	if !stands() {
		t.Fatal("it ended while the process lives")
	}
	p.mu.Lock() // as if it were dead
	time.Sleep(lasts + time.Second)
	if stands() {
		t.Error("it stands after the process died")
	}
	p.mu.Unlock()
	for end := time.Now().Add(20 * time.Second); !stands(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it is not made anew")
		}
	}
}
