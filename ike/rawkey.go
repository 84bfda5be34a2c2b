package ike

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"

	"tacit/ike/wire"
)

// Raw public keys (RFC 7670) say nothing about whose they are. Ours is sent to who asks for it; a peer's is only looked at when it
// is nobody, so that it can be known again.

// maxRawKey is the longest SubjectPublicKeyInfo that we read: RSA with 8192 bits has 1062 octets.
const maxRawKey = 1200

// askKey asks for a raw key, and then in the way before RFC 7670, though no such answer is read: openiked 7.2 looks at one request after the
// other, and where it does not know the last it has no CERT to send, and neither sends IKE_AUTH nor answers it.
func askKey() []wire.Payload {
	return []wire.Payload{&wire.CertReq{Encoding: wire.CertRawKey}, &wire.CertReq{Encoding: wire.CertRawRSA}}
}

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
	pub := s.e.cfg.Public
	switch {
	case !a.asksKey || a.ours.Method == wire.AuthNull:
		return nil
	case a.local.Kind == wire.IDNull:
		pub = s.hs.auth.Mask.Public()
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil
	}
	return []wire.Payload{&wire.Cert{Encoding: wire.CertRawKey, Data: der}}
}

// signNobody makes our AUTH where we tell no name: by the key that we are known again by, if the peer wants one, else without a key.
func (s *sa) signNobody() {
	if ours, err := s.signMask(); err == nil {
		s.hs.auths.ours = ours
		return
	}
	s.signNull()
}

// signMask fails where there is no such key, or the peer did not ask for it, or could not verify it. What is to be followed by a second
// authentication begins with NULL.
func (s *sa) signMask() (*wire.Auth, error) {
	a, mask := &s.hs.auths, s.hs.auth.Mask
	if mask == nil || !a.asksKey || a.second != secondNone {
		return nil, errors.New("no key is wanted")
	}
	sch, err := chooseScheme(mask.Public(), s.hs.hashes, a.family)
	if err != nil {
		return nil, err
	}
	sig, err := mask.Sign(s.e.cfg.Rand, sch.digest(s.localOctets()), sch.opts())
	if err != nil {
		return nil, err
	}
	return sch.payload(sig)
}

// ourProof is our ID, with our key if it was asked for, and our AUTH.
func (s *sa) ourProof() []wire.Payload {
	a := &s.hs.auths
	return append(append([]wire.Payload{a.local}, s.ourCert()...), a.ours)
}
