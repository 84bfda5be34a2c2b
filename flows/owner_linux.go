package flows

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// noCookie stands for any socket (INET_DIAG_NOCOOKIE).
const noCookie = 1<<64 - 1

// ErrNoOwner says that no socket of this host sends from there, or not any more.
var ErrNoOwner = errors.New("no socket of this host")

// Owner is the id of the user whose socket, in the network namespace of the calling thread, sends to server from client. It takes the kernel some microseconds.
func Owner(tcp bool, client, server netip.AddrPort) (uid uint32, err error) {
	proto, own, other := uint8(protoTCP), client, server
	if !tcp { // the kernel looks for the socket to which a datagram of that source and destination goes
		proto, own, other = protoUDP, server, client
	}
	m, err := askOne(request(familyOf(client), proto, socketID(own, other)))
	if err != nil {
		return 0, err
	}
	f, _, _, err := parse(m)
	if err != nil {
		return 0, err
	}
	if f.Local.Port() != client.Port() {
		return 0, ErrNoOwner
	}
	return binary.NativeEndian.Uint32(m[4+idLength+12:]), nil
}

// askOne asks for one socket, in three system calls that do not wait: the kernel has answered when the request is sent.
func askOne(request []byte) ([]byte, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	defer unix.Close(fd)
	b := make([]byte, unix.SizeofNlMsghdr, 512)
	binary.NativeEndian.PutUint32(b, uint32(unix.SizeofNlMsghdr+len(request)))
	binary.NativeEndian.PutUint16(b[4:], byFamily)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	n := 0
	if err = unix.Sendto(fd, append(b, request...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err == nil {
		n, _, err = unix.Recvfrom(fd, b[:cap(b)], unix.MSG_DONTWAIT)
	}
	if err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	if b = b[:n]; n < unix.SizeofNlMsghdr || binary.NativeEndian.Uint16(b[4:]) != byFamily {
		return nil, ErrNoOwner
	}
	return b[unix.SizeofNlMsghdr:], nil
}

func familyOf(a netip.AddrPort) uint8 {
	if a.Addr().Unmap().Is4() {
		return familyIPv4
	}
	return familyIPv6
}

// socketID is struct inet_diag_sockid of any socket with these ends.
func socketID(source, destination netip.AddrPort) []byte {
	b := make([]byte, idLength)
	binary.BigEndian.PutUint16(b, source.Port())
	binary.BigEndian.PutUint16(b[2:], destination.Port())
	copy(b[4:20], source.Addr().Unmap().AsSlice())
	copy(b[20:36], destination.Addr().Unmap().AsSlice())
	binary.NativeEndian.PutUint64(b[40:], noCookie)
	return b
}
