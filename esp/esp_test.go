package esp

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"math/bits"
	"slices"
	"strings"
	"sync"
	"testing"

	"tacit/ipsec"
)

// sas are one SA of every kind: each cipher with each of its keys and each integrity algorithm, with ESN and without.
var sas = allSAs()

type namedSA struct {
	name string
	sa   ipsec.SA
}

func allSAs() (all []namedSA) {
	for _, c := range []struct {
		cipher    ipsec.Cipher
		integrity ipsec.Integrity
		keys      []int
	}{
		{ipsec.AESGCM16, ipsec.NoIntegrity, []int{16, 32}},
		{ipsec.ChaCha20Poly1305, ipsec.NoIntegrity, []int{32}},
		{ipsec.AESCBC, ipsec.HMACSHA256, []int{16, 24, 32}},
		{ipsec.AESCBC, ipsec.HMACSHA384, []int{16, 24, 32}},
		{ipsec.AESCBC, ipsec.HMACSHA512, []int{16, 24, 32}},
	} {
		for _, n := range c.keys {
			for _, esn := range []bool{false, true} {
				name := fmt.Sprintf("%v-%d %v esn=%v", c.cipher, 8*n, c.integrity, esn)
				all = append(all, namedSA{name, testSA(c.cipher, c.integrity, n, esn)})
			}
		}
	}
	return all
}

