package upstream

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

// The measures of DNS over TLS.
const (
	tlsIdle      = 30 * time.Second // without a question a connection is closed
	tlsHandshake = 4 * time.Second  // until it is up
	tlsWrite     = 2 * time.Second  // for one question: a server that does not read is as good as gone
	maxTLSAddrs  = 4                // tried of a server that is given by name
	paddedTo     = 128              // queries are multiples of it in length (RFC 8467, 4.1)
	maxPending   = 512              // questions under way on a connection
)

// errGone is a connection that ended before the answer came, which is no fault where it was idle before (RFC 7766, 6.2.3).
var errGone = errors.New("the connection ended")

// errPin is a server with another key than the configuration says.
var errPin = errors.New("the server's key is none of those that are pinned")

// untrusted says whether a server has not proven who it is, which it will not do a moment later either.
func untrusted(err error) bool {
	var cert *tls.CertificateVerificationError
	return errors.Is(err, errPin) || errors.As(err, &cert)
}

// secret is a server that is asked over TLS (RFC 7858), strictly: it proves its name or its key (RFC 8310, 5), or it is not asked.
type secret struct {
	dialer
	server Server
	config *tls.Config
	find   func(ctx context.Context, name string) ([]netip.AddrPort, error) // nil: the address is given

	learned func(addr netip.Addr) // where find's word has turned out to be true; may be nil

	making singleflight.Group // a connection for all who want one
	mu     sync.Mutex         // guards conn, which whoever asks takes in passing
	conn   *tlsConn
}

func newSecret(d dialer, s Server, roots *x509.CertPool, find func(context.Context, string) ([]netip.AddrPort, error)) *secret {
	c := &tls.Config{ServerName: s.Name, RootCAs: roots, MinVersion: tls.VersionTLS12, NextProtos: []string{"dot"}, ClientSessionCache: tls.NewLRUClientSessionCache(2)}
	if s.Name == "" {
		c.ServerName = s.Addr.Addr().String()
		// With pins and no name the key is all that counts (RFC 7858, 4.2), and VerifyConnection sees to it in every handshake.
		c.InsecureSkipVerify = len(s.Pins) > 0
	}
	if len(s.Pins) > 0 {
		c.VerifyConnection = func(state tls.ConnectionState) error { return pinned(state, s.Pins) }
	}
	return &secret{dialer: d, server: s, config: c, find: find}
}

// pinned says whether the server's own key is one of those that are expected.
func pinned(state tls.ConnectionState, pins [][sha256.Size]byte) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("no certificate")
	}
	if !slices.Contains(pins, sha256.Sum256(state.PeerCertificates[0].RawSubjectPublicKeyInfo)) {
		return errPin
	}
	return nil
}

func (s *secret) renew() {
	if c := s.current(nil); c != nil {
		c.end()
	}
}

// current is the connection, after it was set to a new one if there is one.
func (s *secret) current(next *tlsConn) *tlsConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if next != nil {
		s.conn = next
	}
	return s.conn
}

// ask asks over the connection that is there, or over a new one; where the old one turns out to have ended, over a new one too.
func (s *secret) ask(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	for try := 0; ; try++ {
		c, fresh, err := s.connection(ctx)
		if err != nil {
			return nil, err
		}
		m, err := c.ask(ctx, q)
		if errors.Is(err, errGone) && !fresh && try < 2 {
			continue
		}
		return m, err
	}
}

// connection is one that is up. fresh: there was none when it was asked for.
func (s *secret) connection(ctx context.Context) (c *tlsConn, fresh bool, err error) {
	if c := s.current(nil); c != nil && c.alive() {
		return c, false, nil
	}
	made := s.making.DoChan("", func() (any, error) { return s.establish() }) // it goes on for others when who began it has left
	select {
	case r := <-made:
		if r.Err != nil {
			return nil, false, r.Err
		}
		return r.Val.(*tlsConn), true, nil
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
}

// establish makes a connection, unless another has come up since the caller looked.
func (s *secret) establish() (*tlsConn, error) {
	if c := s.current(nil); c != nil && c.alive() {
		return c, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), tlsHandshake)
	defer cancel()
	addrs := []netip.AddrPort{s.server.Addr}
	if s.find != nil {
		found, err := s.find(ctx, s.server.Name)
		if err != nil {
			return nil, err
		}
		addrs = found[:min(len(found), maxTLSAddrs)]
	}
	err := errors.New("it has no address")
	for _, a := range addrs {
		var c *tlsConn
		if c, err = s.connect(ctx, netip.AddrPortFrom(a.Addr(), s.server.Port)); err == nil {
			if s.find != nil && s.learned != nil {
				s.learned(a.Addr())
			}
			return s.current(c), nil
		}
	}
	return nil, err
}

