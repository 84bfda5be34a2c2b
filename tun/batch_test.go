package tun

import (
	"bytes"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A path that takes less than it did, by whatever the kernel has been told, makes it refuse to segment a message (UDP_SEGMENT): with EMSGSIZE or, older ones,
// EINVAL. What was in it goes datagram by datagram, and nothing is lost.
func TestPathTakesLess(t *testing.T) {
	l, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := &socket{v6: true, file: os.NewFile(uintptr(fd), "test")}
	defer s.file.Close()
	if s.raw, err = s.file.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_MTU, minMTU); err != nil {
		t.Fatal(err)
	}
	var counts counters
	batch := newSendBatch(&counts)
	out := &outbound{sock: s, to: makeSockaddr(l.LocalAddr().(*net.UDPAddr).AddrPort()), fits: defaultMTU - ipv6Header - udpHeader}
	out.segments.Store(true)
	const n, size = 5, 1400
	for i := range n {
		start := len(batch.arena)
		batch.arena = append(batch.arena, bytes.Repeat([]byte{byte(i)}, size)...)
		batch.add(out, start, 0, 64)
	}
	if len(batch.pending) != 1 {
		t.Fatalf("%d messages, want one of %d segments", len(batch.pending), n)
	}
	batch.flush()
	b := make([]byte, 2*size)
	for i := range n {
		_ = l.SetReadDeadline(time.Now().Add(10 * time.Second))
		if got, err := l.Read(b); err != nil || !bytes.Equal(b[:got], bytes.Repeat([]byte{byte(i)}, size)) {
			t.Fatalf("datagram %d: %d octets, %v; %d errors", i, got, err, counts.sendErrors.Load())
		}
	}
	if counts.sendErrors.Load() != 0 || out.segments.Load() {
		t.Errorf("%d errors; goes on segmenting: %v", counts.sendErrors.Load(), out.segments.Load())
	}
}
