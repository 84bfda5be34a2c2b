package ike

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// initRequest is a good first message; change makes a bad one of it.
func initRequest(spi uint64, change func(*wire.Message)) []byte {
	sh, _ := newShare(newSeeded(spi), groupX25519)
	m := &wire.Message{
		Header: wire.Header{InitiatorSPI: spi, Exchange: wire.IKESAInit, Flags: wire.FlagInitiator},
		Payloads: []wire.Payload{
			defaultOffer.ikeProposal(groupX25519), &wire.KE{Group: groupX25519, Data: sh.public()}, &wire.Nonce{Data: make([]byte, 32)},
		},
	}
	change(m)
	b, err := m.Marshal()
	if err != nil {
		panic(err)
	}
	return b
}

// First messages that get no state: what they are answered with, 0 for nothing.
func TestBadFirstMessages(t *testing.T) {
	ke := func(group uint16, data []byte) func(*wire.Message) {
		return func(m *wire.Message) { m.Payloads[1] = &wire.KE{Group: group, Data: data} }
	}
	transforms := func(ts ...wire.Transform) func(*wire.Message) {
		return func(m *wire.Message) {
			m.Payloads[0] = &wire.SA{Proposals: []wire.Proposal{{Number: 1, Protocol: wire.ProtocolIKE, Transforms: ts}}}
		}
	}
	encr := wire.Transform{Type: wire.TransformEncr, ID: 20, KeyLength: 128}
	prf := wire.Transform{Type: wire.TransformPRF, ID: 5}
	dh := wire.Transform{Type: wire.TransformKE, ID: groupX25519}
	zeroP256 := make([]byte, 64)
	for name, c := range map[string]struct {
		want   wire.NotifyType
		change func(*wire.Message)
	}{
		"KE of group 0":              {wire.InvalidKEPayload, ke(0, make([]byte, 32))},
		"KE of a private group":      {wire.InvalidKEPayload, ke(1025, make([]byte, 32))},
		"KE of an unknown group":     {wire.InvalidKEPayload, ke(65535, make([]byte, 32))},
		"KE short":                   {0, ke(groupX25519, make([]byte, 31))},
		"KE long":                    {0, ke(groupX25519, make([]byte, 33))},
		"KE of one octet":            {0, ke(groupX25519, []byte{1})},
		"KE zero":                    {0, ke(groupX25519, make([]byte, 32))},
		"KE of low order":            {0, ke(groupX25519, append([]byte{1}, make([]byte, 31)...))},
		"P-256 point zero":           {0, ke(groupP256, zeroP256)},
		"P-256 point off the curve":  {0, ke(groupP256, bytes.Repeat([]byte{1}, 64))},
		"P-256 point short":          {0, ke(groupP256, make([]byte, 32))},
		"no D-H in the proposal":     {wire.NoProposalChosen, transforms(encr, prf)},
		"no PRF":                     {wire.NoProposalChosen, transforms(encr, dh)},
		"no cipher":                  {wire.NoProposalChosen, transforms(prf, dh)},
		"ESN in an IKE proposal":     {wire.NoProposalChosen, transforms(encr, prf, dh, wire.Transform{Type: wire.TransformESN, ID: 1})},
		"integrity beside an AEAD":   {wire.NoProposalChosen, transforms(encr, prf, dh, wire.Transform{Type: wire.TransformInteg, ID: 12})},
		"AES-CBC":                    {wire.NoProposalChosen, transforms(wire.Transform{Type: wire.TransformEncr, ID: 12, KeyLength: 128}, prf, dh)},
		"AES-GCM without key length": {wire.NoProposalChosen, transforms(wire.Transform{Type: wire.TransformEncr, ID: 20}, prf, dh)},
		"ChaCha20 with key length":   {wire.NoProposalChosen, transforms(wire.Transform{Type: wire.TransformEncr, ID: 28, KeyLength: 256}, prf, dh)},
		"unknown transform type":     {wire.NoProposalChosen, transforms(encr, prf, dh, wire.Transform{Type: 99, ID: 1})},
		"unknown critical payload":   {wire.UnsupportedCriticalPayload, func(m *wire.Message) { m.Payloads = append(m.Payloads, &wire.Unknown{Type: 200, Critical: true}) }},
		"SA missing":                 {0, func(m *wire.Message) { m.Payloads = m.Payloads[1:] }},
		"nonce missing":              {0, func(m *wire.Message) { m.Payloads = m.Payloads[:2] }},
		"nothing":                    {0, func(m *wire.Message) { m.Payloads = nil }},
		"nonce twice":                {0, func(m *wire.Message) { m.Payloads = append(m.Payloads, m.Payloads[2]) }},
		"KE twice":                   {0, func(m *wire.Message) { m.Payloads = append(m.Payloads, m.Payloads[1]) }},
		"AUTH where none belongs":    {0, func(m *wire.Message) { m.Payloads = append(m.Payloads, &wire.Auth{Method: 13}) }},
		"an SK payload":              {0, func(m *wire.Message) { m.Payloads = append(m.Payloads, &wire.Encrypted{Body: make([]byte, 40)}) }},
		"message id 1":               {0, func(m *wire.Message) { m.MessageID = 1 }},
		"a responder SPI":            {0, func(m *wire.Message) { m.ResponderSPI = 7 }},
		"without initiator flag":     {0, func(m *wire.Message) { m.Flags = 0 }},
		"nonce below half of the PRF": {0, func(m *wire.Message) {
			transforms(encr, wire.Transform{Type: wire.TransformPRF, ID: 7}, dh)(m)
			m.Payloads[2] = &wire.Nonce{Data: make([]byte, 16)}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			_, b, w := pairOf(t)
			o := b.e.Receive(w.now, Datagram{addrB, addrA, initRequest(99, c.change)})
			if st := b.e.Stats(); st.SAs != 0 || st.HalfOpen != 0 || len(b.e.timers) != 0 || len(o.Events) != 0 || st.Drops == nil {
				t.Errorf("state: %+v %+v", st, o.Events)
			}
			var got wire.NotifyType
			for _, d := range o.Send {
				m, err := wire.Parse(d.Data)
				if err != nil || len(m.Payloads) != 1 || m.ResponderSPI != 0 {
					t.Fatalf("%+v %v", m, err)
				}
				got = m.Payloads[0].(*wire.Notify).Type
			}
			if got != c.want {
				t.Errorf("answered with %v, want %v", got, c.want)
			}
		})
	}
}