// connect makes a connection and has the server prove itself.
func (s *secret) connect(ctx context.Context, to netip.AddrPort) (*tlsConn, error) {
	d := net.Dialer{Control: s.control}
	raw, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, s.config)
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("tls: %w", err)
	}
	t := &tlsConn{stream: &dns.Conn{Conn: c}, pending: map[uint16]chan *dns.Msg{}, gone: make(chan struct{})}
	_ = c.SetReadDeadline(time.Now().Add(tlsIdle))
	go t.read()
	return t, nil
}

// tlsConn is a connection with many questions under way, answered in any order (RFC 7766, 7).
type tlsConn struct {
	stream *dns.Conn
	gone   chan struct{} // closed when it has ended

	// The mutex guards what the reader and those who ask share; it is held for a map's access, or for one write.
	mu      sync.Mutex
	pending map[uint16]chan *dns.Msg
	ended   bool
}

func (c *tlsConn) alive() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.ended
}

// end closes the connection; those who wait are told.
func (c *tlsConn) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.close()
}

// close is end, with the mutex held.
func (c *tlsConn) close() {
	if !c.ended {
		c.ended = true
		close(c.gone)
		c.stream.Close()
	}
}

// read hands answers to who asked, until the connection ends or was idle.
func (c *tlsConn) read() {
	for {
		m, err := c.stream.ReadMsg()
		if m == nil { // a message that is none costs its own question only
			c.end()
			return
		}
		c.mu.Lock()
		to := c.pending[m.Id]
		c.mu.Unlock()
		if to != nil && err == nil {
			select {
			case to <- m:
			default: // a second answer to one question
			}
		}
	}
}

// ask sends one question and waits for its answer.
func (c *tlsConn) ask(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	out := q.Copy()
	answer := make(chan *dns.Msg, 1)
	if err := c.send(out, answer); err != nil {
		return nil, err
	}
	defer func() {
		c.mu.Lock()
		delete(c.pending, out.Id)
		c.mu.Unlock()
	}()
	select {
	case m := <-answer:
		switch {
		case !answers(m, out):
			return nil, errors.New("an answer to another question")
		case m.Truncated:
			return nil, errors.New("truncated over TLS")
		}
		restore(m, q, out)
		return m, nil
	case <-c.gone:
		return nil, errGone
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// send draws an id that is free and writes the question.
func (c *tlsConn) send(out *dns.Msg, answer chan *dns.Msg) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return errGone
	}
	if len(c.pending) >= maxPending {
		return fmt.Errorf("%d questions under way", maxPending)
	}
	for out.Id = uint16(rand.Uint32()); c.pending[out.Id] != nil; {
		out.Id++
	}
	if err := pad(out); err != nil {
		return err
	}
	c.pending[out.Id] = answer
	_ = c.stream.SetReadDeadline(time.Now().Add(tlsIdle))
	_ = c.stream.SetWriteDeadline(time.Now().Add(tlsWrite))
	if err := c.stream.WriteMsg(out); err != nil {
		c.close()
		return errGone
	}
	return nil
}

// pad gives a query a length that tells little (RFC 7830; RFC 8467, 4.1).
func pad(q *dns.Msg) error {
	opt := edns(q)
	b, err := q.Pack()
	if err != nil {
		return fmt.Errorf("query: %w", err)
	}
	const head = 4 // of an option: its code and length
	opt.Option = append(opt.Option, &dns.EDNS0_PADDING{Padding: make([]byte, (paddedTo-(len(b)+head)%paddedTo)%paddedTo)})
	return nil
}
