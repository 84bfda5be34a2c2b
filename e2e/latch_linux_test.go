package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tacit/lab"
)

// Better than nothing: what an anonymous SA is good for (RFC 5386), and whom its conversations stay with (RFC 5660).

// session is a TCP connection like BGP's: it stands for long, says little, and does not outlive a reset.
type session struct {
	t         *testing.T
	near, far *net.TCPConn
}

// newSession connects a to b. hops is the TTL of all its packets, or the Hop Limit; with 255 packets with any less are refused (RFC 5082).
func newSession(t *testing.T, a, b *lab.Host, addr netip.Addr, hops int) *session {
	t.Helper()
	l, err := b.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		defer close(accepted)
		if c, err := l.Accept(); err == nil {
			accepted <- c
		}
	}()
	near, err := a.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, ok := <-accepted
	if !ok {
		t.Fatal("nobody accepts")
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	s := &session{t, near.(*net.TCPConn), far.(*net.TCPConn)}
	for _, c := range []*net.TCPConn{s.near, s.far} {
		level, ttl, least := unix.IPPROTO_IP, unix.IP_TTL, unix.IP_MINTTL
		if addr.Is6() {
			level, ttl, least = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_MINHOPCOUNT
		}
		s.socket(c, func(fd int) error {
			if hops != 255 {
				return unix.SetsockoptInt(fd, level, ttl, hops)
			}
			return errors.Join(unix.SetsockoptInt(fd, level, ttl, hops), unix.SetsockoptInt(fd, level, least, hops))
		})
	}
	return s
}

func (s *session) socket(c *net.TCPConn, f func(fd int) error) {
	s.t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) { err = f(int(fd)) }), err)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// says has a message pass each way.
func (s *session) says() error {
	for _, c := range [][2]*net.TCPConn{{s.near, s.far}, {s.far, s.near}} {
		b := make([]byte, 19)
		if _, err := c[0].Write(b); err != nil {
			return err
		}
		if err := c[1].SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		if _, err := io.ReadFull(c[1], b); err != nil {
			return err
		}
	}
	return nil
}

// next is the sequence number that the end expects: an attacker could not guess better.
func (s *session) next(c *net.TCPConn) (seq uint32) {
	s.t.Helper()
	const repair, queue, queueSeq, off, receive = 19, 20, 21, -1, 1 // include/uapi/linux/tcp.h: TCP_REPAIR and its kin
	s.socket(c, func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, repair, 1); err != nil {
			return err
		}
		err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, queue, receive)
		n, e := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, queueSeq)
		seq = uint32(n)
		return errors.Join(err, e, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, repair, off))
	})
	return seq
}

// The flags of TCP.
const (
	tcpFIN, tcpSYN, tcpRST, tcpPSH, tcpACK = 1, 2, 4, 8, 16
)

// forgeries are segments that end a session, or spoil it.
var forgeries = []struct {
	what  string
	flags byte
	data  string
}{{"a SYN", tcpSYN, ""}, {"a reset", tcpRST, ""}, {"a reset that acknowledges", tcpRST | tcpACK, ""}, {"octets", tcpPSH | tcpACK, "forged"}, {"an end", tcpFIN | tcpACK, ""}}

// forged is a segment that seems to be the other end's, for one that expects seq.
func forged(to *net.TCPConn, seq uint32, flags byte, data string) []byte {
	src, dst := to.RemoteAddr().(*net.TCPAddr).AddrPort(), to.LocalAddr().(*net.TCPAddr).AddrPort()
	b := make([]byte, 20, 20+len(data))
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint32(b[4:], seq)
	b[12], b[13] = 5<<4, flags
	binary.BigEndian.PutUint16(b[14:], 1000)
	return lab.TCPPacket(src.Addr().Unmap(), dst.Addr().Unmap(), append(b, data...))
}

