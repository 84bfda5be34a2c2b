package ike

import (
	"math/rand/v2"
	"time"

	"tacit/ike/wire"
)

// exchangeState is that of one direction of exchanges; the window is 1 (RFC 7296, 2.3).
//
//	idle ──send──► waiting ──response──► idle
//	                  └──given up──► (the IKE SA closes)
type exchangeState uint8

const (
	idle    exchangeState = iota // no request is out
	waiting                      // a request is out, and retransmitted
)

func (s exchangeState) String() string { return [...]string{"idle", "waiting"}[s] }

// task is what a request of ours is for.
type task uint8

const (
	taskInit task = iota + 1
	taskIntermediate
	taskAuth
	taskProbe
	taskChild       // CREATE_CHILD_SA of a Child SA
	taskRekey       // CREATE_CHILD_SA of the IKE SA
	taskFollowUp    // its additional key exchange
	taskDeleteChild // of the child that a rekey replaced
	taskDelete      // of the IKE SA: Closed follows
	taskReject      // of the IKE SA: Closed was reported
)

// request is our side: at most one request is out.
type request struct {
	state exchangeState
	task  task
	sends uint8
	next  uint32   // Message ID of the next request
	data  [][]byte // the request, sealed, in one or in fragments; nil: it is being computed
	first moment   // when it was sent first
	last  moment   // and last
	due   moment   // of the next repeat

	open  *wire.Message // of a long one, to make smaller fragments of it
	parts *reassembly   // of the response

	wantProbe, wantTell, wantDelete bool
	farewell                        []wire.Payload // of a rejected SA
}

// window is the peer's side.
type window struct {
	next  uint32 // Message ID of the next request
	busy  bool   // it is in, and not answered yet: repeats are dropped
	exch  wire.ExchangeType
	seen  [32]byte    // hash of the last request
	reply [][]byte    // and its answer, for repeats
	parts *reassembly // of the next request
	open  *sealer     // what the last request was opened with, if the keys have changed since
}

// send seals a request and sends it.
func (s *sa) send(t task, x wire.ExchangeType, ps ...wire.Payload) {
	h := s.header(x, s.out.next, false)
	data, err := s.sealed(h, ps, 1)
	if err != nil {
		s.e.drop("too-long")
		return
	}
	if s.frag.on && (len(data) > 1 || len(data[0]) > leastIPv4-28) {
		s.out.open = &wire.Message{Header: h, Payloads: ps}
	}
	s.launch(t, data...)
}

// launch sends a request that is sealed, or needs not be.
func (s *sa) launch(t task, data ...[]byte) {
	s.out.state, s.out.task, s.out.data = waiting, t, data
	s.out.sends, s.out.first = 0, s.e.now
	s.repeat()
}

// repeat sends the request (again) and sets the timer: each wait is up to a tenth longer, so that hosts do not fall into step.
func (s *sa) repeat() {
	gap := s.e.cfg.Retransmit[s.out.sends]
	s.shrink()
	s.out.sends++
	s.out.last = s.e.now
	s.out.due = s.e.now.Add(gap + jitter(s.e.jitter, gap/10))
	s.e.transmit(s, s.out.data...)
}

// jitter is a time from 0 to d.
func jitter(r *rand.Rand, d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(r.Int64N(int64(d)))
}

// retransmit repeats the request when it is time, and gives up after the last wait.
func (s *sa) retransmit() {
	if s.out.state != waiting || !due(s.out.due, s.e.now) {
		return
	}
	sends := len(s.e.cfg.Retransmit)
	if n := s.e.cfg.InitSends; n > 0 && s.state == initSent { // nobody may be there (TRUST.md A-20)
		sends = min(sends, n)
	}
	if int(s.out.sends) < sends {
		s.e.stats.Retransmitted++
		s.repeat()
		return
	}
	switch {
	case s.state == rekeying && s.kin.rekey.rivalLives(): // it may be gone at the peer, who has ours in its place
		s.yield()
		s.e.forget(s)
	case s.state == deleting || s.quiet:
		s.report(nil)
		s.e.forget(s)
	case s.hs != nil && s.hs.hint != nil:
		s.fail(s.hs.hint)
		s.e.forget(s)
	default:
		s.fail(ErrTimeout)
		s.e.forget(s)
	}
}

