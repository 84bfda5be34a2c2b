package esp

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/c2sp/wycheproof"

	"tacit/ipsec"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// draft-mcgrew-gcm-test-01, section 4: its cases of AES-GCM but those with 192 bit keys and with reserved SPIs. A sequence
// number of 16 digits is an extended one.
var mcgrew = []struct{ key, salt, spi, seq, iv, plain, sealed string }{
	{"4c80cdefbb5d10da906ac73c3613a634", "2e443b68", "00004321", "8765432100000000", "4956ed7e3b244cfe",
		"45000048699a000080114db7c0a80102c0a801010a9bf15638d301000001000000000000045f736970045f756470037369700963796265726369747902646b000021000101020201",
		"fecf537e729d5b07dc30df528dd22b768d1b98736696a6fd348509fa13ceac34cfa2436f14a3f3cf65925bf1f4a13c5d15b21e1884f5ff6247aeabb786b93bce61bc17d768fd9732459018148f6cbe722fd04796562dfdb4"},
	{"feffe9928665731c6d6a8f9467308308", "cafebabe", "0000a5f8", "0000000a", "facedbaddecaf888",
		"4500003e698f000080114dccc0a80102c0a801010a980035002a2343b2d001000001000000000000037369700963796265726369747902646b00000100010001",
		"deb22cd9b07c72c16e3a65beeb8df304a5a5897d33ae530f1ba76d5d114d2a5c3de81827c10e9a4f51330d0eec416642cfbb85a5b47e48a4ec3b9ba95d918bd183b70d3aa8bc6ee4c309e9d85a41ad4a"},
	{"abbccddef00112233445566778899aababbccddef00112233445566778899aab", "11223344", "4a2cbfe3", "00000002", "0102030405060708",
		"4500003069a6400080062690c0a801029389155e0a9e008b2dc57ee0000000007002400020bf0000020405b40101040201020201",
		"ff425c9b724599df7a3bcd510194e00d6a78107f1b0b1cbf06efae9d65a5d763748a637985771d347f0545659f14e99def842d8eb335f4eecfdbf831824b4c4915956c96"},
	{"3de09874b388e6491988d0c3607eae1f", "57690e43", "42f67e3f", "1010101010101010", "4e280000a2fca1a3",
		"4500003c99c300008001cb7c40679318010101010800085c020043006162636465666768696a6b6c6d6e6f707172737475767761626364656667686901020201",
		"fba2caa4853cf9f0f22cb10d86dd83b0fec75691cf1a04b00d1138ec9c35791765acbd8701ad79845bf9fe3fba487bc91755e6662b4c8d0d1f5e22739530320ae0d731cc978ecafaeae88f00e80d6e48"},
	{"3de09874b388e6491988d0c3607eae1f", "57690e43", "42f67e3f", "1010101010101010", "4e280000a2fca1a3",
		"4500001c42a200008001441f406793b6e00000020a00f5ff01020201",
		"fba2ca845e5df9f0f22c3e6e86dd831e1fc65792cd1af9130e1379ed369f071f35e034be95f112e4e7d05d35"},
	{"abbccddef00112233445566778899aababbccddef00112233445566778899aab", "73616c74", "17405e67", "156f3126dd0db99b", "616e640169766563",
		"45080028732c00004006e9f90a0106120a01038f06b88023dd6bafbecb71260250101f646d540001",
		"f2d69ecdbd5a0d5b8d5ef38bad4da58d1f278fde98ef67549d524a3018d9a57ff4d3a31ce673119e451626c2415771e3b7eebca614c89b35"},
	{"3de09874b388e6491988d0c3607eae1f", "57690e43", "42f67e3f", "1010101010101010", "4e280000a2fca1a3",
		"45000049333e00007f119182c3fb1d10c2b1d326c02831ce0035cb458003025b000001e0001e8c18d65759d52284a0352c71475c8880391c764d6e5ee0496b325ae270c03899493915010101",
		"fba2cad12fc1f9f00d3cebf305410db83d7784b607323d220f24b0a97d54182800cadb0f68d99ef0e0c0c89ae9bea8884e52d65bc1afd0740f742444747b5b39ab533163aad4550ee5160975cdb608c5769189609763b8e18caa81e2"},
	{"7d773d00c144c525ac619d18c84a3f47", "d9664267", "335467ae", "ffffffff", "43457e9182443bc6", "01020201", "437f866bcb3f699fe9b0822bac961c4504bef270"},
	{"6c6567616c697a656d6172696a75616e61616e64646f69746265666f72656961", "7475726e", "796b6963", "ffffffffffffffff", "333021696765746d",
		"45000030da3a00008001df3bc0a80005c0a800010800c6cd020007006162636465666768696a6b6c6d6e6f707172737401020201",
		"f97ab2aa356d8edce17644ac8c78e25dd24dedbb29ebf1b64a274b39b49c3a864cd3d78ca4ae68a32b42458fb57dbe821dcc63b9d0937ba2945f669368661a329fb4c053"},
}

