package ike

import (
	"bytes"
	"crypto"
	crand "crypto/rand"
	"crypto/rsa"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"tacit/ike/wire"
)

// rsa4096 is made once: it takes its time.
var rsa4096 = sync.OnceValue(func() crypto.Signer {
	k, err := rsa.GenerateKey(crand.Reader, 4096)
	if err != nil {
		panic(err)
	}
	return k
})

// fragmentsOf counts the SKF messages that pass, and keeps the longest datagram.
func fragmentsOf(w *world, count, longest *int) {
	before := w.tap
	w.tap = func(from *host, d *Datagram) bool {
		if m, err := wire.Parse(d.Data); err == nil {
			if _, ok := m.Payloads[len(m.Payloads)-1].(*wire.EncryptedFragment); ok {
				*count++
			}
		}
		*longest = max(*longest, len(d.Data))
		return before == nil || before(from, d)
	}
}

// named is a peer that both ends prove a key to.
func named(a, b *host) Peer {
	p := peerOf(a, b)
	p.LocalID = ID{IDFQDN, a.name}
	b.authorize = func(AuthorizationWanted) Authorization {
		return Authorization{Keys: []crypto.PublicKey{a.key.Public()}}
	}
	return p
}

// RSA-4096 at both ends over paths of the smallest size: everything after IKE_SA_INIT goes in fragments, none longer than the path takes.
func TestFragments(t *testing.T) {
	for name, c := range map[string]struct {
		a, b string
		path int
		cert bool // the initiator asks for the responder's key in CERT
		most int
		loss float64
		want int // fragments at least
	}{
		"IPv4":             {"192.0.2.1:500", "192.0.2.2:500", 576, false, 576 - 28, 0, 4},
		"IPv4, port 4500":  {"192.0.2.1:4500", "192.0.2.2:4500", 576, false, 576 - 32, 0, 4},
		"IPv4, bad path":   {"192.0.2.1:500", "192.0.2.2:500", 576, false, 576 - 28, 0.25, 4},
		"IPv4, with CERT":  {"192.0.2.1:500", "192.0.2.2:500", 0, true, 1280 - 28, 0, 2},
		"IPv6":             {"[2001:db8::1]:500", "[2001:db8::2]:500", 0, false, 1280 - 48, 0, 0},
		"IPv6, with CERT":  {"[2001:db8::1]:500", "[2001:db8::2]:500", 0, true, 1280 - 48, 0, 2},
		"IPv6 is not less": {"[2001:db8::1]:500", "[2001:db8::2]:500", 576, false, 1280 - 48, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			a := newHost(t, "alice.example", netip.MustParseAddrPort(c.a), rsa4096(), Config{Path: c.path})
			b := newHost(t, "bob.example", netip.MustParseAddrPort(c.b), rsa4096(), Config{Path: c.path})
			w := newWorld(t, a, b)
			var n, longest int
			fragmentsOf(w, &n, &longest)
			w.loss, w.repeat, w.shuffle = c.loss, c.loss, time.Duration(c.loss*float64(time.Second))
			p := named(a, b)
			p.Auth.Anonymous = c.cert
			id := w.initiate(a, p)
			if !w.until(25*time.Second, bothUp(a, b)) {
				t.Fatalf("not up\n%s\n%s", a.dump(), b.dump())
			}
			checkPaired(t, a, b)
			if n < c.want || longest > c.most {
				t.Errorf("%d fragments, the longest message has %d octets, want %d at most", n, longest, c.most)
			}
			w.loss = 0
			w.take(a, a.e.Do(w.now, id, Delete))
			w.run(2 * time.Minute)
			for _, h := range []*host{a, b} {
				if h.e.fragmented != 0 || h.e.Stats().SAs != 0 {
					t.Errorf("%s keeps %d octets of fragments, %d SAs", h.name, h.e.fragmented, h.e.Stats().SAs)
				}
			}
			checkSound(t, a, b)
		})
	}
}

