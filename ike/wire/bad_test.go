package wire

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"
)

// unhex reads octets that are written with spaces.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// generic puts a generic header with a true length before a body.
func generic(next uint8, body []byte) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{next, 0}, uint16(len(body)+4)), body...)
}

// Written by hand from the figures of RFC 7296, section 3. An empty want must parse.
var bodies = []struct {
	name string
	kind PayloadType
	body string
	want string // the field that the error names
}{
	{"SA: one proposal", PayloadSA, "00 00 0010 01 01 00 01  00 00 0008 04 00 001f", ""},
	{"SA: empty", PayloadSA, "", "proposal"},
	{"SA: proposal of length 0", PayloadSA, "00 00 0000 01 01 00 01  00 00 0008 04 00 001f", "proposal length"},
	{"SA: proposal of length 3", PayloadSA, "00 00 0003 01 01 00 01  00 00 0008 04 00 001f", "proposal length"},
	{"SA: proposal of length 4", PayloadSA, "00 00 0004", "proposal number"},
	{"SA: proposal beyond the end", PayloadSA, "00 00 0011 01 01 00 01  00 00 0008 04 00 001f", "proposal"},
	{"SA: proposal of 65535", PayloadSA, "00 00 ffff 01 01 00 01  00 00 0008 04 00 001f", "proposal"},
	{"SA: more proposals promised", PayloadSA, "02 00 0010 01 01 00 01  00 00 0008 04 00 001f", "proposal"},
	{"SA: proposal behind the last", PayloadSA, "00 00 0010 01 01 00 01  00 00 0008 04 00 001f 00 00 0010 01 01 00 01  00 00 0008 04 00 001f", "payload"},
	{"SA: last octet 1", PayloadSA, "01 00 0010 01 01 00 01  00 00 0008 04 00 001f", "last proposal"},
	{"SA: no transforms", PayloadSA, "00 00 0008 01 01 00 00", "transform"},
	{"SA: one transform too few", PayloadSA, "00 00 0010 01 01 00 02  00 00 0008 04 00 001f", "number of transforms"},
	{"SA: 255 transforms promised", PayloadSA, "00 00 0010 01 01 00 ff  00 00 0008 04 00 001f", "number of transforms"},
	{"SA: transform of length 0", PayloadSA, "00 00 0010 01 01 00 01  00 00 0000 04 00 001f", "transform length"},
	{"SA: transform of length 4", PayloadSA, "00 00 000c 01 01 00 01  00 00 0004", "transform type"},
	{"SA: transform beyond its proposal", PayloadSA, "00 00 0010 01 01 00 01  00 00 0009 04 00 001f 00", "transform"},
	{"SA: transform behind the last", PayloadSA, "00 00 0018 01 01 00 02  00 00 0008 04 00 001f 00 00 0008 04 00 0013", "number of transforms"},
	{"SA: last octet of a transform 2", PayloadSA, "00 00 0010 01 01 00 01  02 00 0008 04 00 001f", "last transform"},
	{"SA: octets behind the transforms", PayloadSA, "00 00 0011 01 01 00 01  00 00 0008 04 00 001f 00", "proposal"},
	{"SA: SPI beyond the proposal", PayloadSA, "00 00 0010 01 03 ff 01  00 00 0008 04 00 001f", "SPI"},
	{"SA: SPI of 8 for ESP", PayloadSA, "00 00 0018 01 03 08 01 0102030405060708 00 00 0008 04 00 001f", "SPI"},
	{"SA: SPI of 4 for IKE", PayloadSA, "00 00 0014 01 01 04 01 01020304 00 00 0008 04 00 001f", "SPI"},
	{"SA: IKE SPI zero", PayloadSA, "00 00 0018 01 01 08 01 0000000000000000 00 00 0008 04 00 001f", "SPI"},
	{"SA: ESP without SPI", PayloadSA, "00 00 0010 01 03 00 01  00 00 0008 05 00 0000", "SPI"},
	{"SA: ESP SPI zero", PayloadSA, "00 00 0014 01 03 04 01 00000000 00 00 0008 05 00 0000", "SPI"},
	{"SA: ESP SPI reserved", PayloadSA, "00 00 0014 01 03 04 01 000000ff 00 00 0008 05 00 0000", "SPI"},
	{"SA: protocol of the future", PayloadSA, "00 00 0013 01 09 03 01 000000 00 00 0008 05 00 0000", ""},
	{"SA: attribute cut", PayloadSA, "00 00 0012 01 01 00 01  00 00 000a 01 00 0014 800e", "attribute value"},
	{"SA: long attribute beyond its transform", PayloadSA, "00 00 0014 01 01 00 01  00 00 000c 01 00 0014 0005 0001", "attribute"},
	{"SA: long attributes of length 0", PayloadSA, "00 00 0018 01 01 00 01  00 00 0010 01 00 0014 0005 0000 0006 0000", ""},

	{"KE: empty", PayloadKE, "", "group"},
	{"KE: group only", PayloadKE, "001f", "reserved"},
	{"KE: no data", PayloadKE, "001f 0000", "key exchange data"},
	{"KE: zeros are the engine's", PayloadKE, "001f 0000 00", ""},

	{"IDi: empty", PayloadIDi, "", "id type"},
	{"IDi: no reserved", PayloadIDi, "02 0000", "reserved"},
	{"IDi: IPv4 of 3", PayloadIDi, "01 000000 c00002", "identification data"},
	{"IDr: IPv6 of 4", PayloadIDr, "05 000000 c0000201", "identification data"},
	{"IDi: NULL", PayloadIDi, "0d 000000", ""},
	{"CERT: empty", PayloadCert, "", "certificate encoding"},
	{"CERTREQ: empty", PayloadCertReq, "", "certificate encoding"},
	{"CERTREQ: no authorities", PayloadCertReq, "04", ""},
	{"AUTH: empty", PayloadAuth, "", "auth method"},
	{"AUTH: no reserved", PayloadAuth, "0e 00", "reserved"},

	{"Nonce: empty", PayloadNonce, "", "nonce"},
	{"Nonce: 15", PayloadNonce, strings.Repeat("01", 15), "nonce"},
	{"Nonce: 16", PayloadNonce, strings.Repeat("01", 16), ""},
	{"Nonce: 256", PayloadNonce, strings.Repeat("01", 256), ""},
	{"Nonce: 257", PayloadNonce, strings.Repeat("01", 257), "nonce"},

	{"N: empty", PayloadNotify, "", "protocol"},
	{"N: no type", PayloadNotify, "00 00 40", "notify type"},
	{"N: SPI beyond the end", PayloadNotify, "03 04 4009 010203", "SPI"},
	{"N: SPI of 255", PayloadNotify, "03 ff 4009 01020304", "SPI size"},
	{"N: ESP SPI of 3", PayloadNotify, "03 03 4009 010203", "SPI size"},
	{"N: of IKE with its SPI", PayloadNotify, "01 08 0004 0102030405060708", ""},
	{"N: of a protocol without SPI", PayloadNotify, "01 00 4000", ""},

	{"D: empty", PayloadDelete, "", "protocol"},
	{"D: count promised", PayloadDelete, "03 04 0002 01020304", "SPI"},
	{"D: 65535 promised", PayloadDelete, "03 04 ffff 01020304", "number of SPIs"},
	{"D: one more than counted", PayloadDelete, "03 04 0001 01020304 01020304", "payload"},
	{"D: SPI size 0 for ESP", PayloadDelete, "03 00 ffff", "SPI size"},
	{"D: SPI size 8 for IKE", PayloadDelete, "01 08 0001 0102030405060708", "SPI size"},
	{"D: IKE with a count", PayloadDelete, "01 00 0001", "number of SPIs"},
	{"D: protocol 0", PayloadDelete, "00 00 0000", "protocol"},
	{"D: IKE", PayloadDelete, "01 00 0000", ""},

	{"TSi: empty", PayloadTSi, "", "number of traffic selectors"},
	{"TSi: zero selectors", PayloadTSi, "00 000000", "number of traffic selectors"},
	{"TSi: zero selectors and one", PayloadTSi, "00 000000 07 00 0010 0000 ffff c0000201 c0000201", "number of traffic selectors"},
	{"TSi: one", PayloadTSi, "01 000000 07 00 0010 0000 ffff c0000201 c0000201", ""},
	{"TSi: 255 promised", PayloadTSi, "ff 000000 07 00 0010 0000 ffff c0000201 c0000201", "traffic selector"},
	{"TSi: one more than counted", PayloadTSi, "01 000000 07 00 0010 0000 ffff c0000201 c0000201 07 00 0010 0000 ffff c0000201 c0000201", "payload"},
	{"TSi: length 0", PayloadTSi, "01 000000 07 00 0000 0000 ffff c0000201 c0000201", "traffic selector length"},
	{"TSi: length 8, no addresses", PayloadTSi, "01 000000 07 00 0008 0000 ffff", "traffic selector length"},
	{"TSi: IPv4 with IPv6 addresses", PayloadTSi, "01 000000 07 00 0028 0000 ffff" + strings.Repeat("20", 32), "traffic selector length"},
	{"TSi: IPv6 with IPv4 addresses", PayloadTSi, "01 000000 08 00 0010 0000 ffff c0000201 c0000201", "traffic selector length"},
	{"TSi: start above end", PayloadTSi, "01 000000 07 00 0010 0000 ffff c0000202 c0000201", "traffic selector"},
	{"TSi: start above end, unsigned", PayloadTSi, "01 000000 07 00 0010 0000 ffff ffffffff 00000000", "traffic selector"},
	{"TSi: ports upside down", PayloadTSi, "01 000000 07 11 0010 0035 0034 c0000201 c0000201", "traffic selector"},
	{"TSi: OPAQUE ports", PayloadTSi, "01 000000 07 11 0010 ffff 0000 c0000201 c0000201", ""},
	{"TSi: type of the future, of length 0", PayloadTSi, "01 000000 0a 00 0000", "traffic selector length"},
	{"TSi: type of the future, beyond the end", PayloadTSi, "01 000000 0a 00 0006 01", "traffic selector"},

	{"CP: empty", PayloadConfig, "", "configuration type"},
	{"CP: no reserved", PayloadConfig, "01 0000", "reserved"},
	{"CP: no attributes", PayloadConfig, "01 000000", ""},
	{"CP: half a type", PayloadConfig, "01 000000 00", "attribute type"},
	{"CP: no length", PayloadConfig, "01 000000 0001 00", "attribute length"},
	{"CP: beyond the end", PayloadConfig, "01 000000 0001 0004 c00002", "attribute value"},
	{"CP: IPv4 of 3, IPv6 of 16, and a type of the future", PayloadConfig, "02 000000 0001 0003 c00002 0008 0010 20010db8000000000000000000000001 7777 0001 ff", ""},

	{"SKF: 0 of 1", PayloadSKF, "0000 0001 ff", "fragment number"},
	{"SKF: 1 of 0", PayloadSKF, "0001 0000 ff", "fragment number"},
	{"SKF: 3 of 2", PayloadSKF, "0003 0002 ff", "fragment number"},
	{"SKF: no body", PayloadSKF, "0001 0001", "body"},
	{"SKF: cut", PayloadSKF, "0001 00", "total fragments"},
	{"SKF: good", PayloadSKF, "0001 0001 ff", ""},
	{"SK: no body", PayloadSK, "", "body"},
}

