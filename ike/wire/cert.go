package wire

import "golang.org/x/crypto/cryptobyte"

// Encodings of a CERT.
const (
	CertRawRSA uint8 = 11 // an RSA key of PKCS #1 (RFC 7296, 3.6), deprecated by RFC 7670
	CertRawKey uint8 = 15 // a SubjectPublicKeyInfo in DER (RFC 7670, 3)
)

// Cert is the Certificate payload (RFC 7296, 3.6). tacit trusts none, but peers send them.
type Cert struct {
	Encoding uint8 // 4: X.509 signature, or one of the above
	Data     []byte
}

// CertReq is the Certificate Request payload (RFC 7296, 3.7).
type CertReq struct {
	Encoding uint8
	Data     []byte // hashes of authorities' keys, 20 octets each
}

// PayloadType is PayloadCert.
func (*Cert) PayloadType() PayloadType { return PayloadCert }

// PayloadType is PayloadCertReq.
func (*CertReq) PayloadType() PayloadType { return PayloadCertReq }

func (p *Cert) marshal(b *cryptobyte.Builder) {
	b.AddUint8(p.Encoding)
	b.AddBytes(p.Data)
}

func (p *CertReq) marshal(b *cryptobyte.Builder) {
	b.AddUint8(p.Encoding)
	b.AddBytes(p.Data)
}

func parseCert(r *reader) *Cert {
	return &Cert{Encoding: r.u8("certificate encoding"), Data: r.rest()}
}

func parseCertReq(r *reader) *CertReq {
	return &CertReq{Encoding: r.u8("certificate encoding"), Data: r.rest()}
}
