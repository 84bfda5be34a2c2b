package ike

import (
	"fmt"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// onInformational answers DELETE, error notifications and probes (RFC 7296, 1.4).
func (s *sa) onInformational(ps []wire.Payload) {
	if err := ruleInformational.check(ps); err != nil {
		s.malformed(err)
		return
	}
	// "This is an exception": an initiator that rejects our AUTH says so here (RFC 7296, 2.21.2).
	if n := notify(ps, wire.AuthenticationFailed); n != nil {
		s.reply()
		s.fail(NotifyError{n.Type})
		return
	}
	s.onClearRefused(ps)
	var answers []wire.Payload
	for _, p := range ps {
		d, ok := p.(*wire.Delete)
		switch {
		case !ok:
		case d.Protocol == wire.ProtocolIKE:
			s.reply() // "The response to a request that deletes the IKE SA is an empty INFORMATIONAL response."
			s.onDelete()
			return
		case d.Protocol == wire.ProtocolESP:
			answers = append(answers, s.onDeleteChildren(d)...)
		}
	}
	s.reply(answers...)
	s.child.checkDown(s, nil)
}

// onDeleteChildren ends the Child SAs whose outbound SPI the peer names, and names ours in return (RFC 7296, 1.4.1). SPIs that
// are not ours are ignored.
func (s *sa) onDeleteChildren(d *wire.Delete) []wire.Payload {
	var ours []uint32
	for _, spi := range d.SPIs {
		p, c := s.child.byOut(ipsec.SPI(spi))
		if c == nil {
			continue
		}
		if c.state != childDeleting { // else both ends delete it at once: our own DELETE has named it (RFC 7296, 1.4.1)
			ours = append(ours, uint32(c.in))
		}
		s.retire(c)
		if h := c.heir; h != nil && h.serves() { // the peer has what it asked for in its place (RFC 7296, 2.8), but maybe no later one yet
			s.emit(ChildPreferred{SA: s.id, Pair: s.pairOf(p, h), Rekey: true})
		}
	}
	if len(ours) == 0 {
		return nil
	}
	return []wire.Payload{&wire.Delete{Protocol: wire.ProtocolESP, SPIs: ours}}
}

// saysRefused tells the peer that we have dropped what came from it in clear.
func saysRefused() wire.Payload { return status(wire.ClearRefused, []byte(wire.ClearRefusedData)) }

// onClearRefused takes that from a request.
func (s *sa) onClearRefused(ps []wire.Payload) {
	if n := notify(ps, wire.ClearRefused); n != nil && string(n.Data) == wire.ClearRefusedData {
		s.emit(ClearRefused{s.id})
	}
}

// command does what the caller asks.
func (s *sa) command(c Command) {
	switch c {
	case Probe:
		s.out.wantProbe = true
	case TellRefused:
		s.out.wantProbe, s.out.wantTell = true, true
	case RekeyChild:
		s.child.rekeyNow(s.e.now)
	case RekeyIKE:
		s.timer.rekey = s.e.now
	case Delete:
		s.delete()
		return
	}
	s.pump()
}

// delete ends the SA on the caller's word. An initiator whose IKE_AUTH is out goes on in silence: the responder may have armed
// itself, and is told once it answers (TRUST.md R10).
func (s *sa) delete() {
	switch s.state {
	case established, rekeying:
		s.out.wantDelete = true
		s.pump()
	case authSent:
		s.report(nil)
	case authWaiting:
		s.reply(&wire.Notify{Type: wire.AuthenticationFailed})
		s.fail(nil)
	case replaced, deleting, closed:
	default:
		s.fail(nil)
		s.e.forget(s)
	}
}

// errPeer wraps what a peer's response was lacking.
func errPeer(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, a...))
}
