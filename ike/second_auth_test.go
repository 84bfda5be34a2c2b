package ike

import (
	"crypto"
	"slices"
	"testing"
	"time"

	"tacit/ike/wire"
)

// toldPair is a client that tells its name in a second authentication, and a server that knows its key.
func toldPair(t testing.TB, tell Tell) (*host, *host, *world, Peer) {
	a := newHost(t, "alice.example", addrA, testKeys()["p256"], Config{})
	b := newHost(t, "bob.example", addrB, testKeys()["ed25519"], Config{})
	p := named(a, b)
	p.Tell = tell
	return a, b, newWorld(t, a, b), p
}

// names collects the identities that the IKE_AUTH requests of a carry.
func names(t *testing.T, w *world, a *host) *[]wire.ID {
	var seen []wire.ID
	look := rewrite(t, a, func(ps []wire.Payload) []wire.Payload {
		if id := getID(ps, false); id != nil {
			seen = append(seen, *id)
		}
		return ps
	})
	w.tap = func(from *host, d *Datagram) bool {
		look(from, &Datagram{d.Local, d.Remote, slices.Clone(d.Data)})
		return true
	}
	return &seen
}

// TRUST.md A-52: the name leaves after the responder has proved itself, where both know how; both ends end with the other's key.
//
//tacit:attack A-52 after the responder has proved itself, where both know how
func TestNameToldAfterProof(t *testing.T) {
	for tell, want := range map[Tell]struct {
		messages int
		ids      []uint8
	}{
		TellFirst:     {4, []uint8{wire.IDFQDN}},
		TellAfter:     {6, []uint8{wire.IDNull, wire.IDFQDN}},
		TellOnlyAfter: {6, []uint8{wire.IDNull, wire.IDFQDN}},
	} {
		a, b, w, p := toldPair(t, tell)
		seen := names(t, w, a)
		w.initiate(a, p)
		if !w.until(time.Second, bothUp(a, b)) || w.sent != want.messages {
			t.Fatalf("tell %d: not up, or not in %d messages (%d)\n%s\n%s", tell, want.messages, w.sent, a.dump(), b.dump())
		}
		checkPaired(t, a, b)
		checkSound(t, a, b)
		var kinds []uint8
		for _, id := range *seen {
			kinds = append(kinds, id.Kind)
		}
		if !slices.Equal(kinds, want.ids) {
			t.Errorf("tell %d: identities of kinds %v, want %v", tell, kinds, want.ids)
		}
		for h, other := range map[*host]*host{a: b, b: a} {
			e, _ := find[Established](h)
			if k, ok := e.Key.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(other.key.Public()) || e.RemoteID != (ID{IDFQDN, other.name}) || count[Established](h) != 1 {
				t.Errorf("tell %d: %s: %+v", tell, h.name, e)
			}
			if up, _ := find[ChildUp](h); !up.Pair.Authenticated {
				t.Errorf("tell %d: %s: the pair counts as anonymous", tell, h.name)
			}
		}
		if q, _ := find[AuthorizationWanted](b); count[AuthorizationWanted](b) != len(want.ids) || q.Null || q.More || q.ID.Value != a.name || q.Asked.Value != b.name {
			t.Errorf("tell %d: asked %+v", tell, q)
		}
	}
}

// stranger makes the responder's IKE_SA_INIT response another's, signed as such.
func stranger(t *testing.T, b *host, change func([]wire.Payload) []wire.Payload) func(*host, *Datagram) bool {
	return func(from *host, d *Datagram) bool {
		if h, _ := wire.ParseHeader(d.Data); from != b || h.Exchange != wire.IKESAInit {
			return true
		}
		m, err := wire.Parse(d.Data)
		if err != nil {
			t.Fatal(err)
		}
		m.Payloads = change(m.Payloads)
		if d.Data, err = m.Marshal(); err != nil {
			t.Fatal(err)
		}
		for _, s := range b.e.sas {
			s.hs.message2 = slices.Clone(d.Data)
		}
		return true
	}
}

