package ike

import (
	"crypto"
	"net/netip"
	"time"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// saState is where an IKE SA stands.
//
//	                                   ┌─────────────┐ (second authentication)
//	initiator  initSent ─► (mixing) ─► signing ─► authSent ─┐               ┌─────────────────┐
//	                                                        ├──► established ──► deleting ──► closed
//	responder  initReceived ──► authWaiting ────────────────┘      ▲  │  └──► replaced ─┘
//	               authAgain ◄──►─┘                                ▼  │           ▲
//	                                                             rekeying ────────┘
//
// From every state an arrow leads to closed; from authSent also one to deleting, when the peer's AUTH is not good, and from
// rekeying, when it is done.
type saState uint8

const (
	initSent     saState = iota + 1 // our IKE_SA_INIT request is out
	mixing                          // our IKE_INTERMEDIATE request is out
	signing                         // the response is in; our signature is being made
	authSent                        // our IKE_AUTH request is out
	initReceived                    // we answered an IKE_SA_INIT request and keep the keys
	authWaiting                     // an IKE_AUTH request is in and not answered: authorization, signature or data plane are out
	authAgain                       // we have proved ourselves, and wait for the initiator's second authentication
	established                     // both ends are authenticated, or allowed not to be
	rekeying                        // our request for an IKE SA in its place is out; it has its children still
	replaced                        // another has taken its place, and the peer is to delete it
	deleting                        // our DELETE is out; nothing else is done on this SA
	closed                          // only repeats of the peer's last request are still answered
)

func (s saState) String() string {
	names := [...]string{"none", "init-sent", "mixing", "signing", "auth-sent", "init-received", "auth-waiting", "auth-again", "established", "rekeying", "replaced", "deleting", "closed"}
	return names[s]
}

// arrows are the allowed changes of state.
var arrows = map[saState][]saState{
	initSent:     {mixing, signing, authSent, closed},
	mixing:       {signing, authSent, closed},
	signing:      {authSent, closed},
	authSent:     {authSent, signing, established, deleting, closed},
	initReceived: {authWaiting, closed},
	authWaiting:  {authAgain, established, closed},
	authAgain:    {authWaiting, closed},
	established:  {rekeying, replaced, deleting, closed},
	rekeying:     {established, replaced, deleting, closed},
	replaced:     {deleting, closed},
	deleting:     {closed},
}

// Bounds of an IKE SA that are nobody's configuration.
const (
	halfOpenLife = 30 * time.Second       // from the first message to authenticated
	closedLife   = 20 * time.Second       // repeats of the last request are answered for so long
	childlessFor = 10 * time.Second       // an SA without a Child SA is of no use to us
	retireAfter  = 500 * time.Millisecond // late packets on an inbound SA that was deleted
)

// sa is an IKE SA.
//
// Of a hundred thousand none is in the processor's cache when a message of it comes: what one reads and writes that only asks whether we are there stands first, together.
type sa struct {
	e             *Endpoint
	id            SAID // the caller's name for it: our SPI of the first of those that succeeded each other
	spiI, spiR    uint64
	owner         any  // the caller's, see Own
	kin           *kin // nil: it has none
	state         saState
	initiator     bool
	quiet         bool // Closed was reported: nothing of this SA is any more
	hushed        bool // the caller wants no Alive
	counted       bool // as half-open
	guest         bool // the peer asked for it, or for what it succeeded
	named         bool // we have proved our key
	hybrid        bool // the peer has shown that it knows additional key exchanges, and we ask for them
	nat           nat
	frag          fragments
	local, remote netip.AddrPort
	in            window
	spent         moment // the budget of the peer's requests is what lies between this and now
	timer         saTimers
	child         children
	keys          saCrypto

	slot     int // in the heap; -1: not there
	out      request
	key      crypto.PublicKey // that the peer has proved; nil: none
	remoteID ID               // what it says it is
	late     *lateProof
	token    []byte         // of quick crash detection, the peer's
	hostPair pairOfHosts    // under which Endpoint.peers has it
	since    moment         // when it was established
	origin   netip.AddrPort // remote, when the SA began
	inner    *inner         // nil: no other addresses than these, as most have
	hs       *handshake     // nil once it is over
}

// saCrypto is what encrypts an established SA and derives its children; zero in initSent.
type saCrypto struct {
	suite      ikeSuite
	open, seal sealer
	d          ipsec.Secret
	room       [96]byte // for the keys: what combined-mode suites with SHA-256 take
}

// known reports whether there are keys.
func (c *saCrypto) known() bool { return c.d != nil }

// set takes what newCrypto made, and copies of its keys, one behind the other: the schedule that they are part of is as long again, and is not needed after the handshake.
func (c *saCrypto) set(to saCrypto) {
	*c = to
	all := append(append(append(c.room[:0], to.open.key...), to.seal.key...), to.d...)
	own := func(n int) ipsec.Secret {
		part := all[:n:n]
		all = all[n:]
		return part
	}
	c.open.key, c.seal.key, c.d = own(len(to.open.key)), own(len(to.seal.key)), own(len(to.d))
}

// saTimers are the times at which something is due; zero: nothing is.
type saTimers struct {
	heard     moment // the last authenticated message of the peer
	spoke     moment // our last message
	end       moment // half-open, closed or the IKE SA's lifetime, by state
	rekey     moment // when we ask for an IKE SA in its place
	childless moment
	report    moment // when an SA that is closed is reported so: late packets are taken until then
}

// setState is the only place where the state changes.
func (s *sa) setState(to saState) {
	for _, ok := range arrows[s.state] {
		if ok == to {
			s.leave(to)
			s.state = to
			return
		}
	}
	s.e.drop("no arrow from " + s.state.String() + " to " + to.String()) // a mistake of this package: the tests look for it
	s.leave(to)
	s.state = to
}

// leave keeps the counters of half-open SAs.
func (s *sa) leave(to saState) {
	open := func(st saState) bool { return st < established }
	if open(s.state) && to == established {
		s.e.halfOpen(s, -1)
		s.e.join(s)
	}
	switch to {
	case mixing, signing, authSent, authWaiting, authAgain:
		return
	case established:
		if s.state == rekeying { // the peer has refused
			return
		}
		s.live()
		s.timer.childless = s.e.now.Add(childlessFor)
		s.remember()
	case replaced:
		s.timer.end = s.e.now.Add(replacedFor)
	case closed:
		s.timer.end = s.e.now.Add(closedLife)
	}
}

// live starts the lifetime of the IKE SA, towards the end of which we replace it. A responder waits half as long again for the
// initiator to do so.
func (s *sa) live() {
	life := s.e.cfg.IKELifetime
	if !s.initiator {
		life = life * 3 / 2
	}
	s.timer.end = s.e.now.Add(life)
	s.timer.rekey = s.e.now.Add(life - life/10 - jitter(s.e.jitter, life/10))
}

// open reports whether the SA has its children and its caller.
func (s *sa) open() bool { return s.state == established || s.state == rekeying }

// spi is our SPI.
func (s *sa) spi() SAID {
	if s.initiator {
		return SAID(s.spiI)
	}
	return SAID(s.spiR)
}

// header is that of our next message.
func (s *sa) header(x wire.ExchangeType, id uint32, response bool) wire.Header {
	h := wire.Header{InitiatorSPI: s.spiI, ResponderSPI: s.spiR, Exchange: x, MessageID: id}
	if s.initiator {
		h.Flags |= wire.FlagInitiator
	}
	if response {
		h.Flags |= wire.FlagResponse
	}
	return h
}

// emit reports an event, unless the SA was reported closed.
func (s *sa) emit(ev Event) {
	if !s.quiet {
		s.e.out.Events = append(s.e.out.Events, ev)
	}
}

// report ends the SA for the caller: its child, then itself. What we still have to say to the peer goes on in silence.
func (s *sa) report(err error) {
	for _, p := range s.child.all {
		s.emit(ChildDown{s.id, p.id, err})
	}
	s.emit(Closed{s.id, err})
	s.quiet = true
	s.child.drop(s.e)
	s.disown()
}

// fail closes the SA without a word to the peer.
func (s *sa) fail(err error) {
	s.report(err)
	if s.state != closed {
		s.setState(closed)
	}
	s.forgetRequest()
	if len(s.in.reply) == 0 {
		s.e.forget(s)
	}
}

// reject closes the SA and tells the peer so with a retransmitted INFORMATIONAL: otherwise a peer that is established by now
// would go on believing in the SA (TRUST.md R10).
func (s *sa) reject(err error, ps ...wire.Payload) {
	s.report(err)
	s.setState(deleting)
	s.hs = nil
	s.out.farewell = ps
	s.leaveTaking()
}

// leaveTaking sends the farewell, once no other request of ours is out.
func (s *sa) leaveTaking() {
	if s.out.state == idle {
		s.send(taskReject, wire.Informational, s.out.farewell...)
	}
}

// bye is the payload that deletes the IKE SA.
func bye() wire.Payload { return &wire.Delete{Protocol: wire.ProtocolIKE} }

// tick does what is due, and says when the next thing is.
func (s *sa) tick() moment {
	now := s.e.now
	if due(s.timer.end, now) {
		s.expire()
	}
	if s.slot == gone {
		return 0
	}
	s.retransmit()
	if s.slot == gone {
		return 0
	}
	s.keepAlive()
	if due(s.timer.report, now) {
		s.timer.report = 0
		s.report(nil)
	}
	if due(s.followUpDue(), now) {
		s.forsake()
	}
	if s.open() {
		s.child.tick(s)
		s.reconsider()
		s.pump()
	}
	wake := earliest(s.timer.end, s.timer.report, s.out.due, s.child.wake(), s.keepAliveDue(), s.reconsiderDue(), s.expireFragments(), s.followUpDue(), s.forgetLate())
	if s.state == established && s.out.state == idle && !s.awaits() {
		wake = earliest(wake, s.timer.childless, s.timer.rekey, s.child.workDue(), s.livenessDue())
	}
	return wake
}

// gone is the slot of an SA that the Endpoint has forgotten.
const gone = -2

// expire ends what lasted too long.
func (s *sa) expire() {
	switch s.state {
	case closed, deleting:
		s.report(nil)
		s.e.forget(s)
	case replaced: // the peer has not deleted it
		s.timer.end = 0
		if s.out.state != idle {
			s.e.forget(s)
			return
		}
		s.setState(deleting)
		s.send(taskDelete, wire.Informational, bye())
	case established, rekeying:
		s.timer.end = 0
		s.reject(ErrExpired, bye())
	default:
		err := error(ErrTimeout)
		if s.hs != nil && s.hs.hint != nil {
			err = s.hs.hint
		}
		s.fail(err)
		s.e.forget(s)
	}
}

// livenessDue is when the peer must be probed (RFC 7296, 2.4).
func (s *sa) livenessDue() moment {
	if s.state != established || s.quiet || s.e.cfg.Liveness <= 0 || s.out.state != idle {
		return 0
	}
	return s.timer.heard.Add(s.e.cfg.Liveness)
}
