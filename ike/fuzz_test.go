package ike

import (
	"bytes"
	"testing"

	"tacit/ike/wire"
)

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