// What a first message may hold besides: other orders, unknown payloads, unknown notifications, several proposals.
func TestGoodFirstMessages(t *testing.T) {
	for name, change := range map[string]func(*wire.Message){
		"as it is":  func(*wire.Message) {},
		"reordered": func(m *wire.Message) { m.Payloads[0], m.Payloads[2] = m.Payloads[2], m.Payloads[0] },
		"unknown": func(m *wire.Message) {
			m.Payloads = append(m.Payloads, &wire.Unknown{Type: 200}, &wire.Notify{Type: 40961}, &wire.Notify{Type: 60000, Data: []byte("x")},
				&wire.VendorID{}, &wire.CertReq{Encoding: 4})
		},
		"a cookie that nobody asked for": func(m *wire.Message) {
			m.Payloads = append([]wire.Payload{status(wire.Cookie, []byte("x"))}, m.Payloads...)
		},
		"second proposal": func(m *wire.Message) {
			good := m.Payloads[0].(*wire.SA).Proposals[0]
			good.Number = 2
			bad := wire.Proposal{Number: 1, Protocol: wire.ProtocolIKE, Transforms: []wire.Transform{{Type: wire.TransformEncr, ID: 12, KeyLength: 256}}}
			m.Payloads[0] = &wire.SA{Proposals: []wire.Proposal{bad, good}}
		},
		"integrity NONE": func(m *wire.Message) {
			p := &m.Payloads[0].(*wire.SA).Proposals[0]
			p.Transforms = append(p.Transforms, wire.Transform{Type: wire.TransformInteg})
		},
		"a private cipher first": func(m *wire.Message) {
			p := &m.Payloads[0].(*wire.SA).Proposals[0]
			p.Transforms = append([]wire.Transform{{Type: wire.TransformEncr, ID: 1030, KeyLength: 77}}, p.Transforms...)
		},
	} {
		_, b, w := pairOf(t)
		o := b.e.Receive(w.now, Datagram{addrB, addrA, initRequest(99, change)})
		if b.e.Stats().HalfOpen != 1 || len(o.Send) != 1 {
			t.Errorf("%s: refused %v", name, b.e.Stats().Drops)
		}
	}
}

