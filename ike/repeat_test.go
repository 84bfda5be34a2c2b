package ike

import (
	"crypto"
	"net/netip"
	"testing"
	"time"

	"tacit/ike/wire"
)

// A request that somebody has caught and sends again is answered to where the peer is, at whichever port, and nowhere else: it proves nothing about who sends it
// (TRUST.md A-21).
//
//tacit:attack A-21 a repeat from elsewhere is not answered
func TestRepeatFromElsewhere(t *testing.T) {
	a, b, w := pairOf(t)
	var caught []Datagram
	w.tap = func(from *host, d *Datagram) bool {
		if h, _ := wire.ParseHeader(d.Data); from == a && h.Flags&wire.FlagResponse == 0 {
			caught = append(caught, Datagram{d.Remote, d.Local, append([]byte(nil), d.Data...)})
		}
		return true
	}
	again := func() (here, elsewhere int) {
		d := caught[len(caught)-1]
		d.Remote = netip.AddrPortFrom(d.Remote.Addr(), 4500)
		here = len(b.e.Receive(w.now, d).Send)
		d.Remote = netip.AddrPortFrom(victim, 500)
		return here, len(b.e.Receive(w.now, d).Send)
	}
	id := establish(t, w, a, b, peerOf(a, b))
	for _, c := range []Command{Probe, RekeyChild, RekeyIKE, Delete} {
		w.take(a, a.e.Do(w.now, id, c))
		w.until(time.Second, func() bool { return len(w.queue) == 0 })
		if here, elsewhere := again(); here != 1 || elsewhere != 0 {
			t.Errorf("command %d: %d answers, and %d to %v", c, here, elsewhere, victim)
		}
	}
}

// Fragment 1 alone tells a repeated request. That of IKE_SA_INIT is never in fragments, so that none asks for its answer again.
func TestFragmentIsNoRepeatOfInit(t *testing.T) {
	a, b, w := pairOf(t)
	w.tap = func(from *host, d *Datagram) bool {
		h, _ := wire.ParseHeader(d.Data)
		return from == b || h.Exchange == wire.IKESAInit
	}
	w.initiate(a, peerOf(a, b))
	w.run(100 * time.Millisecond)
	s, k := only(t, a), only(t, b)
	data, err := s.keys.seal.cut(s.header(wire.IKEAuth, 0, false), wire.PayloadNonce, make([]byte, 100), 2)
	if err != nil || !k.keys.known() {
		t.Fatal(err, b.dump())
	}
	if o := b.e.Receive(w.now, Datagram{addrB, addrA, data[0]}); len(o.Send) != 0 || o.Dropped != "repeat" {
		t.Errorf("%d answers, dropped %q", len(o.Send), o.Dropped)
	}
}

// Who sees the first message go by can send it again with a COOKIE in it, and cannot have the initiator's AUTH refused by that, or its repeats (TRUST.md A-16).
// And the initiator may have to send it so, where somebody has forged our demand.
//
//tacit:attack A-16 the first message again with a COOKIE, by whoever has seen it, does not break the AUTH
func TestFirstMessageCopied(t *testing.T) {
	for _, how := range []string{"nobody", "a key", "a raw key", "a key that is looked up"} {
		for _, lost := range []bool{false, true} {
			a := newHost(t, "alice.example", addrA, testKeys()["p256"], Config{})
			b := newHost(t, "bob.example", addrB, testKeys()["ed25519"], Config{AskKeys: true})
			w := newWorld(t, a, b)
			p := named(a, b)
			auth := Authorization{}
			switch how {
			case "nobody":
				p.LocalID, auth.Anonymous = ID{Kind: IDNull}, true
			case "a key":
				auth.Keys = append(auth.Keys, a.key.Public())
			case "a raw key":
				auth.Anonymous = true
			default:
				auth.Anonymous, auth.Pending = true, true
			}
			b.authorize = func(AuthorizationWanted) Authorization { return auth }
			copied := 0
			w.tap = func(from *host, d *Datagram) bool {
				m, err := wire.Parse(d.Data)
				if err != nil || m.Exchange != wire.IKESAInit {
					return true
				}
				if from == b {
					return !lost || copied != 1 // the first answer
				}
				if copied++; copied == 1 {
					m.Payloads = append([]wire.Payload{status(wire.Cookie, []byte("observed"))}, m.Payloads...)
					data, _ := m.Marshal()
					w.queue = append(w.queue, flight{at: w.now.Add(6 * time.Millisecond), d: Datagram{addrB, addrA, data}})
				}
				return true
			}
			w.initiate(a, p)
			if !w.until(3*time.Second, bothUp(a, b)) {
				t.Errorf("%s, lost %v: not up\n%s\n%s", how, lost, a.dump(), b.dump())
				continue
			}
			e, _ := find[Established](b)
			if proved := how == "a key"; (e.Key != nil) != proved || how == "a raw key" && e.Raw == nil {
				t.Errorf("%s: %+v", how, e)
			}
			if auth.Pending {
				w.take(b, b.e.Promote(w.now, e.SA, []crypto.PublicKey{a.key.Public()}))
				if count[Promoted](b) != 1 {
					t.Errorf("%s: not promoted", how)
				}
			}
			checkSound(t, a, b)
		}
	}
}
