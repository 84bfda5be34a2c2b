package ike

import (
	"bytes"
	"crypto"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// after are two hosts that go over to the hybrid once they are established.
func after(t testing.TB) (*host, *host, *world) {
	a, b, w := pairOf(t)
	a.e.cfg.PostQuantum, b.e.cfg.PostQuantum = After, After
	return a, b, w
}

// mixed has established hosts use the hybrid from now on.
func mixed(t testing.TB, hosts ...*host) {
	for _, h := range hosts {
		h.e.cfg.PostQuantum, only(t, h).hybrid = After, true
	}
}

// Two round trips as ever; then the IKE SA and its child have keys of the hybrid, without a packet lost, by the initiator alone.
func TestHybridAfter(t *testing.T) {
	a, b, w := after(t)
	id := w.initiate(a, peerOf(a, b))
	if !w.until(25*time.Millisecond, bothUp(a, b)) || w.sent != 5 { // IKE_SA_INIT, IKE_AUTH, and the first of the rekey
		t.Fatalf("%d messages\n%s\n%s", w.sent, a.dump(), b.dump())
	}
	up, _ := find[ChildUp](a)
	drive(w, 5*time.Second, time.Millisecond)
	w.run(30 * time.Second) // for who answers repeats on the old SA
	for _, h := range []*host{a, b} {
		r, ok := find[Rekeyed](h)
		if !ok || count[Rekeyed](h) != 1 || r.Initiator != (h == a) || r.Summary != "chacha20-poly1305 prf-sha256 x25519+mlkem768" {
			t.Errorf("%s", h.dump())
		}
		if count[ChildUp](h) != 2 || count[ChildRetired](h) != 1 || h.lost != 0 || h.took == 0 || h.e.Stats().SAs != 1 {
			t.Errorf("%d lost\n%s", h.lost, h.dump())
		}
	}
	if now, _ := find[ChildUp](a); !now.Rekey || now.Pair.ID != up.Pair.ID || now.Pair.In.SPI == up.Pair.In.SPI {
		t.Errorf("%+v", now)
	}
	checkPaired(t, a, b)
	checkSound(t, a, b)
	w.take(a, a.e.Do(w.now, id, RekeyIKE)) // and it stays so
	drive(w, 5*time.Second, time.Millisecond)
	if r, _ := find[Rekeyed](b); count[Rekeyed](b) != 2 || !strings.HasSuffix(r.Summary, "+mlkem768") || count[ChildUp](b) != 2 {
		t.Errorf("%s", b.dump())
	}
	checkPaired(t, a, b)
}

// Who does not know it, or does not want it, is asked for nothing.
func TestHybridAfterUndisturbed(t *testing.T) {
	for _, c := range [][2]PostQuantum{{After, Off}, {Off, After}, {Off, Before}} {
		a, b, w := pairOf(t)
		a.e.cfg.PostQuantum, b.e.cfg.PostQuantum = c[0], c[1]
		establish(t, w, a, b, peerOf(a, b))
		sent := w.sent
		w.run(time.Minute)
		if w.sent != sent {
			t.Errorf("%v: %d messages more", c, w.sent-sent)
		}
	}
}

// A peer that never said that it knows IKE_INTERMEDIATE may ask for the hybrid at a rekey all the same, and has it from then on.
func TestHybridUnannounced(t *testing.T) {
	a, b, w := classic(t)
	establish(t, w, a, b, peerOf(a, b))
	b.e.cfg.PostQuantum = After
	mixed(t, a)
	for _, h := range []*host{a, b} {
		w.take(h, h.e.Do(w.now, only(t, h).id, RekeyIKE))
		w.run(30 * time.Second)
		for _, h := range []*host{a, b} {
			if r, _ := find[Rekeyed](h); !strings.HasSuffix(r.Summary, "x25519+mlkem768") {
				t.Errorf("%s", h.dump())
			}
		}
	}
	checkPaired(t, a, b)
	checkSound(t, a, b)
}

// A peer that knows IKE_INTERMEDIATE and not this method chooses another proposal, and is not asked again.
func TestHybridAfterRefused(t *testing.T) {
	a, b, w := after(t)
	w.initiate(a, peerOf(a, b))
	w.until(time.Second, bothUp(a, b))
	b.e.cfg.PostQuantum = Off
	w.run(time.Minute)
	if r, _ := find[Rekeyed](a); count[Rekeyed](a) != 1 || r.Summary != "chacha20-poly1305 prf-sha256 x25519" || count[ChildUp](a) != 1 {
		t.Errorf("%s", a.dump())
	}
	checkPaired(t, a, b)
}

// RFC 9370, 2.2.4: "SKEYSEED = prf(SK_d, SK(0) | Ni | Nr | SK(1))".
func TestFollowUpKeys(t *testing.T) {
	s := &sa{keys: saCrypto{suite: ikeSuite{cipher: ikeCiphers[0], prf: crypto.SHA256}, d: []byte("SK_d")}}
	suite := ikeSuite{cipher: ikeCiphers[0], prf: crypto.SHA384}
	got := s.rekeySA(suite, []byte("SK(0)"), []byte("SK(1)"), []byte("Ni"), []byte("Nr"), 1, 2)
	seed := prf(crypto.SHA256, []byte("SK_d"), []byte("SK(0)NiNrSK(1)"))
	want := prf(crypto.SHA384, seed, concat([]byte("NiNr"), spiBytes(1), spiBytes(2), []byte{1}))
	if !bytes.Equal(got.d, want) {
		t.Errorf("SK_d %x, want %x", []byte(got.d), want)
	}
}

// What is wrong in IKE_FOLLOWUP_KE, or comes without being asked for, makes no IKE SA.
func TestBadFollowUp(t *testing.T) {
	key, _ := newShare(newSeeded(1), kemMLKEM768)
	ke := func(group uint16, data []byte) wire.Payload { return &wire.KE{Group: group, Data: data} }
	for name, c := range map[string]struct {
		ps   func(link wire.Payload) []wire.Payload
		want wire.NotifyType
	}{
		"no link": {func(wire.Payload) []wire.Payload { return []wire.Payload{ke(kemMLKEM768, key.public())} }, wire.StateNotFound},
		"another link": {func(wire.Payload) []wire.Payload {
			return []wire.Payload{ke(kemMLKEM768, key.public()), status(wire.AdditionalKeyExchange, make([]byte, 8))}
		}, wire.StateNotFound},
		"no KE":        {func(l wire.Payload) []wire.Payload { return []wire.Payload{l} }, wire.InvalidSyntax},
		"other method": {func(l wire.Payload) []wire.Payload { return []wire.Payload{ke(groupX25519, make([]byte, 32)), l} }, wire.InvalidSyntax},
		"key short":    {func(l wire.Payload) []wire.Payload { return []wire.Payload{ke(kemMLKEM768, key.public()[1:]), l} }, wire.InvalidSyntax},
		"key malformed": {func(l wire.Payload) []wire.Payload {
			return []wire.Payload{ke(kemMLKEM768, bytes.Repeat([]byte{255}, 1184)), l}
		}, wire.InvalidSyntax},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, w := pairOf(t)
			establish(t, w, a, b, peerOf(a, b))
			mixed(t, a, b)
			// The first half by hand.
			sh, _ := newShare(newSeeded(2), groupX25519)
			sap := defaultOffer.hybridProposal(groupX25519, true)
			for i := range sap.Proposals {
				sap.Proposals[i].SPI = spiBytes(777)
			}
			got, _ := talk(t, w, a, b, wire.CreateChildSA, 2, sap, &wire.Nonce{Data: make([]byte, 32)}, ke(groupX25519, sh.public()))
			link := notify(got, wire.AdditionalKeyExchange)
			if link == nil || len(b.e.sas) != 1 {
				t.Fatalf("answer %v, %d SAs", got, len(b.e.sas))
			}
			answer, _ := talk(t, w, a, b, wire.FollowupKE, 3, c.ps(link)...)
			if notify(answer, c.want) == nil || count[Rekeyed](b) != 0 || len(b.e.sas) > 1 {
				t.Errorf("answer %v, %d SAs", answer, len(b.e.sas))
			}
			checkSound(t, a, b)
		})
	}
}

