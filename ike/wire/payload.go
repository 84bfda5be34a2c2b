package wire

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// Payload is one of the pointer types of this package.
type Payload interface {
	PayloadType() PayloadType
	// marshal writes the body, without the generic header.
	marshal(b *cryptobyte.Builder)
}

const criticalBit = 0x80

// ParsePayloads reads a decrypted chain whose first payload has the given type. The payloads alias b: the caller gives it
// away. An Encrypted payload inside is an error. An empty chain is first 0 and no octets.
func ParsePayloads(first PayloadType, b []byte) ([]Payload, error) {
	r := newReader(b)
	ps := r.chain(first, false)
	if *r.err != nil {
		return nil, *r.err
	}
	return ps, nil
}

// OnlyVendorIDs reports whether a chain that ParsePayloads would read holds nothing else, as a probe does that was made longer: they mean nothing, and such
// messages come most often.
func OnlyVendorIDs(first PayloadType, b []byte) bool {
	for n := 0; first == PayloadVendorID && len(b) >= genericLen && n < MaxPayloads; n++ {
		length := int(binary.BigEndian.Uint16(b[2:]))
		if length < genericLen || length > len(b) {
			return false
		}
		first, b = PayloadType(b[0]), b[length:]
	}
	return first == PayloadNone && len(b) == 0
}

// MarshalPayloads writes a chain that is to be encrypted, and says what the Encrypted payload's First must be.
func MarshalPayloads(ps []Payload) (first PayloadType, b []byte, err error) {
	if len(ps) == 0 {
		return PayloadNone, nil, nil
	}
	first = ps[0].PayloadType()
	out := cryptobyte.NewBuilder(make([]byte, 0, usualMessage))
	addChain(out, ps, false)
	b, err = out.Bytes()
	return first, b, err
}

// Find returns the first payload of a type, and how many there are: 0 is missing, 2 a repeated one.
func Find[T Payload](ps []Payload) (first T, n int) {
	for _, p := range ps {
		if t, ok := p.(T); ok {
			if n == 0 {
				first = t
			}
			n++
		}
	}
	return first, n
}

// chain reads payloads until Next Payload is 0, which must be where the octets end. Outside (of an Encrypted payload) an
// Encrypted or EncryptedFragment ends the chain: its Next Payload is the type of the first payload inside.
func (r *reader) chain(next PayloadType, outside bool) []Payload {
	var ps []Payload
	for next != PayloadNone && *r.err == nil {
		r.in = next
		if len(ps) == MaxPayloads {
			r.failf("next payload", "more than %d payloads", MaxPayloads)
			break
		}
		at := r.offset()
		following, flags, body := r.counted("payload")
		if *r.err != nil {
			break
		}
		var p Payload
		switch sealed := next == PayloadSK || next == PayloadSKF; {
		case sealed && !outside:
			r.failAt(at, "payload", fmt.Errorf("%v inside of an encrypted payload", next))
		case sealed:
			if p = body.sealed(next, PayloadType(following)); r.more() {
				r.fail("payload", fmt.Errorf("%v is not the last", next)) // RFC 7296, 3.14; RFC 7383, 2.5
			}
			following = 0
		default:
			p = body.payload(next, flags&criticalBit != 0, at)
		}
		ps = append(ps, p)
		next = PayloadType(following)
	}
	if *r.err != nil {
		return nil
	}
	r.in = PayloadNone
	r.done("message")
	return ps
}

// payload reads the body of one payload and all of it.
func (r *reader) payload(t PayloadType, critical bool, at int) (p Payload) {
	switch t {
	case PayloadSA:
		p = parseSA(r)
	case PayloadKE:
		p = parseKE(r)
	case PayloadIDi, PayloadIDr:
		p = parseID(r, t == PayloadIDr)
	case PayloadCert:
		p = parseCert(r)
	case PayloadCertReq:
		p = parseCertReq(r)
	case PayloadAuth:
		p = parseAuth(r)
	case PayloadNonce:
		p = parseNonce(r)
	case PayloadNotify:
		p = parseNotify(r)
	case PayloadDelete:
		p = parseDelete(r)
	case PayloadVendorID:
		p = parseVendorID(r)
	case PayloadTSi, PayloadTSr:
		p = parseTS(r, t == PayloadTSr)
	case PayloadConfig:
		p = parseConfig(r)
	default:
		p = parseUnknown(r, t, critical, at)
	}
	r.done("payload")
	return p
}

// addChain writes payloads one behind the other.
func addChain(out *cryptobyte.Builder, ps []Payload, outside bool) {
	if len(ps) > MaxPayloads {
		out.SetError(fmt.Errorf("wire: more than %d payloads", MaxPayloads))
		return
	}
	for i, p := range ps {
		next, flags := PayloadNone, uint8(0)
		if i+1 < len(ps) {
			next = ps[i+1].PayloadType()
		}
		switch p := p.(type) {
		case *Encrypted, *EncryptedFragment:
			if !outside || i+1 < len(ps) {
				out.SetError(fmt.Errorf("wire: %v must be the last payload of a message", p.PayloadType()))
				return
			}
			next = innerFirst(p)
		case *Unknown:
			if p.Critical {
				flags = criticalBit
			}
		}
		addCounted(out, uint8(next), flags, p.marshal)
	}
}
