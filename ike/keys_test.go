package ike

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"testing"

	"tacit/ike/wire"
	"tacit/ipsec"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// NIST's CAVP example for IKEv2. Its hash, SHA-1, is none that we negotiate; the functions are the same for all.
func TestKeyDerivationCAVP(t *testing.T) {
	const h = crypto.SHA1
	ni, nr := unhex(t, "32b50d5f4a3763f3"), unhex(t, "9206a04b26564cb1")
	gir := unhex(t, "4b2c1f971981a8ad8d0abeafabf38cf75fc8349c148142465ed9c8b516b8be52")
	girNew := unhex(t, "863f3c9d06efd39d2b907b97f8699e5dd5251ef64a2a176f36ee40c87d4f9330")
	spiI := binary.BigEndian.Uint64(unhex(t, "34c9e7c188868785"))
	spiR := binary.BigEndian.Uint64(unhex(t, "3ff77d760d2b2199"))

	seed := skeyseed(h, ni, nr, gir)
	if want := unhex(t, "a9a7b222b59f8f48645f28a1db5b5f5d7479cba7"); !bytes.Equal(seed, want) {
		t.Errorf("SKEYSEED %x, want %x", seed, want)
	}
	dkm := unhex(t, "a14293677cc80ff8f9cc0eee30d895da9d8f405666e30ef0dfcb63c634a46002a2a63080e514a062768b76606f9fa5e992204fc5"+
		"a670bde3f10d6b027113936a5c55b648a194ae587b0088d52204b702c979fa280870d2ed41efa9c549fd11198af1670b143d384bd275c5f594cf26"+
		"6b05ebadca855e4249520a441a81157435a7a56cc4")
	// AES-128-GCM: 20 octets of key and salt, so that DKM falls into SK_d, SK_ei, SK_er, SK_pi and SK_pr of 20 octets each.
	k := deriveSA(ikeSuite{cipher: espCiphers[0], prf: h}, ni, nr, gir, spiI, spiR)
	for i, got := range []ipsec.Secret{k.d, k.ei, k.er, k.pi, k.pr} {
		if want := dkm[20*i : 20*i+20]; !bytes.Equal(got, want) {
			t.Errorf("key %d: %x, want %x", i, []byte(got), want)
		}
	}
	c := deriveChild(h, k.d, cipherSuite{cipher: ipsec.AESGCM16, bits: 256}, ni, nr, nil, nil)
	if want := unhex(t, "8059e3ee8810e6c3a91bc8bcd2a7a41151b8d0e6ae239c7b38093ad85ef4c5811a8e7b5d1cdabd9560b2d5e092d1f24e2d4b85eccdf0ad0d"+
		"c9abd94b51ee71814ca6dbc8bb51b630"); !bytes.Equal(concat(c.initiatorToResponder, c.responderToInitiator), want) {
		t.Errorf("KEYMAT %x", concat(c.initiatorToResponder, c.responderToInitiator))
	}
	c = deriveChild(h, k.d, cipherSuite{cipher: ipsec.AESGCM16, bits: 256}, ni, nr, girNew, nil)
	if want := unhex(t, "bb43244c1860ad65ee1e211ffe8bb3661750c8f89cb9f547df7f4fa61d37301628190e38c66232eab4b3ab14c400a5197dd3730ed4820a8a"+
		"10394d51e1c0400052f63ebd36b0e7ef"); !bytes.Equal(concat(c.initiatorToResponder, c.responderToInitiator), want) {
		t.Errorf("KEYMAT with key exchange %x", concat(c.initiatorToResponder, c.responderToInitiator))
	}
}

// RFC 4231, test case 2, for the three PRFs.
func TestPRF(t *testing.T) {
	for h, want := range map[crypto.Hash]string{
		crypto.SHA256: "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
		crypto.SHA384: "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649",
		crypto.SHA512: "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737",
	} {
		if got := prf(h, []byte("Jefe"), []byte("what do ya want "), []byte("for nothing?")); hex.EncodeToString(got) != want {
			t.Errorf("%v: %x", h, got)
		}
	}
}

// The two ends give the halves of KEYMAT opposite directions.
func TestPairDirections(t *testing.T) {
	for _, c := range suites() {
		k := deriveChild(crypto.SHA256, []byte("sk_d"), c, []byte("ni"), []byte("nr"), nil, nil)
		s := espSuite{cipher: c, esn: true}
		inI, outI := k.pair(s, true, 1000, 2000)
		inR, outR := k.pair(s, false, 2000, 1000)
		for _, p := range [][2]ipsec.SA{{outI, inR}, {outR, inI}} {
			if p[0].SPI != p[1].SPI || !bytes.Equal(p[0].Key, p[1].Key) || !bytes.Equal(p[0].Salt, p[1].Salt) || !bytes.Equal(p[0].AuthKey, p[1].AuthKey) {
				t.Errorf("%v: %v and %v", c, p[0], p[1])
			}
			if err := p[0].Check(); err != nil {
				t.Errorf("%v: %v", c, err)
			}
		}
		if bytes.Equal(inI.Key, outI.Key) {
			t.Errorf("%v: one key for both directions", c)
		}
	}
}

// The NAT hash takes an IPv4 address as 4 octets, also when it comes from a dual-stack socket.
func TestNATHash(t *testing.T) {
	plain := natHash(1, 2, netip.MustParseAddrPort("192.0.2.1:500"))
	if !bytes.Equal(plain, natHash(1, 2, netip.MustParseAddrPort("[::ffff:192.0.2.1]:500"))) {
		t.Error("mapped address")
	}
	if len(plain) != 20 || bytes.Equal(plain, natHash(1, 2, netip.MustParseAddrPort("192.0.2.1:501"))) || bytes.Equal(plain, natHash(2, 1, netip.MustParseAddrPort("192.0.2.1:500"))) {
		t.Error("port or SPIs are not covered")
	}
}