// A responder waits for a follow-up for a while, and then the link is not known any more.
func TestFollowUpTooLate(t *testing.T) {
	a, b, w := pairOf(t)
	establish(t, w, a, b, peerOf(a, b))
	mixed(t, b)
	if got, _ := talk(t, w, a, b, wire.FollowupKE, 2, &wire.KE{Group: kemMLKEM768, Data: []byte{1}}); notify(got, wire.StateNotFound) == nil {
		t.Errorf("never asked for: %v", got)
	}
	sh, _ := newShare(newSeeded(2), groupX25519)
	sap := defaultOffer.hybridProposal(groupX25519, true)
	for i := range sap.Proposals {
		sap.Proposals[i].SPI = spiBytes(777)
	}
	got, _ := talk(t, w, a, b, wire.CreateChildSA, 3, sap, &wire.Nonce{Data: make([]byte, 32)}, &wire.KE{Group: groupX25519, Data: sh.public()})
	link := notify(got, wire.AdditionalKeyExchange)
	w.run(29 * time.Second)
	if !only(t, b).awaits() {
		t.Error("forgotten too early")
	}
	w.run(2 * time.Second)
	if only(t, b).awaits() {
		t.Error("not forgotten")
	}
	if got, _ := talk(t, w, a, b, wire.FollowupKE, 4, &wire.KE{Group: kemMLKEM768, Data: []byte{1}}, link); notify(got, wire.StateNotFound) == nil {
		t.Errorf("too late: %v", got)
	}
}

