package ike

import (
	"bytes"
	"crypto"
	"math/rand/v2"
	"testing"
	"time"

	"tacit/ike/wire"
)

// FuzzEngine plays a network that does to two live endpoints what the input says: it mangles, cuts, drops, repeats, delays,
// replays and reflects; and a peer who is one of the two and lies: inside of the encryption payloads are changed, left out, repeated
// and exchanged. Nothing panics, no state machine takes an arrow that is not drawn, nobody is established without a verified
// AUTH or a permission to be nobody, no Child SA comes without that, what is kept is bounded, and in the end nothing is kept.
func FuzzEngine(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0})
	f.Add([]byte{1, 1, 3, 40, 2, 0, 5, 6, 1, 0, 4, 30, 0, 3, 200})
	f.Add(append([]byte{2}, bytes.Repeat([]byte{2, 6, 0, 0}, 20)...))
	f.Add(append([]byte{3}, bytes.Repeat([]byte{3, 17, 0, 5}, 20)...))
	f.Add(append([]byte{4}, bytes.Repeat([]byte{0, 8, 2, 9, 0, 1}, 20)...))
	f.Add(append([]byte{5}, bytes.Repeat([]byte{0, 0, 9, 1, 3, 0, 10, 4}, 20)...))
	f.Add([]byte{6, 0, 0, 0, 11, 3, 77, 0, 8, 1})
	f.Add([]byte{7, 0, 0, 0, 0, 2, 5, 3, 200, 1, 0, 0, 9, 1, 2})
	f.Add(append([]byte{8}, bytes.Repeat([]byte{0, 0, 0, 0, 9, 1, 3}, 10)...))
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 0 && len(script) <= 400 {
			play(t, script)
		}
	})
}

// The same with random scripts, so that every run of the tests sees some.
func TestRandomScripts(t *testing.T) {
	var ups [casts]int
	for seed := range uint64(30 * casts) {
		rng := rand.New(rand.NewPCG(seed, 5))
		script := make([]byte, 300)
		for i := range script {
			if rng.IntN(3) == 0 { // most messages pass, or nothing would ever come up
				script[i] = byte(rng.IntN(256))
			}
		}
		script[0] = byte(seed)
		if c := play(t, script); count[Established](c.a)+count[Established](c.b) > 0 {
			ups[seed%casts]++
		}
	}
	for n, up := range ups {
		if up == 0 && n != 3 {
			t.Errorf("no script of cast %d came up: the test sees too little", n)
		}
	}
}

// cast is who plays, and whether it may come up.
type cast struct {
	a, b *host
	p    Peer
	up   bool // both can prove what the other wants
}

const casts = 9

// castOf are the policies at the two ends.
func castOf(t testing.TB, n byte) cast {
	keys := testKeys()
	short := Config{ChildLifetime: 3 * time.Second, Liveness: 4 * time.Second, IKELifetime: time.Minute, CrashSecret: crashSecret}
	ka, kb := keys["p256"], keys["ed25519"]
	switch n % casts {
	case 5:
		short.Path, ka, kb = leastIPv4, keys["rsa"], keys["rsa"]
	case 7:
		short.PostQuantum, short.Path = Before, leastIPv4
	}
	a := newHost(t, "alice.example", addrA, ka, short)
	b := newHost(t, "bob.example", addrB, kb, short)
	c := cast{a: a, b: b, p: named(a, b), up: true}
	switch n % casts {
	case 0: // nobody at a server
		c.p = peerOf(a, b)
		b.authorize = func(AuthorizationWanted) Authorization { return Authorization{Anonymous: true} }
	case 1: // both named
	case 2, 7: // 7: in small fragments and with a second key exchange before
		c.p.Tell = TellAfter
	case 3: // nobody, where a key is wanted
		c.p, c.up = peerOf(a, b), false
	case 4: // the server has another key than it should
		c.p.Auth.Keys, c.up = []crypto.PublicKey{keys["other"].Public()}, false
	case 5: // nobody at both ends, in small fragments
		c.p.Auth, c.p.RemoteID = Authorization{Anonymous: true}, ID{}
		b.authorize = func(AuthorizationWanted) Authorization { return Authorization{Anonymous: true, Pending: true} }
	case 6:
		c.p.Childless = true
	case 8: // the hybrid afterwards, and MODP
		a.e.cfg.PostQuantum, b.e.cfg.PostQuantum = After, After
		b.e.offer.groups = []uint16{groupMODP2048}
	}
	return c
}

// reader gives the octets of a script, and zeros after its end.
type reader struct{ script []byte }

func (r *reader) next() byte {
	if len(r.script) == 0 {
		return 0
	}
	op := r.script[0]
	r.script = r.script[1:]
	return op
}

