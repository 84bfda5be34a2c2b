package ike

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tacit/ike/wire"
)

// before are two hosts that mix ML-KEM into their first keys.
func before(t testing.TB) (*host, *host, *world) {
	return pairWith(t, Config{PostQuantum: Before}, Config{PostQuantum: Before})
}

// Who uses ML-KEM with whom, and in how many messages: nobody is disturbed by what he does not know.
func TestHybridBefore(t *testing.T) {
	for _, c := range []struct {
		a, b   PostQuantum
		hybrid bool
	}{
		{Before, Before, true}, {Before, After, true}, {Before, Off, false}, {After, Before, true}, {After, After, false}, {Off, Before, false}, {Off, Off, false},
	} {
		a, b, w := pairOf(t)
		a.e.cfg.PostQuantum, b.e.cfg.PostQuantum = c.a, c.b
		w.initiate(a, peerOf(a, b))
		sent := 4
		switch {
		case c.hybrid:
			sent = 6
		case c.a == After: // what follows is another test's
			sent = 5
		}
		if !w.until(35*time.Millisecond, bothUp(a, b)) || w.sent != sent {
			t.Fatalf("%v: %d messages\n%s\n%s", c, w.sent, a.dump(), b.dump())
		}
		checkPaired(t, a, b)
		checkSound(t, a, b)
		for _, h := range []*host{a, b} {
			if e, _ := find[Established](h); strings.HasSuffix(e.Summary, "x25519+mlkem768") != c.hybrid {
				t.Errorf("%v: %s has %s", c, h.name, e.Summary)
			}
		}
	}
}

// With cookies, INVALID_KE_PAYLOAD, MODP, AES-CBC alone (which the hybrid is not offered with), names and IPv6, whose messages go in fragments.
func TestHybridBeforeWithAll(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(a, b *host)
		suite   string
	}{
		"cookie":    {func(a, b *host) { b.e.cfg.CookieAbove = -1 }, "chacha20-poly1305 prf-sha256 x25519+mlkem768"},
		"other KE":  {func(a, b *host) { b.e.offer.groups = []uint16{groupP384} }, "chacha20-poly1305 prf-sha256 p384+mlkem768"},
		"MODP":      {func(a, b *host) { b.e.offer.groups = []uint16{groupMODP2048} }, "chacha20-poly1305 prf-sha256 modp2048+mlkem768"},
		"AES-GCM":   {func(a, b *host) { b.e.offer = offering(espCiphers[0], groupX25519) }, "aes-gcm-16-128 prf-sha256 x25519+mlkem768"},
		"CBC alone": {func(a, b *host) { b.e.offer = offering(suites()[3], groupX25519) }, "aes-cbc-256 hmac-sha2-256-128 prf-sha256 x25519"},
		"IPv6": {func(a, b *host) {
			a.addr, b.addr = netip.MustParseAddrPort("[2001:db8::1]:500"), netip.MustParseAddrPort("[2001:db8::2]:500")
		}, "chacha20-poly1305 prf-sha256 x25519+mlkem768"},
		"small path": {func(a, b *host) { a.e.cfg.Path, b.e.cfg.Path = 576, 576 }, "chacha20-poly1305 prf-sha256 x25519+mlkem768"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newHost(t, "alice.example", addrA, testKeys()["other"], Config{PostQuantum: Before})
			b := newHost(t, "bob.example", addrB, testKeys()["ed25519"], Config{PostQuantum: Before})
			w := newWorld(t, a, b)
			c.prepare(a, b)
			w.initiate(a, named(a, b))
			if !w.until(time.Second, bothUp(a, b)) {
				t.Fatalf("not up\n%s\n%s", a.dump(), b.dump())
			}
			checkPaired(t, a, b)
			if e, _ := find[Established](b); e.Summary != c.suite || e.Key == nil {
				t.Errorf("%+v", e)
			}
		})
	}
}

