package ike

import (
	"crypto"
	"testing"
	"time"
)

// TRUST.md R7: a client comes up as nobody while its name is looked up, and is somebody when the keys arrive; its Pair then too.
func TestPromotion(t *testing.T) {
	for kind, key := range testKeys() {
		a := newHost(t, "alice.example", addrA, key, Config{})
		b := newHost(t, "bob.example", addrB, testKeys()["ed25519"], Config{})
		w := newWorld(t, a, b)
		p := named(a, b)
		b.authorize = func(AuthorizationWanted) Authorization { return Authorization{Anonymous: true, Pending: true} }
		establish(t, w, a, b, p)
		e, _ := find[Established](b)
		if up, _ := find[ChildUp](b); e.Key != nil || up.Pair.Authenticated {
			t.Fatalf("%s: somebody too early: %+v", kind, e)
		}
		w.take(b, b.e.Promote(w.now, e.SA, []crypto.PublicKey{testKeys()["other"].Public(), key.Public()}))
		got, ok := find[Promoted](b)
		if !ok || !sameKey(got.Key, key.Public()) || got.RemoteID != (ID{IDFQDN, "alice.example"}) || got.SA != e.SA {
			t.Errorf("%s: %v %+v", kind, ok, got)
		}
		w.run(2 * time.Second)
		if up, _ := find[ChildUp](b); !up.Rekey || !up.Pair.Authenticated {
			t.Errorf("%s: the pair is %+v", kind, up)
		}
		checkPaired(t, a, b)
		w.take(b, b.e.Promote(w.now, e.SA, []crypto.PublicKey{key.Public()}))
		if count[Promoted](b) != 1 {
			t.Errorf("%s: promoted twice", kind)
		}
	}
}

// Who stays nobody: another key, too late, a second try, NULL, and who was not pending.
func TestNoPromotion(t *testing.T) {
	for name, c := range map[string]struct {
		auth Authorization
		keys string
		wait time.Duration
		null bool
	}{
		"another key": {Authorization{Anonymous: true, Pending: true}, "other", 0, false},
		"too late":    {Authorization{Anonymous: true, Pending: true}, "p256", lateFor, false},
		"not pending": {Authorization{Anonymous: true}, "p256", 0, false},
		"NULL":        {Authorization{Anonymous: true, Pending: true}, "p256", 0, true},
	} {
		a := newHost(t, "alice.example", addrA, testKeys()["p256"], Config{})
		b := newHost(t, "bob.example", addrB, testKeys()["ed25519"], Config{})
		w := newWorld(t, a, b)
		p := named(a, b)
		if c.null {
			p.LocalID = ID{Kind: IDNull}
		}
		b.authorize = func(AuthorizationWanted) Authorization { return c.auth }
		establish(t, w, a, b, p)
		e, _ := find[Established](b)
		w.run(c.wait)
		w.take(b, b.e.Promote(w.now, e.SA, []crypto.PublicKey{testKeys()[c.keys].Public()}))
		w.take(b, b.e.Promote(w.now, e.SA, []crypto.PublicKey{testKeys()["p256"].Public()}))
		w.run(2 * time.Second)
		if up, _ := find[ChildUp](b); count[Promoted](b) != 0 || up.Pair.Authenticated || b.e.sas[e.SA].late != nil {
			t.Errorf("%s: promoted", name)
		}
		checkSound(t, a, b)
	}
}