// A responder that knows RFC 4739 and not NULL, or nothing of both: then the name goes first, or not at all.
func TestNameToldWithoutSecondAuthentication(t *testing.T) {
	for _, without := range [][]wire.NotifyType{{wire.SupportedAuthMethods}, {wire.MultipleAuthSupported}, {wire.SupportedAuthMethods, wire.MultipleAuthSupported}} {
		for tell, name := range map[Tell]string{TellAfter: "alice.example", TellOnlyAfter: ""} {
			a, b, w, p := toldPair(t, tell)
			w.tap = stranger(t, b, func(ps []wire.Payload) []wire.Payload {
				return slices.DeleteFunc(ps, func(p wire.Payload) bool {
					n, ok := p.(*wire.Notify)
					return ok && slices.Contains(without, n.Type)
				})
			})
			b.authorize = func(AuthorizationWanted) Authorization {
				return Authorization{Keys: []crypto.PublicKey{a.key.Public()}, Anonymous: true}
			}
			establish(t, w, a, b, p)
			if e, _ := find[Established](b); e.RemoteID.Value != name || (e.Key != nil) != (name != "") {
				t.Errorf("tell %d, without %v: %+v", tell, without, e)
			}
		}
	}
}

// TRUST.md: a man in the middle who cannot prove the responder's key learns nobody's name.
//
//tacit:attack A-17 he learns nobody's name
func TestManInTheMiddleLearnsNoName(t *testing.T) {
	a, b, w, p := toldPair(t, TellAfter)
	m := newHost(t, "bob.example", addrB, testKeys()["other"], Config{})
	w.hosts = []*host{a, m}
	seen := names(t, w, a)
	closedWith(t, w, a, m, p, ErrAuthentication)
	for _, id := range *seen {
		if id.Kind != wire.IDNull {
			t.Errorf("it learnt %q", id.Data)
		}
	}
	if q, _ := find[AuthorizationWanted](m); len(*seen) == 0 || count[AuthorizationWanted](m) != 1 || !q.More || q.ID.Kind != IDNull || count[Established](m) != 0 {
		t.Errorf("%d identities seen\n%s", len(*seen), m.dump())
	}
	_ = b
}

// A responder that may be nobody, and is, does not learn the name either.
//
//tacit:attack A-52 no name for nobody
func TestNobodyLearnsNoName(t *testing.T) {
	a, b, w, p := toldPair(t, TellAfter)
	p.RemoteID, p.Auth = ID{}, Authorization{Anonymous: true}
	b.e.cfg.Name, b.e.cfg.Public = "", nil
	b.authorize = func(AuthorizationWanted) Authorization { return Authorization{Anonymous: true} }
	seen := names(t, w, a)
	w.initiate(a, p)
	if !w.until(time.Second, bothUp(a, b)) || w.sent != 6 {
		t.Fatalf("%d messages\n%s\n%s", w.sent, a.dump(), b.dump())
	}
	for _, id := range *seen {
		if id.Kind != wire.IDNull {
			t.Errorf("it learnt %q", id.Data)
		}
	}
	checkPaired(t, a, b)
}

// Who is refused learns nothing about us: neither our name nor a signature, though it asks for that first.
func TestRefusedLearnsNoName(t *testing.T) {
	a, b, w, p := toldPair(t, TellAfter)
	b.authorize = func(q AuthorizationWanted) Authorization { return Authorization{Refuse: q.More} }
	closedWith(t, w, a, b, p, ErrAuthentication)
	if count[SignatureWanted](b) != 0 || count[AuthorizationWanted](b) != 1 {
		t.Errorf("%d signatures\n%s", count[SignatureWanted](b), b.dump())
	}
}

