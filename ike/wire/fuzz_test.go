package wire

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"testing"
)

// seeds adds every message we have to a fuzz target.
func seeds(f *testing.F, add func(datagram []byte, first PayloadType, chain []byte)) {
	for _, m := range messages() {
		b, err := m.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		h, _ := ParseHeader(b)
		add(b, h.NextPayload, b[HeaderLen:])
	}
	for _, g := range readGolden(f).messages {
		if m, err := Parse(g.datagram); err == nil && g.plain != nil {
			add(g.datagram, m.Payloads[0].(*Encrypted).First, g.plain)
		} else {
			add(g.datagram, PayloadType(g.datagram[16]), g.datagram[HeaderLen:])
		}
	}
}

// checkError: whatever is refused can be answered, and the place is in the message.
func checkError(t *testing.T, b []byte, err error) {
	t.Helper()
	var s *SyntaxError
	var c *CriticalError
	var v *VersionError
	switch {
	case errors.As(err, &s):
		if s.Offset < 0 || s.Offset > len(b) || s.Field == "" {
			t.Errorf("%v, in %d octets", err, len(b))
		}
	case errors.As(err, &c):
		if c.Offset < 0 || c.Offset >= len(b) {
			t.Errorf("%v, in %d octets", err, len(b))
		}
	case !errors.As(err, &v):
		t.Errorf("%v has no type", err)
	}
}

// writable reports whether all of the chain can be written: transforms with unknown attributes, skipped selectors and skipped attributes cannot.
func writable(ps []Payload) bool {
	for _, p := range ps {
		switch p := p.(type) {
		case *TS:
			if p.Skipped > 0 {
				return false
			}
		case *Config:
			if p.Skipped > 0 {
				return false
			}
		case *SA:
			for _, prop := range p.Proposals {
				for _, tr := range prop.Transforms {
					if tr.UnknownAttribute {
						return false
					}
				}
			}
		}
	}
	return true
}

func FuzzParse(f *testing.F) {
	seeds(f, func(b []byte, _ PayloadType, _ []byte) { f.Add(b) })
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Parse(b)
		if err != nil {
			checkError(t, b, err)
			return
		}
		if !writable(m.Payloads) {
			return
		}
		again, err := m.Marshal()
		if err != nil {
			t.Fatalf("parses, but cannot be written: %v", err)
		}
		if len(again) != len(b) {
			t.Errorf("%d octets are written as %d", len(b), len(again))
		}
		if m2, err := Parse(again); err != nil || !reflect.DeepEqual(m, m2) {
			t.Errorf("parses as %+v, then as %+v, %v", m, m2, err)
		}
	})
}

// What Parse and Marshal make of a message with one payload that is encrypted, ParseClosed and Frame do.
func FuzzParseClosed(f *testing.F) {
	seeds(f, func(b []byte, _ PayloadType, _ []byte) { f.Add(b) })
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		c, body, ok := ParseClosed(b)
		m, err := Parse(before)
		var want Closed
		var wantBody []byte
		if err == nil && len(m.Payloads) == 1 {
			switch p := m.Payloads[0].(type) {
			case *Encrypted:
				want, wantBody = Closed{First: p.First}, p.Body
			case *EncryptedFragment:
				want, wantBody = Closed{p.First, p.Number, p.Total}, p.Body
			}
		}
		if ok != (wantBody != nil) || !bytes.Equal(body, wantBody) || ok && c != want {
			t.Fatalf("parses as %+v, %x, %v, want %+v, %x: %v", c, body, ok, want, wantBody, err)
		}
		if !bytes.Equal(b, before) {
			t.Error("it was changed")
		}
		if !ok {
			return
		}
		frame, err := c.Frame(m.Header, len(body))
		if err != nil {
			t.Fatalf("parses, but has no frame: %v", err)
		}
		if len(frame)-c.Room() != len(body) {
			t.Fatalf("%d octets before the body in a frame of %d for %d", c.Room(), len(frame), len(body))
		}
		copy(frame[c.Room():], body)
		if again, err := m.Marshal(); err != nil || !bytes.Equal(frame, again) {
			t.Errorf("its frame is %x, and it is written as %x, %v", frame, again, err)
		}
	})
}

func FuzzParsePayloads(f *testing.F) {
	seeds(f, func(_ []byte, first PayloadType, chain []byte) { f.Add(uint8(first), chain) })
	f.Fuzz(func(t *testing.T, first uint8, b []byte) {
		ps, err := ParsePayloads(PayloadType(first), b)
		other := func(p Payload) bool { return p.PayloadType() != PayloadVendorID }
		if got, want := OnlyVendorIDs(PayloadType(first), b), err == nil && !slices.ContainsFunc(ps, other); got != want {
			t.Errorf("only Vendor IDs: %v, want %v of %+v, %v", got, want, ps, err)
		}
		if err != nil {
			checkError(t, b, err)
			return
		}
		if !writable(ps) {
			return
		}
		kind, again, err := MarshalPayloads(ps)
		if err != nil {
			if len(b) > 0xffff {
				return
			}
			t.Fatalf("parses, but cannot be written: %v", err)
		}
		ps2, err := ParsePayloads(kind, again)
		if err != nil || kind != PayloadType(first) || !reflect.DeepEqual(ps, ps2) {
			t.Errorf("parses as %+v, then as %+v, %v", ps, ps2, err)
		}
	})
}

func FuzzParseHeader(f *testing.F) {
	seeds(f, func(b []byte, _ PayloadType, _ []byte) { f.Add(b) })
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHeader(b)
		if err != nil {
			checkError(t, b, err)
			return
		}
		if h.InitiatorSPI == 0 || h.Flags&^definedFlags != 0 || !bytes.Equal(b[18:19], []byte{byte(h.Exchange)}) {
			t.Errorf("%+v", h)
		}
	})
}
