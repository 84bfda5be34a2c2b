package ike

import (
	"crypto"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"tacit/ipsec"
)

// Two hosts that do whatever a caller can, at any time, over a network that loses 30 % of all messages, repeats and reorders them: in the end
// they have the same SAs, with the same keys, or both have none; and nobody was ever established with anybody else.
func TestSimulation(t *testing.T) {
	runs := uint64(300)
	if os.Getenv("TACIT_LONG") == "1" {
		runs = 10_000
	}
	up, closed, rekeys := 0, 0, 0
	for seed := range runs {
		a, b := simulate(t, seed)
		if t.Failed() {
			t.Fatalf("seed %d\n%s\n%s\n%s\n%s", seed, a.dump(), b.dump(), a.states(), b.states())
		}
		rekeys += count[Rekeyed](a) + count[ChildUp](a)
		if len(a.e.sas) > 0 {
			up++
		} else {
			closed++
		}
	}
	t.Logf("%d runs ended established, %d closed; %d rekeys", up, closed, rekeys)
	if up < int(runs)/5 || closed < int(runs)/20 || rekeys < 5*int(runs) {
		t.Errorf("that is no fair test: %d established, %d closed, %d rekeys", up, closed, rekeys)
	}
}

func simulate(t *testing.T, seed uint64) (a, b *host) {
	rng := rand.New(rand.NewPCG(seed, 17))
	seconds := func(from, to int) time.Duration { return time.Duration(from+rng.IntN(to-from+1)) * time.Second }
	half := time.Second / 2
	config := func(n uint64) Config {
		return Config{
			Retransmit: []time.Duration{half, half, half, half, 2 * half, 2 * half, 4 * half, 4 * half, 8 * half, 8 * half},
			Rand:       newSeeded(seed*2 + n), ChildLifetime: seconds(2, 20), IKELifetime: seconds(20, 90), Liveness: seconds(5, 15),
		}
	}
	a = newHost(t, "alice.example", addrA, testKeys()["other"], config(0))
	b = newHost(t, "bob.example", addrB, testKeys()["ed25519"], config(1))
	a.e.cfg.PostQuantum, b.e.cfg.PostQuantum = PostQuantum(seed%3), PostQuantum(seed/3%3)
	if seed%25 == 0 { // by workers
		b.e.offer.groups = []uint16{groupMODP2048}
	}
	w := newWorld(t, a, b)
	w.rng = rng
	w.loss, w.repeat, w.shuffle = 0.3, 0.3*rng.Float64(), time.Duration(rng.IntN(400)+1)*time.Millisecond
	hosts := []*host{a, b}
	for i, h := range hosts {
		other := hosts[1-i]
		h.strict = true
		h.authorize = func(AuthorizationWanted) Authorization {
			return Authorization{Keys: []crypto.PublicKey{other.key.Public()}}
		}
	}
	begin := func(i int) {
		p := peerOf(hosts[i], hosts[1-i])
		p.LocalID = ID{IDFQDN, hosts[i].name}
		w.initiate(hosts[i], p)
	}
	begin(0)
	if rng.IntN(3) == 0 {
		w.run(time.Duration(rng.IntN(200)) * time.Millisecond)
		begin(1)
	}
	for end := w.now.Add(seconds(5, 60)); w.now.Before(end); {
		drive(w, time.Duration(rng.IntN(4000))*time.Millisecond, 200*time.Millisecond)
		act(w, hosts[rng.IntN(2)], rng)
	}
	if rng.IntN(4) == 0 {
		closeAll(w, hosts[rng.IntN(2)])
	}
	for _, h := range hosts { // what is made from now on lasts, so that there is a time at which nothing is under way
		h.e.cfg.ChildLifetime, h.e.cfg.IKELifetime = time.Hour, time.Hour
	}
	if !w.until(5*time.Minute, func() bool { return agreed(a, b) }) {
		t.Errorf("the ends do not agree after five minutes")
	}
	checkSound(t, a, b)
	checkProven(t, a, b)
	if ended := count[Closed](a) + count[Closed](b) + count[ChildDown](a) + count[ChildDown](b); ended == 0 && a.lost+b.lost > 0 {
		t.Errorf("%d and %d packets lost, though no SA ended", a.lost, b.lost)
	}
	return a, b
}

// act is anything that a caller may ask for; a DELETE is rare.
func act(w *world, h *host, rng *rand.Rand) {
	for id := range h.alive() {
		switch c := rng.IntN(20); {
		case c == 0:
			w.take(h, h.e.Do(w.now, id, Delete))
		case c < 3:
			w.take(h, h.e.AddChild(w.now, id, ipsec.Selector{}))
		case c < 8:
			w.take(h, h.e.Do(w.now, id, RekeyIKE))
		case c < 14:
			w.take(h, h.e.Do(w.now, id, RekeyChild))
		case c < 16:
			w.take(h, h.e.Do(w.now, id, Probe))
		}
	}
}

// agreed reports whether both ends have the same, and nothing is under way.
func agreed(a, b *host) bool {
	if len(a.e.sas) != len(b.e.sas) || len(a.e.half)+len(b.e.half) != 0 || len(a.alive()) != len(a.e.sas) || len(b.alive()) != len(b.e.sas) {
		return false
	}
	for _, s := range a.e.sas {
		var o *sa
		for _, x := range b.e.sas {
			if x.spiI == s.spiI && x.spiR == s.spiR {
				o = x
			}
		}
		if o == nil || !s.rests() || !o.rests() || len(s.child.all) != len(o.child.all) {
			return false
		}
		for _, p := range s.child.all {
			x := p.sas[0]
			if q, y := o.child.byOut(x.in); q == nil || y.in != x.out || string(a.in[x.in].Key) != string(b.halves[y.in].pair.Out.Key) {
				return false
			}
		}
	}
	return true
}

// rests reports whether nothing is under way in an SA.
func (s *sa) rests() bool {
	if s.state != established || s.quiet || s.out.state != idle || s.in.busy || s.child.busy() || len(s.child.wishes) > 0 || s.kin != nil && s.kin.elder != nil {
		return false
	}
	for _, p := range s.child.all {
		if len(p.sas) != 1 || p.current() == nil {
			return false
		}
	}
	return true
}

// checkProven: whoever was established with somebody was so with the other host.
func checkProven(t *testing.T, hosts ...*host) {
	t.Helper()
	for i, h := range hosts {
		for _, ev := range h.events {
			if e, ok := ev.(Established); ok && !sameKey(hosts[1-i].key.Public(), e.Key) {
				t.Errorf("%s: established with nobody: %+v", h.name, e)
			}
		}
	}
}

// states says where everything stands.
func (h *host) states() string {
	out := h.name
	for _, s := range h.e.sas {
		out += fmt.Sprintf("\n  %x %x %v quiet=%v out=%v task=%d busy=%v mine=%v theirs=%v wishes=%d end=%v", s.spiI>>48, s.spiR>>48, s.state, s.quiet, s.out.state,
			s.out.task, s.in.busy, s.child.mine != nil, s.child.theirs != nil, len(s.child.wishes), s.timer.end.Sub(h.e.now))
		for _, p := range s.child.all {
			for _, c := range p.sas {
				out += fmt.Sprintf("\n    pair %d %v-%v %v rekey=%v end=%v heir=%v unborn=%v", p.id, c.in, c.out, c.state, c.rekeyAt.Sub(h.e.now), c.endAt.Sub(h.e.now), c.heir != nil, c.unborn)
			}
		}
	}
	return out
}