// Over a network that loses, repeats and reorders both ends arrive at the hybrid, and have one IKE SA and one Child SA.
func TestHybridAfterBadNetwork(t *testing.T) {
	reached := 0
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			a, b, w := after(t)
			w.rng = rand.New(rand.NewPCG(seed, 7))
			w.initiate(a, peerOf(a, b))
			w.until(time.Second, bothUp(a, b))
			w.loss, w.repeat, w.shuffle = 0.2, 0.3, 100*time.Millisecond
			w.run(40 * time.Second)
			w.loss, w.repeat, w.shuffle = 0, 0, 0
			w.run(2 * time.Minute)
			if count[Closed](a)+count[Closed](b) > 0 {
				t.Skip("five sends in a row were lost")
			}
			settled(t, a, b)
			checkPaired(t, a, b)
			if only(t, a).keys.suite.add == kemMLKEM768 {
				reached++
			}
		})
	}
	if reached < 25 {
		t.Errorf("%d of 40 reached the hybrid", reached)
	}
}

// hybridRekey is a rekey of the Child SA whose SPI at us is spi, with an additional key exchange, as we do not ask for it ourselves.
func hybridRekey(spi ipsec.SPI, sh share) []wire.Payload {
	ps := rekeyRequest(spi)
	sap := defaultOffer.espProposal(777, groupX25519)
	sap.Proposals[0].Transforms = append(sap.Proposals[0].Transforms, wire.Transform{Type: wire.TransformAddKE, ID: kemMLKEM768})
	ps[2] = sap
	return append(ps, &wire.KE{Group: groupX25519, Data: sh.public()})
}

