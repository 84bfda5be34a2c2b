package e2e

import (
	"context"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tacit/lab"
)

const (
	throughputRuns  = 11 // the first of either warms up
	throughputBytes = 4_000_000
)

// benchThroughputXFRM times one TCP stream on our SAs, and on strongSwan's between two other hosts of the same lab, in turn: the same
// kernel, algorithm and mode.
func benchThroughputXFRM(t *testing.T) {
	needESP(t, "charon-systemd", "swanctl")
	w, _, _ := jobWorldWith(t, "bob.example", "", "xfrm", "xfrm", nil)
	mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
	from, to, swan := swanPair(t, w, true)
	swan.initiate()
	for _, h := range []*lab.Host{w.alice, from} {
		if states := output(t, h, "ip", "xfrm", "state"); !strings.Contains(states, "aead rfc4106(gcm(aes)) ") || strings.Contains(states, "mode tunnel") || keyOctets(states) != 20 {
			t.Fatalf("%s's SAs are not AES-GCM-128 in transport mode:\n%s", h.Name, states)
		}
	}
	var ours, theirs samples
	for i := range throughputRuns {
		pairs := []struct {
			a, b *lab.Host
			took *samples
		}{{w.alice, w.bob, &ours}, {from, to, &theirs}}
		if i%2 == 1 {
			pairs[0], pairs[1] = pairs[1], pairs[0]
		}
		for _, p := range pairs {
			w.tap.Reset()
			took := oneWay(t, p.a, p.b, p.b.Addr4(), throughputBytes)
			if i > 0 {
				p.took.add(took, time.Millisecond)
			}
			w.onlyProtected(p.a, p.b)
		}
	}
	t.Logf("throughput-xfrm: ours %.1f Mbit/s, strongSwan %.1f", throughputBytes*8/1000/ours.median(), throughputBytes*8/1000/theirs.median())
	figure(t, "throughput-xfrm", "ms", ours, "strongSwan", theirs)
}

// keyOctets is the length of the first key that ip prints of SAs.
func keyOctets(states string) int {
	for _, f := range strings.Fields(states) {
		if hex, found := strings.CutPrefix(f, "0x"); found && len(hex) > 16 {
			return len(hex) / 2
		}
	}
	return 0
}

// oneWay is how long n bytes take from a to b over one TCP connection, until b has them all.
func oneWay(t *testing.T, a, b *lab.Host, addr netip.Addr, n int64) time.Duration {
	t.Helper()
	l, err := b.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		if _, err := io.CopyN(io.Discard, c, n); err == nil {
			_, _ = c.Write([]byte{1})
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := a.Dial(ctx, "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := io.Copy(c, io.LimitReader(&noise{state: 3}, n)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}