// Second authentications that come to nothing, at either end.
func TestSecondAuthenticationRefused(t *testing.T) {
	follows := status(wire.AnotherAuthFollows, nil)
	for name, setup := range map[string]func(w *world, a, b *host){
		"wrong key": func(_ *world, _, b *host) {
			b.authorize = func(AuthorizationWanted) Authorization {
				return Authorization{Keys: []crypto.PublicKey{testKeys()["other"].Public()}}
			}
		},
		"refused": func(_ *world, _, b *host) {
			b.authorize = func(AuthorizationWanted) Authorization { return Authorization{Refuse: true} }
		},
		"our signer":   func(_ *world, a, _ *host) { a.key = brokenSigner{a.key} },
		"their signer": func(_ *world, _, b *host) { b.key = brokenSigner{b.key} },
		"a third": func(w *world, a, _ *host) {
			w.tap = rewrite(w.t.(*testing.T), a, func(ps []wire.Payload) []wire.Payload {
				if get[*wire.SA](ps) == nil {
					ps = append(ps, follows)
				}
				return ps
			})
		},
		"a Child SA in the second": func(w *world, a, _ *host) {
			w.tap = rewrite(w.t.(*testing.T), a, func(ps []wire.Payload) []wire.Payload {
				if get[*wire.SA](ps) == nil {
					ps = append(ps, defaultOffer.espProposal(777, groupNone))
				}
				return ps
			})
		},
		"not announced": func(w *world, a, b *host) {
			w.tap = func(_ *host, _ *Datagram) bool {
				for _, s := range b.e.sas {
					s.hs.auths.methods = false
				}
				return true
			}
		},
		"first AUTH wrong": func(w *world, a, _ *host) {
			w.tap = rewrite(w.t.(*testing.T), a, func(ps []wire.Payload) []wire.Payload {
				if get[*wire.SA](ps) != nil {
					get[*wire.Auth](ps).Data[3] ^= 1
				}
				return ps
			})
		},
		"first with a name": func(w *world, a, _ *host) {
			w.tap = rewrite(w.t.(*testing.T), a, func(ps []wire.Payload) []wire.Payload {
				if get[*wire.SA](ps) != nil {
					*getID(ps, false) = wire.ID{Kind: wire.IDFQDN, Data: []byte("alice.example")}
				}
				return ps
			})
		},
		"responder speaks of the Child SA at once": func(w *world, _, b *host) {
			w.tap = rewrite(w.t.(*testing.T), b, func(ps []wire.Payload) []wire.Payload {
				if get[*wire.Auth](ps) != nil {
					ps = append(ps, defaultOffer.espProposal(777, groupNone))
				}
				return ps
			})
		},
		"data plane": func(_ *world, a, _ *host) {
			a.install = func(ChildWanted) error { return errSealed }
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, w, p := toldPair(t, TellAfter)
			w.t = t
			setup(w, a, b)
			closedWith(t, w, a, b, p, nil)
		})
	}
}

// Loss, repeats and reordering: up with the name, or closed at both ends.
func TestSecondAuthenticationBadNetwork(t *testing.T) {
	ups := 0
	for seed := range 40 {
		a, b, w, p := toldPair(t, TellAfter)
		w.rng.Uint64N(uint64(seed) + 1)
		for range seed {
			w.rng.Uint64()
		}
		w.loss, w.repeat, w.shuffle = 0.25, 0.25, 700*time.Millisecond
		w.initiate(a, p)
		w.until(time.Minute, func() bool { return bothUp(a, b)() || count[Closed](a) > 0 })
		if bothUp(a, b)() {
			ups++
			checkPaired(t, a, b)
			if e, _ := find[Established](b); e.Key == nil {
				t.Errorf("seed %d: %+v", seed, e)
			}
		}
		checkSound(t, a, b)
	}
	if ups < 30 {
		t.Errorf("up in %d of 40 runs", ups)
	}
}

// The initiator goes away between the two: nothing stays.
func TestSecondAuthenticationNeverComes(t *testing.T) {
	for name, stop := range map[string]func(w *world, a *host, id SAID){
		"silently": func(w *world, _ *host, _ SAID) { w.loss = 1 },
		"deleted":  func(w *world, a *host, id SAID) { w.take(a, a.e.Do(w.now, id, Delete)) },
	} {
		a, b, w, p := toldPair(t, TellAfter)
		id := w.initiate(a, p)
		again := func() bool {
			for _, s := range b.e.sas {
				return s.state == authAgain
			}
			return false
		}
		if !w.until(time.Second, again) {
			t.Fatalf("%s: never there", name)
		}
		stop(w, a, id)
		w.run(2 * time.Minute)
		if st := b.e.Stats(); st.SAs != 0 || st.HalfOpen != 0 || a.e.Stats().SAs != 0 || count[Established](b) != 0 {
			t.Errorf("%s: %+v\n%s", name, st, b.dump())
		}
		checkSound(t, a, b)
	}
}

// SUPPORTED_AUTH_METHODS of others: announcements of all lengths are skipped, broken ones end the list (RFC 9593, 3.2).
func TestAnnouncedMethods(t *testing.T) {
	for _, c := range []struct {
		data []byte
		want bool
	}{
		{[]byte{2, 13}, true}, {[]byte{2, 14, 2, 13}, true}, {[]byte{3, 1, 1, 5, 14, 0, 48, 0, 2, 13}, true},
		{nil, false}, {[]byte{2}, false}, {[]byte{0, 13}, false}, {[]byte{1, 13}, false}, {[]byte{3, 13}, false},
		{[]byte{4, 14, 2, 13}, false}, {[]byte{0, 0, 2, 13}, false}, {[]byte{2, 14, 255, 13}, false},
	} {
		if got := announced(c.data, wire.AuthNull); got != c.want {
			t.Errorf("%v: %v, want %v", c.data, got, c.want)
		}
	}
}
