package ike

import (
	"testing"

	"tacit/ike/wire"
)

// An heir that outlives its elder's memory of their rekey is forgotten all the same.
func TestHeirOfAnElderWithoutKin(t *testing.T) {
	a, _, _ := pairOf(t)
	elder := &sa{e: a.e, slot: gone}
	heir := &sa{e: a.e, slot: -1, kin: &kin{elder: elder}}
	heir.grown()
}

// What has come of an answer gives its room back when the request is forgotten.
func TestForgottenRequestLeavesNoFragments(t *testing.T) {
	a, _, _ := pairOf(t)
	a.e.fragmented = 100
	s := &sa{e: a.e, out: request{next: 7, parts: &reassembly{size: 100}}}
	s.forgetRequest()
	if a.e.fragmented != 0 || s.out.parts != nil || s.out.next != 7 {
		t.Errorf("%d octets are counted, %v kept, next %d", a.e.fragmented, s.out.parts, s.out.next)
	}
}

// TRUST.md A-21: a refusal that would be longer than the request is not sent.
//
//tacit:attack A-21 a refusal that would be longer than the request is not sent
func TestShortRefusals(t *testing.T) {
	_, b, w := pairOf(t)
	h := wire.Header{InitiatorSPI: 1, Exchange: wire.IKESAInit, Flags: wire.FlagInitiator}
	bare, _ := (&wire.Message{Header: h}).Marshal()
	version := append([]byte{}, bare...)
	version[17] = 0x30
	critical := append(append([]byte{}, bare...), 0, 0x80, 0, 4)
	critical[16], critical[27] = 200, 32
	for _, data := range [][]byte{version, critical} {
		o := b.e.Receive(w.now, Datagram{addrB, addrA, data})
		if len(o.Send) != 0 || o.Dropped != "amplifies" {
			t.Errorf("%x: %d answers, dropped %q", data, len(o.Send), o.Dropped)
		}
	}
}