// talk sends a request of a's SA with any content, sealed as a would, and returns what b answers, opened.
func talk(t *testing.T, w *world, a, b *host, x wire.ExchangeType, id uint32, ps ...wire.Payload) ([]wire.Payload, Output) {
	t.Helper()
	var s *sa
	for _, s = range a.e.sas {
	}
	data, err := s.keys.seal.seal(s.header(x, id, false), ps)
	if err != nil {
		t.Fatal(err)
	}
	o := b.e.Receive(w.now, Datagram{addrB, addrA, data})
	if len(o.Send) == 0 {
		return nil, o
	}
	m, _ := wire.Parse(o.Send[0].Data)
	if m.MessageID != id || m.Flags&wire.FlagResponse == 0 {
		return nil, o // a request of its own
	}
	answer, err := s.keys.open.open(o.Send[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	return answer, o
}

func rekeyRequest(spi ipsec.SPI) []wire.Payload {
	sel := ipsec.Host(addrA.Addr(), addrB.Addr())
	ps := []wire.Payload{
		&wire.Notify{Protocol: wire.ProtocolESP, SPI: espSPI(spi), Type: wire.RekeySA}, status(wire.UseTransportMode, nil),
		defaultOffer.espProposal(777, groupNone), &wire.Nonce{Data: make([]byte, 32)},
	}
	return append(ps, tsPayloads(sel, true)...)
}

// Requests on an established SA that are refused or ignored: the SA and its Child SA live on.
func TestBadRequests(t *testing.T) {
	var manyTS []wire.TrafficSelector
	for i := range 255 {
		manyTS = append(manyTS, wire.Host(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})))
	}
	type req struct {
		x    wire.ExchangeType
		id   uint32
		ps   func(in ipsec.SPI) []wire.Payload
		want wire.NotifyType // 1: an empty answer; 0: none at all
	}
	const empty = 0xffff
	basePoint := append([]byte{9}, make([]byte, 31)...)
	ikeRekey := func(spi uint64, ke *wire.KE) func(ipsec.SPI) []wire.Payload {
		sap := defaultOffer.ikeProposal(groupX25519)
		if spi != 0 {
			sap.Proposals[0].SPI = spiBytes(spi)
		}
		ps := []wire.Payload{sap, &wire.Nonce{Data: make([]byte, 32)}}
		if ke != nil {
			ps = append(ps, ke)
		}
		return func(ipsec.SPI) []wire.Payload { return ps }
	}
	change := func(f func([]wire.Payload) []wire.Payload) func(ipsec.SPI) []wire.Payload {
		return func(in ipsec.SPI) []wire.Payload { return f(rekeyRequest(in)) }
	}
	fixed := func(ps ...wire.Payload) func(ipsec.SPI) []wire.Payload {
		return func(ipsec.SPI) []wire.Payload { return ps }
	}
	for name, c := range map[string]req{
		"message id far ahead":     {wire.Informational, 1000, fixed(), 0},
		"message id ahead":         {wire.Informational, 3, fixed(), 0},
		"message id of the past":   {wire.Informational, 0, fixed(), 0},
		"IKE_AUTH again":           {wire.IKEAuth, 2, fixed(), 0},
		"unknown exchange":         {99, 2, fixed(), 0},
		"DELETE of another's SPI":  {wire.Informational, 2, fixed(&wire.Delete{Protocol: wire.ProtocolESP, SPIs: []uint32{0xdeadbeef, 300}}), empty},
		"DELETE of AH":             {wire.Informational, 2, fixed(&wire.Delete{Protocol: wire.ProtocolAH, SPIs: []uint32{300}}), empty},
		"error notification":       {wire.Informational, 2, fixed(&wire.Notify{Type: wire.InvalidSPI}), empty},
		"INITIAL_CONTACT":          {wire.Informational, 2, fixed(&wire.Notify{Type: wire.InitialContact}), empty},
		"REDIRECT":                 {wire.Informational, 2, fixed(&wire.Notify{Type: wire.Redirect, Data: []byte{1, 4, 1, 2, 3, 4}}), empty},
		"unknown critical payload": {wire.Informational, 2, fixed(&wire.Unknown{Type: 200, Critical: true}), wire.UnsupportedCriticalPayload},
		"unknown payload":          {wire.Informational, 2, fixed(&wire.Unknown{Type: 200}), empty},
		"Child SA for others": {wire.CreateChildSA, 2, change(func(ps []wire.Payload) []wire.Payload {
			ps[4] = &wire.TS{Selectors: manyTS}
			return ps[1:]
		}), wire.TSUnacceptable},
		"IKE rekey with KE zero":      {wire.CreateChildSA, 2, ikeRekey(9, &wire.KE{Group: groupX25519, Data: make([]byte, 32)}), wire.InvalidSyntax},
		"IKE rekey without KE":        {wire.CreateChildSA, 2, ikeRekey(9, nil), wire.InvalidSyntax},
		"IKE rekey, another group":    {wire.CreateChildSA, 2, ikeRekey(9, &wire.KE{Group: 14, Data: make([]byte, 256)}), wire.InvalidKEPayload},
		"IKE rekey without SPI":       {wire.CreateChildSA, 2, ikeRekey(0, &wire.KE{Group: groupX25519, Data: basePoint}), wire.NoProposalChosen},
		"rekey of an unknown SPI":     {wire.CreateChildSA, 2, fixed(rekeyRequest(0xdeadbeef)...), wire.ChildSANotFound},
		"rekey with a wrong protocol": {wire.CreateChildSA, 2, change(func(ps []wire.Payload) []wire.Payload { ps[0].(*wire.Notify).Protocol = wire.ProtocolAH; return ps }), wire.ChildSANotFound},
		"rekey without SPI":           {wire.CreateChildSA, 2, change(func(ps []wire.Payload) []wire.Payload { ps[0].(*wire.Notify).SPI = nil; return ps }), wire.ChildSANotFound},
		"rekey of the mode":           {wire.CreateChildSA, 2, change(func(ps []wire.Payload) []wire.Payload { return append(ps[:1:1], ps[2:]...) }), wire.NoProposalChosen},
		"rekey without selectors":     {wire.CreateChildSA, 2, change(func(ps []wire.Payload) []wire.Payload { return ps[:4] }), wire.InvalidSyntax},
		"rekey for others":            {wire.CreateChildSA, 2, change(func(ps []wire.Payload) []wire.Payload { ps[4] = &wire.TS{Selectors: manyTS}; return ps }), wire.TSUnacceptable},
		"rekey with a cipher that we lack": {wire.CreateChildSA, 2, change(func(ps []wire.Payload) []wire.Payload {
			ps[2].(*wire.SA).Proposals = ps[2].(*wire.SA).Proposals[:1]
			ps[2].(*wire.SA).Proposals[0].Transforms = []wire.Transform{{Type: wire.TransformEncr, ID: 12, KeyLength: 128}}
			return ps
		}), wire.NoProposalChosen},
		"rekey without ESN transform": {wire.CreateChildSA, 2, change(func(ps []wire.Payload) []wire.Payload {
			ps[2].(*wire.SA).Proposals = ps[2].(*wire.SA).Proposals[:1]
			ps[2].(*wire.SA).Proposals[0].Transforms = []wire.Transform{{Type: wire.TransformEncr, ID: 20, KeyLength: 128}}
			return ps
		}), wire.NoProposalChosen},
		"rekey with D-H and no KE": {wire.CreateChildSA, 2, change(func(ps []wire.Payload) []wire.Payload { ps[2] = defaultOffer.espProposal(777, groupX25519); return ps }), wire.InvalidKEPayload},
		"rekey with KE zero": {wire.CreateChildSA, 2, change(func(ps []wire.Payload) []wire.Payload {
			ps[2] = defaultOffer.espProposal(777, groupX25519)
			return append(ps, &wire.KE{Group: groupX25519, Data: make([]byte, 32)})
		}), wire.InvalidSyntax},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, w := pairOf(t)
			establish(t, w, a, b, peerOf(a, b))
			up, _ := find[ChildUp](a)
			before := shape(b.e)
			got, o := talk(t, w, a, b, c.x, c.id, c.ps(up.Pair.In.SPI)...)
			for _, ev := range o.Events {
				if _, ok := ev.(Alive); !ok {
					t.Errorf("event %T%+v", ev, ev)
				}
			}
			switch {
			case c.want == 0 && len(o.Send) != 0, c.want != 0 && len(o.Send) != 1:
				t.Errorf("%d answers", len(o.Send))
			case c.want == empty && len(got) != 0:
				t.Errorf("answer %v", got)
			case c.want != 0 && c.want != empty && (len(got) != 1 || notify(got, c.want) == nil):
				t.Errorf("answer %+v, want %v", got, c.want)
			}
			if after := shape(b.e); before != after {
				t.Errorf("state changed: %+v, was %+v", after, before)
			}
			if again, _ := talk(t, w, a, b, wire.Informational, 2+b2u(c.want != 0)); again == nil && c.want != 0 && b.e.Stats().SAs != 1 {
				t.Error("the SA is dead")
			}
			checkSound(t, a, b)
		})
	}
}

