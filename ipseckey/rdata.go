package ipseckey

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// maxRDATA is the longest RDATA that a record can have, in octets.
const maxRDATA = 65535

// Parse reads the RDATA of one IPSECKEY record (RFC 4025, 2). An error names the field and its offset and means that the RDATA is malformed: then the record
// is as good as none. A well-formed record whose key is too weak, or of a kind that we lack, is a Record with Unusable set. The result keeps nothing of rdata.
func Parse(rdata []byte) (Record, error) {
	if len(rdata) < 3 {
		return Record{}, fmt.Errorf("ipseckey: %d octets of rdata, want 3 at least", len(rdata))
	}
	if len(rdata) > maxRDATA {
		return Record{}, fmt.Errorf("ipseckey: %d octets of rdata", len(rdata))
	}
	r := Record{Precedence: rdata[0], GatewayType: GatewayType(rdata[1]), Algorithm: Algorithm(rdata[2])}
	n, err := r.parseGateway(rdata[3:])
	if err != nil {
		return Record{}, fmt.Errorf("ipseckey: gateway at offset 3: %w", err)
	}
	r.RawKey = append([]byte{}, rdata[3+n:]...)
	if err := r.parseKey(); err != nil {
		return Record{}, fmt.Errorf("ipseckey: key at offset %d: %w", 3+n, err)
	}
	return r, nil
}

// parseGateway reads the gateway of the type that r has and returns its length.
func (r *Record) parseGateway(b []byte) (n int, err error) {
	switch r.GatewayType {
	case GatewayNone:
		// RFC 4025, 2.5: without a gateway the field is not there at all; the presentation form shows it as ".".
		return 0, nil
	case GatewayIPv4:
		n = 4
	case GatewayIPv6:
		n = 16
	case GatewayName:
		r.GatewayName, n, err = parseName(b)
		return n, err
	default:
		return 0, fmt.Errorf("unknown type %d", r.GatewayType)
	}
	if len(b) < n {
		return 0, fmt.Errorf("%d octets, want %d", len(b), n)
	}
	r.GatewayAddr, _ = netip.AddrFromSlice(b[:n])
	return n, nil
}

// parseName reads a domain name in wire form. RFC 4025, 2.5: "The wire-encoded domain name [...] MUST NOT be compressed".
func parseName(b []byte) (name string, n int, err error) {
	var out strings.Builder
	for {
		if n >= len(b) {
			return "", 0, errors.New("the name has no end")
		}
		l := int(b[n])
		n++
		switch {
		case l == 0 && out.Len() == 0:
			return ".", n, nil
		case l == 0:
			return out.String(), n, nil
		case l >= 0xc0:
			return "", 0, errors.New("the name is compressed")
		case l > 63:
			return "", 0, fmt.Errorf("label type %#x", l&0xc0)
		case n+l >= 255:
			return "", 0, errors.New("the name is longer than 255 octets")
		case n+l > len(b):
			return "", 0, errors.New("the name has no end")
		}
		writeLabel(&out, b[n:n+l])
		n += l
	}
}

// writeLabel escapes a label as zone files do (RFC 1035, 5.1), in lower case, with a dot after it.
func writeLabel(out *strings.Builder, label []byte) {
	for _, c := range label {
		switch {
		case c >= 'A' && c <= 'Z':
			out.WriteByte(c + 'a' - 'A')
		case c <= ' ' || c >= 0x7f:
			fmt.Fprintf(out, "\\%03d", c)
		case strings.IndexByte(`.\"();@$`, c) >= 0:
			out.WriteByte('\\')
			out.WriteByte(c)
		default:
			out.WriteByte(c)
		}
	}
	out.WriteByte('.')
}

// appendName writes name, in the form of parseName, in wire form.
func appendName(b []byte, name string) ([]byte, error) {
	if !strings.HasSuffix(name, ".") {
		return nil, fmt.Errorf("ipseckey: gateway %q has no final dot", name)
	}
	start := len(b)
	for at := 0; at < len(name) && name != "."; {
		length := len(b)
		b = append(b, 0)
		for name[at] != '.' {
			c, n, err := unescape(name[at:])
			if err != nil {
				return nil, fmt.Errorf("ipseckey: gateway %q: %w", name, err)
			}
			b, at = append(b, c), at+n
			if at >= len(name) {
				return nil, fmt.Errorf("ipseckey: gateway %q has no final dot", name)
			}
		}
		at++
		n := len(b) - length - 1
		if n == 0 || n > 63 {
			return nil, fmt.Errorf("ipseckey: gateway %q has a label of %d octets", name, n)
		}
		b[length] = byte(n)
	}
	b = append(b, 0)
	if len(b)-start > 255 {
		return nil, fmt.Errorf("ipseckey: gateway of %d octets", len(b)-start)
	}
	return b, nil
}

// unescape is the first octet of a label's text and the length of that text.
func unescape(s string) (c byte, n int, err error) {
	if s[0] != '\\' {
		return s[0], 1, nil
	}
	if len(s) < 2 {
		return 0, 0, errors.New("a backslash at the end")
	}
	if s[1] < '0' || s[1] > '9' {
		return s[1], 2, nil
	}
	v := 0
	for i := 1; i <= 3; i++ {
		if i >= len(s) || s[i] < '0' || s[i] > '9' {
			return 0, 0, errors.New("want three digits after a backslash")
		}
		v = 10*v + int(s[i]-'0')
	}
	if v > 255 {
		return 0, 0, fmt.Errorf("octet %d", v)
	}
	return byte(v), 4, nil
}

// Marshal is the RDATA in wire form, from GatewayType, Algorithm and RawKey. An error means that the fields contradict each other.
func (r Record) Marshal() ([]byte, error) {
	b := []byte{r.Precedence, byte(r.GatewayType), byte(r.Algorithm)}
	switch {
	case r.GatewayType == GatewayNone:
	case r.GatewayType == GatewayIPv4 && r.GatewayAddr.Is4(), r.GatewayType == GatewayIPv6 && r.GatewayAddr.Is6():
		b = append(b, r.GatewayAddr.AsSlice()...)
	case r.GatewayType == GatewayName:
		var err error
		if b, err = appendName(b, r.GatewayName); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("ipseckey: gateway type %d with address %v", r.GatewayType, r.GatewayAddr)
	}
	b = append(b, r.RawKey...)
	if len(b) > maxRDATA {
		return nil, fmt.Errorf("ipseckey: %d octets of rdata", len(b))
	}
	return b, nil
}

// gateway is the gateway in presentation form.
func (r Record) gateway() string {
	switch r.GatewayType {
	case GatewayIPv4, GatewayIPv6:
		return r.GatewayAddr.String()
	case GatewayName:
		return r.GatewayName
	}
	return "."
}

// String is the RDATA in presentation form (RFC 4025, 3.1): "10 0 4 . AQ...".
func (r Record) String() string {
	s := fmt.Sprintf("%d %d %d %s", r.Precedence, r.GatewayType, r.Algorithm, r.gateway())
	if len(r.RawKey) > 0 {
		s += " " + base64.StdEncoding.EncodeToString(r.RawKey)
	}
	return s
}

// Generic is the RDATA in the form of RFC 3597 for servers that do not know the type: `\# 35 0a0004...`, to follow TYPE45. Empty if the record cannot be
// marshalled.
func (r Record) Generic() string {
	b, err := r.Marshal()
	if err != nil {
		return ""
	}
	return fmt.Sprintf(`\# %d %s`, len(b), hex.EncodeToString(b))
}
