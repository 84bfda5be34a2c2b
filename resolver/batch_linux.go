package resolver

import (
	"encoding/binary"
	"net"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// batch is a UDP socket that queries are read from and answers written to many at a time (recvmmsg(2), sendmmsg(2)): at full load the system
// calls are most of the work. An answer leaves to the address that its query has come from as the kernel wrote it. One goroutine reads and
// answers; write, stop and close are for all.
type batch struct {
	conn     *net.UDPConn
	file     int // its descriptor, to wait for it beside others
	raw      syscall.RawConn
	wildcard bool
	in       [batchSize]mmsghdr
	inVec    [batchSize]unix.Iovec
	out      [sentAtOnce]mmsghdr
	outVec   [sentAtOnce]unix.Iovec
	from     [batchSize]unix.RawSockaddrInet6 // or Inet4
	oob      [batchSize][oobSize]byte
	queries  [batchSize][maxUDPReply]byte
	answers  [sentAtOnce][maxUDPReply]byte
	waiting  int // answers that are not sent yet
	n        int // what the last system call did
	err      error
	recv     func(fd uintptr) bool
	send     func(fd uintptr) bool
}

// mmsghdr is a message and how long it was (recvmmsg(2)).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

// newBatch takes the socket of u.
func newBatch(u *net.UDPConn, wildcard bool) (*batch, error) {
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	b := &batch{conn: u, raw: raw, wildcard: wildcard}
	if err := raw.Control(func(fd uintptr) { b.file = int(fd) }); err != nil {
		return nil, err
	}
	for i := range b.in {
		b.inVec[i].Base = &b.queries[i][0]
		b.inVec[i].SetLen(maxUDPReply)
		b.in[i].hdr.Iov, b.in[i].hdr.Iovlen = &b.inVec[i], 1
		b.in[i].hdr.Name = (*byte)(unsafe.Pointer(&b.from[i]))
	}
	for i := range b.out {
		b.outVec[i].Base = &b.answers[i][0]
		b.out[i].hdr.Iov, b.out[i].hdr.Iovlen = &b.outVec[i], 1
	}
	b.recv = func(fd uintptr) bool { return b.call(unix.SYS_RECVMMSG, fd, b.in[:]) }
	b.send = func(fd uintptr) bool { return b.call(unix.SYS_SENDMMSG, fd, b.out[:b.waiting]) }
	return b, nil
}

// call is one of the two system calls; false: the socket is not ready. Neither waits, so the runtime need not know: it would give the processor
// of a thread that is there for 20 us to another, as many answers take.
func (b *batch) call(trap, fd uintptr, hs []mmsghdr) bool {
	n, _, errno := unix.RawSyscall6(trap, fd, uintptr(unsafe.Pointer(&hs[0])), uintptr(len(hs)), unix.MSG_DONTWAIT, 0, 0)
	switch errno {
	case 0:
		b.n, b.err = int(n), nil
	case unix.EAGAIN:
		return false
	default:
		b.n, b.err = 0, errno
	}
	return true
}

// read waits for queries and says how many there are. After stop it waits no more.
func (b *batch) read() (int, error) {
	for i := range b.in {
		h := &b.in[i].hdr
		h.Namelen = unix.SizeofSockaddrInet6
		if b.wildcard {
			h.Control = &b.oob[i][0]
			h.SetControllen(oobSize)
		}
	}
	if err := b.raw.Read(b.recv); err != nil {
		return 0, err
	}
	return b.n, b.err
}

// query is a query of those that were read, and where its answer is to be made: valid until the next read.
func (b *batch) query(i int) (packet, answer []byte) {
	return b.queries[i][:b.in[i].len], b.answers[b.waiting][:0]
}

// answered has the answer to query i, which was made where query said, sent with the next ones, or by flush.
func (b *batch) answered(i int, answer []byte) {
	b.outVec[b.waiting].SetLen(len(answer))
	b.client(i).address(&b.out[b.waiting].hdr)
	if b.waiting++; b.waiting == sentAtOnce {
		b.flush()
	}
}

// flush sends what is answered. What the kernel does not take is lost: its client asks again.
func (b *batch) flush() {
	if b.waiting > 0 {
		_ = b.raw.Write(b.send)
		b.waiting = 0
	}
}

// client is where a query came from, and how its answer leaves from where the query came to.
type client struct {
	from   *unix.RawSockaddrInet6
	length uint32
	source []byte // a control message, where the socket listens on every address
}

// client is where query i came from, until the next read.
func (b *batch) client(i int) client {
	c := client{from: &b.from[i], length: b.in[i].hdr.Namelen}
	if b.wildcard {
		c.source = sourceOf(b.oob[i][:b.in[i].hdr.Controllen])
	}
	return c
}

// at is its address.
func (c client) at() netip.AddrPort {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&c.from.Port))[:])
	if c.from.Family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(c.from)).Addr), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(c.from.Addr).Unmap(), port)
}

// keep is the client for after the next read.
func (c client) keep() client {
	from := *c.from
	c.from = &from
	return c
}

// address writes the client into the head of an answer.
func (c client) address(h *unix.Msghdr) {
	h.Name, h.Namelen = (*byte)(unsafe.Pointer(c.from)), c.length
	h.Control = nil
	if h.SetControllen(len(c.source)); len(c.source) > 0 {
		h.Control = &c.source[0]
	}
}

// write sends one answer. A client that is gone asks again.
func (b *batch) write(to client, answer []byte) {
	vec := unix.Iovec{Base: &answer[0]}
	vec.SetLen(len(answer))
	h := unix.Msghdr{Iov: &vec, Iovlen: 1}
	to.address(&h)
	_ = b.raw.Control(func(fd uintptr) {
		_, _, _ = unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&h)), unix.MSG_DONTWAIT)
	})
}

// stop ends the reading, and leaves the socket open for the last answers.
func (b *batch) stop() { _ = b.conn.SetReadDeadline(time.Unix(1, 0)) }

// close closes the socket.
func (b *batch) close() { b.conn.Close() }
