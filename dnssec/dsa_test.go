package dnssec

import (
	"crypto"
	//lint:ignore SA1019 the scenarios were signed with it
	"crypto/dsa"
	"crypto/sha1"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"io"
	"math/big"

	"github.com/miekg/dns"
)

// capture is a signer that keeps what it is asked to sign.
type capture struct{ data []byte }

func (c *capture) Public() crypto.PublicKey { return nil }
func (c *capture) Sign(_ io.Reader, data []byte, _ crypto.SignerOpts) ([]byte, error) {
	c.data = append([]byte{}, data...)
	return make([]byte, 64), nil
}

// verifyDSA is RFC 2536 for tests.
func verifyDSA(sig *dns.RRSIG, k zoneKey, set *rrset) error {
	rrs := set.rrs
	own := make([]dns.RR, len(rrs))
	for i, rr := range rrs {
		own[i] = dns.Copy(rr)
		if n := dns.CountLabel(rr.Header().Name); n > int(sig.Labels) && !isWildcard(rr.Header().Name) {
			own[i].Header().Name = wildcardOf(ancestor(dns.CanonicalName(rr.Header().Name), int(sig.Labels)))
		}
	}
	c := new(capture)
	s := &dns.RRSIG{Hdr: sig.Hdr, Algorithm: dns.ED25519, OrigTtl: sig.OrigTtl, Expiration: sig.Expiration, Inception: sig.Inception, KeyTag: sig.KeyTag, SignerName: dns.CanonicalName(sig.SignerName)}
	if err := s.Sign(c, own); err != nil {
		return err
	}
	if s.Labels != sig.Labels {
		return errors.New("labels")
	}
	c.data[2] = sig.Algorithm
	b, err := base64.StdEncoding.DecodeString(k.rr.PublicKey)
	if err != nil || len(b) < 21 || len(b) != 21+3*(64+8*int(b[0])) {
		return errors.New("dsa key")
	}
	n := 64 + 8*int(b[0])
	at := func(from, n int) *big.Int { return new(big.Int).SetBytes(b[from : from+n]) }
	pub := dsa.PublicKey{Parameters: dsa.Parameters{Q: at(1, 20), P: at(21, n), G: at(21+n, n)}, Y: at(21+2*n, n)}
	raw, err := base64.StdEncoding.DecodeString(sig.Signature)
	if err != nil {
		return err
	}
	var rs struct{ R, S *big.Int }
	if len(raw) == 41 {
		rs.R, rs.S = new(big.Int).SetBytes(raw[1:21]), new(big.Int).SetBytes(raw[21:])
	} else if _, err := asn1.Unmarshal(raw, &rs); err != nil {
		return err
	}
	h := sha1.Sum(c.data)
	if !dsa.Verify(&pub, h[:], rs.R, rs.S) {
		return errors.New("dsa")
	}
	return nil
}