func play(t *testing.T, script []byte) cast {
	r := &reader{script}
	c := castOf(t, r.next())
	a, b := c.a, c.b
	w := newWorld(t, a, b)
	var past []Datagram
	w.tap = func(from *host, d *Datagram) bool {
		past = append(past, Datagram{d.Remote, d.Local, bytes.Clone(d.Data)})
		last := past[len(past)-1]
		later := func(wait time.Duration, d Datagram) {
			w.queue = append(w.queue, flight{at: w.now.Add(wait), d: d})
		}
		switch op := r.next() % 12; op {
		case 1:
			return false
		case 2:
			later(time.Duration(r.next())*10*time.Millisecond, last)
		case 3:
			d.Data[int(r.next())%len(d.Data)] ^= 1 + r.next()%255
		case 4:
			d.Data = d.Data[:int(r.next())%len(d.Data)]
		case 5:
			later(time.Duration(r.next())*100*time.Millisecond, last)
			return false
		case 6:
			later(time.Millisecond, past[int(r.next())%len(past)])
		case 7:
			later(time.Millisecond, Datagram{last.Remote, last.Local, last.Data})
		case 8, 9, 10, 11:
			lie(from, d, op, r)
		}
		return true
	}
	id := w.initiate(a, c.p)
	w.run(10 * time.Second)
	checkBounds(t, w)
	w.take(a, a.e.Do(w.now, id, Command(1+r.next()%5)))
	w.run(40 * time.Second)
	checkBounds(t, w)
	checkFuzzed(t, c)
	w.tap = nil
	closeAll(w, a, b)
	w.run(3 * time.Minute)
	for _, h := range w.hosts {
		e := h.e
		if st := e.Stats(); st.HalfOpen != 0 || st.SAs != 0 || len(e.spis)+len(e.peers)+len(e.networks())+len(e.timers)+len(e.work)+len(e.heirs)+e.fragmented != 0 {
			t.Errorf("left behind: %+v\n%s", st, h.dump())
		}
	}
	return c
}

// lie changes what is inside of a message, with the keys of its sender.
func lie(from *host, d *Datagram, op byte, r *reader) {
	h, err := wire.ParseHeader(d.Data)
	if err != nil {
		return
	}
	ours := h.InitiatorSPI
	if h.Flags&wire.FlagInitiator == 0 {
		ours = h.ResponderSPI
	}
	s := from.e.sas[SAID(ours)]
	if s == nil || !s.keys.known() || h.Exchange == wire.IKESAInit {
		return
	}
	mirror := s.keys.seal
	enc, plain, err := mirror.disclose(d.Data)
	if err != nil || enc.Total != 0 {
		return
	}
	ps, err := wire.ParsePayloads(enc.First, bytes.Clone(plain))
	first := enc.First
	i, x := int(r.next()), r.next()
	switch {
	case err != nil, op == 11 && len(plain) > 0:
		plain[i%max(len(plain), 1)] ^= 1 + x%255
	case len(ps) == 0:
		first, plain, _ = wire.MarshalPayloads([]wire.Payload{&wire.Notify{Type: wire.NotifyType(i)<<8 | wire.NotifyType(x)}})
	case op == 8:
		i %= len(ps)
		first, plain, _ = wire.MarshalPayloads(append(ps[:i:i], ps[i+1:]...))
	case op == 9:
		first, plain, _ = wire.MarshalPayloads(append(ps, ps[i%len(ps)]))
	case op == 10:
		ps[i%len(ps)], ps[int(x)%len(ps)] = ps[int(x)%len(ps)], ps[i%len(ps)]
		first, plain, _ = wire.MarshalPayloads(ps)
	}
	mirror.count |= 1 << 40
	if data, err := mirror.enclose(h, wire.Closed{First: first}, plain); err == nil {
		d.Data = data
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

// checkBounds: what an Endpoint keeps is bounded whatever comes.
func checkBounds(t *testing.T, w *world) {
	for _, h := range w.hosts {
		e := h.e
		if len(e.sas) > 40 || len(e.spis) > 200 || e.fragmented > maxReassembled || len(e.timers) > len(e.sas) || len(e.work) > maxWork {
			t.Errorf("%s keeps %d SAs, %d SPIs, %d octets of fragments, %d timers, %d key exchanges",
				h.name, len(e.sas), len(e.spis), e.fragmented, len(e.timers), len(e.work))
		}
	}
}

// checkFuzzed: who is established has proved what was asked, and nobody else has a Child SA.
func checkFuzzed(t *testing.T, c cast) {
	checkSound(t, c.a, c.b)
	for h, other := range map[*host]*host{c.a: c.b, c.b: c.a} {
		known := map[SAID]bool{}
		for _, ev := range h.events {
			switch ev := ev.(type) {
			case Established:
				known[ev.SA] = ev.Key != nil
				nobody := h.authorize(AuthorizationWanted{}).Anonymous
				if h == c.a {
					nobody = c.p.Auth.Anonymous
				}
				switch {
				case ev.Key == nil && !nobody:
					t.Errorf("%s: established with nobody: %+v", h.name, ev)
				case ev.Key != nil && (!sameKey(ev.Key, other.key.Public()) || count[SignatureWanted](other) == 0):
					t.Errorf("%s: established with somebody else: %+v", h.name, ev)
				case !c.up && (h == c.a || c.p.LocalID.Kind != IDFQDN): // with its name b may believe in a, until it hears that a does not in b
					t.Errorf("%s: established against its policy: %+v", h.name, ev)
				}
			case ChildWanted:
				if proved, ok := known[ev.SA]; !ok || ev.Pair.Authenticated != proved {
					t.Errorf("%s: a Child SA of an SA that is not established so: %+v", h.name, ev)
				}
			}
		}
	}
	for id, out := range c.a.out { // what a sends, b made the same keys for, unless b has closed since
		for _, ev := range c.b.events {
			if cw, ok := ev.(ChildWanted); ok && cw.Pair.In.SPI == out.SPI && !bytes.Equal(cw.Pair.In.Key, out.Key) {
				t.Errorf("pair %d has two keys", id)
			}
		}
	}
}
