package ike

import (
	"crypto"
	"crypto/aes"
	_ "crypto/sha256" // registers the hashes of the PRFs
	_ "crypto/sha512"
	"fmt"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// The algorithms of RFC 8247 that we speak, by their IANA numbers, best first. What the head of each table holds we
// propose first and choose where we can; the rest is there because a peer's default may have nothing better.

// cipherSuite is how messages of IKE or packets of ESP are encrypted and authenticated: a combined-mode cipher, or a cipher with an
// integrity algorithm beside it.
type cipherSuite struct {
	cipher ipsec.Cipher
	bits   uint16 // the Key Length attribute; 0: the transform has none
	integ  ipsec.Integrity
}

// espCiphers are for packets, of which processors with instructions for AES encrypt more that way.
var espCiphers = []cipherSuite{
	{cipher: ipsec.AESGCM16, bits: 128},
	{cipher: ipsec.AESGCM16, bits: 256},
	{cipher: ipsec.ChaCha20Poly1305},
	{cipher: ipsec.AESCBC, bits: 256},
	{cipher: ipsec.AESCBC, bits: 128},
}

// ikeCiphers are the same for messages, which are few and short: what counts is what a key needs before it is used, and ChaCha20 needs nothing.
var ikeCiphers = []cipherSuite{
	{cipher: ipsec.ChaCha20Poly1305},
	{cipher: ipsec.AESGCM16, bits: 128},
	{cipher: ipsec.AESGCM16, bits: 256},
	{cipher: ipsec.AESCBC, bits: 256},
	{cipher: ipsec.AESCBC, bits: 128},
}

// integrities are the integrity algorithms for a cipher that is not combined-mode.
var integrities = []ipsec.Integrity{ipsec.HMACSHA256, ipsec.HMACSHA384, ipsec.HMACSHA512}

// prfs are the pseudorandom functions by transform id (RFC 4868, 2.4).
var prfs = []struct {
	id   uint16
	hash crypto.Hash
}{{wire.PRFHMACSHA2256, crypto.SHA256}, {wire.PRFHMACSHA2384, crypto.SHA384}, {wire.PRFHMACSHA2512, crypto.SHA512}}

// saltLen octets of the key material begin every nonce (RFC 4106, 8.1; RFC 5282, 4; RFC 7634, 2).
const saltLen = 4

// keyLen is the length of the cipher's key in octets.
func (c cipherSuite) keyLen() int {
	if c.bits == 0 {
		return 32
	}
	return int(c.bits) / 8
}

// keyMaterial is the length of what the cipher takes of a key schedule: its key, and behind it a salt or the key of the integrity
// algorithm.
func (c cipherSuite) keyMaterial() int {
	if c.cipher.Combined() {
		return c.keyLen() + saltLen
	}
	return c.keyLen() + c.integ.KeyLen()
}

// ivLen and icvLen are the octets before and behind what is encrypted, of which align divides the length (RFC 7296, 3.14; RFC 5282, 3).
func (c cipherSuite) ivLen() int {
	if c.cipher.Combined() {
		return 8
	}
	return aes.BlockSize
}

func (c cipherSuite) icvLen() int {
	if c.cipher.Combined() {
		return 16
	}
	return c.integ.ICVLen()
}

func (c cipherSuite) align() int {
	if c.cipher.Combined() {
		return 1
	}
	return aes.BlockSize
}

func (c cipherSuite) String() string {
	name := c.cipher.String()
	if c.bits != 0 {
		name = fmt.Sprintf("%s-%d", name, c.bits)
	}
	if c.integ != ipsec.NoIntegrity {
		name += " " + c.integ.String()
	}
	return name
}

// transforms are those of a chosen suite.
func (c cipherSuite) transforms() []wire.Transform {
	ts := []wire.Transform{{Type: wire.TransformEncr, ID: uint16(c.cipher), KeyLength: c.bits}}
	if c.integ != ipsec.NoIntegrity {
		ts = append(ts, wire.Transform{Type: wire.TransformInteg, ID: uint16(c.integ)})
	}
	return ts
}

// ikeSuite is what an IKE SA has agreed upon.
type ikeSuite struct {
	cipher cipherSuite
	prfID  uint16
	prf    crypto.Hash
	group  uint16
	add    uint16 // an additional key exchange (RFC 9370), or groupNone
}

func (s ikeSuite) String() string {
	text := fmt.Sprintf("%v prf-sha%d %s", s.cipher, s.prf.Size()*8, groupName(s.group))
	if s.add != groupNone {
		text += "+" + groupName(s.add)
	}
	return text
}

// espSuite is what a Child SA has agreed upon. group is groupNone without a key exchange of its own.
type espSuite struct {
	cipher cipherSuite
	esn    bool
	group  uint16
	add    uint16 // as in ikeSuite
}

// sa is one direction of the Child SA; key is its half of KEYMAT.
func (s espSuite) sa(spi ipsec.SPI, key ipsec.Secret) ipsec.SA {
	n := s.cipher.keyLen()
	sa := ipsec.SA{SPI: spi, Cipher: s.cipher.cipher, Key: key[:n:n], Integrity: s.cipher.integ, ESN: s.esn}
	if s.cipher.integ == ipsec.NoIntegrity {
		sa.Salt = key[n:]
	} else {
		sa.AuthKey = key[n:]
	}
	return sa
}
