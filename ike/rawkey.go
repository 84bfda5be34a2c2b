package ike

import (
	"bytes"
	"crypto"
	"crypto/x509"

	"tacit/ike/wire"
)

// Raw public keys (RFC 7670) say nothing about whose they are. Ours is sent to who asks for it; a peer's is only looked at when it
// is nobody, so that it can be known again.

// maxRawKey is the longest SubjectPublicKeyInfo that we read: RSA with 8192 bits has 1062 octets.
const maxRawKey = 1200

// asksRawKey reports whether a message asks for our key in a CERT.
func asksRawKey(ps []wire.Payload) bool {
	for _, p := range ps {
		if c, ok := p.(*wire.CertReq); ok && c.Encoding == wire.CertRawKey {
			return true
		}
	}
	return false
}

// rawKeys returns the key of the first raw CERT, if it can be read; what it is worth is for floor to say.
func rawKeys(ps []wire.Payload) []crypto.PublicKey {
	for _, p := range ps {
		c, ok := p.(*wire.Cert)
		if !ok || c.Encoding != wire.CertRawKey {
			continue
		}
		if len(c.Data) > maxRawKey {
			return nil
		}
		pub, err := x509.ParsePKIXPublicKey(bytes.Clone(c.Data)) // the key may be a part of it, and keeps all of it then
		if err != nil {
			return nil
		}
		return []crypto.PublicKey{pub}
	}
	return nil
}

// ourCert is our raw key for a peer that asked, beside a signature of ours.
func (s *sa) ourCert() []wire.Payload {
	a := &s.hs.auths
	if !a.asksKey || a.local.Kind == wire.IDNull {
		return nil
	}
	der, err := x509.MarshalPKIXPublicKey(s.e.cfg.Public)
	if err != nil {
		return nil
	}
	return []wire.Payload{&wire.Cert{Encoding: wire.CertRawKey, Data: der}}
}

// ourProof is our ID, with our key if it was asked for, and our AUTH.
func (s *sa) ourProof() []wire.Payload {
	a := &s.hs.auths
	return append(append([]wire.Payload{a.local}, s.ourCert()...), a.ours)
}
