// Package flows knows the connections of this host, and ends them: what began encrypted must not go on in clear (TRUST.md R9). It asks the
// kernel by sock_diag, the way of ss(8).
//
// A flow is a TCP connection, or a UDP socket that is connected. Others have no other end that could be told from here: what they send obeys the
// policy of the moment. To end them because of one peer would end a server for all.
package flows

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// ErrUnsupported says that the kernel cannot end flows (CONFIG_INET_DIAG_DESTROY).
var ErrUnsupported = errors.New("this kernel cannot end other processes' connections")

// Flow is one connection, as it was listed.
type Flow struct {
	Proto         uint8 // 6 or 17
	Local, Remote netip.AddrPort
	// End ends it: its program gets ECONNABORTED, and a TCP peer a reset. It is no error if it has ended meanwhile.
	End func() error
}

// The families and protocols that are asked for.
const (
	familyIPv4, familyIPv6 = 2, 10
	protoTCP, protoUDP     = 6, 17
)

// States of TCP, which UDP uses for whether it is connected (include/net/tcp_states.h).
const (
	stateEstablished = 1
	stateSynRecv     = 3
	stateFinWait1    = 4
	stateFinWait2    = 5
	stateCloseWait   = 8
	stateLastAck     = 9
	stateClosing     = 11
)

// states are those in which a flow can have something to say. One that has not begun (SYN-SENT) said nothing yet; one in TIME-WAIT has said all.
const states = 1<<stateEstablished | 1<<stateSynRecv | 1<<stateFinWait1 | 1<<stateFinWait2 | 1<<stateCloseWait | 1<<stateLastAck | 1<<stateClosing

// Lengths of the kernel's structures (include/uapi/linux/inet_diag.h).
const (
	idLength      = 48 // struct inet_diag_sockid: ports, addresses, interface, cookie
	requestLength = 8 + idLength
	messageLength = 4 + idLength + 20
)

// request is struct inet_diag_req_v2: for a list with an empty id, for one socket with its own.
func request(family, proto uint8, id []byte) []byte {
	b := make([]byte, requestLength)
	b[0], b[1] = family, proto
	binary.NativeEndian.PutUint32(b[4:], states)
	copy(b[8:], id)
	return b
}

// parse reads struct inet_diag_msg: the flow, and its family and id for a request to end it. An IPv6 socket that speaks IPv4 has addresses
// of IPv4.
func parse(b []byte) (f Flow, family uint8, id []byte, err error) {
	if len(b) < messageLength {
		return f, 0, nil, fmt.Errorf("sock_diag: %d octets: want %d", len(b), messageLength)
	}
	family, id = b[0], b[4:4+idLength]
	var src, dst netip.Addr
	switch family {
	case familyIPv4:
		src, dst = netip.AddrFrom4([4]byte(id[4:])), netip.AddrFrom4([4]byte(id[20:]))
	case familyIPv6:
		src, dst = netip.AddrFrom16([16]byte(id[4:])).Unmap(), netip.AddrFrom16([16]byte(id[20:])).Unmap()
	default:
		return f, 0, nil, fmt.Errorf("sock_diag: family %d", family)
	}
	f.Local = netip.AddrPortFrom(src, binary.BigEndian.Uint16(id))
	f.Remote = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(id[2:]))
	return f, family, id, nil
}
