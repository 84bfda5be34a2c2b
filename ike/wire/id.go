package wire

import (
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// ID is an Identification payload (RFC 7296, 3.5), the initiator's or the responder's.
type ID struct {
	Responder bool
	Kind      uint8
	Reserved  [3]byte // as received: the peer signs them (RFC 7296, 2.15)
	Data      []byte
}

// The identification types (RFC 7296, 3.5; RFC 7619, 2.2).
const (
	IDIPv4Addr   uint8 = 1
	IDFQDN       uint8 = 2
	IDRFC822Addr uint8 = 3
	IDIPv6Addr   uint8 = 5
	IDDERASN1DN  uint8 = 9
	IDDERASN1GN  uint8 = 10
	IDKeyID      uint8 = 11
	IDNull       uint8 = 13
)

// PayloadType is PayloadIDi or PayloadIDr.
func (p *ID) PayloadType() PayloadType {
	if p.Responder {
		return PayloadIDr
	}
	return PayloadIDi
}

// Signed is what AUTH covers of the payload: all after the generic header (RestOfInitIDPayload, RestOfRespIDPayload of RFC
// 7296, 2.15).
func (p *ID) Signed() []byte {
	return append([]byte{p.Kind, p.Reserved[0], p.Reserved[1], p.Reserved[2]}, p.Data...)
}

func (p *ID) marshal(b *cryptobyte.Builder) {
	if n, fixed := idLen(p.Kind); fixed && len(p.Data) != n {
		b.SetError(fmt.Errorf("wire: identification of type %d has %d octets, want %d", p.Kind, len(p.Data), n))
		return
	}
	b.AddBytes(p.Signed())
}

// idLen is the length of an identity of a type that has only one.
func idLen(kind uint8) (n int, fixed bool) {
	switch kind {
	case IDIPv4Addr:
		return 4, true
	case IDIPv6Addr:
		return 16, true
	}
	return 0, false
}

func parseID(r *reader, responder bool) *ID {
	p := &ID{Responder: responder, Kind: r.u8("id type")}
	copy(p.Reserved[:], r.bytes("reserved", 3))
	at := r.offset()
	p.Data = r.rest()
	if n, fixed := idLen(p.Kind); *r.err == nil && fixed && len(p.Data) != n {
		r.failAt(at, "identification data", fmt.Errorf("%d octets, want %d", len(p.Data), n))
	}
	return p
}
