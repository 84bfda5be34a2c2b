package ike

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	"tacit/ike/wire"
)

var crashSecret = []byte("a secret that outlives the process")

// RFC 6290: the responder, or the initiator, is started anew; the other end learns it in one round trip, not after its liveness check.
func TestCrashIsNoticedAtOnce(t *testing.T) {
	for _, initiator := range []bool{true, false} {
		for name, c := range map[string]struct {
			before, after []byte
			closed        bool
		}{
			"the same secret": {crashSecret, crashSecret, true},
			"another secret":  {crashSecret, []byte("another"), false},
			"none any more":   {crashSecret, nil, false},
			"none before":     {nil, crashSecret, false},
		} {
			a, b, w := pairWith(t, Config{CrashSecret: c.before}, Config{CrashSecret: c.before})
			establish(t, w, a, b, peerOf(a, b))
			dead, alive := b, a
			if initiator {
				dead, alive = a, b
			}
			dead.e = New(Config{CrashSecret: c.after, Rand: newSeeded(77), Name: dead.e.cfg.Name, Public: dead.e.cfg.Public})
			dead.wake = time.Time{}
			sent := w.sent
			for id := range alive.e.sas {
				w.take(alive, alive.e.Do(w.now, id, Probe))
			}
			w.run(300 * time.Millisecond)
			got, closed := find[Closed](alive)
			if closed != c.closed || closed && (!errors.Is(got.Err, ErrCrashed) || w.sent != sent+2 || alive.e.Stats().SAs != 0 || count[ChildDown](alive) != 1) {
				t.Errorf("initiator %v, %s: closed %v with %v after %d messages", initiator, name, closed, got.Err, w.sent-sent)
			}
			checkSound(t, a, b)
		}
	}
}

// TRUST.md A-16: an answer in the clear without the token is nobody's word, and the token of another SA is not this one's.
//
//tacit:attack A-16 INVALID_SPI without the token is nobody's word
func TestForgedCrash(t *testing.T) {
	a, b, w := pairWith(t, Config{CrashSecret: crashSecret}, Config{CrashSecret: crashSecret})
	establish(t, w, a, b, peerOf(a, b))
	id := w.initiate(a, peerOf(a, b))
	w.run(time.Second)
	var other *sa
	for _, s := range a.e.sas {
		if s.id != id {
			other = s
		}
	}
	s := a.e.sas[id]
	invalid := &wire.Notify{Type: wire.InvalidIKESPI}
	qcd := func(token []byte) *wire.Notify { return &wire.Notify{Type: wire.QuickCrashDetection, Data: token} }
	for name, ps := range map[string][]wire.Payload{
		"INVALID_IKE_SPI alone":  {invalid},
		"an empty token":         {invalid, qcd(nil)},
		"another SA's token":     {invalid, qcd(other.token)},
		"half of the token":      {invalid, qcd(s.token[:8])},
		"a token and more":       {invalid, qcd(append(slices.Clone(s.token), 0))},
		"our own token":          {invalid, qcd(a.e.tokenOf(s.id))},
		"token without the SPI":  {qcd(s.token)},
		"AUTHENTICATION_FAILED":  {&wire.Notify{Type: wire.AuthenticationFailed}},
		"DELETE":                 {bye()},
		"INVALID_SYNTAX and SPI": {invalid, &wire.Notify{Type: wire.InvalidSyntax}},
	} {
		o := a.e.Do(w.now, id, Probe)
		if len(o.Send) != 1 {
			t.Fatalf("%s: %d probes", name, len(o.Send))
		}
		h, _ := wire.ParseHeader(o.Send[0].Data)
		h.Flags = wire.FlagResponse
		m := wire.Message{Header: h, Payloads: ps}
		data, err := m.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		w.take(a, a.e.Receive(w.now, Datagram{addrA, addrB, data}))
		if count[Closed](a) != 0 {
			t.Fatalf("%s closed the SA", name)
		}
		w.take(a, o)
		w.run(time.Second) // the true answer still counts
	}
	if count[Alive](a) != 10 {
		t.Errorf("%d signs of life, want 10", count[Alive](a))
	}
}

