package wire

import (
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// Delete is the Delete payload (RFC 7296, 3.11): the IKE SA that carries it (ProtocolIKE, no SPIs), or Child SAs by the SPIs
// that their sender receives on.
type Delete struct {
	Protocol Protocol
	SPIs     []uint32
}

// PayloadType is PayloadDelete.
func (*Delete) PayloadType() PayloadType { return PayloadDelete }

func (p *Delete) marshal(b *cryptobyte.Builder) {
	size := deleteSPISize(p.Protocol)
	if size < 0 || size == 0 && len(p.SPIs) > 0 || len(p.SPIs) > MaxSPIs {
		b.SetError(fmt.Errorf("wire: delete of %d SPIs of %v", len(p.SPIs), p.Protocol))
		return
	}
	b.AddUint8(uint8(p.Protocol))
	b.AddUint8(uint8(size))
	b.AddUint16(uint16(len(p.SPIs)))
	for _, spi := range p.SPIs {
		b.AddUint32(spi)
	}
}

// deleteSPISize: "It MUST be zero for IKE (SPI is in message header) or four for AH and ESP." -1: no such protocol.
func deleteSPISize(proto Protocol) int {
	switch proto {
	case ProtocolIKE:
		return 0
	case ProtocolAH, ProtocolESP:
		return 4
	}
	return -1
}

func parseDelete(r *reader) *Delete {
	at := r.offset()
	p := &Delete{Protocol: Protocol(r.u8("protocol"))}
	size, count := int(r.u8("SPI size")), int(r.u16("number of SPIs"))
	switch want := deleteSPISize(p.Protocol); {
	case *r.err != nil:
	case want < 0:
		r.failAt(at, "protocol", fmt.Errorf("%v", p.Protocol))
	case size != want:
		r.failAt(at+1, "SPI size", fmt.Errorf("%d for %v, want %d", size, p.Protocol, want))
	case size == 0 && count != 0, count > MaxSPIs:
		r.failAt(at+2, "number of SPIs", fmt.Errorf("%d for %v", count, p.Protocol))
	}
	for ; count > 0 && *r.err == nil; count-- {
		p.SPIs = append(p.SPIs, r.u32("SPI"))
	}
	return p
}
