package daemon

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
	"tacit/ipseckey"
	"tacit/pad"
)

// saved is what a loop with a proven peer has to remember.
func saved(t *testing.T, change func(*proven)) (text []byte, p *play) {
	t.Helper()
	p = newPlay(t)
	p.now = time.Now()
	p.lookup("bob.example.", 1)
	p.established(1, true, 1)
	all := idleLoop(t, p).proofs(p.now)
	if len(all) != 1 || all[0].Name != "bob.example." || all[0].Remote != p.p.remote {
		t.Fatalf("got %+v", all)
	}
	if change != nil {
		change(&all[0])
	}
	text, err := json.Marshal(memory{Version: memoryVersion, Proofs: all})
	if err != nil {
		t.Fatal(err)
	}
	return text, p
}

// R11: who comes back holds what was proven, and asks for the same key when a packet waits.
func TestProofsOutliveTheProcess(t *testing.T) {
	text, p := saved(t, nil)
	e := newEnd(t, p.p.local.String(), "")
	close(e.gate)
	if err := e.l.d.restore(t.Context(), text); err != nil {
		t.Fatal(err)
	}
	s := ipsec.Host(p.p.local, p.p.remote)
	held, ok := e.Policy(s)
	if !ok || held.Action != ipsec.Hold || time.Until(held.Until) < e.l.d.cfg.File.Linger-time.Minute {
		t.Fatalf("held: %+v, %v", held, ok)
	}
	sent := make(chan struct{}, 8)
	e.OnSend(func(ipsectest.Datagram) { sent <- struct{}{} })
	e.Raise(ipsec.Event{Kind: ipsec.Acquire, Selector: s})
	select {
	case <-sent:
	case <-time.After(5 * time.Second):
		t.Error("a waiting packet has nobody asked")
	}
}

// A gateway that proved the key in the address's place is who is asked again.
func TestGatewayOutlivesTheProcess(t *testing.T) {
	gateway := netip.MustParseAddr("127.0.0.9")
	text, p := saved(t, func(x *proven) { x.Source, x.Gateway = pad.Reverse, gateway })
	e := newEnd(t, p.p.local.String(), "")
	close(e.gate)
	if err := e.l.d.restore(t.Context(), text); err != nil {
		t.Fatal(err)
	}
	sent := make(chan netip.Addr, 8)
	e.OnSend(func(d ipsectest.Datagram) { sent <- d.Local.Addr() }) // as the receiver sees it
	e.Raise(ipsec.Event{Kind: ipsec.Acquire, Selector: ipsec.Host(p.p.local, p.p.remote)})
	select {
	case to := <-sent:
		if to != gateway {
			t.Errorf("%v was asked", to)
		}
	case <-time.After(5 * time.Second):
		t.Error("nobody was asked")
	}
}

// What has ended, is not ours any more, or cannot be read, does no harm.
func TestOldProofs(t *testing.T) {
	for what, change := range map[string]func(*proven){
		"ended":             func(x *proven) { x.At = x.At.Add(-time.Hour) },
		"another's address": func(x *proven) { x.Local = netip.MustParseAddr("192.0.2.77") },
	} {
		text, p := saved(t, change)
		e := newEnd(t, p.p.local.String(), "")
		if err := e.l.d.restore(t.Context(), text); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if len(e.Calls("SetPolicy")) != 0 {
			t.Errorf("%s: held", what)
		}
	}
	for what, text := range map[string]string{
		"not JSON": "{", "another version": `{"version":9}`, "no key": `{"version":1,"proofs":[{"local":"192.0.2.1","remote":"192.0.2.2","name":"x.","key":"AAAA"}]}`,
	} {
		e := newEnd(t, "192.0.2.1", "")
		if err := e.l.d.restore(t.Context(), []byte(text)); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	// A clock that was ahead holds nobody for longer than linger.
	text, p := saved(t, func(x *proven) { x.At = x.At.Add(1000 * time.Hour) })
	e := newEnd(t, p.p.local.String(), "")
	close(e.gate)
	if err := e.l.d.restore(t.Context(), text); err != nil {
		t.Fatal(err)
	}
	if held, _ := e.Policy(ipsec.Host(p.p.local, p.p.remote)); time.Until(held.Until) > 2*e.l.d.cfg.File.Linger {
		t.Errorf("held until %v", held.Until)
	}
}

// After a crash we are the same nobody to those who had a conversation with us (RFC 5660); after a stop another one.
func TestTheSameNobodyAfterACrash(t *testing.T) {
	own, peer := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	first := newTestShards(t, ipsectest.NewFake(), own, "", nil, time.Now, 1)
	text, err := first.memory(nil)
	if err != nil {
		t.Fatal(err)
	}
	shown := func(left []byte) string {
		d := newTestShards(t, ipsectest.NewFake(), own, "", nil, time.Now, 1).d
		d.cfg.Proofs = left
		s, err := newShards(d, 1)
		if err != nil {
			t.Fatal(err)
		}
		return ipseckey.Fingerprint(s.mask(own, peer).Public())
	}
	was := ipseckey.Fingerprint(first.mask(own, peer).Public())
	if got := shown(text); got != was {
		t.Errorf("after a crash we show %s, want %s", got, was)
	}
	if shown(nil) == was || shown([]byte(`{"version":99}`)) == was {
		t.Error("without what was saved we show the same")
	}
}
