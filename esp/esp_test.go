package esp

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"tacit/ipsec"
)

// sas are one SA of every kind.
var sas = []struct {
	name string
	sa   ipsec.SA
}{
	{"aes-128", testSA(ipsec.AESGCM16, 16, false)},
	{"aes-128 esn", testSA(ipsec.AESGCM16, 16, true)},
	{"aes-256", testSA(ipsec.AESGCM16, 32, false)},
	{"aes-256 esn", testSA(ipsec.AESGCM16, 32, true)},
	{"chacha20", testSA(ipsec.ChaCha20Poly1305, 32, false)},
	{"chacha20 esn", testSA(ipsec.ChaCha20Poly1305, 32, true)},
}

func testSA(c ipsec.Cipher, keyLen int, esn bool) ipsec.SA {
	key := make([]byte, keyLen)
	for i := range key {
		key[i] = byte(i)
	}
	return ipsec.SA{SPI: 0xc0ffee01, Cipher: c, Key: key, Salt: []byte{9, 8, 7, 6}, ESN: esn}
}

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
	return s, o
}

func seal(t testing.TB, s *Sealer, nextHeader uint8, payload []byte) []byte {
	t.Helper()
	p, err := s.Seal(nil, nextHeader, payload)
	if err != nil {
		t.Fatal(err)
	}
	return p
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
			if len(packet) != PacketLen(n) || len(packet)-n > Overhead(tt.sa.Cipher) || (len(packet)-HeaderLen-icvLen)%4 != 0 {
				t.Fatalf("%s: %d octets became %d, PacketLen %d, Overhead %d", tt.name, n, len(packet), PacketLen(n), Overhead(tt.sa.Cipher))
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
		sa := testSA(ipsec.AESGCM16, 16, esn)
		s, _ := pair(t, sa)
		high := uint64(0)
		if esn {
			high = 7
		}
		s.seq.Store(high<<32 | 0x41)
		packet := seal(t, s, 6, []byte("hello"))

		block, _ := aes.NewCipher(sa.Key)
		gcm, _ := cipher.NewGCM(block)
		nonce := append([]byte{9, 8, 7, 6}, packet[8:16]...)
		aad := []byte{0xc0, 0xff, 0xee, 1, 0, 0, 0, 0x42}
		if esn {
			aad = []byte{0xc0, 0xff, 0xee, 1, 0, 0, 0, 7, 0, 0, 0, 0x42}
		}
		text, err := gcm.Open(nil, nonce, packet[16:], aad)
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

func TestSealMovesAPayloadThatOverlaps(t *testing.T) {
	want := []byte("a payload that lies where the packet goes")
	for at := range 80 {
		s, o := pair(t, sas[0].sa)
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
		if &got[0] != &packet[HeaderLen] {
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
	s, o := pair(t, testSA(ipsec.AESGCM16, 16, true))
	s.seq.Store(1<<32 - 4)
	o.window.Add(1<<32 - 4)
	var packets [][]byte
	for range 8 {
		packets = append(packets, seal(t, s, 4, []byte("over the top")))
	}
	for _, i := range []int{1, 5, 0, 7, 2, 4, 3, 6} { // both sides of the wrap, mixed
		if _, _, err := o.Open([]byte{}, packets[i]); err != nil {
			t.Errorf("packet %d: %v", i, err)
		}
		if _, _, err := o.Open([]byte{}, packets[i]); err != ErrReplay {
			t.Errorf("packet %d again: %v, want %v", i, err, ErrReplay)
		}
	}
	if want := uint64(1<<32 + 4); o.window.top != want {
		t.Errorf("top %#x, want %#x", o.window.top, want)
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
	s, o := pair(t, sas[4].sa)
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
				t.Fatalf("got %q, %v, want %q", got, err, want)
			}
		}
	}
}

func TestBadTrailer(t *testing.T) {
	s, o := pair(t, sas[0].sa)
	for name, text := range map[string][]byte{
		"pad length beyond the packet": {1, 2, 3, 4, 5, 6, 7, 4},
		"pad length 255":               {0, 0, 255, 4},
	} {
		seq := s.seq.Add(1)
		packet := binary.BigEndian.AppendUint32(nil, uint32(s.spi))
		packet = binary.BigEndian.AppendUint32(packet, uint32(seq))
		packet = binary.BigEndian.AppendUint64(packet, seq)
		packet = s.aead.Seal(packet, append(s.salt[:], packet[8:16]...), text, packet[:8])
		if _, _, err := o.Open(nil, packet); err != ErrMalformed {
			t.Errorf("%s: %v, want %v", name, err, ErrMalformed)
		}
	}
}

func TestLongPaddingAndDummies(t *testing.T) {
	s, o := pair(t, sas[0].sa)
	text := append(bytes.Repeat([]byte{0xaa}, 200), 200, NextDummy)
	text = append([]byte("ab"), text...)
	seq := s.seq.Add(1)
	packet := binary.BigEndian.AppendUint32(nil, uint32(s.spi))
	packet = binary.BigEndian.AppendUint32(packet, uint32(seq))
	packet = binary.BigEndian.AppendUint64(packet, seq)
	packet = s.aead.Seal(packet, append(s.salt[:], packet[8:16]...), text, packet[:8])
	got, next, err := o.Open(nil, packet)
	if err != nil || next != NextDummy || string(got) != "ab" {
		t.Errorf("got %q, %d, %v", got, next, err)
	}
}

func TestBadSAs(t *testing.T) {
	good := testSA(ipsec.AESGCM16, 16, false)
	for name, change := range map[string]func(*ipsec.SA){
		"SPI zero":           func(sa *ipsec.SA) { sa.SPI = 0 },
		"SPI reserved":       func(sa *ipsec.SA) { sa.SPI = 255 },
		"no salt":            func(sa *ipsec.SA) { sa.Salt = nil },
		"salt of 5":          func(sa *ipsec.SA) { sa.Salt = make([]byte, 5) },
		"no key":             func(sa *ipsec.SA) { sa.Key = nil },
		"AES-192":            func(sa *ipsec.SA) { sa.Key = make([]byte, 24) },
		"ChaCha20 with 16":   func(sa *ipsec.SA) { sa.Cipher = ipsec.ChaCha20Poly1305 },
		"cipher of nobody":   func(sa *ipsec.SA) { sa.Cipher = 12 },
		"cipher of the zero": func(sa *ipsec.SA) { sa.Cipher = 0 },
	} {
		sa := good
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
	s, _ := pair(t, sas[0].sa)
	if _, err := s.Seal(nil, 4, make([]byte, 65535)); err == nil {
		t.Error("a payload of 65535 octets was sealed")
	}
	if s.Sent() != 0 {
		t.Error("a refused payload took a number")
	}
	if Overhead(0) != 0 {
		t.Error("a cipher that we do not have has an overhead")
	}
}

func TestNoAllocations(t *testing.T) {
	payload := make([]byte, 1400)
	for _, tt := range sas {
		s, o := pair(t, tt.sa)
		buf := make([]byte, 0, PacketLen(len(payload))+Scratch)
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
