package e2e

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"tacit/lab"
)

// stream is a TCP connection on which a small message goes to and fro all the time: it shows whether a flow is disturbed.
type stream struct {
	t    *testing.T
	name string
	near net.Conn
	l    net.Listener

	mu      sync.Mutex // the sender counts while the test looks
	rounds  int
	last    time.Time
	longest time.Duration
	err     error
	end     bool
	done    chan struct{}
}

// startStream connects a to b at the address and begins.
func startStream(t *testing.T, a, b *lab.Host, addr netip.Addr) *stream {
	t.Helper()
	l, err := b.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(c, c)
	}()
	c, err := a.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		l.Close()
		t.Fatalf("%s connects to %s at %v: %v", a.Name, b.Name, addr, err)
	}
	s := &stream{t: t, name: fmt.Sprintf("TCP %s to %s at %v", a.Name, b.Name, addr), near: c, l: l, last: time.Now(), done: make(chan struct{})}
	go s.run()
	t.Cleanup(func() { s.stop(); l.Close() })
	return s
}

func (s *stream) run() {
	defer close(s.done)
	b := make([]byte, 64)
	for i := uint64(0); ; i++ {
		binary.BigEndian.PutUint64(b, i)
		began := time.Now()
		_, err := s.near.Write(b)
		if err == nil {
			_, err = io.ReadFull(s.near, b)
		}
		if err == nil && binary.BigEndian.Uint64(b) != i {
			err = fmt.Errorf("round %d came back as %d", i, binary.BigEndian.Uint64(b))
		}
		s.mu.Lock()
		if s.end {
			s.mu.Unlock()
			return
		}
		if err != nil {
			s.err = err
			s.mu.Unlock()
			return
		}
		s.rounds++
		s.last = time.Now()
		s.longest = max(s.longest, time.Since(began))
		s.mu.Unlock()
		time.Sleep(2 * time.Millisecond)
	}
}

// state is how many rounds went, the longest of them since the last call, and what ended it.
func (s *stream) state() (rounds int, longest time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rounds, longest, err = s.rounds, s.longest, s.err
	s.longest = 0
	return rounds, longest, err
}

// goesOn fails the test unless the stream makes some more rounds, none of which took longer than limit since the last
// question.
func (s *stream) goesOn(limit time.Duration) {
	s.t.Helper()
	const more = 10
	s.mu.Lock()
	want := s.rounds + more
	s.mu.Unlock()
	for end := time.Now().Add(max(limit, 2*time.Second)); ; time.Sleep(5 * time.Millisecond) {
		s.mu.Lock()
		rounds, err := s.rounds, s.err
		s.mu.Unlock()
		if err != nil {
			s.t.Errorf("%s ended: %v", s.name, err)
			return
		}
		if rounds >= want {
			break
		}
		if time.Now().After(end) {
			s.t.Errorf("%s stands still", s.name)
			return
		}
	}
	rounds, longest, _ := s.state()
	s.t.Logf("%s: %d rounds, the longest %v", s.name, rounds, longest.Round(10*time.Microsecond))
	if longest > limit {
		s.t.Errorf("%s: a round took %v, want less than %v", s.name, longest, limit)
	}
}

func (s *stream) stop() {
	s.mu.Lock()
	s.end = true
	s.mu.Unlock()
	s.near.Close()
	<-s.done
}

// echo answers every datagram at the addresses, port 7000, until the test ends.
func echo(t *testing.T, h *lab.Host, addrs ...netip.Addr) {
	t.Helper()
	for _, a := range addrs {
		c, err := h.ListenPacket("udp", netip.AddrPortFrom(a, 7000).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		go bounce(c)
	}
}

// bounce sends every datagram back, until c is closed.
func bounce(c net.PacketConn) {
	b := make([]byte, 65536)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		_, _ = c.WriteTo(b[:n], from)
	}
}