// Without the notification of both ends nothing is fragmented (RFC 7383, 2.3).
func TestFragmentsAreNegotiated(t *testing.T) {
	f := newFragmenter(t)
	for _, on := range []bool{true, false} {
		f.sa.frag.on = on
		data, err := f.sa.sealed(f.sa.header(wire.Informational, 2, false), []wire.Payload{status(wire.InitialContact, make([]byte, 2000))}, 1)
		if want := map[bool]int{true: 2, false: 1}[on]; err != nil || len(data) != want {
			t.Errorf("%d datagrams, want %d (%v)", len(data), want, err)
		}
	}
	_, b, w := pairOf(t)
	for _, asks := range []bool{true, false} {
		o := b.e.Receive(w.now, Datagram{addrB, addrA, initRequest(3, func(m *wire.Message) {
			if asks {
				m.InitiatorSPI++
				m.Payloads = append(m.Payloads, status(wire.IKEv2FragmentationSupport, nil))
			}
		})})
		m, _ := wire.Parse(o.Send[0].Data)
		if said := notify(m.Payloads, wire.IKEv2FragmentationSupport) != nil; said != asks {
			t.Errorf("asked %v, answered %v", asks, said)
		}
	}
}

// A path that does not take our fragments: from the third send on they are smaller, and the answer's too.
func TestFragmentsShrink(t *testing.T) {
	for _, path := range []int{0, 700, 650, 580} {
		a := newHost(t, "alice.example", addrA, rsa4096(), Config{Path: path})
		b := newHost(t, "bob.example", addrB, rsa4096(), Config{Path: path})
		w := newWorld(t, a, b)
		w.tap = func(_ *host, d *Datagram) bool { return len(d.Data) <= 576-28 }
		w.initiate(a, named(a, b))
		if !w.until(10*time.Second, bothUp(a, b)) {
			t.Fatalf("path of %d: not up\n%s\n%s", path, a.dump(), b.dump())
		}
		checkPaired(t, a, b)
		checkSound(t, a, b)
	}
}

// The peer has our request, and its answers were lost. It answers to nothing but the same octets (RFC 7296, 2.1): also when we take the path to be narrow.
func TestRepeatsAreIdentical(t *testing.T) {
	a := newHost(t, "alice.example", addrA, rsa4096(), Config{})
	b := newHost(t, "bob.example", addrB, rsa4096(), Config{})
	w := newWorld(t, a, b)
	var had []byte
	repeats := 0
	w.tap = func(from *host, d *Datagram) bool {
		switch {
		case bytes.Equal(d.Data[20:24], make([]byte, 4)): // IKE_SA_INIT
			return true
		case from == b:
			return repeats > shrinkAt
		case had == nil:
			had = d.Data
		case bytes.Equal(had, d.Data):
			repeats++
		default:
			return false
		}
		return true
	}
	w.initiate(a, named(a, b))
	if !w.until(20*time.Second, bothUp(a, b)) {
		t.Fatalf("not up after %d repeats\n%s\n%s", repeats, a.dump(), b.dump())
	}
}

// fragmenter seals fragments as the peer of b would.
type fragmenter struct {
	t      testing.TB
	w      *world
	a, b   *host
	sa, of *sa
	next   uint32
}

func newFragmenter(t testing.TB) *fragmenter {
	a, b, w := pairOf(t)
	id := establish(t, w, a, b, peerOf(a, b))
	f := &fragmenter{t: t, w: w, a: a, b: b, sa: a.e.sas[id], next: 2}
	for _, s := range b.e.sas {
		f.of = s
	}
	return f
}

// part is one fragment of the request with the Message ID.
func (f *fragmenter) part(id uint32, number, total uint16, first wire.PayloadType, plain []byte) []byte {
	h := f.sa.header(wire.Informational, id, false)
	b, err := f.sa.keys.seal.enclose(h, wire.Closed{First: first, Number: number, Total: total}, plain)
	if err != nil {
		f.t.Fatal(err)
	}
	return b
}

// give hands a datagram to b and returns how many it sends back.
func (f *fragmenter) give(data []byte) int {
	return len(f.b.e.Receive(f.w.now, Datagram{addrB, addrA, data}).Send)
}

