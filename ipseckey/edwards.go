package ipseckey

import (
	"errors"
	"math/big"
)

// The field and the curve of Ed25519 (RFC 8032, 5.1). Variable time is fine here: public keys are public.
var (
	fieldPrime = new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	curveD     = mustInt("37095705934669439343138083508754565189542113879843219016388785533085940283555")
)

// The y of the points whose order divides 8. As a public key, such a point lets a forger make signatures that verify.
var lowOrder = []*big.Int{
	big.NewInt(0),
	big.NewInt(1),
	new(big.Int).Sub(fieldPrime, big.NewInt(1)),
	mustInt("2707385501144840649318225287225658788936804267575313519463743609750303402022"),
	mustInt("55188659117513257062467267217118295137698188065244968500265048394206261417927"),
}

func mustInt(s string) *big.Int {
	n, ok := new(big.Int).SetString(s, 10)
	if !ok {
		panic("ipseckey: constant " + s)
	}
	return n
}

// checkEd25519 says whether 32 octets are the encoding of a point (RFC 8032, 5.1.3), which crypto/ed25519 finds out only when it verifies, and whether its
// order is small.
func checkEd25519(b []byte) (small bool, err error) {
	le := make([]byte, 32)
	for i, c := range b {
		le[31-i] = c
	}
	sign := le[0]&0x80 != 0
	le[0] &= 0x7f
	y := new(big.Int).SetBytes(le)
	if y.Cmp(fieldPrime) >= 0 {
		return false, errors.New("the Ed25519 point is not reduced")
	}
	// x^2 = (y^2 - 1) / (d y^2 + 1)
	yy := new(big.Int).Mul(y, y)
	u := new(big.Int).Sub(yy, big.NewInt(1))
	v := new(big.Int).Mul(curveD, yy)
	v.Add(v, big.NewInt(1)).Mod(v, fieldPrime)
	xx := u.Mul(u, v.ModInverse(v, fieldPrime))
	xx.Mod(xx, fieldPrime)
	if big.Jacobi(xx, fieldPrime) == -1 || xx.Sign() == 0 && sign {
		return false, errors.New("the point is not on Ed25519's curve")
	}
	for _, l := range lowOrder {
		small = small || y.Cmp(l) == 0
	}
	return small, nil
}
