package upstream

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// System calls that the runtime is not told of, for a file that never blocks. The first call that it is told of after a rest has it wake its monitor, a
// thread of its own: on an idle host, that and what follows from it (who works here is moved to the other processor) take as long as a whole lookup.

// await waits until the file can be read or, unless it is negative, also can, for a moment at most; late: in vain. It holds a processor of the
// runtime's. An error is EINTR.
func await(fd, also int) (there, late bool, err error) {
	fds := [2]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(also), Events: unix.POLLIN}}
	wait := unix.NsecToTimespec(int64(moment))
	n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds)), uintptr(len(fds)), uintptr(unsafe.Pointer(&wait)), 0, 0, 0)
	if errno != 0 {
		return false, false, errno
	}
	return fds[0].Revents != 0, n == 0, nil
}

// connect sets where a datagram socket sends to, and whom it receives from.
func connect(fd int, to netip.AddrPort) error {
	if to.Addr().Is4() {
		a := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: networkOrder(to.Port()), Addr: to.Addr().As4()}
		return plainly(unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&a)), unsafe.Sizeof(a)))
	}
	a := unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: networkOrder(to.Port()), Addr: to.Addr().As16()}
	return plainly(unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&a)), unsafe.Sizeof(a)))
}

// write sends a datagram, which is not empty.
func write(fd int, b []byte) error {
	return plainly(unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b))))
}

// read receives a datagram. b is not empty.
func read(fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), plainly(n, 0, errno)
}

// closeFile is close(2).
func closeFile(fd int) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// plainly is what a system call returned as an error.
func plainly(_, _ uintptr, errno unix.Errno) error {
	if errno != 0 {
		return errno
	}
	return nil
}

// networkOrder is a port as sockaddr(3type) has it.
func networkOrder(port uint16) (n uint16) {
	b := (*[2]byte)(unsafe.Pointer(&n))
	b[0], b[1] = byte(port>>8), byte(port)
	return n
}