func b2u(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

// shape is what must not change by a bad message.
func shape(e *Endpoint) (s struct {
	SAs, Half, SPIs, Children, Established int
}) {
	s.SAs, s.Half, s.SPIs = len(e.sas), e.stats.HalfOpen, len(e.spis)
	for _, x := range e.sas {
		for _, p := range x.child.all {
			s.Children += len(p.sas)
		}
		if x.state == established {
			s.Established++
		}
	}
	return s
}

// INVALID_SYNTAX under a good ICV ends the SA at both ends (RFC 7296, 2.21.3).
func TestMalformedInsideIsFatal(t *testing.T) {
	a, b, w := pairOf(t)
	establish(t, w, a, b, peerOf(a, b))
	got, o := talk(t, w, a, b, wire.Informational, 2, &wire.Nonce{Data: make([]byte, 16)})
	if notify(got, wire.InvalidSyntax) == nil || len(o.Events) != 3 {
		t.Errorf("answer %v, events %v", got, o.Events)
	}
}

// Before AUTH there is IKE_AUTH and nothing else.
func TestNothingBeforeAuth(t *testing.T) {
	for _, x := range []wire.ExchangeType{wire.Informational, wire.CreateChildSA, wire.IKESAInit, 99} {
		a, b, w := pairOf(t)
		w.tap = func(_ *host, d *Datagram) bool {
			h, _ := wire.ParseHeader(d.Data)
			return h.Exchange != wire.IKEAuth
		}
		w.initiate(a, peerOf(a, b))
		w.run(50 * time.Millisecond)
		before := shape(b.e)
		for id := range uint32(3) {
			if _, o := talk(t, w, a, b, x, id, rekeyRequest(777)...); len(o.Send)+len(o.Events) != 0 {
				t.Errorf("%v: %+v", x, o)
			}
		}
		if before != shape(b.e) || before.Half != 1 {
			t.Errorf("%v: state changed", x)
		}
	}
}

// IKE_AUTH requests that are refused: nobody is established.
func TestBadAuthRequests(t *testing.T) {
	for name, c := range map[string]struct {
		want   wire.NotifyType
		change func([]wire.Payload) []wire.Payload
	}{
		"no AUTH (EAP)":    {wire.AuthenticationFailed, func(ps []wire.Payload) []wire.Payload { return drop[*wire.Auth](ps) }},
		"AUTH twice":       {wire.InvalidSyntax, func(ps []wire.Payload) []wire.Payload { return append(ps, get[*wire.Auth](ps)) }},
		"no IDi":           {wire.InvalidSyntax, func(ps []wire.Payload) []wire.Payload { return ps[1:] }},
		"no SA":            {wire.InvalidSyntax, func(ps []wire.Payload) []wire.Payload { return drop[*wire.SA](ps) }},
		"no TS":            {wire.InvalidSyntax, func(ps []wire.Payload) []wire.Payload { return drop[*wire.TS](ps) }},
		"KE":               {wire.InvalidSyntax, func(ps []wire.Payload) []wire.Payload { return append(ps, &wire.KE{Group: 31, Data: []byte{1}}) }},
		"critical payload": {wire.UnsupportedCriticalPayload, func(ps []wire.Payload) []wire.Payload { return append(ps, &wire.Unknown{Type: 200, Critical: true}) }},
		"AUTH of zeros":    {wire.AuthenticationFailed, func(ps []wire.Payload) []wire.Payload { get[*wire.Auth](ps).Data = make([]byte, 32); return ps }},
		"AUTH empty":       {wire.AuthenticationFailed, func(ps []wire.Payload) []wire.Payload { get[*wire.Auth](ps).Data = nil; return ps }},
		"AUTH short":       {wire.AuthenticationFailed, func(ps []wire.Payload) []wire.Payload { p := get[*wire.Auth](ps); p.Data = p.Data[:31]; return ps }},
		"shared key":       {wire.AuthenticationFailed, func(ps []wire.Payload) []wire.Payload { get[*wire.Auth](ps).Method = wire.AuthSharedKey; return ps }},
		"RSA with SHA-1":   {wire.AuthenticationFailed, func(ps []wire.Payload) []wire.Payload { get[*wire.Auth](ps).Method = wire.AuthRSA; return ps }},
		"method 0":         {wire.AuthenticationFailed, func(ps []wire.Payload) []wire.Payload { get[*wire.Auth](ps).Method = 0; return ps }},
		"another IDi": {wire.AuthenticationFailed, func(ps []wire.Payload) []wire.Payload {
			ps[0] = &wire.ID{Kind: wire.IDFQDN, Data: []byte("carol.example")}
			return ps
		}},
		"IDi that lies to a terminal": {wire.AuthenticationFailed, func(ps []wire.Payload) []wire.Payload {
			ps[0] = &wire.ID{Kind: wire.IDFQDN, Data: []byte("bob\x1b[2J")}
			return ps
		}},
		"reserved octets of IDi changed": {wire.AuthenticationFailed, func(ps []wire.Payload) []wire.Payload {
			ps[0] = &wire.ID{Kind: wire.IDNull, Reserved: [3]byte{1}}
			return ps
		}},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, w := pairOf(t)
			w.tap = rewrite(t, a, c.change)
			w.initiate(a, peerOf(a, b))
			w.run(time.Second)
			if cl, _ := find[Closed](a); cl.Err != (NotifyError{c.want}) {
				t.Errorf("closed with %v, want %v", cl.Err, c.want)
			}
			if count[Established](b) != 0 || count[ChildWanted](b) != 0 {
				t.Errorf("%s", b.dump())
			}
			w.run(time.Minute)
			if st := b.e.Stats(); st.SAs != 0 || st.HalfOpen != 0 {
				t.Errorf("%+v", st)
			}
			checkSound(t, a, b)
		})
	}
}

