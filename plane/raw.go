package plane

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Raw sends packets of ours with the headers that they have: IPv4's socket is the first; the other is nil where the kernel has no IPv6.
type Raw [2]*os.File

// rawBuffer is the room for what leaves at once, in octets.
const rawBuffer = 4 << 20

// Open opens the sockets, in the network namespace of the calling thread, with a mark; 0: none.
func (r *Raw) Open(mark uint32) error {
	for i, family := range []int{unix.AF_INET, unix.AF_INET6} {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
		if i == 1 && errors.Is(err, unix.EAFNOSUPPORT) {
			break
		}
		if err != nil {
			return fmt.Errorf("open raw socket: %w", err)
		}
		r[i] = os.NewFile(uintptr(fd), "raw")
		if mark != 0 {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
				return fmt.Errorf("mark raw socket: %w", err)
			}
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, rawBuffer) // less is no error
	}
	return nil
}

// Close closes those that are open.
func (r *Raw) Close() {
	for _, f := range r {
		if f != nil {
			_ = f.Close()
		}
	}
}

// Send sends one packet with its header, if it does not have to wait.
func (r *Raw) Send(dst netip.Addr, b []byte) error {
	f, to := r[0], unix.Sockaddr(nil)
	if dst.Is4() {
		to = &unix.SockaddrInet4{Addr: dst.As4()}
	} else {
		f, to = r[1], &unix.SockaddrInet6{Addr: dst.As16()}
	}
	if f == nil {
		return unix.EAFNOSUPPORT
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(raw.Control(func(fd uintptr) { err = unix.Sendto(int(fd), b, unix.MSG_DONTWAIT, to) }), err)
}
