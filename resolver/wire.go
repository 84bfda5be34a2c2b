package resolver

import (
	"encoding/binary"
	"fmt"

	"github.com/miekg/dns"
)

// The cache keeps records packed, so that they take little room and an answer is made of them by copying. Each stands for itself: the
// only name that is compressed is an owner that is the name asked for, against the question, which is at a fixed place. So such an owner
// has each client's own letters, and records can be left out.

// questionAt is where the name of a question is in a message.
const questionAt = 12

// packRecords appends records of an answer about name.
func packRecords(b []byte, name string, rrs []dns.RR) ([]byte, error) {
	for _, rr := range rrs {
		start := len(b)
		b = append(b, make([]byte, dns.Len(rr)+1)...)
		end, err := dns.PackRR(rr, b, start, nil, false)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", rr.Header().Name, err)
		}
		b = b[:end]
		if dns.CanonicalName(rr.Header().Name) == name {
			rest := b[nameEnd(b, start):]
			b = append(append(b[:start], 0xc0, questionAt), rest...)
		}
	}
	return b, nil
}

// unpackRecords reads n records of an answer about q, and says how much of wire they take.
func unpackRecords(q question, wire string, n int) ([]dns.RR, int) {
	if n == 0 {
		return nil, 0
	}
	b := make([]byte, questionAt+256, questionAt+256+len(wire))
	end, err := dns.PackDomainName(q.name, b, questionAt, nil, false)
	if err != nil {
		panic(err) // it was packed before; the query that met it is answered SERVFAIL
	}
	b = append(b[:end], wire...)
	rrs, off := make([]dns.RR, 0, n), end
	for range n {
		rr, next, err := dns.UnpackRR(b, off)
		if err != nil {
			panic(err)
		}
		rrs, off = append(rrs, rr), next
	}
	return rrs, off - end
}

// record is where a packed record lies and what is in its head.
type record struct {
	typ       uint16
	ttl, data int // offsets
	end       int
}

// recordAt reads the head of the record at off, which packRecords wrote.
func recordAt(wire string, off int) record {
	off = nameEnd(wire, off)
	data := off + 10
	return record{typ: uint16(wire[off])<<8 | uint16(wire[off+1]), ttl: off + 4, data: data,
		end: data + int(wire[off+8])<<8 + int(wire[off+9])}
}

// nameEnd is where a valid name at off ends.
func nameEnd[T string | []byte](b T, off int) int {
	for b[off] != 0 {
		if b[off] >= 0xc0 {
			return off + 2
		}
		off += int(b[off]) + 1
	}
	return off + 1
}

// appendRecords appends n records from off on to an answer, with their TTLs counted down, and says how many are left and where they
// end. Of DNSSEC's own, only those of the type asked for stay if the client does not want them.
func appendRecords(b []byte, wire string, off, n int, asked uint16, do bool, ttl ttls) (out []byte, kept, end int) {
	for range n {
		r := recordAt(wire, off)
		if do || !dnssecType(r.typ, asked) {
			at := len(b) + r.ttl - off
			b = append(b, wire[off:r.end]...)
			binary.BigEndian.PutUint32(b[at:], ttl.of(binary.BigEndian.Uint32(b[at:])))
			kept++
		}
		off = r.end
	}
	return b, kept, off
}