// rewrite is a tap that changes what is inside of the IKE_AUTH messages of one host, with its keys.
func rewrite(t *testing.T, of *host, change func([]wire.Payload) []wire.Payload) func(*host, *Datagram) bool {
	return rewriteIn(t, of, wire.IKEAuth, change)
}

// rewriteIn does so in another exchange.
func rewriteIn(t *testing.T, of *host, x wire.ExchangeType, change func([]wire.Payload) []wire.Payload) func(*host, *Datagram) bool {
	return func(from *host, d *Datagram) bool {
		h, _ := wire.ParseHeader(d.Data)
		if from != of || h.Exchange != x {
			return true
		}
		s := of.e.sas[SAID(h.ResponderSPI)]
		if h.Flags&wire.FlagInitiator != 0 {
			s = of.e.sas[SAID(h.InitiatorSPI)]
		}
		mirror := s.keys.seal
		mirror.count = 100
		ps, err := mirror.open(d.Data)
		if err != nil {
			t.Fatal(err)
		}
		if d.Data, err = mirror.seal(h, change(ps)); err != nil {
			t.Fatal(err)
		}
		return true
	}
}

// TRUST.md A-14: evil.example publishes the victim's key and address. Even if the responder is not asked for the name, the
// initiator sees whom it has reached.
//
//tacit:attack A-14 the initiator refuses the identity that it did not ask for
func TestUnknownKeyShare(t *testing.T) {
	a, b, w := pairOf(t)
	p := peerOf(a, b)
	p.RemoteID.Value = "evil.example"
	w.tap = rewrite(t, a, func(ps []wire.Payload) []wire.Payload {
		id := getID(ps, true)
		return slices.DeleteFunc(ps, func(p wire.Payload) bool { return p == wire.Payload(id) })
	})
	closedWith(t, w, a, b, p, ErrAuthentication)
	if count[Established](a) != 0 || count[AuthorizationWanted](b) != 1 {
		t.Errorf("%s\n%s", a.dump(), b.dump())
	}
}

