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
//
//tacit:attack A-26 nothing is signed or believed with SHA-1
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

// RFC 7427, 4: each end says which hashes it reads, also to an initiator that says nothing since it expects no signature itself, as
// libreswan does with rightauth=null. Else that could sign with SHA-1 only, or not at all.
func TestHashesToldUnasked(t *testing.T) {
	for _, kind := range []string{"rsa", "ed25519", "p256"} {
		a := newHost(t, "alice.example", addrA, testKeys()[kind], Config{})
		b := newHost(t, "bob.example", addrB, testKeys()["p256"], Config{}) // whose classic method needs no word of alice's
		w := newWorld(t, a, b)
		var methods []uint8
		look := rewrite(t, a, func(ps []wire.Payload) []wire.Payload {
			if a := get[*wire.Auth](ps); a != nil {
				methods = append(methods, a.Method)
			}
			return ps
		})
		w.tap = func(from *host, d *Datagram) bool {
			h, _ := wire.ParseHeader(d.Data)
			if from != a || h.Exchange != wire.IKESAInit {
				return look(from, d)
			}
			m, err := wire.Parse(d.Data)
			if err != nil {
				t.Fatal(err)
			}
			m.Payloads = slices.DeleteFunc(m.Payloads, func(p wire.Payload) bool {
				n, ok := p.(*wire.Notify)
				return ok && n.Type == wire.SignatureHashAlgorithms
			})
			if d.Data, err = m.Marshal(); err != nil {
				t.Fatal(err)
			}
			for _, s := range a.e.sas {
				s.hs.attempts[0].message = slices.Clone(d.Data)
			}
			return true
		}
		establish(t, w, a, b, named(a, b))
		if len(methods) == 0 || slices.ContainsFunc(methods, func(m uint8) bool { return m != wire.AuthDigitalSignature }) {
			t.Errorf("%s: methods %v, want the digital signature", kind, methods)
		}
		if proved, _ := find[Established](b); !sameKey(proved.Key, a.key.Public()) {
			t.Errorf("%s: proved %v", kind, proved.Key)
		}
	}
}
