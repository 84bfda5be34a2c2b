package ike

import (
	"crypto"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/binary"
	"net/netip"

	"tacit/ipsec"
)

// One function for each quantity of RFC 7296, 2.13 to 2.17. Initiator and responder become local and remote in
// [saKeys.local] and [childKeys.pair], and nowhere else.

// prf is prf(K, S) of RFC 7296, 2: HMAC with the negotiated hash.
func prf(h crypto.Hash, key []byte, s ...[]byte) []byte {
	m := hmac.New(h.New, key)
	for _, b := range s {
		m.Write(b)
	}
	return m.Sum(nil)
}

// prfPlus is prf+(K, S) of RFC 7296, 2.13: T1 | T2 | ..., where Tn = prf(K, Tn-1 | S | n). It gives n octets, of which
// there are at most 255 blocks; the suites here need fewer than ten.
func prfPlus(h crypto.Hash, key, s []byte, n int) []byte {
	m := hmac.New(h.New, key)
	out := make([]byte, 0, (n+h.Size()-1)/h.Size()*h.Size())
	for i := byte(1); len(out) < n; i++ {
		m.Write(s)
		m.Write([]byte{i})
		t := len(out)
		out = m.Sum(out)
		m.Reset()
		m.Write(out[t:])
	}
	return out[:n:n]
}

// skeyseed is SKEYSEED = prf(Ni | Nr, g^ir) of RFC 7296, 2.14.
func skeyseed(h crypto.Hash, ni, nr, shared []byte) []byte {
	return prf(h, concat(ni, nr), shared)
}

// saKeys are the keys of an IKE SA (RFC 7296, 2.14). ei and er are SK_ei and SK_er with the cipher's salt (RFC 5282, 5.1), or with
// SK_ai and SK_ar behind them, in the order that KEYMAT has (RFC 7296, 2.17): combined-mode ciphers have no such keys.
type saKeys struct {
	d, ei, er, pi, pr ipsec.Secret
}

// deriveSA derives the keys of a first IKE SA.
func deriveSA(s ikeSuite, ni, nr, shared []byte, spiI, spiR uint64) saKeys {
	return expandSA(s, skeyseed(s.prf, ni, nr, shared), ni, nr, spiI, spiR)
}

// expandSA is {SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr} = prf+(SKEYSEED, Ni | Nr | SPIi | SPIr).
func expandSA(s ikeSuite, seed, ni, nr []byte, spiI, spiR uint64) saKeys {
	p, a := s.prf.Size(), s.cipher.integ.KeyLen()
	e := s.cipher.keyMaterial() - a
	b := prfPlus(s.prf, seed, concat(ni, nr, spiBytes(spiI), spiBytes(spiR)), 3*p+2*a+2*e)
	next := func(n int) []byte {
		k := b[:n:n]
		b = b[n:]
		return k
	}
	d, ai, ar, ei, er := next(p), next(a), next(a), next(e), next(e)
	return saKeys{d: d, ei: append(ei, ai...), er: append(er, ar...), pi: next(p), pr: next(p)}
}

// local returns the cipher keys and the SK_p of this end and of the other.
func (k saKeys) local(initiator bool) (sealKey, openKey, pLocal, pRemote ipsec.Secret) {
	if initiator {
		return k.ei, k.er, k.pi, k.pr
	}
	return k.er, k.ei, k.pr, k.pi
}

// childKeys is the KEYMAT of a Child SA in its two halves (RFC 7296, 2.17).
type childKeys struct {
	initiatorToResponder, responderToInitiator ipsec.Secret
}

// deriveChild is KEYMAT = prf+(SK_d, [g^ir (new) |] Ni | Nr [| SK(1)]). shared is nil without a key exchange of its own, added without an
// additional one (RFC 9370, 2.2.4).
func deriveChild(h crypto.Hash, skd []byte, c cipherSuite, ni, nr, shared, added []byte) childKeys {
	n := c.keyMaterial()
	b := prfPlus(h, skd, concat(shared, ni, nr, added), 2*n)
	return childKeys{b[:n], b[n:]}
}

// pair turns KEYMAT into the inbound and the outbound SA of this end. initiator is that of the exchange.
func (k childKeys) pair(s espSuite, initiator bool, in, out ipsec.SPI) (ipsec.SA, ipsec.SA) {
	outKey, inKey := k.initiatorToResponder, k.responderToInitiator
	if !initiator {
		outKey, inKey = inKey, outKey
	}
	return s.sa(in, inKey), s.sa(out, outKey)
}

// signedOctets is InitiatorSignedOctets or ResponderSignedOctets of RFC 7296, 2.15: the first message that the signer sent,
// the other end's nonce, and prf(SK_p, RestOfIDPayload); and IntAuth behind them, if there was an IKE_INTERMEDIATE (RFC 9242, 3.3.2).
func signedOctets(h crypto.Hash, message, peerNonce, skp, idBody, intAuth []byte) []byte {
	return concat(message, peerNonce, prf(h, skp, idBody), intAuth)
}

// nullAuth is AUTH of NULL authentication (RFC 7619, 2.1): that of a shared secret (RFC 7296, 2.15), the secret being SK_p.
func nullAuth(h crypto.Hash, skp, octets []byte) []byte {
	return prf(h, prf(h, skp, []byte("Key Pad for IKEv2")), octets)
}

// natHash is the data of NAT_DETECTION_*_IP: SHA-1(SPIs | address | port) (RFC 7296, 2.23).
func natHash(spiI, spiR uint64, a netip.AddrPort) []byte {
	port := binary.BigEndian.AppendUint16(nil, a.Port())
	sum := sha1.Sum(concat(spiBytes(spiI), spiBytes(spiR), a.Addr().Unmap().AsSlice(), port))
	return sum[:]
}

func spiBytes(spi uint64) []byte { return binary.BigEndian.AppendUint64(nil, spi) }

func concat(parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	out := make([]byte, 0, n)
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}
