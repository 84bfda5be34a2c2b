package wire

import (
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// KE is the Key Exchange payload (RFC 7296, 3.4). Whether Data is a public value of Group is the engine's to check; here it
// is only not empty.
type KE struct {
	Group uint16 // a Transform ID of TransformKE
	Data  []byte
}

// PayloadType is PayloadKE.
func (*KE) PayloadType() PayloadType { return PayloadKE }

func (p *KE) marshal(b *cryptobyte.Builder) {
	if len(p.Data) == 0 {
		b.SetError(fmt.Errorf("wire: key exchange data: %w", errEmpty))
		return
	}
	b.AddUint16(p.Group)
	b.AddUint16(0)
	b.AddBytes(p.Data)
}

func parseKE(r *reader) *KE {
	p := &KE{Group: r.u16("group")}
	r.skip("reserved", 2)
	if p.Data = r.rest(); *r.err == nil && len(p.Data) == 0 {
		r.fail("key exchange data", errEmpty)
	}
	return p
}
