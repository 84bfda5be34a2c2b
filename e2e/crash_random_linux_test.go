package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Kills of TestKilledAtRandom, among its worlds.
const (
	kills      = 50
	killsLong  = 200
	killWorlds = 2
)

// TestKilledAtRandom kills and starts daemons at random moments, while they start, key, rekey and carry all kinds of traffic: no packet passes in clear
// between the hosts (TRUST.md I1), two seconds after each start DNS answers, and after the last kill nothing of ours is left when linger has ended.
//
//tacit:attack A-57 50 kills at random moments under traffic: no packet in clear, DNS answers within two seconds, nothing is left after linger
func TestKilledAtRandom(t *testing.T) {
	n := kills
	if os.Getenv("TACIT_LONG") != "" {
		n = killsLong
	}
	for i := range killWorlds {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			killAtRandom(t, n/killWorlds, 8*time.Second, 2*time.Second)
		})
	}
}

// killAtRandom is n of them; each start is to answer within limit.
func killAtRandom(t *testing.T, n int, linger, limit time.Duration) {
	w, before, answered, _ := crashWorld(t, linger.String())
	talk := conversations(t, w)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var slowest time.Duration
	for range n {
		d := []*tacit{w.aliceTac, w.bobTac}[r.IntN(2)]
		d.kill()
		d.again()
		if r.IntN(4) == 0 { // while it starts
			time.Sleep(time.Duration(r.IntN(150)) * time.Millisecond)
			d.kill()
			d.again()
		}
		for _, typ := range []uint16{dns.TypeA, dns.TypeAAAA} { // both are proven again, so that linger does not end
			slowest = max(slowest, d.answersAgain(typ, limit))
		}
		time.Sleep(time.Duration(r.IntN(500)) * time.Millisecond)
	}
	t.Logf("%d kills; the slowest start answered after %v; %d connections, %d messages", n, slowest.Round(time.Millisecond), talk.made(), talk.sent())
	w.aliceTac.kill()
	w.bobTac.kill()
	killed := time.Now()
	time.Sleep(linger - time.Second)
	if n, first, _ := w.clearBetween(w.alice, w.bob, answered, killed.Add(linger)); n > 0 {
		t.Errorf("%d packets in clear, the first %v before the last kill: %v -> %v protocol %d ports %d %d", n, killed.Sub(first.Time),
			first.Src, first.Dst, first.Proto, first.SrcPort, first.DstPort)
	}
	if n, err := w.tap.Dropped(); n != 0 || err != nil {
		t.Errorf("the tap missed %d frames (%v): nothing is proven", n, err)
	}
	if talk.sent() == 0 {
		t.Error("nothing was said: nothing is proven")
	}
	for _, d := range []*tacit{w.aliceTac, w.bobTac} {
		eventually(t, linger/2+4*time.Second, "nothing of the dead touches a packet", func() bool {
			return len(verdicts(t, d.host)) == 0
		})
		if _, err := d.run("cleanup"); err != nil {
			t.Error(err)
		}
		sameState(t, d.host, before[d.host])
		if left := output(t, d.host, "sh", "-c", "ip xfrm state; ip xfrm policy"); strings.Contains(left, "src") && dataplane() == "xfrm" {
			t.Errorf("%s: left after cleanup:\n%s", d.host.Name, left)
		}
	}
}

// again starts a daemon that was killed, and waits for nothing.
func (d *tacit) again() {
	d.t.Helper()
	exe, err := tacitBinary()
	if err != nil {
		d.t.Fatal(err)
	}
	d.cmd = startEnv(d.t, d.host, d.env, exe, "run", "--config", "/run/tacit.toml")
}

// answersAgain waits until the daemon answers a program that asks for Bob, and returns how long that took.
func (d *tacit) answersAgain(typ uint16, limit time.Duration) time.Duration {
	d.t.Helper()
	began := time.Now()
	for {
		ctx, cancel := context.WithTimeout(d.t.Context(), limit)
		m := new(dns.Msg)
		m.SetQuestion("bob.example.", typ)
		c := dns.Client{Net: "udp", Timeout: limit}
		conn, err := d.host.Dial(ctx, "udp", "127.0.0.1:53")
		if err == nil {
			var reply *dns.Msg
			if reply, _, err = c.ExchangeWithConnContext(ctx, m, &dns.Conn{Conn: conn}); err == nil && (reply.Rcode != dns.RcodeSuccess || len(reply.Answer) == 0) {
				err = fmt.Errorf("%s", dns.RcodeToString[reply.Rcode])
			}
			conn.Close()
		}
		cancel()
		took := time.Since(began)
		if err == nil {
			return took
		}
		if took > limit {
			d.t.Errorf("%s: no answer %v after the start: %v", d.host.Name, took.Round(time.Millisecond), err)
			return took
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// talk is programs that connect whenever they can, and say something until the connection ends.
type talk struct {
	mu             sync.Mutex // programs count at once
	conns, written int
}

func (k *talk) count(conns, written int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.conns += conns
	k.written += written
}

func (k *talk) made() int { k.mu.Lock(); defer k.mu.Unlock(); return k.conns }
func (k *talk) sent() int { k.mu.Lock(); defer k.mu.Unlock(); return k.written }

// conversations are such programs, both ways and in both families, until the test ends.
func conversations(t *testing.T, w *attackWorld) *talk {
	t.Helper()
	k := &talk{}
	for _, pair := range [][2]int{{0, 1}, {1, 0}} {
		hosts := []*tacit{w.aliceTac, w.bobTac}
		from, to := hosts[pair[0]].host, hosts[pair[1]].host
		for _, addr := range both(to) {
			at := netip.AddrPortFrom(addr, 7100).String()
			l, err := to.Listen("tcp", at)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			t.Cleanup(func() { cancel(); l.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						defer c.Close()
						b := make([]byte, 64)
						for {
							_ = c.SetDeadline(time.Now().Add(3 * time.Second))
							if _, err := c.Read(b); err != nil {
								return
							}
							if _, err := c.Write(b); err != nil {
								return
							}
						}
					}()
				}
			}()
			go func() {
				b := make([]byte, 64)
				for ctx.Err() == nil {
					dial, stop := context.WithTimeout(ctx, 2*time.Second)
					c, err := from.Dial(dial, "tcp", at)
					stop()
					if err != nil {
						time.Sleep(20 * time.Millisecond)
						continue
					}
					k.count(1, 0)
					for range 500 {
						_ = c.SetDeadline(time.Now().Add(3 * time.Second))
						if _, err = c.Write(b); err == nil {
							_, err = c.Read(b)
						}
						if err != nil || ctx.Err() != nil {
							break
						}
						k.count(0, 1)
						time.Sleep(2 * time.Millisecond)
					}
					c.Close()
				}
			}()
		}
	}
	return k
}

// TestXFRMKilledAtRandom is a few of them on the kernel's ESP, where SAs outlive the process.
func TestXFRMKilledAtRandom(t *testing.T) {
	needESP(t)
	t.Setenv("TACIT_DATAPLANE", "xfrm")
	if os.Getenv("TACIT_LONG") == "" {
		t.Skip("takes long in an emulated machine: TACIT_LONG=1")
	}
	killAtRandom(t, 5, 20*time.Second, 20*time.Second) // a slow kernel
}
