package ike

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"time"

	"tacit/ike/wire"
)

// What a peer can make us keep of messages that are not whole (TRUST.md A-24). Every fragment is authentic before it is kept.
const (
	maxFragments   = 16               // of one message
	maxReassembled = 32 << 10         // octets of one message
	maxFragmented  = 8 << 20          // octets of all messages of an Endpoint that are not whole
	fragmentLife   = 30 * time.Second // of a message whose other fragments do not come
)

// The sizes of IP datagrams. "For IPv6 ... 1280 octets, for IPv4 ... 576" always pass (RFC 7383, 2.5.1); nearly all IPv4 paths take
// 1280 today, so we begin with that and come down when a request stays unanswered.
const (
	usualPath = 1280
	leastIPv4 = 576
	shrinkAt  = 2 // sends that stay unanswered
)

// errPartial says that a fragment was authentic and others are still to come.
var errPartial = errors.New("a fragment")

// fragments is what an IKE SA knows about fragmentation (RFC 7383).
type fragments struct {
	on   bool   // both ends have said that they can
	path uint16 // octets of an IP datagram that pass; 0: Config.Path
}

// room is how long a message may be to travel in one IP datagram.
func (s *sa) room() int {
	path, overhead := int(s.frag.path), 20+8
	if path == 0 {
		path = s.e.cfg.Path
	}
	if s.remote.Addr().Unmap().Is6() {
		path, overhead = max(path, usualPath), 40+8
	}
	if s.remote.Port() != portIKE {
		overhead += 4 // the non-ESP marker
	}
	return path - overhead
}

// sealed encrypts a message of ours: in fragments where it would be longer than the path takes and the peer knows them, then in
// more than other, which is how many went before.
func (s *sa) sealed(h wire.Header, ps []wire.Payload, other int) ([][]byte, error) {
	first, plain, err := wire.MarshalPayloads(ps)
	if err != nil {
		return nil, err
	}
	data, err := s.keys.seal.enclose(h, wire.Closed{First: first}, plain)
	if err != nil || !s.frag.on || len(data) <= s.room() {
		return [][]byte{data}, err
	}
	k := &s.keys.seal
	step := s.room() - wire.HeaderLen - 8 - k.suite.ivLen() - k.suite.align() - k.suite.icvLen()
	return k.cut(h, first, plain, max((len(plain)+step-1)/step, other+1))
}

// cut encrypts plain in so many fragments of one size.
func (s *sealer) cut(h wire.Header, first wire.PayloadType, plain []byte, total int) ([][]byte, error) {
	step := (len(plain) + total - 1) / total
	var out [][]byte
	for n := range total {
		part := plain[n*step : min((n+1)*step, len(plain))]
		c := wire.Closed{Number: uint16(n + 1), Total: uint16(total)}
		if n == 0 {
			c.First = first
		}
		data, err := s.enclose(h, c, part)
		if err != nil {
			return nil, err
		}
		out = append(out, data)
	}
	return out, nil
}

// shrink sends a request that stays unanswered in smaller fragments from now on, and in more of them, by which the peer tells them
// from those before (RFC 7383, 2.5.1 and 2.6). Only IPv4 has smaller ones. It goes as it went before too: who has it, and whose answer
// was lost, may know a repeat by its octets (RFC 7296, 2.1), as strongSwan does, who answers to no other.
func (s *sa) shrink() {
	r := &s.out
	if r.sends != shrinkAt || r.open == nil || s.remote.Addr().Unmap().Is6() || s.e.cfg.Path <= leastIPv4 {
		return
	}
	before := s.frag.path
	s.frag.path = leastIPv4
	if data, err := s.sealed(r.open.Header, r.open.Payloads, len(r.data)); err == nil && len(data) <= maxFragments {
		r.data = append(data, r.data...)
		return
	}
	s.frag.path = before
}

// reassembly is a message of the peer that is not whole yet. There is at most one for each direction of exchanges.
type reassembly struct {
	total   uint16
	have    uint16
	size    int
	parts   [][]byte
	first   wire.PayloadType
	seen    [32]byte // hash of fragment 1, by which its repeats are told
	longest int      // octets of a fragment as a message
	until   moment
}

