package ike

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"slices"
	"testing"
	"time"

	"tacit/ike/wire"
)

func spki(t testing.TB, pub crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// certs notes the raw keys that pass in the IKE_AUTH messages of a host.
func certs(t *testing.T, w *world, of *host) *[][]byte {
	var seen [][]byte
	w.tap = rewrite(t, of, func(ps []wire.Payload) []wire.Payload {
		for _, p := range ps {
			if c, ok := p.(*wire.Cert); ok && c.Encoding == wire.CertRawKey {
				seen = append(seen, c.Data)
			}
		}
		return ps
	})
	return &seen
}

// Our key goes in CERT to who asked, and to nobody else (RFC 7670). An initiator asks where it would take a stranger.
func TestRawKeySentWhenAsked(t *testing.T) {
	for kind, key := range testKeys() {
		for _, asks := range []bool{true, false} {
			a := newHost(t, "alice.example", addrA, nil, Config{})
			b := newHost(t, "bob.example", addrB, key, Config{})
			w := newWorld(t, a, b)
			p := peerOf(a, b)
			if asks {
				p.Auth = Authorization{Anonymous: true}
			}
			seen := certs(t, w, b)
			establish(t, w, a, b, p)
			e, _ := find[Established](a)
			switch {
			case asks && (len(*seen) != 1 || e.Key != nil || !sameKey(e.Raw, key.Public())):
				t.Errorf("%s: %d keys sent, established %+v", kind, len(*seen), e)
			case !asks && (len(*seen) != 0 || e.Key == nil || e.Raw != nil):
				t.Errorf("%s: nobody asked: %d keys sent, established %+v", kind, len(*seen), e)
			}
			if up, _ := find[ChildUp](a); up.Pair.Authenticated == asks {
				t.Errorf("%s: asks %v, authenticated %v", kind, asks, up.Pair.Authenticated)
			}
		}
	}
}

// A responder's request is honoured too, by an initiator that signs; ID_NULL has no key.
func TestRawKeyOfInitiator(t *testing.T) {
	for _, name := range []bool{true, false} {
		a := newHost(t, "alice.example", addrA, testKeys()["p384"], Config{})
		b := newHost(t, "bob.example", addrB, testKeys()["ed25519"], Config{})
		w := newWorld(t, a, b)
		p := named(a, b)
		if !name {
			p.LocalID = ID{Kind: IDNull}
		}
		b.authorize = func(AuthorizationWanted) Authorization { return Authorization{Anonymous: true} }
		seen := certs(t, w, a)
		look, ask := w.tap, stranger(t, b, func(ps []wire.Payload) []wire.Payload {
			return append(ps, &wire.CertReq{Encoding: 4, Data: make([]byte, 20)}, &wire.CertReq{Encoding: wire.CertRawKey})
		})
		w.tap = func(from *host, d *Datagram) bool { return ask(from, d) && look(from, d) }
		w.initiate(a, p)
		if !w.until(time.Second, bothUp(a, b)) {
			t.Fatalf("not up\n%s\n%s", a.dump(), b.dump())
		}
		e, _ := find[Established](b)
		if e.Key != nil || name != sameKey(e.Raw, a.key.Public()) || len(*seen) > 1 || !name && len(*seen) != 0 {
			t.Errorf("named %v: %+v, %d keys sent", name, e, len(*seen))
		}
	}
}

// A raw key is never a name, however good: only the keys of the Authorization count. "A raw-key check that accepts any key must fail a
// test" (TRUST.md 5): this one.
func TestRawKeyIsNoName(t *testing.T) {
	a, b, w := pairOf(t)
	p := peerOf(a, b)
	p.Auth.Keys = []crypto.PublicKey{testKeys()["other"].Public()}
	w.tap = rewrite(t, b, func(ps []wire.Payload) []wire.Payload { // sent unasked: tolerated, and worth nothing
		return append(ps, &wire.Cert{Encoding: wire.CertRawKey, Data: spki(t, b.key.Public())})
	})
	closedWith(t, w, a, b, p, ErrAuthentication)
	if count[Established](a) != 0 {
		t.Error("established by the key that came in CERT")
	}
}

// Of CERTs that are no proof nothing is reported, and they disturb nobody.
func TestRawKeysThatProveNothing(t *testing.T) {
	weak, err := rsa.GenerateKey(crand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	long := make([]byte, maxRawKey+1)
	copy(long, spki(t, testKeys()["ed25519"].Public()))
	for name, c := range map[string]*wire.Cert{
		"another's":      {Encoding: wire.CertRawKey, Data: spki(t, testKeys()["other"].Public())},
		"another kind's": {Encoding: wire.CertRawKey, Data: spki(t, testKeys()["rsa"].Public())},
		"RSA 1024":       {Encoding: wire.CertRawKey, Data: spki(t, weak.Public())},
		"P-224":          {Encoding: wire.CertRawKey, Data: spki(t, p224.Public())},
		"empty":          {Encoding: wire.CertRawKey},
		"not DER":        {Encoding: wire.CertRawKey, Data: []byte{1, 2, 3}},
		"too long":       {Encoding: wire.CertRawKey, Data: long},
		"X.509":          {Encoding: 4, Data: spki(t, testKeys()["ed25519"].Public())},
		"old raw RSA":    {Encoding: wire.CertRawRSA, Data: spki(t, testKeys()["ed25519"].Public())},
	} {
		a, b, w := pairOf(t)
		p := peerOf(a, b)
		p.Auth = Authorization{Anonymous: true}
		w.tap = rewrite(t, b, func(ps []wire.Payload) []wire.Payload {
			for i, p := range ps {
				if _, ok := p.(*wire.Cert); ok {
					ps[i] = c
				}
			}
			return ps
		})
		w.initiate(a, p)
		if !w.until(time.Second, bothUp(a, b)) {
			t.Fatalf("%s: not up\n%s", name, a.dump())
		}
		if e, _ := find[Established](a); e.Raw != nil || e.Key != nil {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

// Pending without Anonymous is no way in.
func TestPendingIsNoPermission(t *testing.T) {
	a, b, w, p := toldPair(t, TellFirst)
	b.authorize = func(AuthorizationWanted) Authorization { return Authorization{Pending: true} }
	closedWith(t, w, a, b, p, ErrAuthentication)
}

// A key of which only the fingerprint was known comes in CERT, at either end; it counts when Authorization.Known says so.
func TestKeyKnownByItsFingerprint(t *testing.T) {
	for _, right := range []bool{true, false} {
		a, b := newHost(t, "alice.example", addrA, testKeys()["p256"], Config{}), newHost(t, "bob.example", addrB, testKeys()["ed25519"], Config{AskKeys: true})
		w := newWorld(t, a, b)
		known := func(of *host) func(crypto.PublicKey) bool {
			want := of.key.Public()
			if !right {
				want = testKeys()["other"].Public()
			}
			return func(k crypto.PublicKey) bool { return sameKey(k, want) }
		}
		p := named(a, b)
		p.Auth = Authorization{Known: known(b)}
		b.authorize = func(AuthorizationWanted) Authorization { return Authorization{Known: known(a)} }
		w.initiate(a, p)
		up := w.until(time.Second, bothUp(a, b))
		atA, _ := find[Established](a)
		atB, _ := find[Established](b)
		if up != right || right && (!sameKey(atA.Key, b.key.Public()) || !sameKey(atB.Key, a.key.Public())) || !right && (atA.Key != nil || atB.Key != nil) {
			t.Errorf("right %v: up %v, %+v, %+v", right, up, atA, atB)
		}
	}
}

// Whoever asks for a raw key also asks for one of the old kind, and last: openiked, which takes the last, does not know the other and is silent.
func TestKeysAreAskedForInTheOldWayToo(t *testing.T) {
	a, b := newHost(t, "", addrA, nil, Config{}), newHost(t, "", addrB, nil, Config{AskKeys: true})
	b.authorize = func(AuthorizationWanted) Authorization { return Authorization{Anonymous: true} }
	asked := map[*host][]uint8{}
	look := func(of *host) func([]wire.Payload) []wire.Payload {
		return func(ps []wire.Payload) []wire.Payload {
			asked[of] = append(asked[of], requested(ps)...)
			return ps
		}
	}
	w := newWorld(t, a, b)
	first, second := stranger(t, b, look(b)), rewrite(t, a, look(a))
	w.tap = func(from *host, d *Datagram) bool { return first(from, d) && second(from, d) }
	w.initiate(a, nobodies(a, b, Authorization{Anonymous: true}))
	if !w.until(time.Second, bothUp(a, b)) {
		t.Fatalf("not up\n%s\n%s", a.dump(), b.dump())
	}
	for _, h := range []*host{a, b} {
		if want := []uint8{wire.CertRawKey, wire.CertRawRSA}; !slices.Equal(asked[h], want) {
			t.Errorf("%v asked for %v, want %v", h.addr, asked[h], want)
		}
	}
}

// requested are the encodings of the CERTREQs, which name no authorities.
func requested(ps []wire.Payload) (encodings []uint8) {
	for _, p := range ps {
		if c, ok := p.(*wire.CertReq); ok && len(c.Data) == 0 {
			encodings = append(encodings, c.Encoding)
		}
	}
	return encodings
}

// What nobody has asked for is said as far as the request is long enough for it, and nobody needs a cookie for it (TRUST.md A-21).
func TestUnaskedIsWorthNoCookie(t *testing.T) {
	_, b, w := pairOf(t)
	b.e.cfg.AskKeys = true
	sh, _ := newShare(newSeeded(3), groupX25519)
	ts := []wire.Transform{{Type: wire.TransformEncr, ID: 20, KeyLength: 128}, {Type: wire.TransformPRF, ID: 5}, {Type: wire.TransformKE, ID: groupX25519}}
	outcome := func(longer int) (outcome string) {
		ps := []wire.Payload{&wire.SA{Proposals: []wire.Proposal{{Number: 1, Protocol: wire.ProtocolIKE, Transforms: ts}}},
			&wire.KE{Group: groupX25519, Data: sh.public()}, &wire.Nonce{Data: make([]byte, 32)}, &wire.VendorID{Data: make([]byte, longer)}}
		m := wire.Message{Header: wire.Header{InitiatorSPI: uint64(longer + 1), Exchange: wire.IKESAInit, Flags: wire.FlagInitiator}, Payloads: ps}
		data, err := m.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		o := b.e.Receive(w.now, Datagram{addrB, addrA, data})
		if len(o.Send) != 1 || len(o.Send[0].Data) > len(data) {
			t.Fatalf("%d octets more: %d answers, or one longer than the request", longer, len(o.Send))
		}
		answer, err := wire.Parse(o.Send[0].Data)
		if err != nil {
			t.Fatal(err)
		}
		says := notify(answer.Payloads, wire.ChildlessIKEv2Supported) != nil
		if s := b.e.half[halfKey{uint64(longer + 1), addrA}]; s != nil && s.hs.auths.offersNone != says {
			t.Errorf("%d octets more: no Child SA was offered: %v, and remembered otherwise", longer, says)
		}
		return fmt.Sprintf("cookie %v, keys %d, childless %v", notify(answer.Payloads, wire.Cookie) != nil, len(requested(answer.Payloads)), says)
	}
	// Our hashes have 16 octets, a vendor's ID without any 4.
	for _, tt := range []struct {
		longer int
		want   string
	}{
		{11, "cookie true, keys 0, childless false"},
		{12, "cookie false, keys 0, childless false"},
		{21, "cookie false, keys 0, childless false"},
		{22, "cookie false, keys 2, childless false"},
		{29, "cookie false, keys 2, childless false"},
		{30, "cookie false, keys 2, childless true"},
	} {
		if got := outcome(tt.longer); got != tt.want {
			t.Errorf("%d octets more: %s, want %s", tt.longer, got, tt.want)
		}
	}
}
