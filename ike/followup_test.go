package ike

import (
	"bytes"
	"crypto"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"tacit/ike/wire"
)

// after are two hosts that go over to the hybrid once they are established.
func after(t testing.TB) (*host, *host, *world) {
	a, b, w := pairOf(t)
	a.e.cfg.PostQuantum, b.e.cfg.PostQuantum = After, After
	return a, b, w
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
		if !ok || count[Rekeyed](h) != 1 || r.Initiator != (h == a) || r.Summary != "aes-gcm-16-128 prf-sha256 x25519+mlkem768" {
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

// A peer that knows IKE_INTERMEDIATE and not this method chooses another proposal, and is not asked again.
func TestHybridAfterRefused(t *testing.T) {
	a, b, w := after(t)
	w.initiate(a, peerOf(a, b))
	w.until(time.Second, bothUp(a, b))
	only(t, b).hybrid = false
	w.run(time.Minute)
	if r, _ := find[Rekeyed](a); count[Rekeyed](a) != 1 || r.Summary != "aes-gcm-16-128 prf-sha256 x25519" || count[ChildUp](a) != 1 {
		t.Errorf("%s", a.dump())
	}
	checkPaired(t, a, b)
}

// RFC 9370, 2.2.4: "SKEYSEED = prf(SK_d, SK(0) | Ni | Nr | SK(1))".
func TestFollowUpKeys(t *testing.T) {
	s := &sa{keys: &saCrypto{suite: ikeSuite{cipher: ciphers[0], prf: crypto.SHA256}, d: []byte("SK_d")}}
	suite := ikeSuite{cipher: ciphers[0], prf: crypto.SHA384}
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
			only(t, a).hybrid, only(t, b).hybrid = true, true
			// The first half by hand.
			sh, _ := newShare(newSeeded(2), groupX25519)
			sap := defaultOffer.hybridProposal(groupX25519)
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
	only(t, b).hybrid = true
	if got, _ := talk(t, w, a, b, wire.FollowupKE, 2, &wire.KE{Group: kemMLKEM768, Data: []byte{1}}); notify(got, wire.StateNotFound) == nil {
		t.Errorf("never asked for: %v", got)
	}
	sh, _ := newShare(newSeeded(2), groupX25519)
	sap := defaultOffer.hybridProposal(groupX25519)
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