// A peer may ask for the hybrid at the rekey of a Child SA: "KEYMAT = prf+(SK_d, SK(0) | Ni | Nr | SK(1))" (RFC 9370, 2.2.4).
func TestHybridChild(t *testing.T) {
	a, b, w := pairOf(t)
	establish(t, w, a, b, peerOf(a, b))
	mixed(t, b)
	up, _ := find[ChildUp](a)
	sh, _ := newShare(newSeeded(2), groupX25519)
	request := hybridRekey(up.Pair.In.SPI, sh)
	got, o := talk(t, w, a, b, wire.CreateChildSA, 2, request...)
	link, ke := notify(got, wire.AdditionalKeyExchange), get[*wire.KE](got)
	if link == nil || ke == nil || getTS(got, true) == nil || len(o.Events) != 1 {
		t.Fatalf("answer %v, events %v", got, o.Events)
	}
	kem, _ := newShare(newSeeded(3), kemMLKEM768)
	_, o = talk(t, w, a, b, wire.FollowupKE, 3, &wire.KE{Group: kemMLKEM768, Data: kem.public()}, link)
	if len(o.Send) != 0 || len(o.Events) != 2 {
		t.Fatalf("%+v", o)
	}
	wanted := o.Events[1].(ChildWanted)
	o = b.e.Supply(w.now, wanted.SA, Installed{wanted.Token, nil})
	last, err := only(t, a).keys.open.open(o.Send[0].Data)
	if err != nil || len(last) != 1 {
		t.Fatalf("%v %v", last, err)
	}
	shared, _ := sh.secret(ke.Data)
	added, err := kem.accept(get[*wire.KE](last))
	if err != nil {
		t.Fatal(err)
	}
	s := only(t, a)
	k := deriveChild(s.keys.suite.prf, s.keys.d, espCiphers[0], get[*wire.Nonce](request).Data, get[*wire.Nonce](got).Data, shared, added)
	in, out := k.pair(espSuite{cipher: espCiphers[0]}, false, 0, 0)
	if !bytes.Equal(in.Key, wanted.Pair.In.Key) || !bytes.Equal(out.Key, wanted.Pair.Out.Key) || !wanted.Rekey {
		t.Error("the keys are not those of both exchanges")
	}
	checkSound(t, a, b)
}

// A peer that does not follow up leaves nothing: neither in time, nor when it asks for something else.
func TestHybridChildForsaken(t *testing.T) {
	for _, waits := range []bool{true, false} {
		a, b, w := pairOf(t)
		establish(t, w, a, b, peerOf(a, b))
		mixed(t, b)
		up, _ := find[ChildUp](a)
		sh, _ := newShare(newSeeded(2), groupX25519)
		before := shape(b.e)
		got, _ := talk(t, w, a, b, wire.CreateChildSA, 2, hybridRekey(up.Pair.In.SPI, sh)...)
		if notify(got, wire.AdditionalKeyExchange) == nil || !only(t, b).child.busy() {
			t.Fatalf("answer %v", got)
		}
		if waits {
			w.run(31 * time.Second)
		} else if got, _ := talk(t, w, a, b, wire.CreateChildSA, 3, rekeyRequest(0xdeadbeef)...); notify(got, wire.ChildSANotFound) == nil {
			t.Errorf("answer %v", got)
		}
		if shape(b.e) != before || only(t, b).child.busy() || only(t, b).awaits() || count[ChildDown](b) != 0 {
			t.Errorf("waits %v: %+v, was %+v", waits, shape(b.e), before)
		}
		checkSound(t, a, b)
	}
}

// An additional key exchange is none without the first, and is not chosen where the peer has not said that it knows how.
func TestHybridChildRefused(t *testing.T) {
	for name, c := range map[string]struct {
		hybrid bool
		change func(sap *wire.SA)
		ke     bool
	}{
		"unknown to us":        {false, func(*wire.SA) {}, true},
		"without the first":    {true, func(sap *wire.SA) { sap.Proposals[0].Transforms = slices.DeleteFunc(sap.Proposals[0].Transforms, isKE) }, false},
		"of an unknown method": {true, func(sap *wire.SA) { p := &sap.Proposals[0]; p.Transforms[len(p.Transforms)-1].ID = 35 }, true},
	} {
		a, b, w := pairOf(t)
		establish(t, w, a, b, peerOf(a, b))
		if c.hybrid {
			mixed(t, b)
		}
		up, _ := find[ChildUp](a)
		sh, _ := newShare(newSeeded(2), groupX25519)
		ps := hybridRekey(up.Pair.In.SPI, sh)
		sap := ps[2].(*wire.SA)
		sap.Proposals = sap.Proposals[:1]
		c.change(sap)
		if !c.ke {
			ps = ps[:len(ps)-1]
		}
		if got, _ := talk(t, w, a, b, wire.CreateChildSA, 2, ps...); notify(got, wire.NoProposalChosen) == nil {
			t.Errorf("%s: answer %v", name, got)
		}
	}
}

func isKE(t wire.Transform) bool { return t.Type == wire.TransformKE }
