package daemon

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
	"tacit/ipseckey"
	"tacit/pad"
)

// file is what is saved.
func file(t *testing.T, s *shards, all []shown) []byte {
	t.Helper()
	var text bytes.Buffer
	if err := s.write(&text, handOver(all)); err != nil {
		t.Fatal(err)
	}
	return text.Bytes()
}

// saved is what a loop with a proven peer has to remember.
func saved(t *testing.T, change func(*proven)) (text []byte, p *play) {
	t.Helper()
	p = newPlay(t)
	p.now = time.Now()
	p.lookup("bob.example.", 1)
	p.established(1, true, 1)
	all := appendProofs(nil, p.now, maps.Values(idleLoop(t, p).peers))
	if len(all) != 1 || all[0].Name != "bob.example." || all[0].Remote != p.p.remote {
		t.Fatalf("got %+v", all)
	}
	if change != nil {
		change(&all[0].proven)
	}
	return file(t, &shards{shared: &shared{}}, all), p
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
	text := file(t, first, nil)
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

// What was proven is saved when it has changed, and only then; as long as nothing has, next to nothing is made for looking.
func TestProofsAreSavedWhenTheyChange(t *testing.T) {
	_, p := saved(t, nil)
	e := newEnd(t, p.p.local.String(), "")
	close(e.gate)
	var now time.Time
	add := func(remote string) (q *peer) {
		e.do(t, func(at time.Time) {
			now = at
			other := *p.p
			q = &other
			q.remote = netip.MustParseAddr(remote)
			q.key = key{q.local, q.remote}
			state := *p.p.pad
			q.pad = &state
			e.l.peers[q.key] = q
		})
		return q
	}
	r := remembering{s: e.s}
	turn := func(what string, want int) {
		t.Helper()
		writes := 0
		var text bytes.Buffer
		if err := r.turn(t.Context(), func(write func(io.Writer) error) error { writes++; return write(&text) }); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if want < 0 {
			if writes != 0 {
				t.Errorf("%s: saved, though nothing has changed", what)
			}
			return
		}
		if m, err := recall(text.Bytes()); err != nil || len(m.Proofs) != want || !bytes.Equal(m.Masks, e.s.masks[:]) {
			t.Errorf("%s: %v, got %d proofs, want %d: %s", what, err, len(m.Proofs), want, &text)
		}
	}
	turn("at first", 0)
	turn("nothing", -1)
	for i := range rememberedAtOnce + 1 {
		add(netip.AddrFrom4([4]byte{198, 51, 100 + byte(i>>8), byte(i)}).String())
	}
	turn("many proofs", rememberedAtOnce+1)
	turn("the same", -1)
	one := add("203.0.113.1")
	turn("one more", rememberedAtOnce+2)
	step := one.linger / rememberSteps
	later := now.Truncate(step).Add(2 * step)
	e.do(t, func(time.Time) { one.pad.Alive(later) })
	turn("a later proof", rememberedAtOnce+2)
	e.do(t, func(time.Time) { one.pad.Alive(later.Add(time.Millisecond)) })
	turn("another a moment later", -1)
	e.do(t, func(time.Time) { one.last.Name = "other.example." })
	turn("another name", rememberedAtOnce+2)
	e.do(t, func(time.Time) { delete(e.l.peers, one.key) })
	turn("one has gone", rememberedAtOnce+1)
	var n float64
	e.do(t, func(at time.Time) { n = testing.AllocsPerRun(5, func() { e.l.sum(at, e.s.seed) }) })
	if n > 0 {
		t.Errorf("%v allocations for looking at %d peers", n, rememberedAtOnce+1)
	}
	few, many := writing(t, e.s, p, 1), writing(t, e.s, p, 1001)
	if each := (many - few) / 1000; each > 8 { // with the race detector it is more than without
		t.Errorf("%v allocations for a proof that is written", each)
	}
	broken := errors.New("no room")
	e.do(t, func(time.Time) { clear(e.l.peers) })
	if err := r.turn(t.Context(), func(func(io.Writer) error) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	turn("after an error", 0)
}

// writing counts the allocations for a file of n proofs.
func writing(t *testing.T, s *shards, p *play, n int) float64 {
	t.Helper()
	x, k, _ := p.p.proof(p.now)
	all := slices.Repeat([]shown{{x, k.Public}}, n)
	return testing.AllocsPerRun(5, func() {
		if err := s.write(io.Discard, handOver(all)); err != nil {
			t.Fatal(err)
		}
	})
}

// A key is written in the form of X.509.
func TestAppendKey(t *testing.T) {
	curved, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	identity, err := ipseckey.GenerateIdentity()
	if err != nil {
		t.Fatal(err)
	}
	for _, pub := range []crypto.PublicKey{&curved.PublicKey, identity.Public()} {
		want, err := x509.MarshalPKIXPublicKey(pub)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := appendKey(nil, pub); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%T: got %x, %v, want %x", pub, got, err, want)
		}
	}
}