// TRUST.md A-24, and RFC 7383, 2.5 and 2.6: what is kept of fragments, and what is not.
//
//tacit:attack A-24 at most 16, each with a valid ICV, by bytes and by time
func TestFragmentBounds(t *testing.T) {
	notify := status(wire.InitialContact, bytes.Repeat([]byte{7}, 300))
	first, plain, err := wire.MarshalPayloads([]wire.Payload{notify})
	if err != nil {
		t.Fatal(err)
	}
	half := len(plain) / 2
	for name, c := range map[string]struct {
		parts   func(f *fragmenter) [][]byte
		answers int
		kept    int
	}{
		"whole": {func(f *fragmenter) [][]byte {
			return [][]byte{f.part(2, 1, 2, first, plain[:half]), f.part(2, 2, 2, 0, plain[half:])}
		}, 1, 0},
		"the second first": {func(f *fragmenter) [][]byte {
			return [][]byte{f.part(2, 2, 2, 0, plain[half:]), f.part(2, 1, 2, first, plain[:half])}
		}, 1, 0},
		"one of one": {func(f *fragmenter) [][]byte { return [][]byte{f.part(2, 1, 1, first, plain)} }, 1, 0},
		"repeats": {func(f *fragmenter) [][]byte {
			one := f.part(2, 1, 2, first, plain[:half])
			return [][]byte{one, one, f.part(2, 1, 2, first, plain[:half])}
		}, 0, half},
		"sixteen": {func(f *fragmenter) [][]byte { return [][]byte{f.part(2, 1, 16, first, plain[:half])} }, 0, half},
		"seventeen": {func(f *fragmenter) [][]byte {
			return [][]byte{f.part(2, 1, 17, first, plain[:half]), f.part(2, 1, 65535, first, plain[:half])}
		}, 0, 0},
		"a greater total begins anew": {func(f *fragmenter) [][]byte {
			return [][]byte{f.part(2, 1, 2, first, plain[:half]), f.part(2, 3, 3, 0, plain[half+9:]),
				f.part(2, 2, 3, 0, plain[half:half+9]), f.part(2, 1, 3, first, plain[:half])}
		}, 1, 0},
		"a smaller total is old": {func(f *fragmenter) [][]byte {
			return [][]byte{f.part(2, 1, 3, first, plain[:half]), f.part(2, 1, 2, first, plain[:half]), f.part(2, 2, 2, 0, plain[half:])}
		}, 0, half},
		"another message id": {func(f *fragmenter) [][]byte {
			return [][]byte{f.part(2, 1, 2, first, plain[:half]), f.part(3, 2, 2, 0, plain[half:]), f.part(9, 2, 2, 0, plain[half:])}
		}, 0, half},
		"mangled": {func(f *fragmenter) [][]byte {
			b := f.part(2, 1, 2, first, plain[:half])
			b[len(b)-1] ^= 1
			return [][]byte{b}
		}, 0, 0},
		"number changed": {func(f *fragmenter) [][]byte {
			b := f.part(2, 1, 2, first, plain[:half])
			b[wire.HeaderLen+5] = 2 // what says the number is authentic too
			b[wire.HeaderLen] = 0
			return [][]byte{b}
		}, 0, 0},
		"too much": {func(f *fragmenter) (out [][]byte) {
			for n := range uint16(15) {
				out = append(out, f.part(2, n+1, 16, []wire.PayloadType{first, 0}[min(n, 1)], make([]byte, 6000)))
			}
			return out
		}, 0, 30000},
		"whole message instead": {func(f *fragmenter) [][]byte {
			b, _ := f.sa.keys.seal.seal(f.sa.header(wire.Informational, 2, false), nil)
			return [][]byte{f.part(2, 1, 2, first, plain[:half]), b}
		}, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFragmenter(t)
			answers := 0
			for _, p := range c.parts(f) {
				answers += f.give(p)
			}
			if answers != c.answers || f.b.e.fragmented != c.kept {
				t.Errorf("%d answers and %d octets kept, want %d and %d", answers, f.b.e.fragmented, c.answers, c.kept)
			}
			f.w.take(f.b, f.b.e.Advance(f.w.now.Add(fragmentLife+time.Second)))
			if f.b.e.fragmented != 0 {
				t.Errorf("%d octets kept for ever", f.b.e.fragmented)
			}
		})
	}
	t.Run("numbers that do not parse", func(t *testing.T) {
		f := newFragmenter(t)
		for _, n := range [][4]byte{{0, 0, 0, 2}, {0, 1, 0, 0}, {0, 3, 0, 2}} {
			b := f.part(2, 1, 2, first, plain[:half])
			copy(b[wire.HeaderLen+4:], n[:])
			if f.give(b) != 0 || f.b.e.fragmented != 0 {
				t.Errorf("fragment %v is taken", n)
			}
		}
	})
	t.Run("not negotiated", func(t *testing.T) {
		f := newFragmenter(t)
		f.of.frag.on = false
		if f.give(f.part(2, 1, 1, first, plain)) != 0 {
			t.Error("a fragment is taken")
		}
	})
	t.Run("all of an Endpoint", func(t *testing.T) {
		f := newFragmenter(t)
		f.b.e.fragmented = maxFragmented - 10
		f.give(f.part(2, 1, 2, first, plain[:half]))
		if f.b.e.fragmented != maxFragmented-10 {
			t.Error("more than its bound is kept")
		}
	})
}