func counting(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

func testSA(c ipsec.Cipher, i ipsec.Integrity, keyLen int, esn bool) ipsec.SA {
	sa := ipsec.SA{SPI: 0xc0ffee01, Cipher: c, Key: counting(keyLen), Integrity: i, AuthKey: counting(i.KeyLen()), ESN: esn}
	if c.Combined() {
		sa.Salt = []byte{9, 8, 7, 6}
	}
	return sa
}

// gcm and cbc are the SAs of tests that need but one of a kind.
func gcm(esn bool) ipsec.SA { return testSA(ipsec.AESGCM16, ipsec.NoIntegrity, 16, esn) }
func cbc(esn bool) ipsec.SA { return testSA(ipsec.AESCBC, ipsec.HMACSHA256, 16, esn) }

func pair(t testing.TB, sa ipsec.SA) (*Sealer, *Opener) {
	t.Helper()
	s, err := NewSealer(sa)
	if err != nil {
		t.Fatal(err)
	}
	o, err := NewOpener(sa)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.begin(); err != nil || o.begin() != nil { // for tests that look inside
		t.Fatal(err)
	}
	return s, o
}

// An SA that carries nothing keeps no tables and no window; its first packet is like any other.
func TestFirstPacketMakesTheTransform(t *testing.T) {
	for _, tt := range sas {
		s, err := NewSealer(tt.sa)
		if err != nil {
			t.Fatal(err)
		}
		o, err := NewOpener(tt.sa)
		if err != nil {
			t.Fatal(err)
		}
		if s.made.Load() != nil || o.opening != nil {
			t.Errorf("%s: made before there was a packet", tt.name)
		}
		var packets [8][]byte
		var all sync.WaitGroup
		for i := range packets { // several goroutines may be the first
			all.Go(func() { packets[i], _ = s.Seal(nil, 17, []byte("payload")) })
		}
		all.Wait()
		for _, p := range packets {
			if got, next, err := o.Open(nil, p); err != nil || next != 17 || string(got) != "payload" {
				t.Errorf("%s: %q, %d, %v", tt.name, got, next, err)
			}
		}
	}
}

func seal(t testing.TB, s *Sealer, nextHeader uint8, payload []byte) []byte {
	t.Helper()
	p, err := s.Seal(nil, nextHeader, payload)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// forge makes the next packet around a plaintext of our choice, trailer included.
func forge(s *Sealer, text []byte) []byte {
	seq := s.seq.Add(1)
	packet := make([]byte, s.header()+len(text)+s.icv)
	binary.BigEndian.PutUint32(packet, uint32(s.sa.SPI))
	binary.BigEndian.PutUint32(packet[4:], uint32(seq))
	copy(packet[s.header():], text)
	(*s.made.Load()).seal(packet, seq, make([]byte, Scratch))
	return packet
}

func TestRoundTripOfEveryLength(t *testing.T) {
	for _, tt := range sas {
		s, o := pair(t, tt.sa)
		for n := range 70 {
			payload := bytes.Repeat([]byte{byte(n)}, n)
			prefix := []byte("before")
			packet, err := s.Seal(slices.Clone(prefix), 17, payload)
			if err != nil {
				t.Fatalf("%s: %d octets: %v", tt.name, n, err)
			}
			if !bytes.HasPrefix(packet, prefix) {
				t.Fatalf("%s: dst was not kept", tt.name)
			}
			packet = packet[len(prefix):]
			if len(packet) != s.PacketLen(n) {
				t.Fatalf("%s: %d octets became %d, PacketLen %d", tt.name, n, len(packet), s.PacketLen(n))
			}
			if most := s.MaxPayload(len(packet)); most < n || s.PacketLen(most) != len(packet) || s.PacketLen(most+1) == len(packet) {
				t.Fatalf("%s: MaxPayload(%d) is %d", tt.name, len(packet), most)
			}
			got, next, err := o.Open(slices.Clone(prefix), packet)
			if err != nil || next != 17 || !bytes.Equal(got, append(slices.Clone(prefix), payload...)) {
				t.Fatalf("%s: %d octets came back as %x, %d, %v", tt.name, n, got, next, err)
			}
		}
	}
}

// The layout, written down once more from RFC 4106 and without a line of the package.
func TestPacketIsWhatTheRFCSays(t *testing.T) {
	for _, esn := range []bool{false, true} {
		sa := gcm(esn)
		s, _ := pair(t, sa)
		high := uint64(0)
		if esn {
			high = 7
		}
		s.seq.Store(high<<32 | 0x41)
		packet := seal(t, s, 6, []byte("hello"))

		block, _ := aes.NewCipher(sa.Key)
		aead, _ := cipher.NewGCM(block)
		nonce := append([]byte{9, 8, 7, 6}, packet[8:16]...)
		aad := []byte{0xc0, 0xff, 0xee, 1, 0, 0, 0, 0x42}
		if esn {
			aad = []byte{0xc0, 0xff, 0xee, 1, 0, 0, 0, 7, 0, 0, 0, 0x42}
		}
		text, err := aead.Open(nil, nonce, packet[16:], aad)
		if err != nil {
			t.Fatalf("esn %v: %v", esn, err)
		}
		if want := []byte("hello\x01\x01\x06"); !bytes.Equal(text, want) {
			t.Errorf("esn %v: plaintext %q, want %q", esn, text, want)
		}
		if seq := binary.BigEndian.Uint32(packet[4:]); seq != 0x42 {
			t.Errorf("esn %v: sequence number %#x on the wire, want 0x42", esn, seq)
		}
	}
}

// The same for AES-CBC with HMAC, from RFC 3602, RFC 4868 and RFC 4303, 2.8.
func TestSeparatePacketIsWhatTheRFCSays(t *testing.T) {
	for i, newHash := range map[ipsec.Integrity]func() hash.Hash{
		ipsec.HMACSHA256: sha256.New, ipsec.HMACSHA384: sha512.New384, ipsec.HMACSHA512: sha512.New,
	} {
		for _, esn := range []bool{false, true} {
			sa := testSA(ipsec.AESCBC, i, 32, esn)
			s, _ := pair(t, sa)
			signed := []byte(nil)
			if s.seq.Store(0x41); esn {
				s.seq.Store(7<<32 | 0x41)
				signed = []byte{0, 0, 0, 7}
			}
			packet := seal(t, s, 6, []byte("hello"))
			size := newHash().Size()
			if len(packet) != 8+16+16+size/2 {
				t.Fatalf("%v: %d octets", i, len(packet))
			}
			mac := hmac.New(newHash, sa.AuthKey)
			mac.Write(packet[:40])
			mac.Write(signed)
			if got, want := packet[40:], mac.Sum(nil)[:size/2]; !bytes.Equal(got, want) {
				t.Errorf("%v, esn %v: ICV %x, want %x", i, esn, got, want)
			}
			block, _ := aes.NewCipher(sa.Key)
			text := make([]byte, 16)
			cipher.NewCBCDecrypter(block, packet[8:24]).CryptBlocks(text, packet[24:40])
			if want := []byte("hello\x01\x02\x03\x04\x05\x06\x07\x08\x09\x09\x06"); !bytes.Equal(text, want) {
				t.Errorf("%v, esn %v: plaintext %q, want %q", i, esn, text, want)
			}
			if !bytes.Equal(packet[:8], []byte{0xc0, 0xff, 0xee, 1, 0, 0, 0, 0x42}) {
				t.Errorf("%v, esn %v: header %x", i, esn, packet[:8])
			}
		}
	}
}

func TestSealMovesAPayloadThatOverlaps(t *testing.T) {
	want := []byte("a payload that lies where the packet goes")
	for at := range 80 {
		s, o := pair(t, gcm(false))
		buf := make([]byte, 300)
		copy(buf[at:], want)
		packet, err := s.Seal(buf[:0], 4, buf[at:at+len(want)])
		if err != nil {
			t.Fatal(err)
		}
		if &packet[0] != &buf[0] {
			t.Fatal("a new buffer though the old one was large enough")
		}
		if got, _, err := o.Open(nil, packet); err != nil || !bytes.Equal(got, want) {
			t.Errorf("payload at %d: %q, %v", at, got, err)
		}
	}
}

func TestOpenInPlace(t *testing.T) {
	for _, tt := range sas {
		s, o := pair(t, tt.sa)
		packet := seal(t, s, 4, []byte("in place"))
		got, next, err := o.Open(nil, packet)
		if err != nil || next != 4 || string(got) != "in place" {
			t.Fatalf("%s: %q, %d, %v", tt.name, got, next, err)
		}
		if &got[0] != &packet[s.header()] {
			t.Errorf("%s: the payload is not in the packet", tt.name)
		}
	}
}

func TestTamperAtEveryByte(t *testing.T) {
	for _, tt := range sas {
		s, o := pair(t, tt.sa)
		s.seq.Store(300) // so that a changed sequence number is no replay
		packet := seal(t, s, 4, []byte("do not touch"))
		for i := range packet {
			bad := slices.Clone(packet)
			bad[i] ^= 1
			want := ErrAuth
			if i < 4 {
				want = ErrMalformed // another SPI
			}
			_, _, err := o.Open(nil, bad)
			if !errors.Is(err, want) && (i < 4 || i >= 8 || !errors.Is(err, ErrReplay)) {
				t.Errorf("%s: octet %d changed: %v, want %v", tt.name, i, err, want)
			}
		}
		if _, _, err := o.Open(nil, packet); err != nil {
			t.Errorf("%s: the packet itself after all that: %v", tt.name, err)
		}
	}
}

func TestEveryPrefixFails(t *testing.T) {
	for _, tt := range sas {
		s, o := pair(t, tt.sa)
		packet := seal(t, s, 4, []byte("every prefix of every message"))
		for n := range packet {
			if _, _, err := o.Open([]byte{}, packet[:n]); !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrAuth) {
				t.Errorf("%s: the first %d octets: %v", tt.name, n, err)
			}
			if _, ok := ParseSPI(packet[:n]); ok && n < minPacket {
				t.Errorf("%s: the first %d octets have an SPI", tt.name, n)
			}
		}
	}
}

func TestReplay(t *testing.T) {
	for _, tt := range sas {
		s, o := pair(t, tt.sa)
		var packets [][]byte
		for range 3 {
			packets = append(packets, seal(t, s, 4, []byte("once")))
		}
		for _, i := range []int{2, 0, 1} {
			if _, _, err := o.Open([]byte{}, packets[i]); err != nil {
				t.Errorf("%s: packet %d, first time: %v", tt.name, i, err)
			}
			if _, _, err := o.Open([]byte{}, packets[i]); err != ErrReplay {
				t.Errorf("%s: packet %d, second time: %v, want %v", tt.name, i, err, ErrReplay)
			}
		}
		s.seq.Add(WindowSize)
		late := seal(t, s, 4, []byte("late"))
		for range WindowSize {
			packets[0] = seal(t, s, 4, []byte("newer"))
		}
		if _, _, err := o.Open([]byte{}, packets[0]); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if _, _, err := o.Open([]byte{}, late); err == nil {
			t.Errorf("%s: a packet %d behind was accepted", tt.name, WindowSize)
		}
	}
}

// A forged packet far ahead must not move the window: the ICV is checked first.
func TestForgedPacketMovesNothing(t *testing.T) {
	for _, tt := range sas {
		s, o := pair(t, tt.sa)
		good := seal(t, s, 4, []byte("good"))
		forged := slices.Clone(good)
		binary.BigEndian.PutUint32(forged[4:], 0x7fffffff)
		if _, _, err := o.Open([]byte{}, forged); err != ErrAuth {
			t.Errorf("%s: forged: %v, want %v", tt.name, err, ErrAuth)
		}
		if o.window != (Window{}) {
			t.Errorf("%s: the window moved to %d", tt.name, o.window.top)
		}
		if _, _, err := o.Open([]byte{}, good); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestExtendedNumbersCrossTheWrap(t *testing.T) {
	for _, tt := range sas {
		if !tt.sa.ESN {
			continue
		}
		s, o := pair(t, tt.sa)
		s.seq.Store(1<<32 - 4)
		o.window.Add(1<<32 - 4)
		var packets [][]byte
		for range 8 {
			packets = append(packets, seal(t, s, 4, []byte("over the top")))
		}
		for _, i := range []int{1, 5, 0, 7, 2, 4, 3, 6} { // both sides of the wrap, mixed
			if _, _, err := o.Open([]byte{}, packets[i]); err != nil {
				t.Errorf("%s: packet %d: %v", tt.name, i, err)
			}
			if _, _, err := o.Open([]byte{}, packets[i]); err != ErrReplay {
				t.Errorf("%s: packet %d again: %v, want %v", tt.name, i, err, ErrReplay)
			}
		}
		if want := uint64(1<<32 + 4); o.window.top != want {
			t.Errorf("%s: top %#x, want %#x", tt.name, o.window.top, want)
		}
	}
}

// RFC 4303, 2.2.1: the upper half of the number is authenticated though it does not travel.
func TestUpperHalfIsAuthenticated(t *testing.T) {
	for _, tt := range sas {
		if !tt.sa.ESN {
			continue
		}
		s, o := pair(t, tt.sa)
		s.seq.Store(5 << 32)
		o.window.Add(4 << 32) // so the Opener takes the number for one of the fourth
		if _, _, err := o.Open([]byte{}, seal(t, s, 4, []byte("far ahead"))); err != ErrAuth {
			t.Errorf("%s: %v, want %v", tt.name, err, ErrAuth)
		}
	}
}

func TestSealStopsBeforeTheWrap(t *testing.T) {
	for _, tt := range sas {
		s, _ := pair(t, tt.sa)
		want := uint64(1<<32 - 1)
		if tt.sa.ESN {
			want = 1<<63 - 1
		}
		s.seq.Store(want - 1)
		if _, err := s.Seal(nil, 4, nil); err != nil {
			t.Errorf("%s: the last packet: %v", tt.name, err)
		}
		for range 3 {
			dst, err := s.Seal([]byte("x"), 4, nil)
			if err != ErrExhausted || string(dst) != "x" {
				t.Errorf("%s: after the last packet: %q, %v, want %v", tt.name, dst, err, ErrExhausted)
			}
		}
		if s.Sent() != want {
			t.Errorf("%s: sent %d, want %d", tt.name, s.Sent(), want)
		}
	}
}

func TestSealersShareNoNumber(t *testing.T) {
	for _, sa := range []ipsec.SA{gcm(false), cbc(true), testSA(ipsec.ChaCha20Poly1305, ipsec.NoIntegrity, 32, false)} {
		s, o := pair(t, sa)
		const workers, each = 8, 200
		out := make([][][]byte, workers)
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for i := range each {
					p, err := s.Seal(nil, 4, fmt.Appendf(nil, "%d %d", w, i))
					if err != nil {
						t.Error(err)
					}
					out[w] = append(out[w], p)
				}
			})
		}
		wg.Wait()
		for w := range out {
			for i, p := range out[w] {
				got, _, err := o.Open(nil, p)
				if want := fmt.Sprintf("%d %d", w, i); err != nil || string(got) != want {
					t.Fatalf("%v: got %q, %v, want %q", sa.Cipher, got, err, want)
				}
			}
		}
	}
}

