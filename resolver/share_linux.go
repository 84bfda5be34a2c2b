package resolver

import "golang.org/x/sys/unix"

// shareAddress lets other sockets of ours have the socket's port, too.
func shareAddress(fd uintptr) error {
	return unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
}
