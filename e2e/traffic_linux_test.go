package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"tacit/lab"
)

// transfer sends n bytes each way, both at once, over one TCP connection from a to b and compares their SHA-256.
func transfer(t *testing.T, a, b *lab.Host, addr netip.Addr, n int64) {
	t.Helper()
	l, err := b.Listen("tcp", netip.AddrPortFrom(listenAt(b, addr), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type end struct {
		sent, got [sha256.Size]byte
		err       error
	}
	far := make(chan end, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			far <- end{err: err}
			return
		}
		var e end
		e.sent, e.got, e.err = exchange(c, n, 1)
		far <- e
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	began := time.Now()
	c, err := a.Dial(ctx, "tcp", portAt(addr, l.Addr()))
	if err != nil {
		t.Fatalf("%s connects to %s at %v: %v", a.Name, b.Name, addr, err)
	}
	var near end
	near.sent, near.got, near.err = exchange(c, n, 2)
	other := <-far
	if err := errors.Join(near.err, other.err); err != nil {
		t.Fatalf("TCP %s to %s at %v: %v", a.Name, b.Name, addr, err)
	}
	if near.sent != other.got || other.sent != near.got {
		t.Errorf("TCP %s to %s at %v: the checksums differ", a.Name, b.Name, addr)
	}
	t.Logf("TCP %s to %s at %v: %d bytes each way in %v", a.Name, b.Name, addr, n, time.Since(began).Round(time.Millisecond))
}

// listenAt is where a host hears what is sent to an address: behind a NAT that leads it to the host that is another one.
func listenAt(h *lab.Host, addr netip.Addr) netip.Addr {
	switch {
	case has(h, addr):
		return addr
	case addr.Is4():
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// portAt is the address with the port of a socket.
func portAt(addr netip.Addr, of net.Addr) string {
	return netip.AddrPortFrom(addr, netip.MustParseAddrPort(of.String()).Port()).String()
}

// exchange sends n bytes and receives n bytes at once, and returns the SHA-256 of both.
func exchange(c net.Conn, n int64, seed uint64) (sent, got [sha256.Size]byte, err error) {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return sent, got, err
	}
	in, out := sha256.New(), sha256.New()
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.MultiWriter(c, out), io.LimitReader(&noise{state: seed}, n))
		done <- err
	}()
	_, err = io.CopyN(in, c, n)
	err = errors.Join(err, <-done)
	return sumOf(out), sumOf(in), err
}

func sumOf(h hash.Hash) (s [sha256.Size]byte) {
	copy(s[:], h.Sum(nil))
	return s
}

// noise yields bytes that differ everywhere, fast.
type noise struct{ state uint64 }

func (r *noise) Read(b []byte) (int, error) {
	for i := 0; i+8 <= len(b); i += 8 {
		r.state = r.state*6364136223846793005 + 1442695040888963407
		binary.LittleEndian.PutUint64(b[i:], r.state)
	}
	return len(b) &^ 7, nil
}

// datagrams sends each size count times from a to b, who sends it back, one at a time; none may be lost or changed.
func datagrams(t *testing.T, a, b *lab.Host, addr netip.Addr, count int, sizes ...int) {
	t.Helper()
	srv, err := b.ListenPacket("udp", netip.AddrPortFrom(listenAt(b, addr), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	go bounce(srv)
	c, err := a.Dial(t.Context(), "udp", portAt(addr, srv.LocalAddr()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 65536)
	for _, size := range sizes {
		for i := range count {
			payload := make([]byte, size)
			for j := range payload {
				payload[j] = byte(rand.Uint32())
			}
			if _, err := c.Write(payload); err != nil {
				t.Fatalf("UDP of %d bytes to %v: %v", size, addr, err)
			}
			_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
			n, err := c.Read(buf)
			if err != nil {
				t.Fatalf("UDP of %d bytes to %v, number %d: %v", size, addr, i, err)
			}
			if !bytes.Equal(buf[:n], payload) {
				t.Fatalf("UDP of %d bytes to %v, number %d: %d other bytes came back", size, addr, i, n)
			}
		}
	}
}

// pings counts echo requests and replies.
type pings struct {
	sent, received, repeated int
	refused                  int           // by the host's own kernel; lost too
	lost                     []int         // the first sequence numbers that had no reply
	longest                  time.Duration // round trip
	at                       []time.Time   // when each was sent
}

func (p pings) String() string {
	return fmt.Sprintf("%d sent (%d refused), %d received, %d repeated, longest %v, lost %v", p.sent, p.refused, p.received, p.repeated, p.longest, p.lost)
}

// ping sends count echo requests from the host to the address, one each interval, and waits at most three seconds (six under
// a slow kernel) for the last replies. It is a sender of its own since ping(8) is slow to end and tells no sequence numbers of losses.
func ping(h *lab.Host, from, to netip.Addr, count int, interval time.Duration) (pings, error) {
	return growingPing(h, from, to, count, interval, 0)
}

// growingPing is ping with requests that are longer, one by one, so that ESP shows which is which.
func growingPing(h *lab.Host, from, to netip.Addr, count int, interval time.Duration, step int) (pings, error) {
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if to.Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	c, err := h.ListenPacket(network, from.String())
	if err != nil {
		return pings{}, err
	}
	defer c.Close()
	id := uint16(rand.Uint32())
	p := &pinger{conn: c, to: &net.IPAddr{IP: to.AsSlice()}, id: id, reply: reply, at: make([]time.Time, count), seen: make([]int, count)}
	read := make(chan struct{})
	go func() { defer close(read); p.receive() }()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for i := range count {
		p.send(request, i, i*step)
		<-tick.C
	}
	for end := time.Now().Add(slower(3 * time.Second)); time.Now().Before(end) && p.result().received < count; {
		time.Sleep(20 * time.Millisecond)
	}
	_ = c.SetReadDeadline(time.Now())
	<-read
	return p.result(), nil
}

// pinger is one run of ping.
type pinger struct {
	conn  net.PacketConn
	to    net.Addr
	id    uint16
	reply byte

	mu      sync.Mutex // sender and receiver are two goroutines
	at      []time.Time
	seen    []int
	sent    int
	refused int
	longest time.Duration
}

func (p *pinger) send(kind byte, seq, more int) {
	b := make([]byte, 56+more)
	b[0] = kind
	binary.BigEndian.PutUint16(b[4:], p.id)
	binary.BigEndian.PutUint16(b[6:], uint16(seq))
	if kind == 8 { // the kernel fills ICMPv6's in
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	p.mu.Lock()
	p.at[seq] = time.Now()
	p.sent++
	p.mu.Unlock()
	if _, err := p.conn.WriteTo(b, p.to); err != nil {
		p.mu.Lock()
		p.refused++
		p.mu.Unlock()
	}
}

func (p *pinger) receive() {
	buf := make([]byte, 2048)
	for {
		n, from, err := p.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		seq := int(binary.BigEndian.Uint16(buf[6:]))
		if n < 8 || buf[0] != p.reply || binary.BigEndian.Uint16(buf[4:]) != p.id || from.String() != p.to.String() || seq >= len(p.seen) {
			continue
		}
		p.mu.Lock()
		p.seen[seq]++
		p.longest = max(p.longest, time.Since(p.at[seq]))
		p.mu.Unlock()
	}
}

func (p *pinger) result() pings {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := pings{sent: p.sent, refused: p.refused, longest: p.longest.Round(10 * time.Microsecond), at: p.at}
	for seq, n := range p.seen {
		switch {
		case n > 0:
			r.received++
			r.repeated += n - 1
		case len(r.lost) < 20:
			r.lost = append(r.lost, seq)
		}
	}
	return r
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