func TestBadTrailer(t *testing.T) {
	for _, tt := range sas {
		s, o := pair(t, tt.sa)
		text := counting(16)
		for _, pad := range []byte{15, 16, 255} {
			text[14] = pad
			if _, _, err := o.Open(nil, forge(s, text)); err != ErrMalformed {
				t.Errorf("%s: pad length %d of 14: %v, want %v", tt.name, pad, err, ErrMalformed)
			}
		}
		text[14] = 14
		if got, next, err := o.Open(nil, forge(s, text)); err != nil || next != 15 || len(got) != 0 {
			t.Errorf("%s: nothing but padding: %x, %d, %v", tt.name, got, next, err)
		}
	}
}

// What is no whole number of blocks cannot be decrypted: it is refused before any cipher sees it, whoever made it.
func TestWrongLength(t *testing.T) {
	for _, tt := range sas {
		s, o := pair(t, tt.sa)
		packet := seal(t, s, 4, make([]byte, 100))
		for n := 1; n < s.align; n++ {
			long := append(slices.Clone(packet), make([]byte, n)...)
			if _, _, err := o.Open([]byte{}, long); err != ErrMalformed {
				t.Errorf("%s: %d octets too long: %v, want %v", tt.name, n, err, ErrMalformed)
			}
		}
		if _, _, err := o.Open([]byte{}, packet[:s.header()+s.icv]); err != ErrMalformed {
			t.Errorf("%s: no ciphertext: %v, want %v", tt.name, err, ErrMalformed)
		}
	}
}