// A token is shown for no SA that lives, to no response, to no first message, not longer than what was asked and not without end.
func TestTokensShown(t *testing.T) {
	a, b, w := pairWith(t, Config{CrashSecret: crashSecret}, Config{CrashSecret: crashSecret})
	id := establish(t, w, a, b, peerOf(a, b))
	s := a.e.sas[id]
	token := s.token
	req := wire.Header{InitiatorSPI: s.spiI, ResponderSPI: s.spiR, Exchange: wire.Informational, Flags: wire.FlagInitiator, MessageID: 2}
	give := func(e *Endpoint, h wire.Header, n int) []byte {
		m := wire.Message{Header: h, Payloads: []wire.Payload{&wire.Encrypted{Body: make([]byte, n)}}}
		data, err := m.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		o := e.Receive(w.now, Datagram{addrB, addrA, data})
		if len(o.Send) == 0 {
			return nil
		}
		if len(o.Send[0].Data) > len(data) {
			t.Errorf("%d octets answered with %d", len(data), len(o.Send[0].Data))
		}
		return o.Send[0].Data
	}
	if got := give(b.e, req, 100); got != nil {
		t.Error("an answer in the clear on an SA that lives")
	}
	swapped := req // the same SPIs with the roles exchanged
	swapped.Flags = 0
	if got := give(b.e, swapped, 100); bytes.Contains(got, token) {
		t.Error("the token of an SA that lives, for its SPIs with the roles exchanged")
	}
	fresh := New(Config{CrashSecret: crashSecret, Rand: newSeeded(5)})
	if got := give(fresh, req, 100); !bytes.Contains(got, token) {
		t.Error("no token where the SA is lost")
	}
	short, response, init, zero := req, req, req, req
	response.Flags |= wire.FlagResponse
	init.Exchange = wire.IKESAInit
	zero.ResponderSPI = 0
	for name, got := range map[string][]byte{
		"a short request": give(fresh, short, 8), "a response": give(fresh, response, 100),
		"IKE_SA_INIT": give(fresh, init, 100), "SPI zero": give(fresh, zero, 100),
	} {
		if got != nil {
			t.Errorf("%s is answered", name)
		}
	}
	shown := 0
	for range 3 * maxShown {
		if give(fresh, req, 100) != nil {
			shown++
		}
	}
	if shown >= maxShown {
		t.Errorf("%d tokens in no time", shown)
	}
}

// The probes of a peer that gave us a token are long enough to be answered with it.
func TestProbeHasRoomForToken(t *testing.T) {
	a, b, w := pairWith(t, Config{CrashSecret: crashSecret}, Config{CrashSecret: crashSecret})
	id := establish(t, w, a, b, peerOf(a, b))
	o := a.e.Do(w.now, id, Probe)
	fresh := New(Config{CrashSecret: crashSecret, Rand: newSeeded(5)})
	if r := fresh.Receive(w.now, Datagram{addrB, addrA, o.Send[0].Data}); len(r.Send) != 1 {
		t.Errorf("a probe of %d octets is not answered", len(o.Send[0].Data))
	}
}

// The rekeyed IKE SA has tokens of its own: those of the old one no longer count, and a crash is still noticed (RFC 6290, 4.3).
func TestCrashAfterRekey(t *testing.T) {
	for _, byInitiator := range []bool{true, false} {
		a, b, w := pairWith(t, Config{CrashSecret: crashSecret}, Config{CrashSecret: crashSecret})
		establish(t, w, a, b, peerOf(a, b))
		before := tokens(a.e, b.e)
		from := a
		if !byInitiator {
			from = b
		}
		for id := range from.alive() {
			w.take(from, from.e.Do(w.now, id, RekeyIKE))
		}
		w.run(time.Minute)
		after := tokens(a.e, b.e)
		if count[Rekeyed](a) != 1 || len(after) != 2 || slices.ContainsFunc(after, func(s string) bool { return slices.Contains(before, s) }) {
			t.Fatalf("tokens %x, were %x", after, before)
		}
		b.e = New(Config{CrashSecret: crashSecret, Rand: newSeeded(77), Name: b.name, Public: b.key.Public()})
		b.wake = time.Time{}
		for id := range a.alive() {
			w.take(a, a.e.Do(w.now, id, Probe))
		}
		w.run(300 * time.Millisecond)
		if c, ok := find[Closed](a); !ok || !errors.Is(c.Err, ErrCrashed) {
			t.Errorf("rekeyed by the initiator %v: closed %v with %v", byInitiator, ok, c.Err)
		}
	}
}

// tokens are those that the Endpoints keep of their peers.
func tokens(es ...*Endpoint) (all []string) {
	for _, e := range es {
		for _, s := range e.sas {
			if s.open() {
				all = append(all, string(s.token))
			}
		}
	}
	return all
}