// attack has Mallory forge each, from each end to the other, and reports what ended the session.
func (s *session) attack(mallory *lab.Host) error {
	s.t.Helper()
	for _, c := range []*net.TCPConn{s.near, s.far} {
		for _, f := range forgeries {
			if err := mallory.Inject(forged(c, s.next(c), f.flags, f.data)); err != nil {
				s.t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
			if err := s.says(); err != nil {
				return errors.New(f.what + ": " + err.Error())
			}
		}
	}
	return nil
}

// TestSessionOverAnonymous: a session over an anonymous SA, with TTL 1 or with packets refused that have less than 255, survives what Mallory forges, who
// knows its ports and numbers, and every rekey of the IKE SA and the Child SA. One in clear does not.
func TestSessionOverAnonymous(t *testing.T) {
	w := anybodyWorld(t)
	top := "child-lifetime = \"2s\"\nike-lifetime = \"4s\""
	w.bobTac = startTacit(t, w.bob, w.anchor, options{name: "bob.example", identity: w.bobKey.pem, upstream: w.upstreamOfTheHost, top: top})
	w.aliceTac = startTacit(t, w.alice, w.anchor, options{upstream: w.upstreamOfTheHost, top: top,
		policy: "[[policy]]\nmatch = [\"*\"]\nclass = \"private-or-clear\"\nanonymous = true\n"})
	if err := newSession(t, w.alice, w.plain, w.plain.Addr4(), 1).attack(w.mallory); err == nil {
		t.Fatal("a session in clear survives the forgeries: they prove nothing")
	} else {
		t.Logf("in clear: %v", err)
	}
	mustAnswer(t, w.alice, "www.example", both(w.bob)...)
	eventually(t, 2*time.Second, "encrypted", func() bool { return w.aliceTac.knows(w.bob, "anonymous") })
	var sessions []*session
	for _, addr := range both(w.bob) {
		sessions = append(sessions, newSession(t, w.alice, w.bob, addr, 1), newSession(t, w.alice, w.bob, addr, 255))
	}
	w.tap.Reset()
	rekeys := func(what string) int { return strings.Count(w.aliceTac.log(), what) }
	for end := time.Now().Add(15 * time.Second); rekeys("msg=ike-rekeyed") < 3 || rekeys("rekey=true") < 4; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no rekeys: nothing is proven")
		}
		for i, s := range sessions {
			if err := s.attack(w.mallory); err != nil {
				t.Fatalf("session %d: %v", i, err)
			}
		}
	}
	w.sync()
	forged := 0
	for _, p := range w.tap.Packets() { // Mallory's are in clear: nobody else's, and no answer to one
		if p.Class != lab.ClassClear || !has(w.alice, p.Src) && !has(w.bob, p.Src) || !has(w.alice, p.Dst) && !has(w.bob, p.Dst) {
			continue
		}
		if forged++; !bytes.Equal(p.Head[6:12], w.mallory.MAC()) {
			t.Errorf("in clear: %v to %v, protocol %d", p.Src, p.Dst, p.Proto)
		}
	}
	if forged < 40 {
		t.Errorf("the tap saw %d forged packets", forged)
	}
}

// TestConversationIsNotHandedOver: Alice's daemon is killed and comes back as the nobody that it was, and what she has begun goes on. When it comes back without
// what it knew it is another nobody for all that Bob can know. He asks the old one, and what was begun with it is ended at him before she comes in anew; none of
// it passes by the new SA, nor in clear.
func TestConversationIsNotHandedOver(t *testing.T) {
	w := anybodyWorld(t)
	w.startAnybody("private-or-clear")
	mustAnswer(t, w.alice, "www.example", both(w.bob)...)
	eventually(t, 2*time.Second, "encrypted", func() bool { return w.aliceTac.knows(w.bob, "anonymous") })
	seen := func() string {
		for _, r := range w.bobTac.peers(w.alice) {
			if r.Address == w.alice.Addr4() {
				return r.KeyID
			}
		}
		return ""
	}
	mask := seen()
	s := newSession(t, w.alice, w.bob, w.bob.Addr4(), 64)
	if err := s.says(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "what outlives a crash is saved", func() bool {
		_, err := os.Stat(w.alice.File("/run/proofs.json"))
		return err == nil
	})
	again := func() {
		t.Helper()
		w.aliceTac.start(false)
		mustAnswer(t, w.alice, "www.example", both(w.bob)...)
		eventually(t, 10*time.Second, "encrypted again", func() bool { return w.aliceTac.knows(w.bob, "anonymous") })
	}
	w.tap.Reset()
	w.aliceTac.kill()
	again()
	if err := s.says(); err != nil || seen() != mask {
		t.Errorf("the same nobody, %v: %v", seen() == mask, err)
	}

	w.aliceTac.kill()
	if err := os.Remove(w.alice.File("/run/proofs.json")); err != nil {
		t.Fatal(err)
	}
	again()
	if _, err := s.far.Write([]byte("for whom is this?")); err == nil || seen() == mask {
		t.Errorf("bob's end of the session lives on (%v), or he sees nobody else", err)
	}
	transfer(t, w.alice, w.bob, w.bob.Addr4(), 10_000)
	w.sync()
	port := s.far.LocalAddr().(*net.TCPAddr).AddrPort().Port()
	for _, p := range w.tap.Select(func(p lab.Packet) bool { return p.Class == lab.ClassClear && has(w.bob, p.Src) && p.SrcPort == port }) {
		t.Errorf("bob's end of the session in clear: %+v", p.Frame)
	}
}
