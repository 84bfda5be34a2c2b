package ike

import (
	"testing"

	"tacit/ike/wire"
	"tacit/ipsec"
)

func tr(t wire.TransformType, id uint16) wire.Transform { return wire.Transform{Type: t, ID: id} }

func encr(c ipsec.Cipher, bits uint16) wire.Transform {
	return wire.Transform{Type: wire.TransformEncr, ID: uint16(c), KeyLength: bits}
}

// ikeSA is an SA payload of IKE proposals.
func ikeSA(proposals ...[]wire.Transform) *wire.SA {
	sa := &wire.SA{}
	for i, ts := range proposals {
		sa.Proposals = append(sa.Proposals, wire.Proposal{Number: uint8(i + 1), Protocol: wire.ProtocolIKE, Transforms: ts})
	}
	return sa
}

// What is chosen of proposals as peers send them, and which are refused.
func TestChooseIKE(t *testing.T) {
	var (
		gcm, cbc   = encr(ipsec.AESGCM16, 128), encr(ipsec.AESCBC, 256)
		prf, none  = tr(wire.TransformPRF, wire.PRFHMACSHA2256), tr(wire.TransformInteg, wire.IntegNone)
		sha256     = tr(wire.TransformInteg, uint16(ipsec.HMACSHA256))
		sha1       = tr(wire.TransformInteg, 2)
		x, p, p384 = tr(wire.TransformKE, groupX25519), tr(wire.TransformKE, groupP256), tr(wire.TransformKE, groupP384)
		unknown    = wire.Transform{Type: wire.TransformEncr, ID: 20, KeyLength: 128, UnknownAttribute: true}
	)
	type ts = []wire.Transform
	for name, c := range map[string]struct {
		sa   *wire.SA
		ke   uint16
		want string // "": NO_PROPOSAL_CHOSEN
		n    uint8
	}{
		"combined":                                {ikeSA(ts{gcm, prf, x}), groupX25519, "aes-gcm-16-128 prf-sha256 x25519", 1},
		"combined with INTEG NONE":                {ikeSA(ts{gcm, none, prf, x}), groupX25519, "aes-gcm-16-128 prf-sha256 x25519", 1},
		"combined with an integrity algorithm":    {ikeSA(ts{gcm, sha256, prf, x}), groupX25519, "", 0},
		"CBC":                                     {ikeSA(ts{cbc, sha256, prf, x}), groupX25519, "aes-cbc-256 hmac-sha2-256-128 prf-sha256 x25519", 1},
		"CBC without integrity":                   {ikeSA(ts{cbc, prf, x}), groupX25519, "", 0},
		"CBC with INTEG NONE":                     {ikeSA(ts{cbc, none, prf, x}), groupX25519, "", 0},
		"CBC with HMAC-SHA-1":                     {ikeSA(ts{cbc, sha1, prf, x}), groupX25519, "", 0},
		"CBC with HMAC-SHA-1 first":               {ikeSA(ts{cbc, sha1, sha256, prf, x}), groupX25519, "aes-cbc-256 hmac-sha2-256-128 prf-sha256 x25519", 1},
		"both kinds in one, NONE too":             {ikeSA(ts{cbc, gcm, sha256, none, prf, x}), groupX25519, "aes-gcm-16-128 prf-sha256 x25519", 1},
		"both kinds in one, no NONE":              {ikeSA(ts{gcm, cbc, sha256, prf, x}), groupX25519, "aes-cbc-256 hmac-sha2-256-128 prf-sha256 x25519", 1},
		"CBC before combined":                     {ikeSA(ts{cbc, sha256, prf, x}, ts{gcm, prf, x}), groupX25519, "aes-gcm-16-128 prf-sha256 x25519", 2},
		"the group of the KE payload":             {ikeSA(ts{gcm, prf, x, p}), groupP256, "aes-gcm-16-128 prf-sha256 p256", 1},
		"no KE payload of ours":                   {ikeSA(ts{gcm, prf, p384, x}), 2, "aes-gcm-16-128 prf-sha256 p384", 1},
		"a weak group only":                       {ikeSA(ts{gcm, prf, tr(wire.TransformKE, 2)}), 2, "", 0},
		"a weak group beside":                     {ikeSA(ts{gcm, prf, tr(wire.TransformKE, 2), x}), 2, "aes-gcm-16-128 prf-sha256 x25519", 1},
		"3DES only":                               {ikeSA(ts{encr(3, 0), sha256, prf, x}), groupX25519, "", 0},
		"unknown transforms beside ours":          {ikeSA(ts{encr(9999, 128), gcm, tr(wire.TransformPRF, 9999), prf, tr(wire.TransformKE, 9999), x}), groupX25519, "aes-gcm-16-128 prf-sha256 x25519", 1},
		"unknown attribute":                       {ikeSA(ts{unknown, prf, x}), groupX25519, "", 0},
		"unknown attribute beside ours":           {ikeSA(ts{unknown, gcm, prf, x}), groupX25519, "aes-gcm-16-128 prf-sha256 x25519", 1},
		"key length on a PRF":                     {ikeSA(ts{gcm, {Type: wire.TransformPRF, ID: 5, KeyLength: 128}, x}), groupX25519, "", 0},
		"AES-CBC without key length":              {ikeSA(ts{encr(ipsec.AESCBC, 0), sha256, prf, x}), groupX25519, "", 0},
		"AES-CBC of a length that is none":        {ikeSA(ts{encr(ipsec.AESCBC, 64), sha256, prf, x}), groupX25519, "", 0},
		"unknown transform type":                  {ikeSA(ts{gcm, prf, x, tr(13, 1)}), groupX25519, "", 0},
		"unknown transform type, and one without": {ikeSA(ts{gcm, prf, x, tr(240, 1)}, ts{gcm, prf, x}), groupX25519, "aes-gcm-16-128 prf-sha256 x25519", 2},
		"transform type 0":                        {ikeSA(ts{gcm, prf, x, tr(0, 1)}), groupX25519, "", 0},
		"PRF with HMAC-SHA-1 only":                {ikeSA(ts{gcm, tr(wire.TransformPRF, 2), x}), groupX25519, "", 0},
		"AH":                                      {&wire.SA{Proposals: []wire.Proposal{{Number: 1, Protocol: wire.ProtocolAH, Transforms: ts{gcm, prf, x}}}}, groupX25519, "", 0},
		"the SPI of a rekey":                      {&wire.SA{Proposals: []wire.Proposal{{Number: 1, Protocol: wire.ProtocolIKE, SPI: make([]byte, 8), Transforms: ts{gcm, prf, x}}}}, groupX25519, "", 0},
		"strongSwan's default":                    {strongswanDefault(), groupP256, "aes-gcm-16-128 prf-sha256 p256", 2},
	} {
		s, answer, ok := defaultOffer.chooseIKE(c.sa, c.ke, declined)
		switch {
		case !ok && c.want != "", ok && s.String() != c.want:
			t.Errorf("%s: chose %v %v, want %q", name, s, ok, c.want)
		case ok && (len(answer.Proposals) != 1 || answer.Proposals[0].Number != c.n):
			t.Errorf("%s: answered %+v, want proposal %d", name, answer, c.n)
		}
	}
}