func TestMcGrewVectors(t *testing.T) {
	for i, tt := range mcgrew {
		spi := unhex(t, tt.spi)
		seq, err := strconv.ParseUint(tt.seq, 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		sa := ipsec.SA{SPI: ipsec.SPI(binary.BigEndian.Uint32(spi)), Cipher: ipsec.AESGCM16, Key: unhex(t, tt.key), Salt: unhex(t, tt.salt), ESN: len(tt.seq) == 16}
		packet := binary.BigEndian.AppendUint32(spi, uint32(seq))
		packet = append(append(packet, unhex(t, tt.iv)...), unhex(t, tt.sealed)...)
		open(t, strconv.Itoa(i), sa, seq, packet, unhex(t, tt.plain))
	}
}

// open opens the packet as the one after seq-1 and compares what is in it.
func open(t *testing.T, name string, sa ipsec.SA, seq uint64, packet, plain []byte) {
	t.Helper()
	_, o := pair(t, sa)
	o.window.Add(seq - 1)
	got, next, err := o.Open(nil, bytes.Clone(packet))
	want := plain[:len(plain)-2-int(plain[len(plain)-2])]
	if err != nil || next != plain[len(plain)-1] || !bytes.Equal(got, want) {
		t.Errorf("%s: got %x, %d, %v, want %x, %d", name, got, next, err, want, plain[len(plain)-1])
	}
}

// RFC 7634, appendix A.
func TestRFC7634Vector(t *testing.T) {
	sa := ipsec.SA{SPI: 0x01020304, Cipher: ipsec.ChaCha20Poly1305, Salt: unhex(t, "a0a1a2a3"),
		Key: unhex(t, "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f")}
	plain := unhex(t, "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec100007362708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"+
		"2122232425262728292a2b2c2d2e2f303132333435363701020204")
	packet := unhex(t, "0102030400000005 1011121314151617"+
		"24039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c614ee8099d52844eb61aa95dfab4c02f72aa71e7c4c4f64c9befe2facc638e8f3"+
		"cbec163fac469b502773f6fb94e664da9165b82829f641e0 76aaa8266b7fb0f7b11b369907e1ad43")
	open(t, "RFC 7634", sa, 5, packet, plain)
}

// RFC 3602, 4, cases 5 and 7. It has them without integrity, so the ICV is put behind them here.
func TestRFC3602Vectors(t *testing.T) {
	for name, tt := range map[string]struct {
		key, packet, plain string
		seq                uint64
	}{
		"transport": {"90d382b410eeba7ad938c46cec1a82bf",
			"0000432100000001 e96e8c08ab465763fd098d45dd3ff893" +
				"f663c25d325c18c6a9453e194e120849a4870b66cc6b9965330013b4898dc856a4699e523a55db080b59ec3a8e4b7e52775b07d1db34ed9c538ab50c551b874a" +
				"a269add047ad2d5913ac19b7cfbad4a6",
			"08000ebda70a00008e9c083db95b070008090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f3031323334353637" +
				"0102030405060708090a0b0c0d0e 0e01", 1},
		"tunnel": {"0123456789abcdef0123456789abcdef",
			"0000876500000002 f4e765244f6407adf13dc1380f673f37" +
				"773b5241a4c449225e4f3ce5ed611b0c237ca96cf74a93013c1b0ea1a0cf70f8e4ecaec78ac53aad7a0f022b859243c647752e94a859352b8a4d4d2decd136e5" +
				"c177f132ad3fbfb2201ac9904c74ee0a109e0ca1e4dfe9d5a100b842f1c22f0d",
			"4500005409040000 4001f988c0a87b03c0a87bc808009f76a90a0100b49c083d02a2040008090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f" +
				"202122232425262728292a2b2c2d2e2f3031323334353637 0102030405060708090a 0a04", 2},
	} {
		packet := unhex(t, tt.packet)
		sa := ipsec.SA{SPI: ipsec.SPI(binary.BigEndian.Uint32(packet)), Cipher: ipsec.AESCBC, Key: unhex(t, tt.key),
			Integrity: ipsec.HMACSHA256, AuthKey: make([]byte, 32)}
		mac := hmac.New(sha256.New, sa.AuthKey)
		mac.Write(packet)
		open(t, "RFC 3602, "+name, sa, tt.seq, mac.Sum(packet)[:len(packet)+16], unhex(t, tt.plain))
	}
}

// What strongSwan and Linux sent: opened in order, each once, and inside are IPv4 packets whose checksums hold.
func TestCapturedPackets(t *testing.T) {
	for file, want := range map[string]int{"strongswan.txt": 20, "linux.txt": 15} {
		text, err := os.ReadFile("testdata/" + file)
		if err != nil {
			t.Fatal(err)
		}
		var s *Sealer
		var o *Opener
		packets := 0
		for line := range strings.Lines(string(text)) {
			switch w := strings.Fields(line); w[0] {
			case "sa":
				sa, seq := capturedSA(t, w[1:])
				s, o = pair(t, sa)
				o.window.Add(seq)
			case "packet":
				packets++
				openCaptured(t, fmt.Sprintf("%s, packet %d", file, packets), s, o, unhex(t, w[1]))
			}
		}
		if packets != want {
			t.Errorf("%s: %d packets, want %d", file, packets, want)
		}
	}
}

// capturedSA reads the SA of a capture and the sequence number before its first packet.
func capturedSA(t *testing.T, w []string) (sa ipsec.SA, seq uint64) {
	t.Helper()
	key := unhex(t, w[2])
	sa = ipsec.SA{SPI: ipsec.SPI(binary.BigEndian.Uint32(unhex(t, w[1]))), Cipher: ipsec.AESCBC, Key: key}
	for _, c := range []ipsec.Cipher{ipsec.AESGCM16, ipsec.ChaCha20Poly1305} {
		if w[0] == c.String() {
			n := len(key) - saltLen
			sa.Cipher, sa.Key, sa.Salt = c, key[:n], key[n:]
		}
	}
	for _, i := range []ipsec.Integrity{ipsec.HMACSHA256, ipsec.HMACSHA384, ipsec.HMACSHA512} {
		if w[0] == i.String() {
			sa.Integrity, sa.AuthKey, sa.ESN = i, unhex(t, w[3]), len(w) > 4
		}
	}
	if sa.ESN {
		high, err := strconv.ParseUint(w[4], 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		seq = high << 32
	}
	return sa, seq
}

func openCaptured(t *testing.T, name string, s *Sealer, o *Opener, packet []byte) {
	t.Helper()
	ip, next, err := o.Open(nil, bytes.Clone(packet))
	if err != nil || next != 4 {
		t.Fatalf("%s: next header %d, %v", name, next, err)
	}
	if len(packet) != s.PacketLen(len(ip)) {
		t.Errorf("%s has %d octets, ours would have %d", name, len(packet), s.PacketLen(len(ip)))
	}
	if len(ip) < 36 || int(binary.BigEndian.Uint16(ip[2:])) != len(ip) || ip[9] != 1 || sum(ip[:20]) != 0xffff || sum(ip[20:]) != 0xffff {
		t.Errorf("%s is no ping: %x", name, ip)
	}
	if _, _, err := o.Open(nil, packet); err != ErrReplay {
		t.Errorf("%s again: %v, want %v", name, err, ErrReplay)
	}
}

// sum is the sum of RFC 1071: 0xffff over data with a right checksum in it.
func sum(b []byte) uint16 {
	var s uint32
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func TestWycheproof(t *testing.T) {
	for file, c := range map[string]ipsec.Cipher{"aes_gcm_test.json": ipsec.AESGCM16, "chacha20_poly1305_test.json": ipsec.ChaCha20Poly1305} {
		data, err := fs.ReadFile(wycheproof.TestVectors, file)
		if err != nil {
			t.Fatal(err)
		}
		var all struct {
			TestGroups []struct {
				IVSize, KeySize, TagSize int
				Tests                    []struct {
					TcID                                        int
					Comment, Key, IV, AAD, Msg, CT, Tag, Result string
				}
			}
		}
		if err := json.Unmarshal(data, &all); err != nil {
			t.Fatal(err)
		}
		ran := 0
		for _, g := range all.TestGroups {
			if g.IVSize != nonceLen*8 || g.TagSize != combinedICV*8 || g.KeySize == 192 {
				continue // not as ESP uses it
			}
			for _, tt := range g.Tests {
				ran++
				c, err := newCombined(ipsec.SA{SPI: 256, Cipher: c, Key: unhex(t, tt.Key), Salt: make([]byte, saltLen)})
				if err != nil {
					t.Fatal(err)
				}
				msg, err := c.(*combined).aead.Open(nil, unhex(t, tt.IV), unhex(t, tt.CT+tt.Tag), unhex(t, tt.AAD))
				if valid := tt.Result == "valid"; (err == nil) != valid || valid && !bytes.Equal(msg, unhex(t, tt.Msg)) {
					t.Errorf("%s %d (%s): %x, %v, want %s", file, tt.TcID, tt.Comment, msg, err, tt.Result)
				}
			}
		}
		if ran < 100 {
			t.Errorf("%s: only %d tests ran", file, ran)
		}
	}
}

// The ICVs of ESP are the HMACs that Wycheproof has with keys as long as the hash and tags of half of that. A packet is any message
// before an ICV here.
func TestWycheproofHMAC(t *testing.T) {
	for file, i := range map[string]ipsec.Integrity{"hmac_sha256_test.json": ipsec.HMACSHA256, "hmac_sha384_test.json": ipsec.HMACSHA384,
		"hmac_sha512_test.json": ipsec.HMACSHA512} {
		data, err := fs.ReadFile(wycheproof.TestVectors, file)
		if err != nil {
			t.Fatal(err)
		}
		var all struct {
			TestGroups []struct {
				KeySize, TagSize int
				Tests            []struct {
					TcID                  int
					Key, Msg, Tag, Result string
				}
			}
		}
		if err := json.Unmarshal(data, &all); err != nil {
			t.Fatal(err)
		}
		ran := 0
		for _, g := range all.TestGroups {
			if g.KeySize != 8*i.KeyLen() || g.TagSize != 8*i.ICVLen() {
				continue
			}
			for _, tt := range g.Tests {
				ran++
				x, err := newSeparate(ipsec.SA{Cipher: ipsec.AESCBC, Key: make([]byte, 16), Integrity: i, AuthKey: unhex(t, tt.Key)})
				if err != nil {
					t.Fatal(err)
				}
				s, packet := x.(*separate), unhex(t, tt.Msg+tt.Tag)
				for range 2 { // and once more with the state of before
					w := s.take()
					same := bytes.Equal(s.sum(w, packet, 0), unhex(t, tt.Tag))
					if s.idle.Store(w); same != (tt.Result == "valid") {
						t.Errorf("%s %d: same %v, want %s", file, tt.TcID, same, tt.Result)
					}
				}
			}
		}
		if ran < 50 {
			t.Errorf("%s: only %d tests ran", file, ran)
		}
	}
}