// A peer may become somebody while its Child SA, or its rekey, or that of the IKE SA is under way: the Pair is rekeyed for it all the same (TRUST.md R7).
func TestPromotionMeanwhile(t *testing.T) {
	for _, hybrid := range []bool{false, true} {
		for when, meanwhile := range map[string]func(w *world, a, b *host, id SAID, promote func()){
			"its rekey waits for the data plane": func(w *world, a, b *host, id SAID, promote func()) {
				b.held = true
				w.take(a, a.e.Do(w.now, id, RekeyChild))
				w.until(time.Second, func() bool { return count[ChildWanted](b) > 1 })
				promote()
			},
			"our rekey waits for the data plane": func(w *world, a, b *host, _ SAID, promote func()) {
				b.held = true
				w.take(b, b.e.Do(w.now, first(find[Established](b)).SA, RekeyChild))
				w.until(time.Second, func() bool { return count[ChildWanted](b) > 1 })
				promote()
			},
			"our rekey of the IKE SA is out": func(w *world, a, b *host, _ SAID, promote func()) {
				w.take(b, b.e.Do(w.now, first(find[Established](b)).SA, RekeyIKE))
				promote()
			},
			"both rekey the IKE SA": func(w *world, a, b *host, id SAID, promote func()) {
				w.take(b, b.e.Do(w.now, first(find[Established](b)).SA, RekeyIKE))
				w.take(a, a.e.Do(w.now, id, RekeyIKE))
				w.until(time.Second, func() bool {
					for _, s := range b.e.sas {
						if s.state == rekeying && (s.kin.rekey.rivalLives() || s.awaits()) {
							return true
						}
					}
					return false
				})
				promote()
			},
		} {
			for seed := range uint64(6) {
				a, b, w := classic(t)
				if hybrid {
					a, b, w = after(t)
				}
				a.e.cfg.Rand, b.e.cfg.Rand = newSeeded(seed), newSeeded(seed+100)
				a.key = testKeys()["p256"]
				a.e.cfg.Name, a.e.cfg.Public = a.name, a.key.Public()
				p := named(a, b)
				b.authorize = func(AuthorizationWanted) Authorization { return Authorization{Anonymous: true, Pending: true} }
				id := w.initiate(a, p)
				w.run(2 * time.Second)
				e, _ := find[Established](b)
				promoted := false
				meanwhile(w, a, b, id, func() {
					w.take(b, b.e.Promote(w.now, e.SA, []crypto.PublicKey{a.key.Public()}))
					promoted = true
				})
				if b.held {
					b.held = false
					ev, _ := find[ChildWanted](b)
					b.handle(w, ev)
				}
				w.run(time.Minute)
				up, _ := find[ChildUp](b)
				if !promoted || count[Promoted](b) != 1 || !up.Pair.Authenticated || !sameKey(b.e.find(e.SA).key, a.key.Public()) {
					t.Errorf("hybrid %v, %s, seed %d: %d promoted, the Pair %+v\n%s", hybrid, when, seed, count[Promoted](b), up.Pair, b.states())
				}
				if b.e.find(e.SA).late != nil {
					t.Errorf("%s: the proof is kept", when)
				}
				checkPaired(t, a, b)
				checkSound(t, a, b)
			}
		}
	}
}

// The first Child SA may wait for the data plane when the peer becomes somebody.
func TestPromotionBeforeTheFirstChild(t *testing.T) {
	a := newHost(t, "alice.example", addrA, testKeys()["p256"], Config{})
	b := newHost(t, "bob.example", addrB, testKeys()["ed25519"], Config{})
	w := newWorld(t, a, b)
	p := named(a, b)
	b.authorize = func(AuthorizationWanted) Authorization { return Authorization{Anonymous: true, Pending: true} }
	b.held = true
	w.initiate(a, p)
	w.until(time.Second, func() bool { return count[ChildWanted](b) == 1 })
	e, _ := find[Established](b)
	w.take(b, b.e.Promote(w.now, e.SA, []crypto.PublicKey{a.key.Public()}))
	b.held = false
	ev, _ := find[ChildWanted](b)
	b.handle(w, ev)
	w.run(5 * time.Second)
	if up, _ := find[ChildUp](b); count[Promoted](b) != 1 || !up.Pair.Authenticated || !up.Rekey {
		t.Errorf("%+v\n%s", up, b.states())
	}
	checkPaired(t, a, b)
	checkSound(t, a, b)
}