// received is an authentic message of the peer, open.
type received struct {
	payloads []wire.Payload // none if they are all Vendor IDs
	seen     [32]byte       // hash of the datagram, or of fragment 1
	first    wire.PayloadType
	plain    []byte // the payloads as they came
}

// receive decrypts a datagram that has the Message ID we wait for; r is where its fragments are kept. Errors are open's, and
// errPartial.
func (s *sa) receive(r **reassembly, d Datagram) (received, error) {
	c, plain, err := s.keys.open.disclose(d.Data)
	if err != nil {
		return received{seen: sha256.Sum256(d.Data)}, err
	}
	first := wire.PayloadNone
	got := received{}
	if c.Total == 0 { // also in the place of fragments that came before: the peer has gone back to that
		first, got.seen = c.First, sha256.Sum256(d.Data)
	} else {
		if err := s.collect(r, c, plain, d.Data); err != nil {
			return received{}, err
		}
		first, plain, got.seen = (*r).first, bytes.Join((*r).parts, nil), (*r).seen
		s.answerInKind((*r).longest)
	}
	s.e.release(r)
	got.first, got.plain = first, plain
	if !wire.OnlyVendorIDs(first, plain) {
		got.payloads, err = wire.ParsePayloads(first, plain)
	}
	return got, err
}

// collect keeps an authentic fragment; nil says that it was the last that was missing (RFC 7383, 2.6).
func (s *sa) collect(r **reassembly, p wire.Closed, plain, data []byte) error {
	a := *r
	switch {
	case !s.frag.on || p.Total > maxFragments:
		s.e.drop("fragment")
		return errPartial
	case a != nil && p.Total < a.total: // "older" ones: the peer has made smaller fragments meanwhile
		s.e.drop("fragment")
		return errPartial
	case a == nil || p.Total > a.total:
		s.e.release(r)
		a = &reassembly{total: p.Total, parts: make([][]byte, p.Total), until: s.e.now.Add(fragmentLife)}
	}
	n := p.Number - 1
	if a.parts[n] != nil || a.size+len(plain) > maxReassembled || s.e.fragmented+len(plain) > maxFragmented {
		s.e.drop("fragment")
		return errPartial
	}
	*r = a
	if n == 0 {
		a.first, a.seen = p.First, sha256.Sum256(data)
	}
	a.parts[n] = append([]byte{}, plain...)
	a.have++
	a.size += len(plain)
	a.longest = max(a.longest, len(data))
	s.e.fragmented += len(plain)
	if a.have < a.total {
		return errPartial
	}
	return nil
}

// answerInKind: fragments that are smaller than ours say that the peer has found ours not to pass.
func (s *sa) answerInKind(longest int) {
	if !s.remote.Addr().Unmap().Is6() && longest <= leastIPv4-20-8 {
		s.frag.path = uint16(min(s.e.cfg.Path, leastIPv4))
	}
}

// release forgets what is there of a message.
func (e *Endpoint) release(r **reassembly) {
	if *r != nil {
		e.fragmented -= (*r).size
		*r = nil
	}
}

// expireFragments forgets messages whose other fragments did not come, and says when it wants to look again.
func (s *sa) expireFragments() (wake moment) {
	for _, r := range []**reassembly{&s.in.parts, &s.out.parts} {
		if *r != nil && due((*r).until, s.e.now) {
			s.e.release(r)
		}
		if *r != nil {
			wake = earliest(wake, (*r).until)
		}
	}
	return wake
}

// repeats reports whether d is the request that was answered last. Of fragments the first alone counts (RFC 7383, 2.6.1), and it may
// come in another size, so that it is told by being authentic.
func (s *sa) repeats(d Datagram) bool {
	if sha256.Sum256(d.Data) == s.in.seen {
		return true
	}
	if !s.keys.known() || !s.frag.on || s.in.exch == wire.IKESAInit {
		return false
	}
	open := s.in.open
	if open == nil {
		open = &s.keys.open
	}
	c, _, err := open.disclose(d.Data)
	return err == nil && c.Number == 1
}
