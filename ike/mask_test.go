package ike

import (
	"crypto"
	"errors"
	"testing"
	"time"
)

// Two hosts that are nobody know each other again by the keys that they show (RFC 7619, 2.2; RFC 7670), where the other asks; a name is never one of them.
func TestMasks(t *testing.T) {
	mine, theirs := testKeys()["ed25519"], testKeys()["other"]
	for _, tt := range []struct {
		what         string
		asks         bool // the responder
		mine, theirs crypto.Signer
	}{
		{"both have one", true, mine, theirs},
		{"the responder does not ask", false, mine, theirs},
		{"the initiator has none", true, nil, theirs},
		{"the responder has none", true, mine, nil},
	} {
		a, b := newHost(t, "", addrA, nil, Config{}), newHost(t, "", addrB, nil, Config{AskKeys: tt.asks})
		var wanted AuthorizationWanted
		b.authorize = func(e AuthorizationWanted) Authorization {
			wanted = e
			return Authorization{Anonymous: true, Mask: tt.theirs}
		}
		w := newWorld(t, a, b)
		w.initiate(a, nobodies(a, b, Authorization{Anonymous: true, Mask: tt.mine}))
		if !w.until(time.Second, bothUp(a, b)) {
			t.Fatalf("%s: not up\n%s\n%s", tt.what, a.dump(), b.dump())
		}
		shows := tt.asks && tt.mine != nil
		at, from := first(find[Established](a)), first(find[Established](b))
		if at.Key != nil || from.Key != nil || at.RemoteID.Kind != IDNull || from.RemoteID.Kind != IDNull {
			t.Errorf("%s: somebody: %+v, %+v", tt.what, at, from)
		}
		if (from.Raw != nil) != shows || shows && !sameKey(from.Raw, mine.Public()) || (at.Raw != nil) != (tt.theirs != nil) {
			t.Errorf("%s: seen %v and %v", tt.what, from.Raw, at.Raw)
		}
		if wanted.Null == shows || (wanted.Raw != nil) != shows || wanted.Began.IsZero() || wanted.ID.Kind != IDNull {
			t.Errorf("%s: asked whether %+v may come in", tt.what, wanted)
		}
	}
}

func first[T any](v T, _ bool) T { return v }

// An Authorization for the nobody who was here before lets no other in, neither without a key nor with another one, nor one who sends that key and
// signs with his own.
func TestSameNobody(t *testing.T) {
	key, other := testKeys()["ed25519"], testKeys()["other"]
	same := func(raw crypto.PublicKey) bool { return sameKey(raw, key.Public()) }
	for _, initiator := range []bool{true, false} { // who is asked
		for what, mask := range map[string]crypto.Signer{"the key": key, "another key": other, "no key": nil, "the key of another": liar{other, key.Public()}} {
			a, b := newHost(t, "", addrA, nil, Config{}), newHost(t, "", addrB, nil, Config{AskKeys: true})
			asks, shows := Authorization{Anonymous: true, Same: same}, Authorization{Anonymous: true, Mask: mask}
			if initiator {
				asks, shows = shows, asks
			}
			b.authorize = func(AuthorizationWanted) Authorization { return asks }
			w := newWorld(t, a, b)
			w.initiate(a, nobodies(a, b, shows))
			up := w.until(time.Second, bothUp(a, b))
			if up != (what == "the key") {
				t.Errorf("asked initiator %v, %s: up %v\n%s", initiator, what, up, b.dump())
			}
			judge := b
			if initiator {
				judge = a
			}
			if c, ok := find[Closed](judge); !up && (!ok || !errors.Is(c.Err, ErrAuthentication)) {
				t.Errorf("asked initiator %v, %s: %+v", initiator, what, c)
			}
		}
	}
}

// liar shows a key that it has not.
type liar struct {
	crypto.Signer
	shown crypto.PublicKey
}

func (l liar) Public() crypto.PublicKey { return l.shown }

// nobodies is b as a's peer, where neither has a name.
func nobodies(a, b *host, auth Authorization) Peer {
	return Peer{Local: a.addr, Remote: b.addr, LocalID: ID{Kind: IDNull}, Auth: auth}
}
