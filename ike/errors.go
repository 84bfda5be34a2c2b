package ike

import (
	"errors"
	"fmt"

	"tacit/ike/wire"
)

// Why an SA closed. Use errors.Is; the error that comes may say more.
var (
	ErrTimeout        = errors.New("the peer does not answer")
	ErrAuthentication = errors.New("authentication failed")
	ErrRefused        = errors.New("refused by policy")
	ErrSelf           = errors.New("the peer is this host")
	ErrExpired        = errors.New("lifetime ended")
	ErrInstall        = errors.New("the data plane refused the SA")
	ErrProtocol       = errors.New("the peer broke the protocol")
	ErrNAT            = errors.New("behind a NAT") // beside a refusal, where one was found between the two
)

// NotifyError is an error notification of the peer. In a Closed after no valid answer at all it was not authenticated.
type NotifyError struct{ Type wire.NotifyType }

func (e NotifyError) Error() string { return fmt.Sprintf("the peer says %v", e.Type) }

// Is makes AUTHENTICATION_FAILED an ErrAuthentication too.
func (e NotifyError) Is(target error) bool {
	return target == ErrAuthentication && e.Type == wire.AuthenticationFailed
}

// protocolError is what a request of the peer is answered with.
type protocolError struct {
	notify wire.NotifyType
	data   []byte
	spi    []byte // of ESP
	why    string
}

func (e *protocolError) Error() string { return fmt.Sprintf("%v: %s", e.notify, e.why) }

func refuse(n wire.NotifyType, format string, a ...any) *protocolError {
	return &protocolError{notify: n, why: fmt.Sprintf(format, a...)}
}

// invalidKE asks for the key exchange to be repeated in the group that we choose (RFC 7296, 1.3).
func invalidKE(want, got uint16) *protocolError {
	err := refuse(wire.InvalidKEPayload, "the key exchange is of group %d", got)
	err.data = []byte{byte(want >> 8), byte(want)}
	return err
}

// answer turns any error into the Notify that answers it.
func answer(err error) *wire.Notify {
	var p *protocolError
	var crit *wire.CriticalError
	switch {
	case errors.As(err, &p):
		n := &wire.Notify{Type: p.notify, Data: p.data}
		if p.spi != nil {
			n.Protocol, n.SPI = wire.ProtocolESP, p.spi
		}
		return n
	case errors.As(err, &crit):
		return &wire.Notify{Type: wire.UnsupportedCriticalPayload, Data: []byte{byte(crit.Type)}}
	}
	return &wire.Notify{Type: wire.InvalidSyntax}
}
