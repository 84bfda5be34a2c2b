package ike

import (
	"testing"
	"time"

	"tacit/ike/wire"
)

func TestCookie(t *testing.T) {
	a, b, w := pairWith(t, Config{}, Config{CookieAbove: -1})
	w.tap = func(from *host, _ *Datagram) bool {
		if from == b && w.sent == 2 && b.e.Stats().SAs != 0 {
			t.Error("state before the cookie came back")
		}
		return true
	}
	w.initiate(a, peerOf(a, b))
	if !w.until(time.Second, bothUp(a, b)) || w.sent != 6 {
		t.Errorf("not up in 6 messages: %d\n%s\n%s", w.sent, a.dump(), b.dump())
	}
	checkPaired(t, a, b)
}

// A cookie that we never gave brings no state.
func TestForgedCookieIsNoCookie(t *testing.T) {
	_, b, w := pairWith(t, Config{}, Config{CookieAbove: -1})
	for _, c := range [][]byte{nil, {1}, make([]byte, 17), append([]byte{1}, make([]byte, 16)...)} {
		o := b.e.Receive(w.now, Datagram{addrB, addrA, initRequest(5, func(m *wire.Message) {
			m.Payloads = append([]wire.Payload{status(wire.Cookie, c)}, m.Payloads...)
		})})
		if b.e.Stats().SAs != 0 || len(o.Send) != 1 {
			t.Errorf("cookie %x: %+v", c, b.e.Stats())
		}
	}
}

// A cookie is for one address, one SPI and one nonce, and for two minutes.
func TestCookieIsBound(t *testing.T) {
	var c cookies
	rng := newSeeded(1)
	begin := moment(past)
	c.rotate(begin, rng)
	ni, from := []byte("0123456789abcdef"), addrA.Addr()
	got := c.give(ni, from, 7)
	if !c.valid(got, ni, from, 7) {
		t.Error("refused")
	}
	if c.valid(got, ni, addrB.Addr(), 7) || c.valid(got, ni, from, 8) || c.valid(got, ni[1:], from, 7) || c.valid(nil, ni, from, 7) {
		t.Error("accepted for somebody else")
	}
	var none [32]byte
	for v := range 256 {
		if c.valid(cookie(none, byte(v), ni, from, 7), ni, from, 7) {
			t.Error("a cookie of the zero secret is accepted")
		}
	}
	c.rotate(begin.Add(90*time.Second), rng)
	if !c.valid(got, ni, from, 7) {
		t.Error("refused after 90 s")
	}
	c.rotate(begin.Add(200*time.Second), rng)
	if c.valid(got, ni, from, 7) {
		t.Error("accepted after 200 s")
	}
}

// A forged COOKIE does not keep the true one from being obeyed, by a responder that wants one (TRUST.md A-16).
//
//tacit:attack A-16 a forged COOKIE does not use up the true one's turn
func TestForgedCookieBeforeTheTrueOne(t *testing.T) {
	a, b, w := pairWith(t, Config{}, Config{CookieAbove: -1})
	inits := 0
	w.tap = func(from *host, d *Datagram) bool {
		if h, _ := wire.ParseHeader(d.Data); from == a && h.Exchange == wire.IKESAInit {
			if inits++; inits == 1 {
				w.queue = append(w.queue, flight{at: w.now.Add(time.Millisecond), d: Datagram{addrA, addrB, forge(d, status(wire.Cookie, []byte("forged")))}})
			}
		}
		return true
	}
	w.initiate(a, peerOf(a, b))
	if !w.until(400*time.Millisecond, bothUp(a, b)) || inits != 3 {
		t.Errorf("%d first messages\n%s\n%s", inits, a.dump(), b.dump())
	}
}

// However many COOKIEs somebody forges, two are obeyed, and the negotiation goes on (TRUST.md A-16).
//
//tacit:attack A-16 COOKIE is obeyed twice, however many are forged
func TestForgedCookies(t *testing.T) {
	a, b, w := pairOf(t)
	inits := 0
	w.tap = func(from *host, d *Datagram) bool {
		if h, _ := wire.ParseHeader(d.Data); from == a && h.Exchange == wire.IKESAInit {
			inits++
			w.queue = append(w.queue, flight{at: w.now.Add(time.Millisecond), d: Datagram{addrA, addrB, forge(d, status(wire.Cookie, []byte{byte(inits)}))}})
		}
		return true
	}
	w.initiate(a, peerOf(a, b))
	if !w.until(time.Second, bothUp(a, b)) || inits != 3 {
		t.Errorf("%d first messages\n%s\n%s", inits, a.dump(), b.dump())
	}
}
