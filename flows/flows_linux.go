package flows

import (
	"errors"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	byFamily = 20 // SOCK_DIAG_BY_FAMILY
	destroy  = 21 // SOCK_DESTROY
)

// List returns the flows of the network namespace of the calling thread. Where a protocol cannot be listed the others are, and the error says
// which it was.
func List() (all []Flow, err error) {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return listedAll()
	}
	if err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	defer conn.Close()
	var errs []error
	for _, proto := range []uint8{protoTCP, protoUDP} {
		for _, family := range []uint8{familyIPv4, familyIPv6} {
			some, err := list(conn, family, proto)
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
				some, err = listed(family, proto)
			}
			all = append(all, some...)
			if err != nil {
				errs = append(errs, fmt.Errorf("sock_diag: protocol %d: %w", proto, err))
			}
		}
	}
	return all, errors.Join(errs...)
}

func list(conn *netlink.Conn, family, proto uint8) (all []Flow, err error) {
	answers, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: byFamily, Flags: netlink.Request | netlink.Dump}, Data: request(family, proto, nil)})
	if err != nil {
		return nil, err
	}
	for _, m := range answers {
		f, family, id, err := parse(m.Data)
		if err != nil {
			return all, err
		}
		id = slices.Clone(id)
		f.Proto, f.End = proto, func() error { return end(family, proto, id) }
		all = append(all, f)
	}
	return all, nil
}

// end ends one flow, which its id names with a cookie: never another that has its addresses and ports by now.
func end(family, proto uint8, id []byte) error {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return fmt.Errorf("sock_diag: %w", err)
	}
	defer conn.Close()
	_, err = conn.Execute(netlink.Message{
		Header: netlink.Header{Type: destroy, Flags: netlink.Request | netlink.Acknowledge}, Data: request(family, proto, id)})
	switch {
	case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESTALE):
		return nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return ErrUnsupported
	}
	return fmt.Errorf("sock_diag: ending a connection: %w", err)
}
