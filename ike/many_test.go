package ike

import (
	crand "crypto/rand"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"
)

// crowd is an Endpoint with many established SAs, each with a host of its own, and one that plays all those hosts. Who calls them answers at once.
type crowd struct {
	t      testing.TB
	x, y   *Endpoint // the initiators', and the responder
	ids    []SAID    // of x
	now    time.Time
	key    func(SignatureWanted) Signature
	random *rand.Rand
}

func newCrowd(t testing.TB, n int) *crowd {
	signer := testKeys()["ed25519"]
	open := Config{PostQuantum: Off, CookieAbove: 1 << 30, MaxHalfOpen: 1 << 30, MaxSAs: 1 << 30, MaxPerNetwork: 1 << 30}
	named := open
	named.Name, named.Public = "bob.example", signer.Public()
	c := &crowd{t: t, x: New(open), y: New(named), now: start, random: rand.New(rand.NewPCG(1, 2))}
	c.key = func(e SignatureWanted) Signature {
		sig, err := signer.Sign(crand.Reader, e.Data, e.Opts)
		return Signature{e.Token, sig, err}
	}
	for i := range n {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 500)
		id, out := c.x.Initiate(c.now, Peer{Local: from, Remote: addrB, LocalID: ID{Kind: IDNull}, Auth: Authorization{Anonymous: true}})
		c.take(c.x, out)
		c.ids = append(c.ids, id)
	}
	if a, b := c.x.Stats(), c.y.Stats(); a.SAs != n || b.SAs != n || b.HalfOpen != 0 {
		t.Fatalf("%d SAs: %+v and %+v", n, a, b)
	}
	return c
}

// take does what an Output of e asks.
func (c *crowd) take(e *Endpoint, out Output) {
	for _, ev := range out.Events {
		switch ev := ev.(type) {
		case AuthorizationWanted:
			c.take(e, e.Authorize(c.now, ev.SA, Authorization{Anonymous: true}))
		case SignatureWanted:
			c.take(e, e.Supply(c.now, ev.SA, c.key(ev)))
		case ChildWanted:
			c.take(e, e.Supply(c.now, ev.SA, Installed{Token: ev.Token}))
		case Closed:
			c.t.Fatalf("closed: %v", ev.Err)
		}
	}
	for _, d := range out.Send {
		c.take(c.other(e), c.other(e).Receive(c.now, back(d)))
	}
}

func (c *crowd) other(e *Endpoint) *Endpoint {
	if e == c.x {
		return c.y
	}
	return c.x
}

// back is a datagram as it comes to its receiver.
func back(d Datagram) Datagram { return Datagram{Local: d.Remote, Remote: d.Local, Data: d.Data} }

// probes are requests of n hosts, in no order, to see whether the responder lives.
func (c *crowd) probes(n int) (ds []Datagram) {
	for _, i := range c.random.Perm(len(c.ids))[:n] {
		for _, d := range c.x.Do(c.now, c.ids[i], Probe).Send {
			ds = append(ds, back(d))
		}
	}
	c.now = c.now.Add(requestEvery)
	return ds
}

// answered brings the answers home.
func (c *crowd) answered(outs []Output) {
	for _, out := range outs {
		if len(out.Send) != 1 {
			c.t.Fatalf("%d answers to a probe", len(out.Send))
		}
		c.take(c.x, c.x.Receive(c.now, back(out.Send[0])))
	}
}

// A responder with many SAs answers each of its peers.
func TestCrowd(t *testing.T) {
	c := newCrowd(t, 100)
	for range 3 {
		var outs []Output
		for _, d := range c.probes(50) {
			outs = append(outs, c.y.Receive(c.now, d))
		}
		if c.answered(outs); len(outs) != 50 {
			t.Errorf("%d probes of 50", len(outs))
		}
	}
}

// crowds are kept from one run of the benchmark to the next: a large one takes a while.
var crowds = map[int]*crowd{}

// BenchmarkReceive is what a datagram takes at an Endpoint with so many SAs: a peer's probe, and its answer.
func BenchmarkReceive(b *testing.B) {
	for _, n := range []int{1000, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			if crowds[n] == nil {
				crowds[n] = newCrowd(b, n)
			}
			c := crowds[n]
			c.t = b
			runtime.GC() // the collection of what made the crowd is not the datagrams' work
			var ds []Datagram
			var outs []Output
			for b.Loop() {
				if len(ds) == 0 {
					b.StopTimer()
					c.answered(outs)
					outs, ds = outs[:0], c.probes(500)
					b.StartTimer()
				}
				outs = append(outs, c.y.Receive(c.now, ds[0]))
				ds = ds[1:]
			}
			b.StopTimer()
			c.answered(outs)
			for _, d := range ds {
				c.answered([]Output{c.y.Receive(c.now, d)})
			}
		})
	}
}

// link is one of the things that an established SA is made of.
type link struct {
	next *link
	body []byte
}

// linkSizes are what a probe reads and writes of an SA, in octets, each behind a pointer in the one before: its place in the table, and what of itself stands
// first, with its keys.
var linkSizes = []int{64, 640}

// BenchmarkTouch is what the memory alone takes of BenchmarkReceive: as many SAs, in no order, and of each the same lines, one pointer after
// the other, with nothing done.
func BenchmarkTouch(b *testing.B) {
	for _, n := range []int{1000, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			all := make([]*link, n)
			for _, size := range linkSizes { // made in turn, as SAs are: what belongs together does not lie together
				for i := range all {
					all[i] = &link{all[i], make([]byte, size)}
				}
			}
			order := rand.New(rand.NewPCG(1, 2)).Perm(n)
			runtime.GC()
			i, sum := 0, byte(0)
			for b.Loop() {
				for l := all[order[i]]; l != nil; l = l.next {
					for at := 0; at < len(l.body); at += 64 {
						sum += l.body[at]
						l.body[at] = sum
					}
				}
				if i++; i == n {
					i = 0
				}
			}
		})
	}
}
