package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"tacit/lab"
)

// TestFlood: a user on Alice's host asks for thousands of names whose server never answers, and keeps hundreds of connections to her resolver. Another
// user, who asks for what is in no cache, notices little of it.
//
//tacit:attack A-36 beside a user who floods with names that nobody answers for, over UDP and TCP, another's uncached lookups are all answered, as fast as before
func TestFlood(t *testing.T) {
	const names, each = 330, 100
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		example := zoneFile{apex: "example.", signer: bindNSEC}
		for i := range names {
			example.records = append(example.records, hostRecords(fmt.Sprintf("n%d.example.", i), w.plain, nil)...)
		}
		return []zoneFile{example, {"tar.", bindNSEC, hostRecords("a.tar.", w.plain, nil)}}
	})
	at := serveAllBut(t, w.liar, ".tar.")
	startTacit(t, w.alice, w.anchor, options{upstream: at})
	next := 0
	measure := func(what string) (took samples) {
		for range each {
			a, err := query(t.Context(), w.alice, fmt.Sprintf("n%d.example", next), dns.TypeA)
			if next++; err != nil || len(a.addrs()) != 1 {
				t.Errorf("%s: n%d.example: %v\n%v", what, next-1, err, a.Msg)
				continue
			}
			took.add(a.took, time.Millisecond)
			time.Sleep(10 * time.Millisecond)
		}
		t.Logf("%s, ms: %s; p99 %.1f", what, took.spread(), took.at(0.99))
		return took
	}
	quiet := measure("alone")

	flood := dialAs(t, w.alice, 65534, "udp", "127.0.0.1:53")
	quit, done := make(chan struct{}), make(chan int)
	go func() { done <- floodNames(flood, quit) }()
	time.Sleep(time.Second)
	early := measure("beside a flood")
	for range 300 {
		dialAs(t, w.alice, 65534, "tcp", "127.0.0.1:53")
	}
	late := measure("beside a flood and many connections")
	for i := range 20 {
		q := new(dns.Msg)
		q.SetQuestion(fmt.Sprintf("n%d.example.", names-1-i), dns.TypeA)
		c, err := w.alice.Dial(t.Context(), "tcp", "127.0.0.1:53")
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(hold + slack))
		conn := &dns.Conn{Conn: c}
		if err := conn.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
		if a, err := conn.ReadMsg(); err != nil || len(a.Answer) != 1 {
			t.Errorf("over TCP: %v\n%v", err, a)
		}
		c.Close()
	}
	close(quit)
	t.Logf("%d names of the flood", <-done)
	for what, s := range map[string]samples{"flood": early, "connections": late} {
		if s.at(0.95) > quiet.at(0.95)+150 || s.at(0.99) > float64(hold.Milliseconds())/4 { // others use this machine, too
			t.Errorf("%s: another user's p95 is %.1f ms, p99 %.1f", what, s.at(0.95), s.at(0.99))
		}
	}
}

// serveAllBut is a forwarder beside the liar's that knows no name below one of them, and loses nothing of a burst; it returns where it is.
func serveAllBut(t *testing.T, l *liar, below string) (at string) {
	t.Helper()
	const port = 5300
	at = netip.AddrPortFrom(l.host.Addr4(), port).String()
	tcp, err := l.host.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	handler := dns.HandlerFunc(func(r dns.ResponseWriter, q *dns.Msg) {
		if !strings.HasSuffix(strings.ToLower(q.Question[0].Name), below) {
			l.ServeDNS(r, q)
		}
	})
	for _, s := range []*dns.Server{{PacketConn: wideSocket(t, l.host, port), Handler: handler}, {Listener: tcp, Handler: handler}} {
		ended := make(chan struct{})
		go func() { defer close(ended); _ = s.ActivateAndServe() }()
		t.Cleanup(func() { _ = s.Shutdown(); <-ended })
	}
	return at
}

// dialAs opens a socket on the host that belongs to a user of it.
func dialAs(t *testing.T, h *lab.Host, uid int, network, to string) (c net.Conn) {
	t.Helper()
	d := net.Dialer{Timeout: 5 * time.Second, Control: func(_, _ string, raw syscall.RawConn) (err error) {
		cerr := raw.Control(func(fd uintptr) { err = unix.Fchown(int(fd), uid, -1) })
		if cerr != nil {
			return cerr
		}
		return err
	}}
	err := h.Do(func() (err error) {
		c, err = d.DialContext(t.Context(), network, to)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// floodNames asks for a new name three thousand times a second and reads no answer; it returns how many there were.
func floodNames(c net.Conn, quit <-chan struct{}) (n int) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-quit:
			return n
		case <-tick.C:
		}
		for range 6 {
			q := new(dns.Msg)
			q.SetQuestion(fmt.Sprintf("x%d.tar.", n), dns.TypeA)
			if b, err := q.Pack(); err == nil {
				_, _ = c.Write(b)
			}
			n++
		}
	}
}