// answered ends the exchange.
func (s *sa) answered() {
	s.out.state, s.out.data, s.out.open, s.out.due = idle, nil, nil, 0
	s.e.release(&s.out.parts)
	s.out.next++
}

// reply answers the request that is in, and remembers the answer for its repeats. "A responder never retransmits a response
// except in reply to a repeated request" (RFC 7296, 2.1).
func (s *sa) reply(ps ...wire.Payload) {
	data, err := s.sealed(s.header(s.in.exch, s.in.next-1, true), ps, 1)
	if err != nil {
		s.e.drop("too-long")
		return
	}
	s.in.busy, s.in.reply = false, data
	s.e.transmit(s, data...)
}

// atRest reports whether a request that asks for nothing leaves the SA without anything to do that it had not before. One that comes to another of our ports
// may have us keep that open.
func (s *sa) atRest(d Datagram) bool {
	return s.state == established && (s.kin == nil || *s.kin == kin{}) && len(s.child.all) > 0 && !s.child.unsure && s.local == d.Local
}

// onRequest takes a request of the peer on an SA that exists. done is true where the SA has nothing to do for it any more: whether we are there is what
// thousands of peers ask all the time.
func (s *sa) onRequest(d Datagram, h wire.Header) (done bool) {
	if !s.keys.known() {
		s.e.drop("request-too-early")
		return false
	}
	rested := s.atRest(d)
	switch {
	case h.MessageID+1 == s.in.next && (s.in.busy || s.in.reply != nil):
		s.onRepeat(d)
		return false
	case h.MessageID != s.in.next || s.in.busy:
		s.e.drop("message-id")
		return false
	case !s.admits(h.Exchange):
		s.e.drop("wrong-exchange")
		return false
	}
	got, ours, err := s.unseal(&s.in.parts, d)
	if !ours {
		return false
	}
	if s.state >= established && !s.spend() { // it comes again
		s.e.drop("over-budget")
		return false
	}
	s.in = window{next: h.MessageID + 1, busy: true, seen: got.seen, exch: h.Exchange}
	ps := got.payloads
	if err != nil {
		s.malformed(err)
		return false
	}
	if rested && h.Exchange == wire.Informational && len(ps) == 0 {
		s.reply()
		return true
	}
	s.chosen(ps)
	s.child.sure()
	switch {
	case h.Exchange == wire.Intermediate:
		s.onIntermediateRequest(h, got)
	case h.Exchange == wire.IKEAuth && s.state == authAgain:
		s.onSecondAuth(ps)
	case h.Exchange == wire.IKEAuth:
		s.onAuthRequest(d, ps)
	case h.Exchange == wire.CreateChildSA:
		s.onCreateChildRequest(ps)
	case h.Exchange == wire.FollowupKE:
		s.onFollowUpRequest(ps)
	case h.Exchange == wire.Informational:
		s.onInformational(ps)
	}
	return false
}

// unseal opens a message of the peer's turn and notes that the peer is alive and where; parts is where its fragments are kept. ours is
// false for what the peer has not sealed, which changes nothing, and for fragments while others are missing. err: the peer
// did, and it is malformed inside.
func (s *sa) unseal(parts **reassembly, d Datagram) (got received, ours bool, err error) {
	got, err = s.receive(parts, d)
	switch err {
	case errSealed:
		s.e.drop("not-authentic")
		return got, false, nil
	case errPartial:
		return got, false, nil
	}
	s.e.release(parts)
	s.follow(d)
	s.timer.heard = s.e.now
	if s.open() && !s.hushed {
		s.emit(Alive{s.id, s.owner})
	}
	return got, true, err
}

// admits is the table of which request is allowed in which state.
func (s *sa) admits(x wire.ExchangeType) bool {
	switch s.state {
	case initReceived:
		if s.keys.suite.add != groupNone && !s.hs.mix.done {
			return x == wire.Intermediate
		}
		return x == wire.IKEAuth
	case authAgain: // also what says that our AUTH was not good
		return x == wire.IKEAuth || x == wire.Informational
	case established, rekeying, replaced, deleting:
		return x == wire.CreateChildSA || x == wire.FollowupKE || x == wire.Informational
	}
	return false
}

// onRepeat answers a repeated request.
func (s *sa) onRepeat(d Datagram) {
	if s.in.busy || d.Remote.Addr() != s.remote.Addr() && !s.lodges() || !s.repeats(d) { // a repeat proves nothing about where it comes from
		s.e.drop("repeat")
		return
	}
	s.answerAgain(d)
}

