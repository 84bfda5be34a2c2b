package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

var nonce32 = bytes.Repeat([]byte{0xab}, 32)

func espProposal(n uint8) Proposal {
	return Proposal{Number: n, Protocol: ProtocolESP, SPI: []byte{0xc0, 1, 2, 3}, Transforms: []Transform{
		{Type: TransformEncr, ID: EncrAESGCM16, KeyLength: 128},
		{Type: TransformEncr, ID: EncrChaCha20Poly1305},
		{Type: TransformESN, ID: ESNYes},
	}}
}

// plainPayloads is at least one of each that can be in a chain.
func plainPayloads() []Payload {
	a4, b4 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.9")
	a6 := netip.MustParseAddr("2001:db8::1")
	return []Payload{
		&SA{Proposals: []Proposal{
			{Number: 1, Protocol: ProtocolIKE, SPI: []byte{}, Transforms: []Transform{{Type: TransformKE, ID: GroupCurve25519}}},
			{Number: 2, Protocol: ProtocolIKE, SPI: []byte{1, 2, 3, 4, 5, 6, 7, 8}, Transforms: []Transform{{Type: TransformPRF, ID: PRFHMACSHA2256}}},
			espProposal(3),
		}},
		&KE{Group: GroupCurve25519, Data: make([]byte, 32)},
		&ID{Kind: IDNull, Data: []byte{}},
		&ID{Responder: true, Kind: IDFQDN, Reserved: [3]byte{1, 2, 3}, Data: []byte("bob.example")},
		&ID{Kind: IDIPv4Addr, Data: []byte{192, 0, 2, 1}},
		&Cert{Encoding: 15, Data: []byte{1, 2}},
		&CertReq{Encoding: 4, Data: []byte{3}},
		&Auth{Method: AuthDigitalSignature, Data: []byte("signature")},
		&Nonce{Data: nonce32},
		&Notify{SPI: []byte{}, Type: Cookie, Data: []byte("cookie")},
		&Notify{Protocol: ProtocolESP, SPI: []byte{1, 2, 3, 4}, Type: RekeySA, Data: []byte{}},
		&Delete{Protocol: ProtocolIKE},
		&Delete{Protocol: ProtocolESP, SPIs: []uint32{0xc0010203, 7}},
		&VendorID{Data: []byte("tacit")},
		&TS{Selectors: []TrafficSelector{Host(a4), {Proto: 17, StartPort: 53, EndPort: 53, Start: a4, End: b4}}},
		&TS{Responder: true, Selectors: []TrafficSelector{Host(a6), {Proto: 6, StartPort: 65535, EndPort: 0, Start: a6, End: a6}}},
		&Config{Type: ConfigRequest, Addresses: []InternalAddress{{}, {V6: true}}},
		&Config{Type: ConfigReply, Addresses: []InternalAddress{{Addr: a4}, {V6: true, Addr: a6}}},
		&Unknown{Type: PayloadEAP, Critical: true, Body: []byte{1, 0, 0, 0}},
		&Unknown{Type: 200, Body: []byte("from the future")},
	}
}

// messages is one of every shape.
func messages() map[string]*Message {
	h := Header{InitiatorSPI: 0x0102030405060708, ResponderSPI: 0x1112131415161718, Exchange: IKESAInit, Flags: FlagInitiator, MessageID: 7}
	m := map[string]*Message{
		"empty":            {Header: h},
		"everything":       {Header: h, Payloads: plainPayloads()},
		"encrypted":        {Header: h, Payloads: []Payload{&Encrypted{First: PayloadIDi, Body: []byte("sealed")}}},
		"encrypted behind": {Header: h, Payloads: []Payload{&Notify{SPI: []byte{}, Type: Cookie, Data: []byte{}}, &Encrypted{Body: []byte("sealed")}}},
		"first fragment":   {Header: h, Payloads: []Payload{&EncryptedFragment{First: PayloadIDi, Number: 1, Total: 2, Body: []byte("sealed")}}},
		"last fragment":    {Header: h, Payloads: []Payload{&EncryptedFragment{Number: 2, Total: 2, Body: []byte("sealed")}}},
	}
	for _, p := range plainPayloads() {
		m["only "+p.PayloadType().String()] = &Message{Header: h, Payloads: []Payload{p}}
	}
	return m
}

