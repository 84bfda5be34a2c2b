package esp

import (
	"bytes"
	"slices"
	"testing"
)

func FuzzParseSPI(f *testing.F) {
	f.Add([]byte{0xff})
	f.Add(make([]byte, minPacket))
	f.Add(bytes.Repeat([]byte{1}, minPacket))
	f.Fuzz(func(t *testing.T, b []byte) {
		if spi, ok := ParseSPI(b); ok && (spi < 256 || len(b) < minPacket) {
			t.Errorf("%x has SPI %v", b, spi)
		}
	})
}

// FuzzOpen gives an Opener of every kind what an attacker without the key can send, and then a trailer of an attacker who has it.
func FuzzOpen(f *testing.F) {
	for i, tt := range sas {
		s, _ := pair(f, tt.sa)
		f.Add(seal(f, s, 4, []byte("seed")), uint8(i))
	}
	f.Fuzz(func(t *testing.T, b []byte, kind uint8) {
		s, o := pair(t, sas[int(kind)%len(sas)].sa)
		if _, _, err := o.Open([]byte{}, b); err == nil && !bytes.Equal(b[:4], []byte{0xc0, 0xff, 0xee, 1}) {
			t.Error("a packet of another SPI was opened")
		}
		if _, _, err := o.Open(nil, slices.Clone(b)); err == nil && o.window == (Window{}) {
			t.Error("a packet was opened and the window stands still")
		}
		text := b[:len(b)/s.align*s.align]
		if len(text) == 0 {
			return
		}
		o.window = Window{}
		payload, next, err := o.Open(nil, forge(s, text))
		switch pad := int(text[len(text)-2]); {
		case pad+trailerLen > len(text):
			if err != ErrMalformed {
				t.Errorf("pad length %d of %d: %v", pad, len(text), err)
			}
		case err != nil, next != text[len(text)-1], !bytes.Equal(payload, text[:len(text)-2-pad]):
			t.Errorf("%x was opened as %x, %d, %v", text, payload, next, err)
		}
	})
}
