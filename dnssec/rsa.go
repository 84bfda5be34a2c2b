package dnssec

import (
	"bytes"
	"crypto"
	_ "crypto/sha1" // for crypto.Hash, as the others
	_ "crypto/sha256"
	_ "crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"slices"

	"filippo.io/bigmod"
	"github.com/miekg/dns"
)

// Sizes of RSA keys, in bits. What is larger costs more than it can be worth.
const (
	minModulus  = 1024 // as crypto/rsa; shorter ones have been broken
	maxModulus  = 4096
	maxExponent = 64 // keys with 2^32+1 have been in use
)

// rsaHashes are the hashes of the algorithms (RFC 3110, RFC 5155, RFC 5702).
var rsaHashes = map[uint8]crypto.Hash{
	dns.RSASHA1: crypto.SHA1, dns.RSASHA1NSEC3SHA1: crypto.SHA1, dns.RSASHA256: crypto.SHA256, dns.RSASHA512: crypto.SHA512,
}

// derPrefix are the DigestInfo headers of PKCS #1 (RFC 8017, 9.2) for the hashes of DNSSEC.
var derPrefix = map[crypto.Hash][]byte{
	crypto.SHA1:   {0x30, 0x21, 0x30, 0x09, 0x06, 0x05, 0x2b, 0x0e, 0x03, 0x02, 0x1a, 0x05, 0x00, 0x04, 0x14},
	crypto.SHA256: {0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20},
	crypto.SHA512: {0x30, 0x51, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03, 0x05, 0x00, 0x04, 0x40},
}

// rsaKey is an RSA key that is ready to check signatures. crypto/rsa prepares the modulus for every signature anew, which is a third of the work, and
// refuses exponents of more than 31 bits.
type rsaKey struct {
	m *bigmod.Modulus
	e []byte
}

// power is s to the exponent. An exponent of 32 bits fits a word everywhere.
func (k *rsaKey) power(s *bigmod.Nat) *bigmod.Nat {
	if len(k.e) > 4 {
		return bigmod.NewNat().Exp(s, k.e, k.m)
	}
	e := uint(0)
	for _, b := range k.e {
		e = e<<8 | uint(b)
	}
	return bigmod.NewNat().ExpShortVarTime(s, e, k.m)
}

// shorter says whether k is an RSA key of fewer bits.
func (k zoneKey) shorter(bits int) bool {
	if k.rsa == nil {
		return false
	}
	key, err := k.rsa()
	return err == nil && key.m.BitLen() < bits
}

// parseRSA reads a key as it stands in a DNSKEY. RFC 3110: the length of the exponent in one octet or, after a zero, in two, the exponent, the modulus.
func parseRSA(text string) (*rsaKey, error) {
	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, err
	}
	if len(key) < 3 {
		return nil, errKey
	}
	n, key := int(key[0]), key[1:]
	if n == 0 {
		n, key = int(binary.BigEndian.Uint16(key)), key[2:]
	}
	if n == 0 || len(key) <= n || 8*n > maxExponent || 8*(len(key)-n) > maxModulus || key[0] == 0 || key[n] == 0 {
		return nil, errKey
	}
	e, m := key[:n], key[n:]
	if e[n-1]&1 == 0 || n == 1 && e[0] == 1 || m[len(m)-1]&1 == 0 {
		return nil, errKey
	}
	k := &rsaKey{e: e}
	if k.m, err = bigmod.NewModulus(m); err != nil {
		return nil, errKey
	}
	return k, nil
}

// verify is RSASSA-PKCS1-v1_5 (RFC 8017, 8.2.2): what is signed is made as it must be, and compared whole.
func (k *rsaKey) verify(h crypto.Hash, data, sig []byte) error {
	prefix, size := derPrefix[h], k.m.Size()
	pad := size - 3 - len(prefix) - h.Size()
	if len(sig) != size || pad < 8 {
		return errKey
	}
	s, err := bigmod.NewNat().SetBytes(sig, k.m)
	if err != nil { // not less than the modulus
		return errSignature
	}
	sum := h.New()
	sum.Write(data)
	want := slices.Concat([]byte{0, 1}, bytes.Repeat([]byte{0xff}, pad), []byte{0}, prefix, sum.Sum(nil))
	if !bytes.Equal(k.power(s).Bytes(k.m), want) {
		return errSignature
	}
	return nil
}