func TestBodies(t *testing.T) {
	for _, tt := range bodies {
		chain := generic(0, unhex(t, tt.body))
		_, err := Parse(messageOf(tt.kind, chain))
		if closed := tt.kind == PayloadSK || tt.kind == PayloadSKF; closed {
			if _, _, ok := ParseClosed(messageOf(tt.kind, chain)); ok != (err == nil) {
				t.Errorf("%s: ParseClosed: %v, Parse: %v", tt.name, ok, err)
			}
		}
		if tt.want == "" {
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		var s *SyntaxError
		if !errors.As(err, &s) || s.Field != tt.want || s.Payload != tt.kind {
			t.Errorf("%s: %v, want an error in %v, %q", tt.name, err, tt.kind, tt.want)
		} else if s.Offset < HeaderLen || s.Offset > HeaderLen+len(chain) {
			t.Errorf("%s: offset %d is not in the payload", tt.name, s.Offset)
		}
		if tt.kind == PayloadSK || tt.kind == PayloadSKF {
			continue
		}
		if _, err := ParsePayloads(tt.kind, chain); err == nil {
			t.Errorf("%s: parses inside", tt.name)
		}
	}
}

// messageOf puts an IKE header before a chain.
func messageOf(first PayloadType, chain []byte) []byte {
	h := make([]byte, HeaderLen, HeaderLen+len(chain))
	h[0], h[16], h[17], h[18], h[19] = 1, uint8(first), 0x20, uint8(IKESAInit), uint8(FlagInitiator)
	return setLength(append(h, chain...))
}

func TestVersionComesBeforeLength(t *testing.T) {
	b := messageOf(PayloadNone, nil)
	b[17] = 0x31
	binary.BigEndian.PutUint32(b[24:], 5) // another version's length may be anything
	h, err := ParseHeader(b)
	var v *VersionError
	if !errors.As(err, &v) || v.Major != 3 || v.Minor != 1 || !v.Higher() {
		t.Fatalf("got %v, want version 3.1", err)
	}
	if h.InitiatorSPI != 1<<56 || h.Exchange != IKESAInit || h.Flags != FlagInitiator {
		t.Errorf("header %+v cannot be answered", h)
	}
	if _, err := Parse(b); !errors.As(err, &v) {
		t.Errorf("Parse: %v, want a VersionError", err)
	}
	if h, err := ParseHeader(b[:18]); !errors.As(err, &v) || h != (Header{}) {
		t.Errorf("18 octets of version 3: %+v, %v, want a VersionError", h, err)
	}
	b[17] = 0x10
	if _, err := ParseHeader(b); !errors.As(err, &v) || v.Higher() {
		t.Errorf("version 1: %v, want a VersionError that is not higher", err)
	}
	b = messageOf(PayloadNone, nil)
	b[17] = 0x2f
	if _, err := Parse(b); err != nil {
		t.Errorf("version 2.15: %v; minor versions are ignored", err)
	}
}

func TestHeaderLengths(t *testing.T) {
	for _, n := range []uint32{0, 1, 27, 29, 65535, 65536, 1 << 31, 1<<32 - 1} {
		b := messageOf(PayloadNone, nil)
		binary.BigEndian.PutUint32(b[24:], n)
		var s *SyntaxError
		if _, err := Parse(b); !errors.As(err, &s) || s.Field != "length" || s.Payload != 0 {
			t.Errorf("length %d of 28 octets: %v", n, err)
		}
		if _, err := Parse(append(b, make([]byte, 10)...)); !errors.As(err, &s) || s.Field != "length" {
			t.Errorf("length %d of 38 octets: %v", n, err)
		}
		if _, err := ParseHeader(b); err == nil != (n >= HeaderLen) {
			t.Errorf("header with length %d: %v", n, err)
		}
	}
	if _, err := Parse(messageOf(PayloadVendorID, generic(0, make([]byte, 65533-HeaderLen-4)))); err != nil {
		t.Errorf("a message of 65533 octets: %v", err)
	}
	half := generic(uint8(PayloadVendorID), make([]byte, 40000))
	long := append(half, generic(0, make([]byte, 40000))...)
	if _, err := Parse(messageOf(PayloadVendorID, long)); err == nil {
		t.Error("a message that is too long parses")
	}
}

func TestInitiatorSPIZero(t *testing.T) {
	b := messageOf(PayloadNone, nil)
	b[0] = 0
	if _, err := ParseHeader(b); err == nil {
		t.Error("initiator SPI 0 parses")
	}
}

func TestReservedBitsAreIgnored(t *testing.T) {
	b := messageOf(PayloadVendorID, generic(0, []byte("x")))
	b[19], b[29] = 0xff, 0x7f
	m, err := Parse(b)
	if err != nil || m.Flags != FlagInitiator|FlagVersion|FlagResponse {
		t.Errorf("got %+v, %v", m, err)
	}
}

func TestPayloadLengthBelowItsHeader(t *testing.T) {
	for n := range uint16(4) {
		chain := generic(uint8(PayloadVendorID), nil)
		binary.BigEndian.PutUint16(chain[2:], n)
		if _, err := ParsePayloads(PayloadVendorID, chain); err == nil {
			t.Errorf("a payload of length %d parses", n)
		}
	}
}

func TestTooMany(t *testing.T) {
	chain := func(n int) (b []byte) {
		for i := range n {
			next := uint8(PayloadVendorID)
			if i == n-1 {
				next = 0
			}
			b = append(b, generic(next, nil)...)
		}
		return b
	}
	proposals := func(n int) (b []byte) {
		for i := range n {
			p := unhex(t, "02 00 0010 01 01 00 01  00 00 0008 04 00 001f")
			if i == n-1 {
				p[0] = 0
			}
			b = append(b, p...)
		}
		return generic(0, b)
	}
	transforms := func(n int) []byte {
		b := []byte{0, 0, 0, 0, 1, 1, 0, uint8(n)}
		for i := range n {
			tr := unhex(t, "03 00 0008 04 00 001f")
			if i == n-1 {
				tr[0] = 0
			}
			b = append(b, tr...)
		}
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		return generic(0, b)
	}
	spis := func(n int) []byte {
		return generic(0, append(binary.BigEndian.AppendUint16([]byte{3, 4}, uint16(n)), make([]byte, 4*n)...))
	}
	for name, tt := range map[string]struct {
		kind PayloadType
		make func(int) []byte
		most int
	}{
		"payloads":   {PayloadVendorID, chain, MaxPayloads},
		"proposals":  {PayloadSA, proposals, MaxProposals},
		"transforms": {PayloadSA, transforms, MaxTransforms},
		"SPIs":       {PayloadDelete, spis, MaxSPIs},
	} {
		if _, err := ParsePayloads(tt.kind, tt.make(tt.most)); err != nil {
			t.Errorf("%d %s: %v", tt.most, name, err)
		}
		if _, err := ParsePayloads(tt.kind, tt.make(tt.most+1)); err == nil {
			t.Errorf("%d %s parse", tt.most+1, name)
		}
	}
}

func Test255Selectors(t *testing.T) {
	ts := &TS{}
	for range 255 {
		ts.Selectors = append(ts.Selectors, Host(netip.MustParseAddr("2001:db8::1")))
	}
	first, b, err := MarshalPayloads([]Payload{ts})
	if err != nil {
		t.Fatal(err)
	}
	ps, err := ParsePayloads(first, b)
	if err != nil || len(ps[0].(*TS).Selectors) != 255 {
		t.Fatalf("got %v, %v", ps, err)
	}
	b[4] = 254
	if _, err := ParsePayloads(first, b); err == nil {
		t.Error("255 selectors that are counted as 254 parse")
	}
}

func TestSelectorsOfUnknownTypesAreCounted(t *testing.T) {
	ps, err := ParsePayloads(PayloadTSr, generic(0, unhex(t, "03 000000 0a 00 0008 01020304 07 01 0010 0800 08ff c0000201 c0000202 0b 00 0004")))
	if err != nil {
		t.Fatal(err)
	}
	ts := ps[0].(*TS)
	want := TrafficSelector{Proto: 1, StartPort: 0x0800, EndPort: 0x08ff, Start: netip.MustParseAddr("192.0.2.1"), End: netip.MustParseAddr("192.0.2.2")}
	if !ts.Responder || ts.Skipped != 2 || len(ts.Selectors) != 1 || ts.Selectors[0] != want {
		t.Errorf("got %+v, want 2 skipped and %v", ts, want)
	}
}

func TestAttributesThatForbidATransform(t *testing.T) {
	for name, tt := range map[string]struct {
		attributes string
		want       Transform
	}{
		"none":             {"", Transform{}},
		"key length":       {"800e 0100", Transform{KeyLength: 256}},
		"key length zero":  {"800e 0000", Transform{UnknownAttribute: true}},
		"key length twice": {"800e 0080 800e 0100", Transform{KeyLength: 128, UnknownAttribute: true}},
		"long key length":  {"000e 0002 0080", Transform{UnknownAttribute: true}},
		"unknown short":    {"8001 0080", Transform{UnknownAttribute: true}},
		"unknown long":     {"0001 0000 800e 0080", Transform{KeyLength: 128, UnknownAttribute: true}},
	} {
		attrs := unhex(t, tt.attributes)
		tr := binary.BigEndian.AppendUint16([]byte{0, 0}, uint16(8+len(attrs)))
		tr = append(append(tr, 1, 0, 0, 20), attrs...)
		p := binary.BigEndian.AppendUint16([]byte{0, 0}, uint16(8+len(tr)))
		p = append(append(p, 1, 1, 0, 1), tr...)
		ps, err := ParsePayloads(PayloadSA, generic(0, p))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		tt.want.Type, tt.want.ID = TransformEncr, EncrAESGCM16
		if got := ps[0].(*SA).Proposals[0].Transforms[0]; got != tt.want {
			t.Errorf("%s: got %+v, want %+v", name, got, tt.want)
		}
	}
}

func TestCriticalPayloads(t *testing.T) {
	for _, tt := range []struct {
		kind     PayloadType
		critical bool
		want     bool
	}{
		{1, true, true}, {32, true, true}, {49, true, true}, {54, true, true}, {255, true, true},
		{1, false, false}, {49, false, false}, {255, false, false},
		{PayloadEAP, true, false}, {PayloadVendorID, true, false}, // known: the bit means nothing
	} {
		chain := append(generic(uint8(tt.kind), []byte("first")), generic(0, []byte("second"))...)
		if tt.critical {
			chain[len(chain)-9] = criticalBit
		}
		_, err := ParsePayloads(PayloadVendorID, chain)
		var c *CriticalError
		if errors.As(err, &c) != tt.want || tt.want && (c.Type != tt.kind || c.Offset != 9) || !tt.want && err != nil {
			t.Errorf("type %d, critical %v: %v", tt.kind, tt.critical, err)
		}
	}
}

func TestEncryptedMustBeLast(t *testing.T) {
	sk := generic(uint8(PayloadIDi), []byte("sealed"))
	behind := append(append([]byte{}, sk...), generic(0, []byte("open"))...)
	for _, kind := range []PayloadType{PayloadSK, PayloadSKF} {
		body := sk
		if kind == PayloadSKF {
			body = generic(uint8(PayloadIDi), []byte{0, 1, 0, 1, 9})
		}
		if _, err := Parse(messageOf(kind, body)); err != nil {
			t.Errorf("%v: %v", kind, err)
		}
		if _, err := Parse(messageOf(kind, append(append([]byte{}, body...), generic(0, nil)...))); err == nil || !strings.Contains(err.Error(), "not the last") {
			t.Errorf("%v with a payload behind it: %v", kind, err)
		}
		if _, err := ParsePayloads(kind, body); err == nil {
			t.Errorf("%v inside parses", kind)
		}
	}
	if _, err := Parse(messageOf(PayloadSK, behind)); err == nil {
		t.Error("SK with a payload behind it parses")
	}
	if _, err := Parse(messageOf(PayloadSKF, generic(uint8(PayloadIDi), []byte{0, 2, 0, 2, 9}))); err == nil {
		t.Error("a second fragment with a first payload parses")
	}
}
