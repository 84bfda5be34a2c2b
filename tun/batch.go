package tun

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of sendmmsg(2) and recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// recvBatch reads many packets with one system call. It allocates nothing after it is made.
type recvBatch struct {
	sock *socket
	msgs []mmsghdr
	iovs []unix.Iovec
	bufs [][]byte
	from []sockaddr
	oob  [][]byte

	n    int // what the last call brought
	err  error
	call func(fd uintptr) bool
}

// newRecvBatch makes room for n packets of at most size octets, and points the kernel at it once and for all.
func newRecvBatch(s *socket, n, size int) *recvBatch {
	r := &recvBatch{sock: s, msgs: make([]mmsghdr, n), iovs: make([]unix.Iovec, n), bufs: make([][]byte, n),
		from: make([]sockaddr, n), oob: make([][]byte, n)}
	for i := range r.msgs {
		r.bufs[i], r.oob[i] = make([]byte, size), make([]byte, controlSize)
		r.iovs[i].Base = &r.bufs[i][0]
		r.iovs[i].SetLen(size)
		h := &r.msgs[i].hdr
		h.Iov, h.Name, h.Control = &r.iovs[i], &r.from[i].buf[0], &r.oob[i][0]
		h.SetIovlen(1)
	}
	r.call = r.recvmmsg
	return r
}

// recvmmsg is what the poller calls when the socket is readable; false makes it wait. It is a method value kept in the
// batch, since a closure would be allocated for each call.
func (r *recvBatch) recvmmsg(fd uintptr) bool {
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.msgs[0])), uintptr(len(r.msgs)),
		unix.MSG_DONTWAIT, 0, 0)
	switch errno {
	case 0:
		r.n, r.err = int(n), nil
	case unix.EAGAIN:
		return false
	default:
		r.n, r.err = 0, errno
	}
	return true
}

// read waits for packets and returns how many came.
func (r *recvBatch) read() (int, error) {
	for i := range r.msgs {
		r.msgs[i].hdr.Namelen = unix.SizeofSockaddrInet6
		r.msgs[i].hdr.SetControllen(controlSize)
	}
	if err := r.sock.raw.Read(r.call); err != nil {
		return 0, err
	}
	return r.n, r.err
}

// packet is the ith packet of the last read. It is valid until the next one.
func (r *recvBatch) packet(i int) (data []byte, from *sockaddr, c control) {
	m := &r.msgs[i]
	return r.bufs[i][:m.len], &r.from[i], parseControl(r.oob[i][:int(m.hdr.Controllen)])
}

// Limits of a sendBatch.
const (
	sendMessages    = 128
	sendArena       = 4 * maxPacket
	maxSegments     = 64    // UDP_MAX_SEGMENTS of every kernel that has UDP_SEGMENT
	maxSegmentBytes = 64000 // of one message: an IP packet less its headers
)

// message is one entry of a sendBatch: where its octets lie in the arena, and for whom.
type message struct {
	out        *outbound
	start, end int
	segment    int // the length of each datagram but the last
	segments   int
	tos, hops  uint8
}

// sendBatch gathers sealed packets and sends them with few system calls: sendmmsg, and datagrams of one flow and length as one
// message (UDP_SEGMENT). It allocates nothing after it is made. One goroutine uses it.
type sendBatch struct {
	arena   []byte
	pending []message
	msgs    []mmsghdr
	iovs    []unix.Iovec
	oob     [][]byte
	counts  *counters

	first, last int // of the messages that the call shall send
	sent        int
	err         error
	call        func(fd uintptr) bool
}

// newSendBatch makes a batch that counts what the kernel refuses in c.
func newSendBatch(c *counters) *sendBatch {
	s := &sendBatch{arena: make([]byte, 0, sendArena), pending: make([]message, 0, sendMessages), counts: c,
		msgs: make([]mmsghdr, sendMessages), iovs: make([]unix.Iovec, sendMessages), oob: make([][]byte, sendMessages)}
	for i := range s.msgs {
		s.oob[i] = make([]byte, 0, controlSize)
		s.msgs[i].hdr.Iov = &s.iovs[i]
		s.msgs[i].hdr.SetIovlen(1)
	}
	s.call = s.sendmmsg
	return s
}