// RFC 9370, 2.2.2: the keys are of both exchanges, by the definitions, written out here.
func TestHybridKeys(t *testing.T) {
	a, b, w := before(t)
	var first []saKeys
	var encap []byte
	w.tap = func(from *host, d *Datagram) bool {
		h, _ := wire.ParseHeader(d.Data)
		for _, s := range a.e.sas {
			if h.Exchange == wire.Intermediate && from == a {
				first = append(first, s.hs.keys)
				encap = s.hs.mix.share.public()
			}
		}
		return h.Exchange != wire.IKEAuth
	}
	id := w.initiate(a, peerOf(a, b))
	w.run(100 * time.Millisecond)
	s := a.e.sas[id]
	if len(first) != 1 || len(encap) != 1184 || !s.hs.mix.done {
		t.Fatalf("%s", a.dump())
	}
	if bytes.Equal(first[0].d, s.keys.d) || bytes.Equal(first[0].ei, s.hs.keys.ei) || bytes.Equal(first[0].pr, s.hs.keys.pr) {
		t.Error("keys of the first exchange stay")
	}
	var r *sa
	for _, r = range b.e.sas {
	}
	for i, k := range [][2][]byte{{s.hs.keys.d, r.hs.keys.d}, {s.hs.keys.ei, r.hs.keys.ei}, {s.hs.keys.er, r.hs.keys.er}, {s.hs.keys.pi, r.hs.keys.pi}, {s.hs.keys.pr, r.hs.keys.pr}} {
		if !bytes.Equal(k[0], k[1]) {
			t.Errorf("key %d differs", i)
		}
	}
	// SKEYSEED(1) = prf(SK_d(0), SK(1) | Ni | Nr), and the rest as ever.
	secret := []byte("what ML-KEM gives")
	if err := s.mixKeys(secret, nil, 9); err != nil {
		t.Fatal(err)
	}
	seed := prf(s.keys.suite.prf, r.hs.keys.d, concat(secret, r.hs.ni, r.hs.nr))
	want := prf(s.keys.suite.prf, seed, concat(r.hs.ni, r.hs.nr, spiBytes(r.spiI), spiBytes(r.spiR), []byte{1}))
	if !bytes.Equal(want, s.keys.d) || !bytes.Equal(s.hs.mix.auth, []byte{0, 0, 0, 9}) {
		t.Errorf("SK_d %x, want %x", []byte(s.keys.d), want)
	}
}

// The answer to IKE_INTERMEDIATE is lost, and then so is all but smaller fragments of the request: the responder, whose keys are others by now, knows it again.
func TestIntermediateInSmallerFragments(t *testing.T) {
	a, b, w := before(t)
	whole, smaller := 0, false
	w.tap = func(from *host, d *Datagram) bool {
		h, _ := wire.ParseHeader(d.Data)
		switch {
		case h.Exchange != wire.Intermediate:
			return true
		case from == b:
			return smaller
		case h.NextPayload == wire.PayloadSKF:
			smaller = true
			return true
		}
		whole++
		return whole == 1
	}
	w.initiate(a, peerOf(a, b))
	if !w.until(10*time.Second, bothUp(a, b)) || !smaller {
		t.Errorf("smaller fragments: %v\n%s\n%s", smaller, a.dump(), b.dump())
	}
}

// changed is a tap that changes the IKE_INTERMEDIATE message that a host sends, with the keys that the initiator a has.
func changed(t *testing.T, a, of *host, change func([]wire.Payload) []wire.Payload) func(*host, *Datagram) bool {
	return func(from *host, d *Datagram) bool {
		h, _ := wire.ParseHeader(d.Data)
		if from != of || h.Exchange != wire.Intermediate {
			return true
		}
		var s *sa
		for _, s = range a.e.sas {
		}
		mirror := s.keys.open
		if of == a {
			mirror = s.keys.seal
		}
		mirror.count = 100
		ps, err := mirror.open(d.Data)
		if err != nil {
			t.Fatal(err)
		}
		if d.Data, err = mirror.seal(h, change(ps)); err != nil {
			t.Fatal(err)
		}
		return true
	}
}

// IntAuth covers all of IKE_INTERMEDIATE: who could change it, because he has broken the first key exchange, fails at AUTH (RFC 9242, 3.3.2).
func TestIntermediateIsAuthenticated(t *testing.T) {
	for _, role := range []string{"request", "response"} {
		a, b, w := before(t)
		of := a
		if role == "response" {
			of = b
		}
		w.tap = changed(t, a, of, func(ps []wire.Payload) []wire.Payload { return append(ps, status(50000, []byte("more"))) })
		closedWith(t, w, a, b, peerOf(a, b), ErrAuthentication)
	}
}

