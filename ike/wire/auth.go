package wire

import "golang.org/x/crypto/cryptobyte"

// Auth is the Authentication payload (RFC 7296, 3.8).
type Auth struct {
	Method uint8
	Data   []byte
}

// The authentication methods (RFC 7296, 3.8; RFC 4754; RFC 7619; RFC 7427).
const (
	AuthRSA              uint8 = 1
	AuthSharedKey        uint8 = 2
	AuthDSS              uint8 = 3
	AuthECDSA256         uint8 = 9
	AuthECDSA384         uint8 = 10
	AuthECDSA521         uint8 = 11
	AuthNull             uint8 = 13
	AuthDigitalSignature uint8 = 14
)

// PayloadType is PayloadAuth.
func (*Auth) PayloadType() PayloadType { return PayloadAuth }

func (p *Auth) marshal(b *cryptobyte.Builder) {
	b.AddUint8(p.Method)
	b.AddUint24(0)
	b.AddBytes(p.Data)
}

func parseAuth(r *reader) *Auth {
	p := &Auth{Method: r.u8("auth method")}
	r.skip("reserved", 3)
	p.Data = r.rest()
	return p
}
