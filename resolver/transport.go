package resolver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// udpLimit is the size of datagrams that the client takes (RFC 6891, 6.2.3), at most maxUDPReply.
func udpLimit(req *dns.Msg) int {
	if opt := req.IsEdns0(); opt != nil {
		return min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDPReply)
	}
	return dns.MinMsgSize
}

// packed is the wire form, truncated with TC set where it is longer than limit. What cannot be packed becomes SERVFAIL.
func (s *Server) packed(r *dns.Msg, limit int) []byte {
	b, err := r.Pack()
	if err == nil && len(b) <= limit {
		return b
	}
	if err == nil {
		r.Truncate(limit)
		if b, err = r.Pack(); err == nil && len(b) <= limit {
			return b
		}
	}
	s.log.Debug("answer does not pack", "err", err)
	r.Answer, r.Ns, r.Extra, r.Rcode = nil, nil, nil, dns.RcodeServerFailure
	if b, err = r.Pack(); err != nil {
		return nil
	}
	return b
}

// serve answers one message; nil is no answer. Over UDP the answer fits what the client takes.
// A panic, in reading or in writing, costs this message only.
func (s *Server) serve(packet []byte, from origin) (out []byte) {
	defer func() {
		if p := recover(); p != nil {
			s.stats.panics.Add(1)
			s.log.Error("message panicked", "err", fmt.Sprint(p))
			out = nil
		}
	}()
	var req dns.Msg
	if len(packet) < 12 || packet[2]&0x80 != 0 { // no header, or a response
		s.stats.malformed.Add(1)
		return nil
	}
	// The head is read before anything else: what is not one question, or is an update with thousands of records, is not unpacked.
	head := dns.Header{
		Id: binary.BigEndian.Uint16(packet), Bits: binary.BigEndian.Uint16(packet[2:]), Qdcount: binary.BigEndian.Uint16(packet[4:]),
		Ancount: binary.BigEndian.Uint16(packet[6:]), Nscount: binary.BigEndian.Uint16(packet[8:]), Arcount: binary.BigEndian.Uint16(packet[10:]),
	}
	rcode := dns.RcodeFormatError
	switch dns.DefaultMsgAcceptFunc(head) {
	case dns.MsgAccept:
		// The library takes a message that ends early for one with fewer records.
		if err := req.Unpack(packet); err == nil && len(req.Answer) == int(head.Ancount) && len(req.Ns) == int(head.Nscount) &&
			len(req.Extra) == int(head.Arcount) {
			limit := dns.MaxMsgSize
			if !from.tcp {
				limit = udpLimit(&req)
			}
			return s.packed(s.respond(&req, from), limit)
		}
	case dns.MsgRejectNotImplemented:
		rcode = dns.RcodeNotImplemented
	case dns.MsgIgnore:
		return nil
	}
	s.stats.malformed.Add(1)
	r := &dns.Msg{MsgHdr: dns.MsgHdr{Id: head.Id, Response: true, Opcode: int(head.Bits>>11) & 0xf, Rcode: rcode}}
	return s.packed(r, dns.MaxMsgSize)
}

// serveTCP accepts until the listener closes, and returns when all its connections are done.
func (s *Server) serveTCP(l *net.TCPListener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		switch {
		case s.base.Err() != nil || errors.Is(err, net.ErrClosed):
			if c != nil {
				c.Close()
			}
			return nil
		case err != nil: // out of descriptors, or the client left before we looked
			time.Sleep(10 * time.Millisecond)
			continue
		}
		from := originOf(c)
		by := s.who(from)
		if !s.conns.Try(by) {
			s.stats.overload.Add(1)
			c.Close()
			continue
		}
		wg.Go(func() {
			defer s.conns.Give(by)
			s.serveConn(c, from)
		})
	}
}

// serveConn reads messages with their length in front (RFC 1035, 4.2.2) and answers each as soon as it can, in any order
// (RFC 7766, 6.2.1.1): a held answer stands in no other's way.
func (s *Server) serveConn(c net.Conn, from origin) {
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var write sync.Mutex // answers of one connection come from several goroutines; each is written whole
	wg.Go(func() {       // ends the reads when the server closes
		select {
		case <-s.base.Done():
			_ = c.SetReadDeadline(time.Unix(1, 0))
		case <-stop:
		}
	})
	// A client that sends faster than its answers come is not read any more, and TCP slows it down.
	slots := make(chan struct{}, maxTCPPipeline)
	for s.base.Err() == nil {
		_ = c.SetReadDeadline(time.Now().Add(tcpIdle))
		if s.base.Err() != nil {
			break
		}
		b, err := readMessage(c)
		if err != nil {
			break
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			out := s.serve(b, from)
			if out == nil {
				return
			}
			write.Lock()
			defer write.Unlock()
			_ = c.SetWriteDeadline(time.Now().Add(s.cfg.Hold))
			if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)); err != nil {
				c.Close() // half a message is no place to go on from
			}
		})
	}
	close(stop)
	wg.Wait()
	c.Close()
}

func readMessage(r io.Reader) ([]byte, error) {
	var n [2]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(n[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}