// strongswanDefault is what strongSwan 5.9.8 proposes where nothing is configured.
func strongswanDefault() *wire.SA {
	var common []wire.Transform
	for _, id := range []uint16{5, 6, 7, 4, 2} {
		common = append(common, tr(wire.TransformPRF, id))
	}
	for _, id := range []uint16{19, 20, 21, 28, 29, 30, 31, 32, 15, 16, 17, 18, 14} {
		common = append(common, tr(wire.TransformKE, id))
	}
	cbc := []wire.Transform{encr(12, 128), encr(12, 192), encr(12, 256), encr(13, 128)}
	for _, id := range []uint16{12, 13, 14, 5, 2} {
		cbc = append(cbc, tr(wire.TransformInteg, id))
	}
	gcm := []wire.Transform{encr(20, 128), encr(20, 192), encr(20, 256), encr(28, 0), encr(16, 128)}
	return ikeSA(append(cbc, common...), append(gcm, common...))
}

// ESN both ways, and what an ESP proposal may not be.
func TestChooseESP(t *testing.T) {
	var (
		gcm, cbc = encr(ipsec.AESGCM16, 128), encr(ipsec.AESCBC, 128)
		sha512   = tr(wire.TransformInteg, uint16(ipsec.HMACSHA512))
		yes, no  = tr(wire.TransformESN, wire.ESNYes), tr(wire.TransformESN, wire.ESNNo)
		x        = tr(wire.TransformKE, groupX25519)
	)
	type ts = []wire.Transform
	for name, c := range map[string]struct {
		ts     ts
		withKE bool
		ke     uint16
		want   espSuite
		ok     bool
	}{
		"ESN first":                    {ts{gcm, yes, no}, false, 0, espSuite{espCiphers[0], true, 0, 0}, true},
		"ESN last":                     {ts{gcm, no, yes}, false, 0, espSuite{espCiphers[0], false, 0, 0}, true},
		"ESN only":                     {ts{gcm, yes}, false, 0, espSuite{espCiphers[0], true, 0, 0}, true},
		"no ESN":                       {ts{gcm, no}, false, 0, espSuite{espCiphers[0], false, 0, 0}, true},
		"ESN is not there":             {ts{gcm}, false, 0, espSuite{}, false},
		"ESN 7":                        {ts{gcm, tr(wire.TransformESN, 7)}, false, 0, espSuite{}, false},
		"CBC":                          {ts{cbc, sha512, no}, false, 0, espSuite{cipherSuite{ipsec.AESCBC, 128, ipsec.HMACSHA512}, false, 0, 0}, true},
		"CBC without integrity":        {ts{cbc, no}, false, 0, espSuite{}, false},
		"NULL encryption":              {ts{encr(11, 0), sha512, no}, false, 0, espSuite{}, false},
		"a PRF":                        {ts{gcm, no, tr(wire.TransformPRF, 5)}, false, 0, espSuite{}, false},
		"key exchange in IKE_AUTH":     {ts{gcm, no, x}, false, 0, espSuite{espCiphers[0], false, 0, 0}, true},
		"key exchange":                 {ts{gcm, no, x}, true, groupX25519, espSuite{espCiphers[0], false, groupX25519, 0}, true},
		"key exchange, none is sent":   {ts{gcm, no, x, tr(wire.TransformKE, 0)}, true, 0, espSuite{espCiphers[0], false, 0, 0}, true},
		"key exchange of a weak group": {ts{gcm, no, tr(wire.TransformKE, 2)}, true, 2, espSuite{}, false},
		"unknown transform type":       {ts{gcm, no, tr(77, 0)}, false, 0, espSuite{}, false},
	} {
		sa := &wire.SA{Proposals: []wire.Proposal{{Number: 1, Protocol: wire.ProtocolESP, SPI: espSPI(777), Transforms: c.ts}}}
		s, out, answer, ok := defaultOffer.chooseESP(sa, c.withKE, false, c.ke, 888)
		if ok != c.ok || ok && (s != c.want || out != 777 || string(answer.Proposals[0].SPI) != string(espSPI(888))) {
			t.Errorf("%s: chose %+v %v, want %+v", name, s, ok, c.want)
		}
		if !ok {
			continue
		}
		if !s.cipher.cipher.Combined() {
			answer.Proposals[0].Number = 2 // where we have it
		}
		if _, _, taken := defaultOffer.acceptESP(answer, c.want.group); !taken {
			t.Errorf("%s: our own answer is not taken", name)
		}
	}
}

