package ike

import (
	"crypto"
	"crypto/hmac"
	"errors"
	"time"

	"tacit/ike/wire"
)

// Quick crash detection (RFC 6290): each end gives the other, inside of IKE_AUTH, a token that only it can make. When it does not know
// the IKE SA any longer, because it was started anew, it shows the token in the clear, and the other end believes that and need not
// wait for its liveness check. Nobody but tacit does this, and it disturbs nobody.

// ErrCrashed says that the peer has lost the SA, and has proved that it is the peer.
var ErrCrashed = errors.New("the peer was started anew")

// Bounds of tokens (RFC 6290, 4.1: "between 16 and 128 octets") and of how many are shown in a second.
const (
	tokenLen    = 16
	maxTokenLen = 128
	maxShown    = 100
)

// tokenOf is what we give the peer of an SA with that SPI of ours. It is shown where no SA has that SPI, so that a message with the
// roles exchanged, or with another SPI of the peer, does not get the token of an SA that lives (RFC 6290, 9.2).
func (e *Endpoint) tokenOf(ours SAID) []byte {
	return prf(crypto.SHA256, e.cfg.CrashSecret, []byte("token"), spiBytes(uint64(ours)))[:tokenLen]
}

// crashToken is the payload that gives the peer our token: in IKE_AUTH, and in the rekey of the IKE SA.
func (e *Endpoint) crashToken(ours SAID) []wire.Payload {
	if len(e.cfg.CrashSecret) == 0 {
		return nil
	}
	return []wire.Payload{&wire.Notify{Protocol: wire.ProtocolIKE, Type: wire.QuickCrashDetection, Data: e.tokenOf(ours)}}
}

// keepToken remembers the peer's token.
func (s *sa) keepToken(ps []wire.Payload) {
	if n := notify(ps, wire.QuickCrashDetection); n != nil && len(n.Data) >= tokenLen && len(n.Data) <= maxTokenLen {
		s.token = append([]byte(nil), n.Data...)
	}
}

// probePayloads fill a liveness check up to the length of the answer that shows a token: no answer is longer than its request
// (TRUST.md A-21). A Vendor ID that nobody knows means nothing.
func (s *sa) probePayloads() []wire.Payload {
	if s.token == nil {
		return nil
	}
	return []wire.Payload{&wire.VendorID{Data: make([]byte, max(len(s.token), tokenLen)-tokenLen)}}
}

// onUnknown shows our token to a peer whose request is about an SA that we do not know (RFC 6290, 4.5).
func (e *Endpoint) onUnknown(d Datagram, h wire.Header) {
	e.drop("unknown-spi")
	if len(e.cfg.CrashSecret) == 0 || h.Flags&wire.FlagResponse != 0 || h.Exchange == wire.IKESAInit || h.NextPayload != wire.PayloadSK && h.NextPayload != wire.PayloadSKF {
		return
	}
	ours, theirs := h.ResponderSPI, h.InitiatorSPI
	if h.Flags&wire.FlagInitiator == 0 {
		ours, theirs = theirs, ours
	}
	if ours == 0 || theirs == 0 || e.sas[SAID(theirs)] != nil || !e.mayShow() {
		return
	}
	m := wire.Message{
		Header: wire.Header{InitiatorSPI: h.InitiatorSPI, ResponderSPI: h.ResponderSPI, Exchange: h.Exchange,
			Flags: wire.FlagResponse | h.Flags&wire.FlagInitiator ^ wire.FlagInitiator, MessageID: h.MessageID},
		Payloads: []wire.Payload{
			&wire.Notify{Type: wire.InvalidIKESPI},
			&wire.Notify{Protocol: wire.ProtocolIKE, Type: wire.QuickCrashDetection, Data: e.tokenOf(SAID(ours))},
		},
	}
	if b, err := m.Marshal(); err == nil && len(b) <= len(d.Data) {
		e.stats.Sent++
		e.out.Send = append(e.out.Send, Datagram{d.Local, d.Remote, b})
	}
}

// mayShow keeps the rate of shown tokens.
func (e *Endpoint) mayShow() bool {
	if e.now.Sub(e.shownSince) >= time.Second {
		e.shownSince, e.shown = e.now, 0
	}
	e.shown++
	return e.shown <= maxShown
}

// crashed reports whether an answer in the clear shows the peer's token; then the SA is over. Without it such an answer is nobody's
// word (RFC 7296, 2.4; TRUST.md A-16).
func (s *sa) crashed(d Datagram, h wire.Header) bool {
	if s.token == nil || h.NextPayload != wire.PayloadNotify {
		return false
	}
	m, err := wire.Parse(d.Data)
	if err != nil || notify(m.Payloads, wire.InvalidIKESPI) == nil {
		return false
	}
	for _, p := range m.Payloads {
		if n, ok := p.(*wire.Notify); ok && n.Type == wire.QuickCrashDetection && hmac.Equal(n.Data, s.token) {
			s.report(ErrCrashed)
			s.e.forget(s)
			return true
		}
	}
	return false
}
