package ike

import (
	"bytes"
	"crypto"
	"math/rand/v2"
	"testing"
	"time"

	"tacit/ike/wire"
)

// FuzzEngine plays a network that does to two live endpoints what the input says: it mangles, cuts, drops, repeats, delays
// and replays. Nothing panics, no state machine takes an arrow that is not drawn, and nobody is ever established with anyone
// but the other end.
func FuzzEngine(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0})
	f.Add([]byte{1, 3, 40, 2, 0, 5, 6, 1, 0, 4, 30, 0, 3, 200})
	f.Add(bytes.Repeat([]byte{2, 6, 0, 0}, 20))
	f.Add(bytes.Repeat([]byte{3, 17, 0, 5}, 20))
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) <= 400 {
			play(t, script)
		}
	})
}

// The same with random scripts, so that every run of the tests sees some.
func TestRandomScripts(t *testing.T) {
	for seed := range uint64(150) {
		rng := rand.New(rand.NewPCG(seed, 5))
		script := make([]byte, 300)
		for i := range script {
			if rng.IntN(3) == 0 { // most messages pass, or nothing would ever come up
				script[i] = byte(rng.IntN(256))
			}
		}
		play(t, script)
	}
}

func play(t *testing.T, script []byte) {
	short := Config{ChildLifetime: 3 * time.Second, Liveness: 4 * time.Second, IKELifetime: time.Minute}
	a, b, w := pairWith(t, short, short)
	var past []Datagram
	next := func() byte {
		if len(script) == 0 {
			return 0
		}
		op := script[0]
		script = script[1:]
		return op
	}
	w.tap = func(from *host, d *Datagram) bool {
		past = append(past, Datagram{d.Remote, d.Local, bytes.Clone(d.Data)})
		switch next() % 8 {
		case 1:
			return false
		case 2:
			w.queue = append(w.queue, flight{at: w.now.Add(time.Duration(next()) * 10 * time.Millisecond), d: past[len(past)-1]})
		case 3:
			d.Data[int(next())%len(d.Data)] ^= 1 + next()%255
		case 4:
			d.Data = d.Data[:int(next())%len(d.Data)]
		case 5:
			w.queue = append(w.queue, flight{at: w.now.Add(time.Duration(next()) * 100 * time.Millisecond), d: past[len(past)-1]})
			return false
		case 6:
			w.queue = append(w.queue, flight{at: w.now.Add(time.Millisecond), d: past[int(next())%len(past)]})
		case 7:
			back := past[len(past)-1]
			back.Local, back.Remote = back.Remote, back.Local
			w.queue = append(w.queue, flight{at: w.now.Add(time.Millisecond), d: back})
		}
		return true
	}
	id := w.initiate(a, peerOf(a, b))
	w.run(10 * time.Second)
	w.take(a, a.e.Do(w.now, id, Command(1+next()%5)))
	w.run(40 * time.Second)
	checkFuzzed(t, a, b)
	w.tap = nil
	closeAll(w, a, b)
	w.run(3 * time.Minute)
	if st := b.e.Stats(); st.HalfOpen != 0 || st.SAs != 0 || len(b.e.spis) != 0 {
		t.Errorf("left behind: %+v\n%s", st, b.dump())
	}
}

// closeAll deletes all SAs that the hosts know of.
func closeAll(w *world, hosts ...*host) {
	for _, h := range hosts {
		for id := range h.alive() {
			w.take(h, h.e.Do(w.now, id, Delete))
		}
	}
}

// alive are the SAs that were established, and not closed, for the caller.
func (h *host) alive() map[SAID]bool {
	up := map[SAID]bool{}
	for _, ev := range h.events {
		switch ev := ev.(type) {
		case Established:
			up[ev.SA] = true
		case Closed:
			delete(up, ev.SA)
		}
	}
	return up
}

func checkFuzzed(t *testing.T, a, b *host) {
	checkSound(t, a, b)
	for _, ev := range a.events {
		if e, ok := ev.(Established); ok {
			if k, ok := e.Key.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(b.key.Public()) || count[Established](b) == 0 {
				t.Errorf("established with nobody: %+v", e)
			}
		}
	}
	for id, out := range a.out { // what a sends, b made the same keys for, unless b has closed since
		for _, ev := range b.events {
			if cw, ok := ev.(ChildWanted); ok && cw.Pair.In.SPI == out.SPI && !bytes.Equal(cw.Pair.In.Key, out.Key) {
				t.Errorf("pair %d has two keys", id)
			}
		}
	}
}

// FuzzReceive gives one datagram to an endpoint with an initiator's, a half-open and an established SA.
func FuzzReceive(f *testing.F) {
	f.Add(initRequest(7, func(*wire.Message) {}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		a, b, w := pairOf(t)
		establish(t, w, a, b, peerOf(a, b))
		w.take(b, b.e.Receive(w.now, Datagram{addrB, addrA, initRequest(7, func(*wire.Message) {})}))
		before, n := shape(b.e), len(b.events)
		o := b.e.Receive(w.now, Datagram{addrB, addrA, data})
		after := shape(b.e)
		after.SAs, after.Half = min(after.SAs, before.SAs), min(after.Half, before.Half) // a good first message may add one
		if before != after || len(b.events) != n || len(o.Events) != 0 {
			t.Errorf("%+v, was %+v", after, before)
		}
		checkSound(t, b)
	})
}

// FuzzParseAuth: what parses as an AUTH payload is written the same way again, or differs in what isPSS lets pass.
func FuzzParseAuth(f *testing.F) {
	for _, s := range schemes {
		f.Add(s.method, append(append([]byte{byte(len(s.algID))}, s.algID...), 1, 2, 3))
	}
	f.Fuzz(func(t *testing.T, method uint8, data []byte) {
		s, sig, err := parseAuth(&wire.Auth{Method: method, Data: data})
		if err != nil || s.rawSize != 0 || s.family == famPSS {
			return
		}
		if again, err := s.payload(sig); err != nil || again.Method != method || !bytes.Equal(again.Data, data) {
			t.Errorf("%x became %x (%v)", data, again.Data, err)
		}
	})
}
