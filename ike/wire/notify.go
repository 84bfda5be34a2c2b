package wire

import (
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// Notify is the Notify payload (RFC 7296, 3.10).
type Notify struct {
	Protocol Protocol // of SPI; 0 where there is none
	SPI      []byte   // 4 octets for ESP and AH, else empty
	Type     NotifyType
	Data     []byte
}

// PayloadType is PayloadNotify.
func (*Notify) PayloadType() PayloadType { return PayloadNotify }

func (p *Notify) marshal(b *cryptobyte.Builder) {
	if err := notifySPI(p.Protocol, len(p.SPI)); err != nil {
		b.SetError(fmt.Errorf("wire: notify %v: %w", p.Type, err))
		return
	}
	b.AddUint8(uint8(p.Protocol))
	b.AddUint8(uint8(len(p.SPI)))
	b.AddUint16(uint16(p.Type))
	b.AddBytes(p.SPI)
	b.AddBytes(p.Data)
}

// notifySPI checks the length of an SPI. Implementations name a protocol and no SPI, which hurts nobody.
func notifySPI(proto Protocol, n int) error {
	if (proto == ProtocolESP || proto == ProtocolAH) && n != 0 && n != 4 || n > 8 {
		return fmt.Errorf("SPI of %d octets for %v", n, proto)
	}
	return nil
}

func parseNotify(r *reader) *Notify {
	p := &Notify{Protocol: Protocol(r.u8("protocol"))}
	at := r.offset()
	size := int(r.u8("SPI size"))
	p.Type = NotifyType(r.u16("notify type"))
	if err := notifySPI(p.Protocol, size); err != nil {
		r.failAt(at, "SPI size", err)
	}
	p.SPI = r.bytes("SPI", size)
	p.Data = r.rest()
	return p
}
