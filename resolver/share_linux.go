package resolver

import (
	"net"

	"golang.org/x/sys/unix"
)

// shareAddress lets other sockets of ours have the socket's port, too.
func shareAddress(fd uintptr) error {
	return unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
}

// makeRoom has the kernel keep as many queries as may be under way at once, while the reader is busy. The usual room is for less than three hundred.
func makeRoom(u *net.UDPConn) {
	err := u.SetReadBuffer(roomForQueries)
	if raw, e := u.SyscallConn(); err == nil && e == nil {
		_ = raw.Control(func(fd uintptr) { // needs a privilege; without it there is what the system allows
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, roomForQueries)
		})
	}
}
