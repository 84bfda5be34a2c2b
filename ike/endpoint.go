package ike

import (
	"container/heap"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"time"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// halfKey names a half-open SA of a responder: what is known of the peer before it knows our SPI.
type halfKey struct {
	spi  uint64
	from netip.AddrPort
}

// New returns an Endpoint without SAs.
func New(cfg Config) *Endpoint {
	e := &Endpoint{
		cfg:   withDefaults(cfg),
		offer: defaultOffer,
		sas:   map[SAID]*sa{}, heirs: map[SAID]*sa{}, young: map[youngKey]*sa{}, half: map[halfKey]*sa{},
		peers: map[pairOfHosts][]*sa{}, spis: map[ipsec.SPI]struct{}{}, work: map[uint64]work{},
		suites: map[ikeSuite]string{},
	}
	e.stats.Drops = map[string]uint64{}
	e.nextPair = uint32(e.ours(uint64(e.cfg.FirstPair))) + uint32(e.cfg.Shards)
	e.jitter = rand.New(rand.NewPCG(e.random64(), e.random64()))
	return e
}

func withDefaults(c Config) Config {
	if c.Rand == nil {
		c.Rand = crand.Reader
	}
	if c.Census == nil {
		c.Census = newCensus()
	}
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	set(&c.IKELifetime, 8*time.Hour)
	set(&c.ChildLifetime, time.Hour)
	c.Shards = max(c.Shards, 1)
	if c.CookieAbove == 0 {
		c.CookieAbove = 32
	}
	if c.Path == 0 {
		c.Path = usualPath
	}
	c.Path = max(c.Path, leastIPv4)
	if c.MaxSAs == 0 {
		c.MaxSAs = 250_000
	}
	if c.MaxPerPeer == 0 {
		c.MaxPerPeer = 64
	}
	if c.MaxPerNetwork == 0 {
		c.MaxPerNetwork = 16_384
	}
	if c.MaxHalfOpen == 0 {
		c.MaxHalfOpen = 10_000
	}
	if len(c.Retransmit) == 0 {
		c.Retransmit = []time.Duration{time.Second / 2, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second}
	}
	return c
}

// Initiate begins an IKE SA with p. What becomes of it comes as events of the SAID.
func (e *Endpoint) Initiate(now time.Time, p Peer) (SAID, Output) {
	e.begin(now)
	s := e.newSA(true, p.Local, p.Remote)
	s.hs.peer, s.hs.auth = p, p.Auth
	if err := s.mayInitiate(); err != nil {
		s.fail(err)
	} else {
		s.sendInit(e.offer.groups[0])
	}
	e.schedule(s)
	return s.id, e.finish()
}

// Receive takes a datagram from UDP port 500 or 4500, without the non-ESP marker. d.Data is not kept.
func (e *Endpoint) Receive(now time.Time, d Datagram) Output {
	e.begin(now)
	e.stats.Received++
	h, err := wire.ParseHeader(d.Data)
	switch {
	case err != nil:
		e.onUnreadable(d, h, err)
	case h.Exchange == wire.IKESAInit && h.Flags&wire.FlagResponse == 0:
		e.onInitRequest(d, h)
	default:
		e.dispatch(d, h)
	}
	return e.finish()
}

// onUnreadable drops what has no header that we can read.
func (e *Endpoint) onUnreadable(d Datagram, h wire.Header, err error) {
	var version *wire.VersionError
	if errors.As(err, &version) {
		e.onVersion(d, h, version)
		return
	}
	e.drop("malformed")
}

// dispatch hands a message to its SA. The peer's Initiator flag must be the opposite of ours: a message of our own that comes
// back finds nothing (TRUST.md A-27).
func (e *Endpoint) dispatch(d Datagram, h wire.Header) {
	ours, theirs := h.InitiatorSPI, h.ResponderSPI
	fromInitiator := h.Flags&wire.FlagInitiator != 0
	if fromInitiator {
		ours, theirs = theirs, ours
	}
	s := e.sas[SAID(ours)]
	switch {
	case s == nil:
		e.onUnknown(d, h)
		return
	case s.initiator == fromInitiator:
		e.drop("reflected")
		return
	case s.peerSPI() != theirs && s.state != initSent:
		e.drop("wrong-spi")
		return
	}
	if h.Flags&wire.FlagResponse != 0 {
		s.onResponse(d, h)
	} else if s.onRequest(d, h) {
		return
	}
	s.pump()
	e.schedule(s)
}

func (s *sa) peerSPI() uint64 {
	if s.initiator {
		return s.spiR
	}
	return s.spiI
}

// Advance does what is due: repeats, expiries, rekeys, probes.
func (e *Endpoint) Advance(now time.Time) Output {
	e.begin(now)
	for len(e.timers) > 0 && due(e.timers[0].wake, e.now) {
		e.schedule(e.timers[0].sa)
	}
	return e.finish()
}

// Authorize answers AuthorizationWanted.
func (e *Endpoint) Authorize(now time.Time, id SAID, a Authorization) Output {
	return e.with(now, id, func(s *sa) { s.authorize(a) })
}

// Supply answers SignatureWanted, SharedSecretWanted and ChildWanted. An answer that nobody waits for is ignored.
func (e *Endpoint) Supply(now time.Time, id SAID, r Result) Output {
	if r, ok := r.(SharedSecret); ok {
		return e.onSharedSecret(now, r)
	}
	return e.with(now, id, func(s *sa) {
		switch r := r.(type) {
		case Signature:
			s.onSignature(r)
		case Installed:
			s.onInstalled(r)
		}
	})
}

// Do carries out a command. On an SA that is not established yet, or no longer, only Delete means something.
func (e *Endpoint) Do(now time.Time, id SAID, c Command) Output {
	return e.with(now, id, func(s *sa) { s.command(c) })
}

// AddChild asks the peer for another Child SA; the zero selector means all that the Authorization lets it have. What comes of it is
// ChildUp with a Pair of its own, or ChildRefused.
func (e *Endpoint) AddChild(now time.Time, id SAID, sel ipsec.Selector) Output {
	return e.with(now, id, func(s *sa) {
		if sel == (ipsec.Selector{}) {
			sel = s.child.grant.selector
		}
		if s.open() {
			s.child.wishes = append(s.child.wishes, wish{selector: sel, at: e.now})
		}
	})
}

// Stats returns the counters so far. The map is a copy.
func (e *Endpoint) Stats() Stats {
	st := e.stats
	st.SAs = len(e.sas)
	st.Drops = make(map[string]uint64, len(e.stats.Drops))
	for k, v := range e.stats.Drops {
		st.Drops[k] = v
	}
	return st
}

// with runs f on an SA that the caller still knows.
func (e *Endpoint) with(now time.Time, id SAID, f func(*sa)) Output {
	e.begin(now)
	if s := e.find(id); s != nil && !s.quiet {
		f(s)
		s.pump()
		e.schedule(s)
	}
	return e.finish()
}

// Own notes what the caller keeps of an SA: Alive, which comes most often, brings it.
func (e *Endpoint) Own(id SAID, owner any) {
	if s := e.find(id); s != nil {
		s.owner = owner
	}
}

// Hush says whether messages of an SA's peer mean nothing to the caller but when they came, which Heard says when he wants to know: Alive is not reported.
func (e *Endpoint) Hush(id SAID, hushed bool) {
	if s := e.find(id); s != nil {
		s.hushed = hushed
	}
}

// Heard is when the last authenticated message of an SA's peer came; zero: there is no such SA.
func (e *Endpoint) Heard(id SAID) time.Time {
	if s := e.find(id); s != nil {
		return e.time(s.timer.heard)
	}
	return time.Time{}
}

// Recycle takes an Output back whose lists the caller has read and keeps no more: another will have their room.
func (e *Endpoint) Recycle(o Output) {
	if cap(o.Send)+cap(o.Events) > spareRoom {
		return
	}
	clear(o.Send)
	clear(o.Events)
	e.spare = Output{Send: o.Send[:0], Events: o.Events[:0]}
}

// spareRoom is how much is kept.
const spareRoom = 16

// find is the SA that the caller calls by a name.
func (e *Endpoint) find(id SAID) *sa {
	if s := e.heirs[id]; s != nil {
		return s
	}
	return e.sas[id]
}

func (e *Endpoint) begin(now time.Time) {
	if e.called.IsZero() {
		e.called = now.Add(-past)
	}
	e.now, e.called = e.moment(now), now
	e.out, e.spare = e.spare, Output{}
	e.cookies.rotate(e.now, e.cfg.Rand)
}

func (e *Endpoint) finish() Output {
	out := e.out
	e.out = Output{}
	if len(e.timers) > 0 {
		out.Wake = e.time(e.timers[0].wake)
	}
	return out
}

// schedule does what is due on the SA, and puts it back into the heap.
func (e *Endpoint) schedule(s *sa) {
	if s.slot == gone {
		return
	}
	wake := s.tick()
	if s.slot == gone {
		return
	}
	if due(wake, e.now) { // whatever is due was done: time must move on before the next look
		wake = e.now.Add(time.Millisecond)
	}
	e.timers.set(s, e.now, wake)
}

// newSA draws an SPI. The SA is half-open.
func (e *Endpoint) newSA(initiator bool, local, remote netip.AddrPort) *sa {
	s := &sa{e: e, initiator: initiator, guest: !initiator, local: local, remote: remote, origin: remote, slot: -1, hs: &handshake{began: e.now}}
	s.id = e.newSAID()
	if initiator {
		s.state, s.spiI = initSent, uint64(s.id)
	} else {
		s.state, s.spiR = initReceived, uint64(s.id)
	}
	s.timer.end = e.now.Add(halfOpenLife)
	if initiator { // two exchanges, each of which gives up by itself
		for _, wait := range e.cfg.Retransmit {
			s.timer.end = s.timer.end.Add(3 * wait)
		}
	}
	e.enter(s.id, s)
	e.halfOpen(s, +1)
	return s
}

// enter has the SA found by our SPI, until it is forgotten.
func (e *Endpoint) enter(spi SAID, s *sa) {
	e.sas[spi] = s
	e.cfg.Census.Count(network(s.origin), Tally{SAs: +1})
}

// newSAID draws an SPI that no SA has or had when it was called after it.
func (e *Endpoint) newSAID() SAID {
	for {
		if id := SAID(e.ours(e.random64())); id != 0 && e.sas[id] == nil && e.heirs[id] == nil {
			return id
		}
	}
}

// forget drops the SA and all that points to it.
func (e *Endpoint) forget(s *sa) {
	if s.slot == gone {
		return
	}
	if s.slot >= 0 {
		heap.Remove(&e.timers, s.slot)
	}
	s.slot = gone
	if s.counted {
		e.halfOpen(s, -1)
	}
	s.child.drop(e)
	e.release(&s.in.parts)
	e.release(&s.out.parts)
	e.depart(s)
	s.disown()
	delete(e.sas, s.spi())
	e.cfg.Census.Count(network(s.origin), Tally{SAs: -1})
	if e.heirs[s.id] == s {
		delete(e.heirs, s.id)
	}
	s.grown()
}

// halfOpen counts SAs that are not established: a responder's also by the peer's network (TRUST.md A-22).
func (e *Endpoint) halfOpen(s *sa, by int) {
	s.counted = by > 0
	if s.initiator {
		return
	}
	e.stats.HalfOpen += by
	e.cfg.Census.Count(network(s.origin), Tally{Half: by})
	if k := (halfKey{s.spiI, s.origin}); by < 0 && e.half[k] == s {
		delete(e.half, k)
	}
}

// network is the prefix that shares one cap: an IPv4 /24, an IPv6 /56.
func network(a netip.AddrPort) netip.Prefix {
	addr, bits := a.Addr().Unmap(), 24
	if addr.Is6() {
		bits = 56
	}
	p, _ := addr.WithZone("").Prefix(bits)
	return p
}

// transmit sends data to where the SA's peer is.
func (e *Endpoint) transmit(s *sa, datagrams ...[]byte) {
	s.timer.spoke = e.now
	for _, data := range datagrams {
		e.stats.Sent++
		e.out.Send = append(e.out.Send, Datagram{s.local, s.remote, data})
	}
}

// answer sends a message of no SA back to where d came from, if it is no longer than d (TRUST.md A-21).
func (e *Endpoint) answer(d Datagram, m *wire.Message) {
	data, err := m.Marshal()
	if err != nil {
		e.drop("too-long")
		return
	}
	if len(data) > len(d.Data) {
		e.drop("amplifies")
		return
	}
	e.post(d, data)
}

// post sends data back to where d came from.
func (e *Endpoint) post(d Datagram, data []byte) {
	e.stats.Sent++
	e.out.Send = append(e.out.Send, Datagram{d.Local, d.Remote, data})
}

func (e *Endpoint) drop(why string) {
	e.stats.Drops[why]++
	e.out.Dropped = why
}

// random64 draws a number. Without random numbers there is no IKE: the reader's failure is the caller's mistake.
func (e *Endpoint) random64() uint64 { return binary.BigEndian.Uint64(e.random(8)) }

func (e *Endpoint) random(n int) []byte {
	b := make([]byte, n)
	if _, err := io.ReadFull(e.cfg.Rand, b); err != nil {
		panic("ike: no random numbers: " + err.Error())
	}
	return b
}

// summary is a suite in a few words, the same ones for all SAs that have it.
func (e *Endpoint) summary(s ikeSuite) string {
	text, ok := e.suites[s]
	if !ok {
		text = s.String()
		e.suites[s] = text
	}
	return text
}

// newSPI draws the SPI of an inbound SA.
func (e *Endpoint) newSPI() ipsec.SPI {
	for {
		spi := ipsec.SPI(e.ours(uint64(binary.BigEndian.Uint32(e.random(4)))))
		if _, taken := e.spis[spi]; spi > 255 && !taken {
			e.spis[spi] = struct{}{}
			return spi
		}
	}
}

// token names a question to the caller.
func (e *Endpoint) token() uint64 {
	e.lastToken++
	return e.lastToken
}
