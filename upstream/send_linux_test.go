package upstream

import (
	"context"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// An answer that comes after the moment is still taken, on the socket that asked: the server is not asked twice.
func TestSentAndLate(t *testing.T) {
	f := newForwarder(t, func(q *dns.Msg, _ bool) [][]byte {
		time.Sleep(20 * time.Millisecond)
		return [][]byte{reply(q, good, nil)}
	})
	u := testRouter(t, f)
	sent := u.Send(validatorQuery("bob.example."))
	if m := sent.Brief(t.Context(), -1); m != nil {
		t.Errorf("%v came within %v", m, moment)
	}
	m, err := sent.Rest(t.Context())
	if err != nil || len(m.Answer) != 1 {
		t.Fatal(m, err)
	}
	if n := f.udp.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	if n := u.places.Used(); n != 0 {
		t.Errorf("%d exchanges are still under way", n)
	}
}

// A thread does not wait for a forwarder that was slow, until it was quick again.
func TestSlowForwarderIsNotWaitedFor(t *testing.T) {
	var pause atomic.Int64
	f := newForwarder(t, func(q *dns.Msg, _ bool) [][]byte {
		time.Sleep(time.Duration(pause.Load()))
		return [][]byte{reply(q, good, nil)}
	})
	u := testRouter(t, f)
	pause.Store(int64(20 * moment))
	sent := u.Send(validatorQuery("bob.example."))
	if m := sent.Brief(t.Context(), -1); m != nil {
		t.Errorf("%v came within %v", m, moment)
	}
	if _, err := sent.Rest(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Exchange(t.Context(), validatorQuery("bob.example.")); err != nil {
		t.Fatal(err)
	}
	if u.Send(validatorQuery("bob.example.")) != nil {
		t.Error("sent, to be waited for by the thread")
	}
	pause.Store(0)
	for range 100 { // any one may be slow on a busy machine
		if _, err := u.Exchange(t.Context(), validatorQuery("bob.example.")); err != nil {
			t.Fatal(err)
		}
		if sent := u.Send(validatorQuery("bob.example.")); sent != nil {
			if sent.Brief(t.Context(), -1) == nil {
				if _, err := sent.Rest(t.Context()); err != nil {
					t.Error(err)
				}
			}
			return
		}
	}
	t.Error("a forwarder that is quick again is not waited for")
}

// Nobody waits while something else is to be done, and a flood of datagrams that are no answer ends the brief wait.
func TestBriefIsBrief(t *testing.T) {
	var mu sync.Mutex
	var strays int
	f := newForwarder(t, func(q *dns.Msg, _ bool) (all [][]byte) {
		mu.Lock()
		defer mu.Unlock()
		for range strays {
			all = append(all, []byte("stray"))
		}
		return append(all, reply(q, good, nil))
	})
	u := testRouter(t, f)
	busy, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	raw, err := busy.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	also := -1
	if err := raw.Control(func(fd uintptr) { also = int(fd) }); err != nil {
		t.Fatal(err)
	}
	if _, err := busy.WriteTo([]byte("work"), busy.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	mu.Lock() // the server is silent
	sent := u.Send(validatorQuery("bob.example."))
	if m := sent.Brief(t.Context(), also); m != nil {
		t.Error(m)
	}
	strays = maxStrays
	mu.Unlock()
	if m, err := sent.Rest(t.Context()); err != nil || len(m.Answer) != 1 {
		t.Error(m, err)
	}
	sent = u.Send(validatorQuery("bob.example."))
	if m := sent.Brief(t.Context(), -1); m != nil {
		t.Error("the answer behind", maxStrays, "strays was waited for")
	}
	if m, err := sent.Rest(t.Context()); err != nil || len(m.Answer) != 1 {
		t.Error(m, err)
	}
}

// Each question has a port and an id of its own, its sockets are marked as configured, and they are given back.
func TestSentSockets(t *testing.T) {
	var mu sync.Mutex
	ids := map[uint16]bool{}
	f := newForwarder(t, func(q *dns.Msg, _ bool) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		ids[q.Id] = true
		return [][]byte{reply(q, good, nil)}
	})
	marked := 0
	u, err := New(Config{Servers: []Server{{Addr: f.addr, Port: f.addr.Port()}}, Control: func(_, _ string, c syscall.RawConn) error {
		marked++
		return c.Control(func(fd uintptr) {
			if _, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
				t.Error(err)
			}
		})
	}})
	if err != nil {
		t.Fatal(err)
	}
	before := openFiles(t)
	for range maxExchanges/2 + 50 {
		q := validatorQuery("bob.example.")
		m := u.Send(q)
		if m != nil && m.Brief(t.Context(), -1) != nil {
			continue
		}
		rest := func(ctx context.Context) (*dns.Msg, error) { return u.Exchange(ctx, q) } // the last answer was late: this machine is busy
		if m != nil {
			rest = m.Rest
		}
		if _, err := rest(t.Context()); err != nil {
			t.Fatal("no more questions can be sent: ", err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ids) < maxExchanges/2 {
		t.Errorf("%d ids", len(ids))
	}
	if marked < maxExchanges/2 || openFiles(t) > before+10 {
		t.Errorf("%d sockets marked, %d files open, %d before", marked, openFiles(t), before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}
