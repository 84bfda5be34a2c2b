package wire

import (
	"fmt"
	"net/netip"

	"golang.org/x/crypto/cryptobyte"
)

// ConfigType says what a Configuration payload is for (RFC 7296, 3.15).
type ConfigType uint8

// The types that we use.
const (
	ConfigRequest ConfigType = 1
	ConfigReply   ConfigType = 2
)

// Config is a Configuration payload (RFC 7296, 3.15), as far as it is about addresses in the responder's network.
type Config struct {
	Type      ConfigType
	Addresses []InternalAddress
	Skipped   int // attributes of other types, of lengths that theirs has not, and more addresses than anybody needs
}

// InternalAddress is an INTERNAL_IP4_ADDRESS or an INTERNAL_IP6_ADDRESS (RFC 7296, 3.15.1).
type InternalAddress struct {
	V6   bool
	Addr netip.Addr // not valid: the attribute is empty, which asks for any
}

// The attributes that we know.
const (
	internalIP4 = 1
	internalIP6 = 8

	attributeReserved = 0x8000 // "MUST be ignored on receipt"
	maxInternal       = 16
)

// PayloadType is PayloadConfig.
func (*Config) PayloadType() PayloadType { return PayloadConfig }

func (p *Config) marshal(b *cryptobyte.Builder) {
	b.AddUint8(uint8(p.Type))
	b.AddUint24(0)
	for _, a := range p.Addresses {
		if a.Addr.IsValid() && (a.Addr.Is4() == a.V6 || a.Addr.Zone() != "") {
			b.SetError(fmt.Errorf("wire: internal address %v, IPv6 %v", a.Addr, a.V6))
			return
		}
		kind := uint16(internalIP4)
		if a.V6 {
			kind = internalIP6
		}
		b.AddUint16(kind)
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			b.AddBytes(a.Addr.AsSlice())
			if a.V6 && a.Addr.IsValid() {
				b.AddUint8(128) // the length of the prefix: one address
			}
		})
	}
}

func parseConfig(r *reader) *Config {
	p := &Config{Type: ConfigType(r.u8("configuration type"))}
	r.skip("reserved", 3)
	for r.more() {
		kind := r.u16("attribute type") &^ attributeReserved
		a, ok := internalAddress(kind, r.bytes("attribute value", int(r.u16("attribute length"))))
		if !ok || len(p.Addresses) == maxInternal {
			p.Skipped++
			continue
		}
		p.Addresses = append(p.Addresses, a)
	}
	return p
}

// internalAddress reads an attribute. The length of an IPv6 prefix is of no use to us.
func internalAddress(kind uint16, value []byte) (a InternalAddress, ok bool) {
	switch {
	case kind == internalIP4 && len(value) == 4:
		return InternalAddress{Addr: netip.AddrFrom4([4]byte(value))}, true
	case kind == internalIP6 && len(value) == 17:
		return InternalAddress{V6: true, Addr: netip.AddrFrom16([16]byte(value))}, true
	case kind == internalIP4 || kind == internalIP6:
		return InternalAddress{V6: kind == internalIP6}, len(value) == 0
	}
	return a, false
}
