package dnssec

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"math/big"
	"slices"

	"github.com/miekg/dns"
)

var (
	errSignature = errors.New("the signature does not hold")
	errKey       = errors.New("the key is none of its algorithm")
)

// arithmetic checks one signature over set by k: nothing but the arithmetic. Whose key it is, what it may sign and when is verifyOne's.
//
// The dns package has a method for it, which we do not use: it cannot do wildcards of the root or large exponents, and copies everything twice.
func arithmetic(sig *dns.RRSIG, k zoneKey, set *rrset) error {
	data, err := signedData(sig, set)
	if err != nil {
		return err
	}
	made, err := base64.StdEncoding.DecodeString(sig.Signature)
	if err != nil {
		return err
	}
	if k.rsa != nil {
		key, err := k.rsa()
		if err != nil {
			return err
		}
		return key.verify(rsaHashes[k.rr.Algorithm], data, made)
	}
	key, err := base64.StdEncoding.DecodeString(k.rr.PublicKey)
	if err != nil {
		return err
	}
	switch k.rr.Algorithm {
	case dns.ECDSAP256SHA256:
		h := sha256.Sum256(data)
		return verifyECDSA(elliptic.P256(), key, h[:], made)
	case dns.ECDSAP384SHA384:
		h := sha512.Sum384(data)
		return verifyECDSA(elliptic.P384(), key, h[:], made)
	case dns.ED25519: // RFC 8080
		if len(key) != ed25519.PublicKeySize {
			return errKey
		}
		if !ed25519.Verify(key, data, made) {
			return errSignature
		}
		return nil
	}
	return errKey
}

// verifyECDSA is RFC 6605: the key is the point without its first octet, the signature the two numbers in the size of the curve.
func verifyECDSA(curve elliptic.Curve, key, hash, sig []byte) error {
	size := (curve.Params().BitSize + 7) / 8
	if len(key) != 2*size || len(sig) != 2*size {
		return errKey
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(curve, append([]byte{4}, key...))
	if err != nil {
		return err
	}
	if !ecdsa.Verify(pub, hash, new(big.Int).SetBytes(sig[:size]), new(big.Int).SetBytes(sig[size:])) {
		return errSignature
	}
	return nil
}

// signedData is what a signature covers (RFC 4034, 3.1.8.1): the RRSIG's RDATA without the signature, and the RRs in canonical form and order.
func signedData(sig *dns.RRSIG, set *rrset) ([]byte, error) {
	all, err := set.canonical()
	if err != nil {
		return nil, err
	}
	signer := make([]byte, 256)
	n, err := dns.PackDomainName(dns.CanonicalName(sig.SignerName), signer, 0, nil, false)
	if err != nil {
		return nil, err
	}
	data := make([]byte, 0, 512)
	data = binary.BigEndian.AppendUint16(data, sig.TypeCovered)
	data = append(data, sig.Algorithm, sig.Labels)
	data = binary.BigEndian.AppendUint32(data, sig.OrigTtl)
	data = binary.BigEndian.AppendUint32(data, sig.Expiration)
	data = binary.BigEndian.AppendUint32(data, sig.Inception)
	data = binary.BigEndian.AppendUint16(data, sig.KeyTag)
	data = append(data, signer[:n]...)

	owner := set.name
	if dns.CountLabel(owner) > int(sig.Labels) && owner != wildcardOf(ancestor(owner, int(sig.Labels))) {
		owner = wildcardOf(ancestor(owner, int(sig.Labels)))
	}
	name := make([]byte, 256)
	if n, err = dns.PackDomainName(owner, name, 0, nil, false); err != nil {
		return nil, err
	}
	for _, rdata := range all {
		data = append(data, name[:n]...)
		data = binary.BigEndian.AppendUint16(data, sig.TypeCovered)
		data = binary.BigEndian.AppendUint16(data, dns.ClassINET)
		data = binary.BigEndian.AppendUint32(data, sig.OrigTtl)
		data = binary.BigEndian.AppendUint16(data, uint16(len(rdata)))
		data = append(data, rdata...)
	}
	return data, nil
}

// canonical are the RDATA of a set in canonical form and order, none twice (RFC 2181, 5). They are made once: a set may have many signatures, and they
// may be many.
func (s *rrset) canonical() ([][]byte, error) {
	if s.rdata != nil {
		return s.rdata, nil
	}
	if len(s.rrs) == 0 {
		return nil, errSignature
	}
	all := make([][]byte, 0, len(s.rrs))
	for _, rr := range s.rrs {
		rdata, err := RDATA(canonicalRDATA(rr))
		if err != nil {
			return nil, err
		}
		all = append(all, rdata)
	}
	slices.SortFunc(all, bytes.Compare)
	s.rdata = slices.CompactFunc(all, bytes.Equal)
	return s.rdata, nil
}

// canonicalRDATA is rr with the names in its RDATA in lower case, for the types that RFC 4034, 6.2 lists; RFC 6840, 5.1 took NSEC off the list, and
// later types were never on it.
func canonicalRDATA(rr dns.RR) dns.RR {
	var names []*string
	switch rr.(type) {
	case *dns.NS, *dns.MD, *dns.MF, *dns.CNAME, *dns.SOA, *dns.MB, *dns.MG, *dns.MR, *dns.PTR, *dns.MINFO, *dns.MX, *dns.RP, *dns.AFSDB, *dns.RT,
		*dns.PX, *dns.NAPTR, *dns.KX, *dns.SRV, *dns.DNAME:
		rr = dns.Copy(rr)
	}
	switch rr := rr.(type) {
	case *dns.NS:
		names = []*string{&rr.Ns}
	case *dns.MD:
		names = []*string{&rr.Md}
	case *dns.MF:
		names = []*string{&rr.Mf}
	case *dns.CNAME:
		names = []*string{&rr.Target}
	case *dns.SOA:
		names = []*string{&rr.Ns, &rr.Mbox}
	case *dns.MB:
		names = []*string{&rr.Mb}
	case *dns.MG:
		names = []*string{&rr.Mg}
	case *dns.MR:
		names = []*string{&rr.Mr}
	case *dns.PTR:
		names = []*string{&rr.Ptr}
	case *dns.MINFO:
		names = []*string{&rr.Rmail, &rr.Email}
	case *dns.MX:
		names = []*string{&rr.Mx}
	case *dns.RP:
		names = []*string{&rr.Mbox, &rr.Txt}
	case *dns.AFSDB:
		names = []*string{&rr.Hostname}
	case *dns.RT:
		names = []*string{&rr.Host}
	case *dns.PX:
		names = []*string{&rr.Map822, &rr.Mapx400}
	case *dns.NAPTR:
		names = []*string{&rr.Replacement}
	case *dns.KX:
		names = []*string{&rr.Exchanger}
	case *dns.SRV:
		names = []*string{&rr.Target}
	case *dns.DNAME:
		names = []*string{&rr.Target}
	}
	for _, name := range names {
		*name = dns.CanonicalName(*name)
	}
	return rr
}
