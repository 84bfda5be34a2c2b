package ike

import (
	"encoding/hex"
	"errors"
	"fmt"

	"filippo.io/bigmod"
)

// modp is a group of RFC 3526; its generator is 2. The prime p is safe and 2 is a square modulo p, so that 2 generates the subgroup of
// the prime order (p-1)/2: an exponent of twice the bits of the group's strength is as good as any longer one (RFC 3526, 8), and takes
// an eighth of the time. bigmod's arithmetic takes a time that does not depend on the numbers.
type modp struct {
	p        *bigmod.Modulus
	exponent int // octets
}

// The exponents are the longer ones of the table in RFC 3526, 8: 320, 420 and 480 bits.
var (
	modp2048 = newMODP(primeHead1+"CAA68FFFFFFFFFFFFFFFF", 40)
	modp3072 = newMODP(primeHead1+primeHead2+"3AD2CAFFFFFFFFFFFFFFFF", 53)
	modp4096 = newMODP(primeHead1+primeHead2+primeTail, 60)
)

// All primes have the digits of pi between two times 64 ones; the shorter ones end earlier.
const (
	primeHead1 = "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B" +
		"302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7EDEE386BFB5A899FA5AE9F24117C4B1FE6" +
		"49286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD961C62F356208552BB9ED529077096966D" +
		"670C354E4ABC9804F1746C08CA18217C32905E462E36CE3BE39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF695581718" +
		"3995497CEA956AE515D2261898FA051015728E5A8AA"
	primeHead2 = "AC42DAD33170D04507A33A85521ABDF1CBA64ECFB850458DBEF0A8AEA71575D060C7DB3970F85A6E1E4C7ABF5AE8CDB0933D71E8C94E04A2" +
		"5619DCEE3D2261AD2EE6BF12FFA06D98A0864D87602733EC86A64521F2B18177B200CBBE117577A615D6C770988C0BAD946E208E24FA074E" +
		"5AB3143DB5BFCE0FD108E4B82D120A9"
	primeTail = "2108011A723C12A787E6D788719A10BDBA5B2699C327186AF4E23C1A946834B6150BDA2583E9CA2AD44CE8DBBBC2DB04DE8EF92E8EFC141F" +
		"BECAA6287C59474E6BC05D99B2964FA090C3A2233BA186515BE7ED1F612970CEE2D7AFB81BDD762170481CD0069127D5B05AA993B4EA988D" +
		"8FDDC186FFB7DC90A6C08F4DF435C934063199FFFFFFFFFFFFFFFF"
)

func newMODP(prime string, exponent int) *modp {
	b, err := hex.DecodeString(prime)
	if err != nil {
		panic("ike: " + err.Error())
	}
	p, err := bigmod.NewModulus(b)
	if err != nil {
		panic("ike: " + err.Error())
	}
	return &modp{p, exponent}
}

// public is 2^x mod p, as long as p (RFC 7296, 3.4).
func (m *modp) public(x []byte) []byte {
	two := bigmod.NewNat().SetUint(2).ExpandFor(m.p)
	return bigmod.NewNat().Exp(two, x, m.p).Bytes(m.p)
}

// secret is y^x mod p, as long as p. It refuses what is not of the length of p, or not "1 < y < p-1" (RFC 6989, 2.1): p being
// safe, all others are of a large order.
func (m *modp) secret(x, y []byte) ([]byte, error) {
	if len(y) != m.p.Size() {
		return nil, fmt.Errorf("public value of %d octets, want %d", len(y), m.p.Size())
	}
	n, err := bigmod.NewNat().SetBytes(y, m.p)
	if err != nil {
		return nil, err
	}
	if n.IsZero()|n.IsOne()|n.IsMinusOne(m.p) != 0 {
		return nil, errors.New("public value of a small order")
	}
	return bigmod.NewNat().Exp(n, x, m.p).Bytes(m.p), nil
}
