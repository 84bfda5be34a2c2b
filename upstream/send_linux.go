package upstream

import (
	"context"
	"net"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"tacit/dnssec"
)

// A forwarder nearby answers sooner than a goroutine is put to sleep and waked by another: its answer is waited for by the thread that asked, in
// one system call, on a socket that the runtime does not know. What is not there in a moment goes the usual way, as does all that is asked of a
// forwarder that was not as quick the last time.
const maxStrays = 8 // datagrams that are no answer, until the usual way is taken

// shot is a question that went to a forwarder over UDP. It belongs to one goroutine.
type shot struct {
	router *Router
	number int // of the way
	way    *way
	to     *plain
	q, out *dns.Msg // as asked, as sent
	fd     int      // -1: none any more
}

// shots are the buffers that answers are read into.
var shots = sync.Pool{New: func() any { return new([maxUDPReply]byte) }}

// Send sends q to the preferred forwarder where that is asked over UDP; nil is for Exchange to ask.
func (r *Router) Send(q *dns.Msg) dnssec.Sent {
	i := int(r.preferred.Load())
	if len(q.Question) != 1 || i >= r.forwarders() || !r.ways[i].fit(q.Question[0].Qtype) {
		return nil
	}
	to, ok := r.ways[i].carrier.(*plain)
	if !ok || !to.to.IsValid() || to.far.Load() {
		return nil
	}
	if !r.places.Try("") {
		return nil
	}
	h := &shot{router: r, number: i, way: r.ways[i], to: to, q: q, out: to.prepare(q), fd: -1}
	if wire, err := h.out.Pack(); err == nil {
		h.fire(wire)
	}
	if h.fd < 0 {
		r.places.Give("")
		return nil
	}
	return h
}

// fire sends a packet from a new socket, whose port the kernel draws. It sets fd where that went well.
func (h *shot) fire(wire []byte) {
	family, network := unix.AF_INET6, "udp6"
	if h.to.to.Addr().Is4() {
		family, network = unix.AF_INET, "udp4"
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	if h.to.control != nil {
		err = h.to.control(network, h.to.addr, bareSocket(fd))
	}
	if err != nil || connect(fd, h.to.to) != nil || write(fd, wire) != nil {
		closeFile(fd)
		return
	}
	h.fd = fd
}

// Brief waits a moment for the answer, or until the file also is ready to be read, unless it is negative. Nil: it has not come, or needs more than that.
func (h *shot) Brief(ctx context.Context, also int) *dns.Msg {
	defer h.router.places.Give("")
	b := shots.Get().(*[maxUDPReply]byte)
	defer shots.Put(b)
	for range maxStrays {
		there, late, err := await(h.fd, also)
		if err == unix.EINTR {
			continue
		}
		if !there {
			h.to.far.Store(late)
			return nil
		}
		n, err := read(h.fd, b[:])
		if err == unix.EAGAIN {
			continue
		}
		if err != nil { // the usual way meets it again
			h.close()
			return nil
		}
		m, sure := h.to.read(b[:n], h.out)
		switch {
		case m == nil:
			continue
		case !sure, m.Truncated, !usable(m.Rcode): // asked again, by all means there are
			h.close()
			return nil
		}
		h.close()
		h.to.cookies.learn(m)
		restore(m, h.q, h.out)
		m.AuthenticatedData = m.AuthenticatedData && h.way.believed
		dnssec.Carried(ctx, h.way.name, h.router.detour(h.number, h.number, h.q.Question[0].Qtype, outcome{}))
		return m
	}
	return nil
}

// Rest is Exchange, the first try of which was sent already.
func (h *shot) Rest(ctx context.Context) (*dns.Msg, error) {
	defer h.close()
	return h.router.exchange(ctx, h.q, h)
}

// resume waits on as ask does.
func (h *shot) resume(ctx context.Context) (*dns.Msg, error) {
	if h.fd < 0 {
		return h.to.ask(ctx, h.q)
	}
	f := os.NewFile(uintptr(h.fd), "")
	h.fd = -1
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	m, sure, err := h.to.receive(c, h.out)
	return h.to.conclude(ctx, h.q, h.out, m, sure, err)
}

func (h *shot) close() {
	if h.fd >= 0 {
		closeFile(h.fd)
		h.fd = -1
	}
}

// bareSocket is a file descriptor as a dialer's Control takes it.
type bareSocket int

// Control calls f.
func (s bareSocket) Control(f func(fd uintptr)) error {
	f(uintptr(s))
	return nil
}

func (s bareSocket) Read(func(fd uintptr) bool) error  { return os.ErrInvalid }
func (s bareSocket) Write(func(fd uintptr) bool) error { return os.ErrInvalid }