func TestLongPaddingAndDummies(t *testing.T) {
	for _, tt := range sas {
		s, o := pair(t, tt.sa)
		text := append([]byte("ab"), bytes.Repeat([]byte{0xaa}, 220)...)
		got, next, err := o.Open(nil, forge(s, append(text, 220, NextDummy)))
		if err != nil || next != NextDummy || string(got) != "ab" {
			t.Errorf("%s: got %q, %d, %v", tt.name, got, next, err)
		}
	}
}

// RFC 3602, 3: the IV is random. So equal packets differ from their first block on, under one key and under equal ones.
func TestIVsOfCBCAreRandom(t *testing.T) {
	seen := make(map[string]bool)
	ones := 0
	for range 2 {
		s, _ := pair(t, cbc(false))
		for range 500 {
			p := seal(t, s, 4, []byte("always the same"))
			iv, first := string(p[spiSeqLen:s.header()]), string(p[s.header():][:aes.BlockSize])
			if seen[iv] || seen[first] {
				t.Fatalf("%x: an IV or a first block twice", p)
			}
			seen[iv], seen[first] = true, true
			for _, b := range []byte(iv) {
				ones += bits.OnesCount8(b)
			}
		}
	}
	if ones < 63000 || ones > 65000 { // 64000, and 5.6 times the standard deviation
		t.Errorf("%d of 128000 bits of the IVs are set", ones)
	}
}

