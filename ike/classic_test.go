package ike

import (
	"errors"
	"slices"
	"testing"
	"time"

	"tacit/ike/wire"
)

// A peer that sends no SIGNATURE_HASH_ALGORITHMS knows no RFC 7427: ECDSA then signs by the classic methods 9 and 10 (RFC 4754). RSA's
// classic method 1 is SHA-1 in nearly all engines, and Ed25519 has none: nothing is signed (TRUST.md A-26).
func TestClassicSignatures(t *testing.T) {
	for kind, method := range map[string]uint8{"p256": wire.AuthECDSA256, "p384": wire.AuthECDSA384, "rsa": 0, "ed25519": 0} {
		for _, role := range []string{"initiator", "responder"} {
			t.Run(kind+"/"+role, func(t *testing.T) {
				a := newHost(t, "alice.example", addrA, testKeys()[kind], Config{})
				b := newHost(t, "bob.example", addrB, testKeys()[kind], Config{})
				w := newWorld(t, a, b)
				p := named(a, b)
				signer := a
				if role == "responder" {
					signer, p.LocalID = b, ID{Kind: IDNull}
					b.authorize = func(AuthorizationWanted) Authorization { return Authorization{Anonymous: true} }
				}
				var used []uint8
				look := rewrite(t, signer, func(ps []wire.Payload) []wire.Payload {
					if a := get[*wire.Auth](ps); a != nil {
						used = append(used, a.Method)
					}
					return ps
				})
				forget := func(s *sa) {
					if s.hs != nil {
						s.hs.hashes = nil
					}
				}
				strip := stranger(t, b, func(ps []wire.Payload) []wire.Payload {
					return slices.DeleteFunc(ps, func(p wire.Payload) bool {
						n, ok := p.(*wire.Notify)
						return ok && n.Type == wire.SignatureHashAlgorithms
					})
				})
				w.tap = func(from *host, d *Datagram) bool {
					for _, s := range b.e.sas {
						forget(s) // as if the request had had none
					}
					return strip(from, d) && look(from, d)
				}
				w.initiate(a, p)
				up := w.until(time.Second, bothUp(a, b))
				if method == 0 {
					w.run(time.Minute)
					c, _ := find[Closed](a)
					if up || !errors.Is(c.Err, ErrAuthentication) || len(used) != 0 {
						t.Errorf("up %v, closed with %v, methods %v", up, c.Err, used)
					}
					return
				}
				if !up || !slices.Contains(used, method) {
					t.Fatalf("up %v, methods %v, want %d\n%s\n%s", up, used, method, a.dump(), b.dump())
				}
				checkPaired(t, a, b)
				proved, _ := find[Established](map[string]*host{"initiator": b, "responder": a}[role])
				if !sameKey(proved.Key, signer.key.Public()) {
					t.Errorf("proved %v", proved.Key)
				}
			})
		}
	}
}