// The responder does not even ask its caller about an initiator that means somebody else.
//
//tacit:attack A-14 the responder refuses a name that it does not own
func TestForeignIDr(t *testing.T) {
	a, b, w := pairOf(t)
	p := peerOf(a, b)
	p.RemoteID.Value = "evil.example"
	closedWith(t, w, a, b, p, ErrAuthentication)
	if len(b.events) != 0 {
		t.Errorf("%s", b.dump())
	}
}

// No nonce of a cipher occurs twice, and no message opens but in its own direction.
func TestSealNonces(t *testing.T) {
	for _, c := range suites() {
		key := make([]byte, c.keyMaterial())
		s, err := newSealer(c, key)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for range 100 {
			b, err := s.seal(wire.Header{InitiatorSPI: 1, Exchange: wire.Informational}, nil)
			if err != nil || seen[string(b[wire.HeaderLen+4:wire.HeaderLen+4+s.suite.ivLen()])] {
				t.Fatalf("%v: an IV occurs twice (%v)", c, err)
			}
			seen[string(b[wire.HeaderLen+4:wire.HeaderLen+4+s.suite.ivLen()])] = true
			if ps, err := s.open(b); err != nil || len(ps) != 0 {
				t.Errorf("%v: %v %v", c, ps, err)
			}
		}
	}
}

