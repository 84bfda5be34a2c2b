package wire

import (
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

var (
	errTruncated = errors.New("truncated")
	errZero      = errors.New("zero")
	errEmpty     = errors.New("empty")
	errTrailing  = errors.New("octets after the end")
)

// reader is a cryptobyte.String that knows where in the message it is. Its error sticks, is shared with the readers made
// by sub, and empties the reader: code reads field after field and looks once, and a loop until empty ends.
type reader struct {
	s   cryptobyte.String
	end int         // offset in the message of the octet after s
	in  PayloadType // being read; 0: the header
	err *error
}

func newReader(b []byte) *reader {
	var err error
	return &reader{s: b, end: len(b), err: &err}
}

// offset is where the next octet stands in the message or in the chain.
func (r *reader) offset() int { return r.end - len(r.s) }

// more reports whether there is something left to read, and no error.
func (r *reader) more() bool { return *r.err == nil && len(r.s) > 0 }

func (r *reader) fail(field string, err error) { r.failAt(r.offset(), field, err) }

func (r *reader) failAt(offset int, field string, err error) {
	if *r.err == nil {
		*r.err = &SyntaxError{Payload: r.in, Offset: offset, Field: field, Err: err}
	}
	r.s, r.end = nil, r.offset()
}

// failf is fail with a reason made here.
func (r *reader) failf(field, format string, args ...any) { r.fail(field, fmt.Errorf(format, args...)) }

// bytes takes n octets without a copy; the result's capacity ends with it.
func (r *reader) bytes(field string, n int) []byte {
	var out []byte
	if *r.err != nil {
		return nil
	}
	if n < 0 || !r.s.ReadBytes(&out, n) {
		r.fail(field, errTruncated)
		return nil
	}
	return out[:n:n]
}

// rest takes what is left.
func (r *reader) rest() []byte { return r.bytes("data", len(r.s)) }

func (r *reader) skip(field string, n int) { r.bytes(field, n) }

// sub takes the next n octets as a reader of its own, with the same error.
func (r *reader) sub(field string, n int) reader {
	b := r.bytes(field, n)
	return reader{s: b, end: r.offset(), in: r.in, err: r.err}
}

// done makes what is left an error.
func (r *reader) done(field string) {
	if r.more() {
		r.fail(field, errTrailing)
	}
}

func (r *reader) u8(field string) uint8 {
	var v uint8
	if *r.err == nil && !r.s.ReadUint8(&v) {
		r.fail(field, errTruncated)
	}
	return v
}

func (r *reader) u16(field string) uint16 {
	var v uint16
	if *r.err == nil && !r.s.ReadUint16(&v) {
		r.fail(field, errTruncated)
	}
	return v
}

func (r *reader) u32(field string) uint32 {
	var v uint32
	if *r.err == nil && !r.s.ReadUint32(&v) {
		r.fail(field, errTruncated)
	}
	return v
}

func (r *reader) u64(field string) uint64 {
	var v uint64
	if *r.err == nil && !r.s.ReadUint64(&v) {
		r.fail(field, errTruncated)
	}
	return v
}