// A responder's choice that was not ours to choose is not taken.
func TestAnswersToOurProposals(t *testing.T) {
	var (
		gcm, cbc = encr(ipsec.AESGCM16, 128), encr(ipsec.AESCBC, 256)
		prf, x   = tr(wire.TransformPRF, 5), tr(wire.TransformKE, groupX25519)
		sha256   = tr(wire.TransformInteg, uint16(ipsec.HMACSHA256))
		none     = tr(wire.TransformInteg, wire.IntegNone)
	)
	type ts = []wire.Transform
	number := func(n uint8, ts ...wire.Transform) *wire.SA {
		return &wire.SA{Proposals: []wire.Proposal{{Number: n, Protocol: wire.ProtocolIKE, Transforms: ts}}}
	}
	for name, c := range map[string]struct {
		sa *wire.SA
		ok bool
	}{
		"combined":                   {number(1, gcm, prf, x), true},
		"combined, INTEG NONE":       {number(1, gcm, none, prf, x), true},
		"CBC":                        {number(2, cbc, sha256, prf, x), true},
		"CBC as the other":           {number(1, cbc, sha256, prf, x), false},
		"combined as the other":      {number(2, gcm, prf, x), false},
		"number 0":                   {number(0, gcm, prf, x), false},
		"number 3":                   {number(3, gcm, prf, x), false},
		"two ciphers":                {number(1, gcm, encr(ipsec.AESGCM16, 256), prf, x), false},
		"two proposals":              {ikeSA(ts{gcm, prf, x}, ts{gcm, prf, x}), false},
		"no proposal":                {&wire.SA{}, false},
		"a cipher that we lack":      {number(1, encr(ipsec.AESGCM16, 192), prf, x), false},
		"a group that we lack":       {number(1, gcm, prf, tr(wire.TransformKE, 2)), false},
		"no PRF":                     {number(1, gcm, x), false},
		"no group":                   {number(1, gcm, prf), false},
		"an additional key exchange": {number(1, gcm, prf, x, tr(6, 36)), false},
	} {
		if s, ok := defaultOffer.acceptIKE(c.sa, defaultOffer.ikeProposal(groupNone)); ok != c.ok {
			t.Errorf("%s: %v %v", name, s, ok)
		}
	}
}