// Messages of every length open with every suite, whole; and no octet of them may change.
func TestSealLengths(t *testing.T) {
	for _, c := range suites() {
		key := make([]byte, c.keyMaterial())
		s, err := newSealer(c, key)
		if err != nil {
			t.Fatal(err)
		}
		for n := range 40 {
			b, err := s.seal(wire.Header{InitiatorSPI: 1, Exchange: wire.Informational}, []wire.Payload{&wire.VendorID{Data: bytes.Repeat([]byte{7}, n+1)}})
			if err != nil {
				t.Fatal(err)
			}
			ps, err := s.open(b)
			if err != nil || len(ps) != 1 || len(get[*wire.VendorID](ps).Data) != n+1 {
				t.Fatalf("%v, %d octets: %v, %v", c, n+1, ps, err)
			}
			for i := range b {
				b[i] ^= 1
				if _, err := s.open(b); err != errSealed {
					t.Fatalf("%v, %d octets: changed at %d: %v", c, n+1, i, err)
				}
				b[i] ^= 1
				if _, err := s.open(b[:i]); err != errSealed {
					t.Fatalf("%v, %d octets: cut at %d: %v", c, n+1, i, err)
				}
			}
		}
	}
}

func drop[T wire.Payload](ps []wire.Payload) (out []wire.Payload) {
	for _, p := range ps {
		if _, ok := p.(T); !ok {
			out = append(out, p)
		}
	}
	return out
}

// Every changed octet and every prefix of every message of a handshake, a rekey and a DELETE is dropped, and the real one
// goes on as if nothing had been.
//
//tacit:attack A-25 a mangled message changes nothing
func TestMangledMessagesChangeNothing(t *testing.T) {
	a, b, w := pairOf(t)
	rng := rand.New(rand.NewPCG(1, 1))
	w.tap = func(from *host, d *Datagram) bool {
		to := a
		if from == a {
			to = b
		}
		h, _ := wire.ParseHeader(d.Data)
		if h.Exchange == wire.IKESAInit {
			return true // nothing signs it yet: TestBadFirstMessages, FuzzEngine
		}
		for i := range d.Data {
			before := shape(to.e)
			bad := bytes.Clone(d.Data)
			bad[i] ^= byte(1 + rng.IntN(255))
			for _, data := range [][]byte{bad, d.Data[:i]} {
				o := to.e.Receive(w.now, Datagram{d.Remote, d.Local, data})
				if len(o.Events) != 0 || before != shape(to.e) {
					t.Fatalf("%v, octet %d: %+v", h.Exchange, i, o.Events)
				}
				if len(o.Send) > 0 && i != 17 { // the version may be answered
					t.Fatalf("%v, octet %d is answered", h.Exchange, i)
				}
			}
		}
		return true
	}
	id := establish(t, w, a, b, peerOf(a, b))
	w.take(a, a.e.Do(w.now, id, RekeyChild))
	w.run(2 * time.Second)
	checkRekeyed2(t, a, b)
	w.take(a, a.e.Do(w.now, id, Delete))
	w.run(time.Second)
	if count[Closed](a) != 1 || count[Closed](b) != 1 {
		t.Errorf("%s\n%s", a.dump(), b.dump())
	}
}

func checkRekeyed2(t *testing.T, a, b *host) {
	t.Helper()
	checkPaired(t, a, b)
	if count[ChildUp](a) != 2 || count[ChildUp](b) != 2 || count[ChildRetired](a) != 1 || count[ChildRetired](b) != 1 {
		t.Errorf("%s\n%s", a.dump(), b.dump())
	}
}

// A responder's answer in IKE_AUTH that makes no sense is rejected as a whole, and the responder told.
func TestBadAuthResponses(t *testing.T) {
	for name, change := range map[string]func([]wire.Payload) []wire.Payload{
		"no IDr":           func(ps []wire.Payload) []wire.Payload { return ps[1:] },
		"no AUTH":          drop[*wire.Auth],
		"no SA":            drop[*wire.SA],
		"no TS":            drop[*wire.TS],
		"another proposal": func(ps []wire.Payload) []wire.Payload { get[*wire.SA](ps).Proposals[0].Number = 9; return ps },
		"another cipher": func(ps []wire.Payload) []wire.Payload {
			get[*wire.SA](ps).Proposals[0].Transforms[0].KeyLength = 192
			return ps
		},
		"wider selectors": func(ps []wire.Payload) []wire.Payload {
			getTS(ps, true).Selectors[0].End = netip.MustParseAddr("255.255.255.255")
			return ps
		},
		"other selectors": func(ps []wire.Payload) []wire.Payload {
			getTS(ps, false).Selectors[0] = wire.Host(addrB.Addr())
			return ps
		},
		"NULL for a key": func(ps []wire.Payload) []wire.Payload { get[*wire.Auth](ps).Method = wire.AuthNull; return ps },
		"TS_UNACCEPTABLE": func(ps []wire.Payload) []wire.Payload {
			return append(ps[:2:2], &wire.Notify{Type: wire.TSUnacceptable})
		},
		"an error beside it": func(ps []wire.Payload) []wire.Payload { return append(ps, &wire.Notify{Type: 9999}) },
	} {
		t.Run(name, func(t *testing.T) {
			a, b, w := pairOf(t)
			w.tap = rewrite(t, b, change)
			closedWith(t, w, a, b, peerOf(a, b), nil)
			if count[ChildWanted](a) != 0 {
				t.Error("the data plane was asked")
			}
		})
	}
}