// What ipsec.SA.Check refuses is neither sealed nor opened, and no error shows a key.
func TestBadSAs(t *testing.T) {
	for name, change := range map[string]func(*ipsec.SA){
		"SPI reserved":  func(sa *ipsec.SA) { sa.SPI = 255 },
		"no key":        func(sa *ipsec.SA) { sa.Key = nil },
		"no integrity":  func(sa *ipsec.SA) { sa.Integrity = ipsec.NoIntegrity },
		"short HMAC":    func(sa *ipsec.SA) { sa.AuthKey = sa.AuthKey[:31] },
		"cipher nobody": func(sa *ipsec.SA) { sa.Cipher = 0 },
	} {
		sa := cbc(false)
		change(&sa)
		if _, err := NewSealer(sa); err == nil {
			t.Errorf("%s: sealer made", name)
		} else if strings.Contains(err.Error(), "[0") {
			t.Errorf("%s: the error shows a key: %v", name, err)
		}
		if _, err := NewOpener(sa); err == nil {
			t.Errorf("%s: opener made", name)
		}
	}
}

func TestParseSPI(t *testing.T) {
	long := make([]byte, 60)
	for name, tt := range map[string]struct {
		in   []byte
		want ipsec.SPI
		ok   bool
	}{
		"keepalive":      {[]byte{0xff}, 0, false},
		"empty":          {nil, 0, false},
		"non-ESP marker": {long, 0, false},
		"reserved":       {append([]byte{0, 0, 0, 255}, long...), 255, false},
		"smallest":       {append([]byte{0, 0, 1, 0}, long...), 256, true},
		"largest":        {append([]byte{255, 255, 255, 255}, long...), 0xffffffff, true},
		"too short":      {append([]byte{1, 2, 3, 4}, long[:minPacket-5]...), 0, false},
	} {
		if got, ok := ParseSPI(tt.in); got != tt.want || ok != tt.ok {
			t.Errorf("%s: %v, %v, want %v, %v", name, got, ok, tt.want, tt.ok)
		}
	}
}

func TestPayloadTooLong(t *testing.T) {
	s, _ := pair(t, gcm(false))
	if _, err := s.Seal(nil, 4, make([]byte, 65535)); err == nil {
		t.Error("a payload of 65535 octets was sealed")
	}
	if s.Sent() != 0 {
		t.Error("a refused payload took a number")
	}
	for n := range 60 {
		if most := s.MaxPayload(n); most < 0 || most > 0 && s.PacketLen(most) > n {
			t.Errorf("MaxPayload(%d) is %d", n, most)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	payload := make([]byte, 1400)
	for _, tt := range sas {
		s, o := pair(t, tt.sa)
		buf := make([]byte, 0, s.PacketLen(len(payload))+Scratch)
		dst := make([]byte, 0, 2000)
		if n := testing.AllocsPerRun(50, func() {
			p, err := s.Seal(buf, 4, payload)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err = o.Open(dst, p); err != nil {
				t.Fatal(err)
			}
			if p, err = s.Seal(buf, 4, payload); err != nil {
				t.Fatal(err)
			}
			if _, _, err = o.Open(nil, p); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", tt.name, n)
		}
	}
}