// What is wrong in IKE_INTERMEDIATE ends the SA, and nobody is established.
func TestBadIntermediate(t *testing.T) {
	ke := func(f func(*wire.KE)) func([]wire.Payload) []wire.Payload {
		return func(ps []wire.Payload) []wire.Payload { f(get[*wire.KE](ps)); return ps }
	}
	for name, change := range map[string]func([]wire.Payload) []wire.Payload{
		"no KE":        func([]wire.Payload) []wire.Payload { return nil },
		"KE twice":     func(ps []wire.Payload) []wire.Payload { return append(ps, ps[0]) },
		"other method": ke(func(k *wire.KE) { k.Group = groupX25519 }),
		"key short":    ke(func(k *wire.KE) { k.Data = k.Data[1:] }),
		"key long":     ke(func(k *wire.KE) { k.Data = append(k.Data, 0) }),
		"key of ones":  ke(func(k *wire.KE) { k.Data = bytes.Repeat([]byte{255}, len(k.Data)) }), // coefficients above q (FIPS 203, 7.2)
		"AUTH too": func(ps []wire.Payload) []wire.Payload {
			return append(ps, &wire.Auth{Method: wire.AuthNull, Data: make([]byte, 32)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, w := before(t)
			w.tap = changed(t, a, a, change)
			w.initiate(a, peerOf(a, b))
			w.run(time.Minute)
			if c, _ := find[Closed](a); c.Err != (NotifyError{wire.InvalidSyntax}) || count[Established](a)+count[Established](b) != 0 {
				t.Errorf("%s\n%s", a.dump(), b.dump())
			}
			if a.e.Stats().SAs+b.e.Stats().SAs+b.e.Stats().HalfOpen != 0 {
				t.Error("an SA stays")
			}
			checkSound(t, a, b)
		})
	}
}

// What was agreed upon is not left out: IKE_AUTH before IKE_INTERMEDIATE is dropped, and so is IKE_INTERMEDIATE that nobody has agreed upon.
func TestIntermediateIsNotSkipped(t *testing.T) {
	for _, hybrid := range []bool{true, false} {
		a, b, w := before(t)
		if !hybrid {
			a.e.cfg.PostQuantum, b.e.cfg.PostQuantum = After, After
		}
		w.tap = func(from *host, d *Datagram) bool {
			h, _ := wire.ParseHeader(d.Data)
			return h.Exchange == wire.IKESAInit
		}
		id := w.initiate(a, peerOf(a, b))
		w.run(100 * time.Millisecond)
		x := wire.IKEAuth
		if !hybrid {
			x = wire.Intermediate
		}
		sent, s := b.e.Stats().Sent, a.e.sas[id]
		data, err := s.keys.seal.seal(s.header(x, 1, false), []wire.Payload{&wire.KE{Group: kemMLKEM768, Data: []byte{1}}})
		if err != nil {
			t.Fatal(err)
		}
		w.take(b, b.e.Receive(w.now, Datagram{addrB, addrA, data}))
		if st := b.e.Stats(); st.Sent != sent || st.Drops["wrong-exchange"] != 1 || st.HalfOpen != 1 {
			t.Errorf("%+v", st)
		}
	}
}

// A responder that answers a proposal with an additional key exchange, and does not say that it knows IKE_INTERMEDIATE, is not followed.
func TestHybridWithoutIntermediate(t *testing.T) {
	a, b, w := before(t)
	w.tap = func(from *host, d *Datagram) bool {
		m, err := wire.Parse(d.Data)
		if err != nil || from != b || m.Exchange != wire.IKESAInit {
			return true
		}
		for i, p := range m.Payloads {
			if n, ok := p.(*wire.Notify); ok && n.Type == wire.IntermediateExchange {
				m.Payloads = append(m.Payloads[:i:i], m.Payloads[i+1:]...)
				break
			}
		}
		d.Data, _ = m.Marshal()
		return true
	}
	w.initiate(a, peerOf(a, b))
	w.run(time.Minute)
	if c, _ := find[Closed](a); c.Err == nil || !strings.Contains(c.Err.Error(), "without IKE_INTERMEDIATE") {
		t.Errorf("%s", a.dump())
	}
}

// Three exchanges come up over a network that loses, repeats and reorders, in fragments of the smallest size.
func TestHybridBadNetwork(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			a, b, w := before(t)
			a.e.cfg.Path, b.e.cfg.Path = 576, 576
			w.rng = rand.New(rand.NewPCG(seed, 7))
			w.loss, w.repeat, w.shuffle = 0.1, 0.3, 200*time.Millisecond
			w.initiate(a, peerOf(a, b))
			w.until(40*time.Second, func() bool { return bothUp(a, b)() || count[Closed](a) > 0 })
			if !bothUp(a, b)() {
				t.Skip("five sends in a row were lost")
			}
			checkPaired(t, a, b)
			checkSound(t, a, b)
		})
	}
}