func TestRoundTrip(t *testing.T) {
	for name, m := range messages() {
		b, err := m.Marshal()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := Parse(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := *m
		if len(m.Payloads) > 0 {
			want.NextPayload = m.Payloads[0].PayloadType()
		}
		if !reflect.DeepEqual(got, &want) {
			t.Errorf("%s: got %+v, want %+v", name, got, &want)
		}
		if h, err := ParseHeader(b); err != nil || h != want.Header {
			t.Errorf("%s: header %+v, %v, want %+v", name, h, err, want.Header)
		}
	}
}

func TestParseDoesNotAlias(t *testing.T) {
	b, _ := messages()["everything"].Marshal()
	m, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	clear(b)
	got, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := messages()["everything"].Marshal(); !bytes.Equal(got, want) {
		t.Error("a message changed with the buffer that it was parsed from")
	}
}

// setLength makes the header's length true, so that the test reaches what is behind it.
func setLength(b []byte) []byte {
	if len(b) >= HeaderLen {
		binary.BigEndian.PutUint32(b[24:], uint32(len(b)))
	}
	return b
}

func TestEveryPrefixFails(t *testing.T) {
	for name, m := range messages() {
		b, err := m.Marshal()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for n := range b {
			if _, err := Parse(b[:n]); err == nil {
				t.Errorf("%s: the first %d octets parse", name, n)
			}
			if _, err := ParseHeader(b[:n]); err == nil != (n >= HeaderLen) {
				t.Errorf("%s: header of the first %d octets: %v", name, n, err)
			}
			got, err := Parse(setLength(bytes.Clone(b[:n])))
			if err == nil && n >= HeaderLen {
				t.Errorf("%s: the first %d octets, with their length, parse: %+v", name, n, got)
			}
			if _, err := Parse(append(setLength(bytes.Clone(b)), b[:n]...)); err == nil && n > 0 {
				t.Errorf("%s: %d octets behind the end were not seen", name, n)
			}
		}
	}
}

func TestEveryPrefixOfAChainFails(t *testing.T) {
	first, b, err := MarshalPayloads(plainPayloads())
	if err != nil {
		t.Fatal(err)
	}
	for n := range b {
		if _, err := ParsePayloads(first, b[:n]); err == nil {
			t.Errorf("the first %d octets parse", n)
		}
	}
	if ps, err := ParsePayloads(first, b); err != nil || !reflect.DeepEqual(ps, plainPayloads()) {
		t.Errorf("got %+v, %v", ps, err)
	}
	if ps, err := ParsePayloads(PayloadNone, nil); err != nil || len(ps) != 0 {
		t.Errorf("an empty chain: %v, %v", ps, err)
	}
	if _, err := ParsePayloads(PayloadNone, []byte{0}); err == nil {
		t.Error("octets behind an empty chain were not seen")
	}
}

func TestFind(t *testing.T) {
	ps := plainPayloads()
	if n, count := Find[*Notify](ps); count != 2 || n.Type != Cookie {
		t.Errorf("got %v, %d, want the cookie, 2", n, count)
	}
	if e, count := Find[*Encrypted](ps); count != 0 || e != nil {
		t.Errorf("got %v, %d, want none", e, count)
	}
}

func TestMarshalRefuses(t *testing.T) {
	a4, a6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	proposal := func(change func(*Proposal)) *SA {
		p := espProposal(1)
		change(&p)
		return &SA{Proposals: []Proposal{p}}
	}
	selector := func(s TrafficSelector) *TS { return &TS{Selectors: []TrafficSelector{s}} }
	for name, p := range map[string]Payload{
		"no proposals":         &SA{},
		"too many proposals":   &SA{Proposals: make([]Proposal, MaxProposals+1)},
		"no transforms":        proposal(func(p *Proposal) { p.Transforms = nil }),
		"too many transforms":  proposal(func(p *Proposal) { p.Transforms = make([]Transform, MaxTransforms+1) }),
		"SPI zero":             proposal(func(p *Proposal) { p.SPI = make([]byte, 4) }),
		"SPI reserved":         proposal(func(p *Proposal) { p.SPI = []byte{0, 0, 0, 255} }),
		"SPI of 8 for ESP":     proposal(func(p *Proposal) { p.SPI = make([]byte, 8) }),
		"unknown attribute":    proposal(func(p *Proposal) { p.Transforms[0].UnknownAttribute = true }),
		"empty KE":             &KE{Group: 31},
		"IPv4 of 5":            &ID{Kind: IDIPv4Addr, Data: make([]byte, 5)},
		"nonce of 15":          &Nonce{Data: make([]byte, 15)},
		"nonce of 257":         &Nonce{Data: make([]byte, 257)},
		"notify SPI of 3":      &Notify{Protocol: ProtocolESP, SPI: make([]byte, 3)},
		"notify SPI of 9":      &Notify{SPI: make([]byte, 9)},
		"delete without":       &Delete{},
		"delete IKE by SPI":    &Delete{Protocol: ProtocolIKE, SPIs: []uint32{1}},
		"delete too many":      &Delete{Protocol: ProtocolESP, SPIs: make([]uint32, MaxSPIs+1)},
		"no selectors":         &TS{},
		"256 selectors":        &TS{Selectors: make([]TrafficSelector, 256)},
		"zero selector":        selector(TrafficSelector{}),
		"selector upside down": selector(TrafficSelector{Start: a4.Next(), End: a4}),
		"selector of both":     selector(TrafficSelector{Start: a4, End: a6}),
		"selector with a zone": selector(Host(netip.MustParseAddr("fe80::1%eth0"))),
		"selector's ports":     selector(TrafficSelector{StartPort: 2, EndPort: 1, Start: a4, End: a4}),
		"body too long":        &VendorID{Data: make([]byte, 65532)},
		"message too long":     &VendorID{Data: make([]byte, 65520)},
		"fragment 0 of 1":      &EncryptedFragment{Total: 1, Body: []byte{1}},
		"fragment 2 of 1":      &EncryptedFragment{Number: 2, Total: 1, Body: []byte{1}},
	} {
		m := &Message{Header: Header{InitiatorSPI: 1}, Payloads: []Payload{p}}
		if _, err := m.Marshal(); err == nil {
			t.Errorf("%s was written", name)
		} else if !strings.HasPrefix(err.Error(), "wire: ") {
			t.Errorf("%s: %v does not say who speaks", name, err)
		}
	}
	many := &Message{Header: Header{InitiatorSPI: 1}, Payloads: make([]Payload, MaxPayloads+1)}
	for i := range many.Payloads {
		many.Payloads[i] = &VendorID{}
	}
	sealed := &Encrypted{Body: []byte{1}}
	for name, m := range map[string]*Message{
		"initiator SPI zero": {},
		"too many payloads":  many,
		"SK not last":        {Header: Header{InitiatorSPI: 1}, Payloads: []Payload{sealed, &VendorID{}}},
	} {
		if _, err := m.Marshal(); err == nil {
			t.Errorf("%s was written", name)
		}
	}
	if _, _, err := MarshalPayloads([]Payload{sealed}); err == nil {
		t.Error("SK inside SK was written")
	}
}

func TestErrorsSayWhatAnswersThem(t *testing.T) {
	b, _ := messages()["everything"].Marshal()
	for name, tt := range map[string]struct {
		change func([]byte)
		want   NotifyType
		text   string
	}{
		"version 3":     {func(b []byte) { b[17] = 0x30 }, InvalidMajorVersion, "wire: version 3.0, want 2.0"},
		"bad length":    {func(b []byte) { b[27]++ }, InvalidSyntax, "wire: header: length at octet 24: "},
		"bad proposal":  {func(b []byte) { b[32] = 7 }, InvalidSyntax, "wire: SA: last proposal at octet 32: 7, want 0 or 2"},
		"critical type": {func(b []byte) { b[16], b[29] = 99, 0x80 }, UnsupportedCriticalPayload, "wire: critical payload of unknown type 99 at octet 28"},
	} {
		bad := bytes.Clone(b)
		tt.change(bad)
		_, err := Parse(bad)
		var answer interface{ Notify() NotifyType }
		if !errors.As(err, &answer) || answer.Notify() != tt.want || !strings.HasPrefix(err.Error(), tt.text) {
			t.Errorf("%s: %v, want %v and %q", name, err, tt.want, tt.text)
		}
	}
}

func TestNames(t *testing.T) {
	for _, tt := range []struct{ got, want string }{
		{IKESAInit.String(), "IKE_SA_INIT"},
		{Intermediate.String(), "IKE_INTERMEDIATE"},
		{ExchangeType(99).String(), "exchange-99"},
		{PayloadSK.String(), "SK"},
		{PayloadType(99).String(), "payload-99"},
		{ProtocolESP.String(), "ESP"},
		{TransformKE.String(), "D-H"},
		{SignatureHashAlgorithms.String(), "SIGNATURE_HASH_ALGORITHMS"},
		{NATDetectionDestinationIP.String(), "NAT_DETECTION_DESTINATION_IP"},
		{TemporaryFailure.String(), "TEMPORARY_FAILURE"},
		{NotifyType(40961).String(), "notify-40961"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
	if !ChildSANotFound.Error() || NotifyType(0).Error() || InitialContact.Error() || !NotifyType(16383).Error() {
		t.Error("errors are 1 to 16383")
	}
}

// The reserved bit is ignored, and so is what is no address of ours: a peer may tell of netmasks and name servers, and anybody of more addresses than
// there are uses for.
func TestConfigSkips(t *testing.T) {
	a4 := netip.MustParseAddr("192.0.2.1")
	ps, err := ParsePayloads(PayloadConfig, generic(0, unhex(t, "02 000000 8001 0004 c0000201 0002 0004 ffffff00 0001 0003 c00002 0008 0011"+
		"20010db8000000000000000000000001 40")))
	want := &Config{Type: ConfigReply, Addresses: []InternalAddress{{Addr: a4}, {V6: true, Addr: netip.MustParseAddr("2001:db8::1")}}, Skipped: 2}
	if err != nil || !reflect.DeepEqual(ps, []Payload{want}) {
		t.Errorf("got %+v, %v", ps, err)
	}
	ps, err = ParsePayloads(PayloadConfig, generic(0, unhex(t, "01 000000"+strings.Repeat("00010000", 100))))
	if c, _ := Find[*Config](ps); err != nil || len(c.Addresses) != maxInternal || c.Skipped != 100-maxInternal {
		t.Errorf("a hundred: got %+v, %v", c, err)
	}
	for _, a := range []InternalAddress{{V6: true, Addr: a4}, {Addr: netip.MustParseAddr("::1")}} {
		if _, _, err := MarshalPayloads([]Payload{&Config{Addresses: []InternalAddress{a}}}); err == nil {
			t.Errorf("%+v is written", a)
		}
	}
}

// What cannot be read is not written.
func TestFrameRefuses(t *testing.T) {
	for _, tt := range []struct {
		c    Closed
		spi  uint64
		n    int
		want string
	}{
		{Closed{}, 0, 40, "initiator SPI"},
		{Closed{Number: 3, Total: 2}, 1, 40, "fragment 3 of 2"},
		{Closed{Number: 0, Total: 2}, 1, 40, "fragment 0 of 2"},
		{Closed{Number: 1}, 1, 40, "fragment 1 of 0"},
		{Closed{}, 1, MaxMessage - HeaderLen - genericLen + 1, "65536 octets"},
	} {
		if b, err := tt.c.Frame(Header{InitiatorSPI: tt.spi}, tt.n); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %d octets, %v, want an error with %q", tt.c, len(b), err, tt.want)
		}
	}
	b, err := Closed{}.Frame(Header{InitiatorSPI: 1}, MaxMessage-HeaderLen-genericLen)
	if err != nil || len(b) != MaxMessage {
		t.Errorf("the longest message: %d octets, %v", len(b), err)
	}
}