// add takes a packet that was appended to the arena at start.
func (s *sendBatch) add(out *outbound, start int, tos, hops uint8) {
	n := len(s.arena) - start
	if len(s.pending) > 0 {
		if m := &s.pending[len(s.pending)-1]; m.joins(out, n, tos, hops) {
			m.end, m.segments = len(s.arena), m.segments+1
			return
		}
	}
	s.pending = append(s.pending, message{out: out, start: start, end: len(s.arena), segment: n, segments: 1, tos: tos, hops: hops})
}

// joins reports whether n more octets may travel in the message as another datagram.
func (m *message) joins(out *outbound, n int, tos, hops uint8) bool {
	return m.out == out && out.segments.Load() && m.tos == tos && m.hops == hops && n <= m.segment && m.segments < maxSegments &&
		(m.end-m.start) == m.segment*m.segments && // none before was shorter
		m.end-m.start+n <= maxSegmentBytes && m.segment <= int(out.fits) // the kernel segments, it does not fragment
}

// room reports whether a packet of n octets and its scratch fit.
func (s *sendBatch) room(n int) bool {
	return len(s.pending) < cap(s.pending) && cap(s.arena)-len(s.arena) >= n
}

// flush sends what was gathered. Messages that the kernel refuses are counted, not sent again.
func (s *sendBatch) flush() {
	for i := 0; i < len(s.pending); {
		end := i + 1
		for end < len(s.pending) && s.pending[end].out.sock == s.pending[i].out.sock {
			end++
		}
		s.send(i, end)
		i = end
	}
	s.arena, s.pending = s.arena[:0], s.pending[:0]
}

// send sends messages of one socket. When the kernel refuses one it says so for the first that is left; the others go on.
func (s *sendBatch) send(first, end int) {
	for i := first; i < end; i++ {
		s.prepare(i)
	}
	sock := s.pending[first].out.sock
	for first < end {
		s.first, s.last = first, end
		if err := sock.raw.Write(s.call); err != nil {
			s.counts.sendErrors.Add(uint64(end - first))
			return
		}
		first += s.sent
		if s.err == nil {
			continue
		}
		if m := &s.pending[first]; m.segments > 1 && (errors.Is(s.err, unix.EINVAL) || errors.Is(s.err, unix.EIO) || errors.Is(s.err, unix.EMSGSIZE)) {
			s.unpack(first) // this device cannot segment, or the path takes less now, which kernels name differently
		} else {
			s.counts.sendErrors.Add(uint64(m.segments))
		}
		first++
	}
}

// prepare fills the header of a message: destination, source address, type of service, hops, segment size.
func (s *sendBatch) prepare(i int) {
	m, h := &s.pending[i], &s.msgs[i].hdr
	s.iovs[i].Base = &s.arena[m.start]
	s.iovs[i].SetLen(m.end - m.start)
	h.Name, h.Namelen = &m.out.to.buf[0], m.out.to.len
	b := append(s.oob[i][:0], m.out.control...)
	b = putHops(putTOS(b, m.out.sock.v6, m.tos), m.out.sock.v6, m.hops)
	if m.segments > 1 {
		b = putSegment(b, m.segment)
	}
	h.Control = &b[0]
	h.SetControllen(len(b))
}

// putSegment asks the kernel to cut a message into datagrams of n octets; the last may be shorter (UDP_SEGMENT).
func putSegment(b []byte, n int) []byte {
	v := [2]byte{}
	*(*uint16)(unsafe.Pointer(&v[0])) = uint16(n)
	return putCmsg(b, unix.IPPROTO_UDP, unix.UDP_SEGMENT, v[:])
}

// unpack sends the datagrams of one message one by one.
func (s *sendBatch) unpack(i int) {
	m := s.pending[i]
	m.out.segments.Store(false)
	for at := m.start; at < m.end; at += m.segment {
		s.pending[i] = message{out: m.out, start: at, end: min(at+m.segment, m.end), segment: m.segment, segments: 1, tos: m.tos, hops: m.hops}
		s.prepare(i)
		s.first, s.last = i, i+1
		if err := m.out.sock.raw.Write(s.call); err != nil || s.err != nil {
			s.counts.sendErrors.Add(1)
		}
	}
}

// sendmmsg is what the poller calls when the socket is writable; false makes it wait.
func (s *sendBatch) sendmmsg(fd uintptr) bool {
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&s.msgs[s.first])), uintptr(s.last-s.first),
		unix.MSG_DONTWAIT, 0, 0)
	switch errno {
	case 0:
		s.sent, s.err = int(n), nil
	case unix.EAGAIN:
		return false
	default:
		s.sent, s.err = 0, os.NewSyscallError("sendmmsg", errno)
	}
	return true
}