// answerAgain answers from memory. Before the answer is ready there is nothing to answer.
func (s *sa) answerAgain(d Datagram) {
	if s.in.busy {
		s.e.drop("repeat")
		return
	}
	s.e.stats.Retransmitted++
	s.timer.spoke = s.e.now
	for _, data := range s.in.reply {
		s.e.stats.Sent++
		s.e.out.Send = append(s.e.out.Send, Datagram{d.Local, d.Remote, data})
	}
}

// malformed answers a request that is authentic and does not parse. INVALID_SYNTAX "is considered fatal in both peers" (RFC 7296,
// 2.21.3); an unknown critical payload is not.
func (s *sa) malformed(err error) {
	n := answer(err)
	s.e.drop("malformed")
	s.reply(n)
	if s.state == initReceived || s.state == authAgain || s.open() && n.Type == wire.InvalidSyntax {
		s.fail(err)
	}
}

// onResponse takes a response of the peer.
func (s *sa) onResponse(d Datagram, h wire.Header) {
	if s.out.state != waiting || s.out.data == nil || h.MessageID != s.out.next { // nil: what is asked is still being computed
		s.e.drop("message-id")
		return
	}
	if s.crashed(d, h) {
		return
	}
	if s.out.task == taskInit || h.Exchange == wire.IKESAInit {
		if s.out.task == taskInit && h.Exchange == wire.IKESAInit {
			s.onInitResponse(d, h)
		} else {
			s.e.drop("wrong-exchange")
		}
		return
	}
	if h.Exchange != exchangeOf(s.out.task) {
		s.e.drop("wrong-exchange")
		return
	}
	got, ours, err := s.unseal(&s.out.parts, d)
	if !ours {
		return
	}
	t := s.out.task
	s.answered()
	if t == taskIntermediate && s.state == mixing {
		s.onIntermediateResponse(h, got, err)
		return
	}
	s.onAnswer(t, got.payloads, err)
}

func exchangeOf(t task) wire.ExchangeType {
	switch t {
	case taskIntermediate:
		return wire.Intermediate
	case taskAuth:
		return wire.IKEAuth
	case taskChild, taskRekey:
		return wire.CreateChildSA
	case taskFollowUp:
		return wire.FollowupKE
	}
	return wire.Informational
}

// onAnswer goes on with what the request was for. err: the response is authentic and malformed inside.
func (s *sa) onAnswer(t task, ps []wire.Payload, err error) {
	switch {
	case t == taskDelete && s.covered():
		s.part(2 * retireAfter)
		return
	case t == taskDelete, t == taskReject:
		s.report(nil)
		s.e.forget(s)
		return
	case s.state == deleting:
		s.leaveTaking()
		return
	}
	switch t {
	case taskAuth:
		s.onAuthResponse(ps, err)
	case taskChild:
		s.onChildResponse(ps, err)
	case taskRekey:
		s.onIKERekeyResponse(ps, err)
	case taskFollowUp:
		s.onFollowUpResponse(ps, err)
	case taskDeleteChild:
		s.child.deleted(s)
	}
}

// pump starts the next request if there is something to ask, most urgent first. What changes SAs waits for the peer's follow-up, since the peer would put
// it off (RFC 7296, 2.25).
func (s *sa) pump() {
	if s.state != established || s.out.state != idle || s.kin != nil && s.kin.elder != nil {
		return
	}
	stale, p, old, rests := s.child.stale(s.e.now), (*child)(nil), (*childSA)(nil), s.awaits()
	if stale == nil && !rests {
		p, old = s.child.toRekey(s.e.now)
	}
	switch {
	case s.out.wantDelete, due(s.timer.childless, s.e.now):
		s.setState(deleting)
		s.send(taskDelete, wire.Informational, bye())
	case stale != nil:
		s.deleteChild(stale)
	case due(s.timer.rekey, s.e.now) && !rests && !s.child.busy():
		s.startIKERekey()
	case old != nil:
		s.startRekey(p, old)
	case !rests && s.startWish():
	case s.out.wantProbe, due(s.livenessDue(), s.e.now):
		ps := s.probePayloads()
		if s.out.wantTell {
			ps = append(ps, saysRefused())
		}
		s.out.wantProbe, s.out.wantTell = false, false
		s.send(taskProbe, wire.Informational, ps...)
	}
}