// What a responder may not answer to the rekey of an IKE SA, or of a Child SA: the SA that was to be rekeyed ends, and nothing comes of the new one.
func TestBadRekeyAnswers(t *testing.T) {
	proposal := func(change func(*host, *wire.Proposal)) func(*host, []wire.Payload) []wire.Payload {
		return func(a *host, ps []wire.Payload) []wire.Payload {
			change(a, &get[*wire.SA](ps).Proposals[0])
			return ps
		}
	}
	without := func(drop func([]wire.Payload) []wire.Payload) func(*host, []wire.Payload) []wire.Payload {
		return func(_ *host, ps []wire.Payload) []wire.Payload { return drop(ps) }
	}
	for name, c := range map[string]struct {
		command Command
		change  func(a *host, ps []wire.Payload) []wire.Payload
	}{
		"IKE: our own SPI": {RekeyIKE, proposal(func(a *host, p *wire.Proposal) { p.SPI = spiBytes(uint64(asksHeir(a).spi)) })},
		"IKE: our own nonce": {RekeyIKE, func(a *host, ps []wire.Payload) []wire.Payload {
			get[*wire.Nonce](ps).Data = bytes.Clone(asksHeir(a).ni)
			return ps
		}},
		"IKE: another proposal":      {RekeyIKE, proposal(func(_ *host, p *wire.Proposal) { p.Number = 9 })},
		"IKE: a cipher of its own":   {RekeyIKE, proposal(func(_ *host, p *wire.Proposal) { p.Transforms[0].KeyLength = 192 })},
		"IKE: no key exchange":       {RekeyIKE, without(drop[*wire.KE])},
		"IKE: no nonce":              {RekeyIKE, without(drop[*wire.Nonce])},
		"IKE: a share of zeros":      {RekeyIKE, func(_ *host, ps []wire.Payload) []wire.Payload { clear(get[*wire.KE](ps).Data); return ps }},
		"child: no nonce":            {RekeyChild, without(drop[*wire.Nonce])},
		"child: no key exchange":     {RekeyChild, without(drop[*wire.KE])},
		"child: a cipher of its own": {RekeyChild, proposal(func(_ *host, p *wire.Proposal) { p.Transforms[0].KeyLength = 192 })},
		"child: somebody else's": {RekeyChild, func(_ *host, ps []wire.Payload) []wire.Payload {
			getTS(ps, true).Selectors[0] = wire.Host(addrA.Addr())
			return ps
		}},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, w := classic(t)
			id := establish(t, w, a, b, peerOf(a, b))
			wanted := count[ChildWanted](a)
			w.tap = rewriteIn(t, b, wire.CreateChildSA, func(ps []wire.Payload) []wire.Payload { return c.change(a, ps) })
			w.take(a, a.e.Do(w.now, id, c.command))
			w.run(time.Second)
			w.tap = nil
			w.run(time.Minute)
			if e, _ := find[Closed](a); e.Err == nil || count[Rekeyed](a)+count[Rekeyed](b) > 1 || count[ChildWanted](a) != wanted {
				t.Errorf("%v\n%s", e.Err, a.dump())
			}
			if len(a.e.sas)+len(b.e.sas) != 0 {
				t.Errorf("%d and %d SAs stay", len(a.e.sas), len(b.e.sas))
			}
		})
	}
}

// asksHeir is the rekey of an IKE SA that a host has asked for.
func asksHeir(h *host) *succession {
	for _, s := range h.e.sas {
		if s.kin != nil && s.kin.rekey != nil {
			return s.kin.rekey
		}
	}
	return nil
}