// "A responder never retransmits a response except in reply to a repeated request", of which the first fragment counts
// (RFC 7383, 2.6.1), also when it comes in another size.
func TestFragmentsAnsweredFromMemory(t *testing.T) {
	first, plain, err := wire.MarshalPayloads([]wire.Payload{status(wire.InitialContact, make([]byte, 100))})
	if err != nil {
		t.Fatal(err)
	}
	f := newFragmenter(t)
	one, two := f.part(2, 1, 2, first, plain[:50]), f.part(2, 2, 2, 0, plain[50:])
	got := fmt.Sprint(f.give(one), f.give(two), f.give(two), f.give(one), f.give(f.part(2, 2, 3, 0, plain[50:60])), f.give(f.part(2, 1, 3, first, plain[:20])))
	if got != "0 1 0 1 0 1" {
		t.Errorf("answers %s, want 0 1 0 1 0 1", got)
	}
	bad := f.part(2, 1, 4, first, plain[:20])
	bad[len(bad)-1] ^= 1
	if f.give(bad) != 0 {
		t.Error("an answer to what is not authentic")
	}
}

// FuzzFragments hands fragments to an established SA whose numbers, totals, sizes and Message IDs the input says: nothing
// panics, no more than the bounds is kept, and in the end nothing.
func FuzzFragments(f *testing.F) {
	f.Add([]byte{1, 2, 10, 0, 2, 2, 10, 0})
	f.Add([]byte{1, 3, 200, 1, 2, 2, 0, 0, 3, 3, 9, 2})
	f.Fuzz(func(t *testing.T, script []byte) {
		g := newFragmenter(t)
		for ; len(script) >= 4 && len(script) < 400; script = script[4:] {
			number, total := uint16(script[0]), uint16(script[1])
			if number == 0 || number > total {
				continue
			}
			first := wire.PayloadNone
			if number == 1 {
				first = wire.PayloadType(script[3])
			}
			g.give(g.part(uint32(2+script[3]%4), number, total, first, bytes.Repeat(script[:3], int(script[2]))))
			if kept := g.b.e.fragmented; kept < 0 || kept > maxReassembled {
				t.Fatalf("%d octets kept", kept)
			}
		}
		g.w.take(g.b, g.b.e.Advance(g.w.now.Add(fragmentLife+time.Second)))
		if g.b.e.fragmented != 0 {
			t.Errorf("%d octets kept for ever", g.b.e.fragmented)
		}
		checkSound(t, g.b)
	})
}

// What has come of an answer gives its room back when the request is forgotten.
func TestForgottenRequestLeavesNoFragments(t *testing.T) {
	a, _, _ := pairOf(t)
	a.e.fragmented = 100
	s := &sa{e: a.e, out: request{next: 7, parts: &reassembly{size: 100}}}
	s.forgetRequest()
	if a.e.fragmented != 0 || s.out.parts != nil || s.out.next != 7 {
		t.Errorf("%d octets are counted, %v kept, next %d", a.e.fragmented, s.out.parts, s.out.next)
	}
}