// RFC 5903, 8.1 to 8.3, in the form of KE payloads. (X25519 needs no other form than the standard library's.)
func TestKeyExchangeVectors(t *testing.T) {
	for name, c := range map[string]struct {
		group               uint16
		private, peer, want string
		public              string
	}{
		"P-256": {groupP256, "c88f01f510d9ac3f70a292daa2316de544e9aab8afe84049c62a9c57862d1433",
			"d12dfb5289c8d4f81208b70270398c342296970a0bccb74c736fc7554494bf6356fbf3ca366cc23e8157854c13c58d6aac23f046ada30f8353e74f33039872ab",
			"d6840f6b42f6edafd13116e0e12565202fef8e9ece7dce03812464d04b9442de",
			"dad0b65394221cf9b051e1feca5787d098dfe637fc90b9ef945d0c37725811805271a0461cdb8252d61f1c456fa3e59ab1f45b33accf5f58389e0577b8990bb3"},
		"P-384": {groupP384, "099f3c7034d4a2c699884d73a375a67f7624ef7c6b3c0f160647b67414dce655e35b538041e649ee3faef896783ab194",
			"e558dbef53eecde3d3fccfc1aea08a89a987475d12fd950d83cfa41732bc509d0d1ac43a0336def96fda41d0774a3571" +
				"dcfbec7aacf3196472169e838430367f66eebe3c6e70c416dd5f0c68759dd1fff83fa40142209dff5eaad96db9e6386c",
			"11187331c279962d93d604243fd592cb9d0a926f422e47187521287e7156c5c4d603135569b9e9d09cf5d4a270f59746",
			"667842d7d180ac2cde6f74f37551f55755c7645c20ef73e31634fe72b4c55ee6de3ac808acb4bdb4c88732aee95f41aa" +
				"9482ed1fc0eeb9cafc4984625ccfc23f65032149e0e144ada024181535a0f38eeb9fcff3c2c947dae69b4c634573a81c"},
		"P-521": {groupP521, "0037ade9319a89f4dabdb3ef411aaccca5123c61acab57b5393dce47608172a095aa85a30fe1c2952c6771d937ba9777f5957b2639bab072462f68c27a57382d4a52",
			"00d0b3975ac4b799f5bea16d5e13e9af971d5e9b984c9f39728b5e5739735a219b97c356436adc6e95bb0352f6be64a6c2912d4ef2d0433ced2b6171640012d9460f" +
				"015c68226383956e3bd066e797b623c27ce0eac2f551a10c2c724d9852077b87220b6536c5c408a1d2aebb8e86d678ae49cb57091f4732296579ab44fcd17f0fc56a",
			"01144c7d79ae6956bc8edb8e7c787c4521cb086fa64407f97894e5e6b2d79b04d1427e73ca4baa240a34786859810c06b3c715a3a8cc3151f2bee417996d19f3ddea",
			"0015417e84dbf28c0ad3c278713349dc7df153c897a1891bd98bab4357c9ecbee1e3bf42e00b8e380aeae57c2d107564941885942af5a7f4601723c4195d176ced3e" +
				"017cae20b6641d2eeb695786d8c946146239d099e18e1d5a514c739d7cb4a10ad8a788015ac405d7799dc75e7b7d5b6cf2261a6a7f1507438bf01beb6ca3926f9582"},
	} {
		key, err := methods[c.group].curve.NewPrivateKey(unhex(t, c.private))
		if err != nil {
			t.Fatal(err)
		}
		s := share{group: c.group, key: key}
		got, err := s.secret(unhex(t, c.peer))
		if err != nil || hex.EncodeToString(got) != c.want || hex.EncodeToString(s.public()) != c.public {
			t.Errorf("%s: secret %x, public %x, %v", name, got, s.public(), err)
		}
		if _, err := s.secret(s.public()); err == nil {
			t.Errorf("%s: our own public value is taken", name)
		}
	}
}

// suites are all ways to encrypt and authenticate.
func suites() (all []cipherSuite) {
	for _, c := range espCiphers {
		if c.cipher.Combined() {
			all = append(all, c)
			continue
		}
		for _, i := range integrities {
			c.integ = i
			all = append(all, c)
		}
	}
	return all
}

// RFC 7634, appendix B: a message of IKE with ChaCha20-Poly1305, of which salt and IV are the nonce.
func TestRFC7634Message(t *testing.T) {
	c := ikeCiphers[0]
	s, err := newSealer(c, unhex(t, "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3"))
	if err != nil || c.cipher != ipsec.ChaCha20Poly1305 {
		t.Fatal(c, err)
	}
	s.count = 0x1011121314151617 - 1
	h := wire.Header{InitiatorSPI: 0xc0c1c2c3c4c5c6c7, ResponderSPI: 0xd0d1d2d3d4d5d6d7, Exchange: wire.Informational, MessageID: 9}
	n := &wire.Notify{Type: wire.SetWindowSize, Data: []byte{0, 0, 0, 10}}
	want := unhex(t, "c0c1c2c3c4c5c6c7d0d1d2d3d4d5d6d72e202500000000090000004529000029"+"1011121314151617"+
		"610394701f8d017f7c12924889"+"6b71bfe25236efd7cdc67066906315b2")
	if got, err := s.seal(h, []wire.Payload{n}); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%x, %v, want\n%x", got, err, want)
	}
	if ps, err := s.open(want); err != nil || len(ps) != 1 || get[*wire.Notify](ps).Type != wire.SetWindowSize {
		t.Errorf("%v, %v", ps, err)
	}
}
