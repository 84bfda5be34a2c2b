package plane

import (
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"tacit/ipsec"
)

// NonESP is how many zero octets tell IKE from ESP on port 4500 (RFC 3948, 2.2).
const NonESP = 4

// MaxIKE is the longest IKE message, in octets: what a UDP datagram may hold.
const MaxIKE = 65535

// ikeQueue is how many IKE messages may wait for their reader.
const ikeQueue = 512

// Conns are IKE's open views of a data plane's sockets.
type Conns struct {
	// Send sends one datagram from one of our ports; without a local address the kernel chooses.
	Send func(port uint16, b []byte, local netip.Addr, remote netip.AddrPort) error
	// Done is closed when the data plane is.
	Done <-chan struct{}
	// Dropped counts messages that nobody read.
	Dropped atomic.Uint64

	mu   sync.RWMutex // read by the socket loops for each IKE message, written by Open and Close
	list []*conn
}

// conn is one view.
type conn struct {
	all   *Conns
	local netip.AddrPort
	queue chan datagram
	done  chan struct{}
	once  sync.Once
}

// buffers hold a message for a moment. They are used again.
var buffers = sync.Pool{New: func() any { return &buffer{make([]byte, 0, 2048)} }}

type buffer struct{ b []byte }

// bufferOf is a buffer with the parts in it.
func bufferOf(parts ...[]byte) *buffer {
	x := buffers.Get().(*buffer)
	x.b = x.b[:0]
	for _, p := range parts {
		x.b = append(x.b, p...)
	}
	return x
}

// noESP is the marker.
var noESP [NonESP]byte

// datagram is an IKE message that waits for Read.
type datagram struct {
	data          *buffer
	local, remote netip.AddrPort
}

// Open opens a view of UDP port 500 or 4500. An unspecified local address takes what comes to any address of that family, no
// address at all takes both families.
func (l *Conns) Open(local netip.AddrPort) (ipsec.Conn, error) {
	if local.Port() != PortIKE && local.Port() != PortNATT {
		return nil, fmt.Errorf("conn %v: IKE's ports are %d and %d", local, PortIKE, PortNATT)
	}
	c := &conn{all: l, local: local, queue: make(chan datagram, ikeQueue), done: make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, c)
	return c, nil
}

// wants reports whether a datagram that came to the address is for the conn.
func (c *conn) wants(to netip.AddrPort) bool {
	a := c.local.Addr()
	return c.local.Port() == to.Port() &&
		(!a.IsValid() || a == to.Addr() || a.IsUnspecified() && a.Is4() == to.Addr().Is4())
}

// IsIKE tells, on port 4500, an IKE message from ESP and from keepalives, and returns it without the marker.
func IsIKE(b []byte) (message []byte, ok bool) {
	if len(b) <= NonESP || [NonESP]byte(b) != [NonESP]byte{} {
		return nil, false
	}
	return b[NonESP:], true
}

// Deliver copies an IKE message to its reader. What finds none is dropped: IKE repeats what is lost.
func (l *Conns) Deliver(local, remote netip.AddrPort, message []byte) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for _, c := range l.list {
		if !c.wants(local) {
			continue
		}
		d := datagram{bufferOf(message), local, remote}
		select {
		case c.queue <- d:
		default:
			buffers.Put(d.data)
			l.Dropped.Add(1)
		}
		return
	}
	l.Dropped.Add(1)
}

// Read waits for an IKE message. After Close, of the Conn or of the data plane, its error is os.ErrClosed.
func (c *conn) Read(b []byte) (n int, local, remote netip.AddrPort, err error) {
	select {
	case d := <-c.queue:
		n = copy(b, d.data.b)
		buffers.Put(d.data)
		return n, d.local, d.remote, nil
	case <-c.done:
	case <-c.all.Done:
	}
	return 0, netip.AddrPort{}, netip.AddrPort{}, fmt.Errorf("read %v: %w", c.local, os.ErrClosed)
}

// Write sends an IKE message from the local address, or from one that the kernel chooses if it is unspecified. A single octet is a
// keepalive, which has no marker (RFC 3948, 2.3).
func (c *conn) Write(b []byte, local, remote netip.AddrPort) error {
	if c.local.Port() == PortNATT && len(b) != 1 {
		marked := bufferOf(noESP[:], b)
		defer buffers.Put(marked)
		b = marked.b
	}
	if err := c.all.Send(c.local.Port(), b, local.Addr(), remote); err != nil {
		return fmt.Errorf("write to %v: %w", remote, err)
	}
	return nil
}

// Close ends the view; the socket stays the data plane's.
func (c *conn) Close() error {
	c.once.Do(func() {
		close(c.done)
		c.all.mu.Lock()
		defer c.all.mu.Unlock()
		c.all.list = Without(c.all.list, c)
	})
	return nil
}
