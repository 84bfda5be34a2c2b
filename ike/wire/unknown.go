package wire

import "golang.org/x/crypto/cryptobyte"

// Unknown is a payload that this package does not take apart: EAP (48), which tacit never uses, and
// types that it does not know, which "MUST be ignored" when they are not critical (RFC 7296, 2.5).
type Unknown struct {
	Type     PayloadType
	Critical bool // only of EAP, for which it means nothing
	Body     []byte
}

// PayloadType is the payload's own.
func (p *Unknown) PayloadType() PayloadType { return p.Type }

func (p *Unknown) marshal(b *cryptobyte.Builder) { b.AddBytes(p.Body) }

// parseUnknown refuses a critical payload of a type that RFC 7296 does not define.
func parseUnknown(r *reader, t PayloadType, critical bool, at int) *Unknown {
	if critical && t != PayloadEAP && *r.err == nil {
		*r.err = &CriticalError{Type: t, Offset: at}
	}
	return &Unknown{Type: t, Critical: critical, Body: r.rest()}
}
