package ike

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"tacit/ipsec"
)

var (
	addrA = netip.MustParseAddrPort("192.0.2.1:500")
	addrB = netip.MustParseAddrPort("192.0.2.2:500")
	start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
)

// seeded is a reproducible io.Reader.
type seeded struct{ r *rand.ChaCha8 }

func newSeeded(seed uint64) seeded {
	var b [32]byte
	binary.BigEndian.PutUint64(b[:], seed)
	return seeded{rand.NewChaCha8(b)}
}

func (s seeded) Read(b []byte) (int, error) { return s.r.Read(b) }

// testKeys are made once: RSA takes its time.
var testKeys = sync.OnceValue(func() map[string]crypto.Signer {
	_, ed, _ := ed25519.GenerateKey(crand.Reader)
	_, ed2, _ := ed25519.GenerateKey(crand.Reader)
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), crand.Reader)
	r, _ := rsa.GenerateKey(crand.Reader, 2048)
	return map[string]crypto.Signer{"ed25519": ed, "other": ed2, "p256": p256, "p384": p384, "rsa": r}
})

// host is an Endpoint with a caller that answers at once.
type host struct {
	t    testing.TB
	name string
	addr netip.AddrPort
	e    *Endpoint
	key  crypto.Signer

	authorize func(AuthorizationWanted) Authorization
	install   func(ChildWanted) error
	held      bool             // do not answer ChildWanted: the test will
	holds     func(Event) bool // an event that is not to be answered: the test will
	events    []Event
	wake      time.Time
	work      []SharedSecretWanted // what the engine had computed
	busy      bool                 // do not answer SharedSecretWanted: the test will

	plane
}

// plane is a data plane as the real ones behave.
type plane struct {
	in     map[ipsec.SPI]ipsec.SA // what it accepts
	out    map[uint32]ipsec.SA    // what a Pair sends with
	halves map[ipsec.SPI]half
	cur    map[uint32]ipsec.SPI // the inbound half of what is in out
	armed  []uint32             // the Pairs that send, the preferred one last
	lost   int                  // packets that came on an SA we do not have
	took   int
	order  int
	slow   time.Duration           // what it takes to send with what is preferred
	prefer map[ipsec.SPI]time.Time // when that will be
	strict bool                    // a responder's Pair does not send before the first packet that comes on it (TRUST.md R10)
}

// half is an inbound SA with the outbound one that came with it.
type half struct {
	pair  ipsec.Pair
	order int
	used  bool // a packet came on it
}

func newPlane() plane {
	return plane{in: map[ipsec.SPI]ipsec.SA{}, out: map[uint32]ipsec.SA{}, halves: map[ipsec.SPI]half{}, cur: map[uint32]ipsec.SPI{}}
}

// accept takes a Pair; arm has it send too. Of the Pairs without a packet yet none is preferred.
func (p *plane) accept(pair ipsec.Pair, arm bool) {
	p.order++
	p.in[pair.In.SPI] = pair.In
	p.halves[pair.In.SPI] = half{pair: pair, order: p.order}
	if _, ok := p.out[pair.ID]; !ok && !arm && !p.strict {
		p.out[pair.ID], p.cur[pair.ID] = pair.Out, pair.In.SPI
		p.armed = slices.Insert(p.armed, 0, pair.ID)
	}
	if arm {
		p.use(pair.In.SPI)
	}
}

// use has a Pair send with the outbound SA of an inbound one, unless it has a newer one, and prefers the Pair.
func (p *plane) use(spi ipsec.SPI) {
	h := p.halves[spi]
	id := h.pair.ID
	if _, ok := p.out[id]; !ok || p.halves[p.cur[id]].order < h.order {
		p.out[id], p.cur[id] = h.pair.Out, spi
	}
	p.armed = append(slices.DeleteFunc(p.armed, func(x uint32) bool { return x == id }), id)
}

// packet takes one that came on an inbound SA. The first has the new outbound SA used (RFC 7296, 2.8).
func (p *plane) packet(spi ipsec.SPI) {
	h, ok := p.halves[spi]
	if !ok {
		p.lost++
		return
	}
	p.took++
	if !h.used {
		h.used = true
		p.halves[spi] = h
		p.use(spi)
	}
}

// retire ends an inbound SA; if its outbound one was in use, the newest of the Pair is.
func (p *plane) retire(id uint32, spi ipsec.SPI) {
	delete(p.in, spi)
	delete(p.halves, spi)
	if p.cur[id] != spi {
		return
	}
	newest := -1
	for in, h := range p.halves {
		if h.pair.ID == id && h.order > newest {
			newest, p.out[id], p.cur[id] = h.order, h.pair.Out, in
		}
	}
}

func (p *plane) remove(id uint32) {
	for in, h := range p.halves {
		if h.pair.ID == id {
			delete(p.in, in)
			delete(p.halves, in)
		}
	}
	delete(p.out, id)
	delete(p.cur, id)
	p.armed = slices.DeleteFunc(p.armed, func(x uint32) bool { return x == id })
}

func newHost(t testing.TB, name string, addr netip.AddrPort, key crypto.Signer, cfg Config) *host {
	if cfg.Rand == nil {
		cfg.Rand = newSeeded(uint64(len(name)) + uint64(addr.Addr().As16()[15]))
	}
	if key != nil {
		cfg.Name, cfg.Public = name, key.Public()
	}
	if cfg.PostQuantum == After { // tests of that set it, and of others it would be in the way
		cfg.PostQuantum = Off
	}
	h := &host{t: t, name: name, addr: addr, key: key, e: New(cfg), plane: newPlane()}
	h.authorize = func(AuthorizationWanted) Authorization { return Authorization{Anonymous: true} }
	h.install = func(ChildWanted) error { return nil }
	return h
}

// world is a network of hosts with a time of its own.
type world struct {
	t     testing.TB
	now   time.Time
	rng   *rand.Rand
	hosts []*host
	queue []flight
	delay time.Duration

	loss, repeat float64
	shuffle      time.Duration                      // random extra delay
	tap          func(from *host, d *Datagram) bool // false: swallow
	sent         int
}

// flight is a datagram of IKE on its way, or (spi not 0) a packet of ESP.
type flight struct {
	at  time.Time
	d   Datagram
	spi ipsec.SPI
}

func newWorld(t testing.TB, hosts ...*host) *world {
	return &world{t: t, now: start, rng: rand.New(rand.NewPCG(1, 2)), hosts: hosts, delay: 5 * time.Millisecond}
}

// take does what an Output asks.
func (w *world) take(h *host, o Output) {
	h.wake = o.Wake
	for _, d := range o.Send {
		d.Data = slices.Clone(d.Data)
		w.send(h, d)
	}
	for _, ev := range o.Events {
		h.events = append(h.events, ev)
		h.handle(w, ev)
	}
	h.e.Recycle(o)
	h.checkRest()
}

// checkRest checks what atRest says of every SA: once a request is answered that asked for nothing, all that follows a request has nothing to do.
func (h *host) checkRest() {
	h.t.Helper()
	e := h.e
	for _, s := range e.sas {
		if !s.atRest(Datagram{Local: s.local}) || s.slot < 0 || due(e.timers[s.slot].wake, e.now.Add(time.Millisecond)) {
			continue
		}
		e.out = Output{}
		s.chosen(nil)
		s.child.sure()
		s.child.checkDown(s, nil)
		s.pump()
		wake := s.tick()
		if len(e.out.Events)+len(e.out.Send) > 0 || wake != 0 && wake < e.timers[s.slot].wake {
			h.t.Errorf("%s: an SA at rest did %v, sent %d messages, and wakes %v before its turn", h.name, e.out.Events, len(e.out.Send), e.timers[s.slot].wake.Sub(wake))
		}
		e.out = Output{}
	}
}

func (w *world) send(from *host, d Datagram) {
	w.sent++
	if w.tap != nil && !w.tap(from, &d) {
		return
	}
	copies := 1
	if w.rng.Float64() < w.loss {
		copies = 0
	}
	if w.rng.Float64() < w.repeat {
		copies++
	}
	for range copies {
		at := w.now.Add(w.delay)
		if w.shuffle > 0 {
			at = at.Add(time.Duration(w.rng.Int64N(int64(w.shuffle))))
		}
		w.queue = append(w.queue, flight{at: at, d: Datagram{Local: d.Remote, Remote: d.Local, Data: d.Data}})
	}
}

// handle is a caller: data plane, signer and PAD.
func (h *host) handle(w *world, ev Event) {
	if h.holds != nil && h.holds(ev) {
		return
	}
	switch ev := ev.(type) {
	case AuthorizationWanted:
		w.take(h, h.e.Authorize(w.now, ev.SA, h.authorize(ev)))
	case SignatureWanted:
		sig, err := h.key.Sign(crand.Reader, ev.Data, ev.Opts)
		w.take(h, h.e.Supply(w.now, ev.SA, Signature{ev.Token, sig, err}))
	case SharedSecretWanted:
		h.work = append(h.work, ev)
		if !h.busy {
			w.take(h, h.e.Supply(w.now, ev.SA, ev.Compute()))
		}
	case ChildWanted:
		if h.held {
			return
		}
		err := h.install(ev)
		if err == nil {
			h.accept(ev.Pair, ev.Initiator)
		}
		w.take(h, h.e.Supply(w.now, ev.SA, Installed{ev.Token, err}))
	case ChildUp:
		if len(ev.Pair.In.Key)+len(ev.Pair.Out.Key) > 0 {
			h.t.Errorf("%s: ChildUp carries keys", h.name)
		}
	case ChildRetired:
		h.retire(ev.Pair, ev.In)
	case ChildPreferred:
		if _, armed := h.out[ev.Pair.ID]; armed || !ev.Rekey {
			if h.slow == 0 {
				h.use(ev.Pair.In.SPI)
			} else {
				h.prefer = map[ipsec.SPI]time.Time{ev.Pair.In.SPI: w.now.Add(h.slow)}
			}
		}
	case ChildDown:
		h.remove(ev.Pair)
	}
}

// run lets the world go on for d.
func (w *world) run(d time.Duration) { w.until(d, func() bool { return false }) }

// until lets it go on until done, and reports whether that was within d.
func (w *world) until(d time.Duration, done func() bool) bool {
	end := w.now.Add(d)
	for steps := 0; !done(); steps++ {
		if steps > 2_000_000 {
			w.t.Fatal("the world does not come to rest")
		}
		next, who, i := end, (*host)(nil), -1
		for n := range w.queue {
			if w.queue[n].at.Before(next) {
				next, i = w.queue[n].at, n
			}
		}
		for _, h := range w.hosts {
			if !h.wake.IsZero() && h.wake.Before(next) {
				next, who, i = h.wake, h, -1
			}
		}
		if next.After(w.now) {
			w.now = next
		}
		switch {
		case who != nil:
			w.take(who, who.e.Advance(w.now))
			if !who.wake.IsZero() && !who.wake.After(w.now) {
				w.t.Fatalf("%s wants to be woken in the past", who.name)
			}
		case i >= 0:
			f := w.queue[i]
			w.queue = slices.Delete(w.queue, i, i+1)
			if f.spi != 0 {
				w.packet(f)
			} else {
				w.deliver(f.d)
			}
		default:
			return false
		}
	}
	return true
}

func (w *world) deliver(d Datagram) {
	for _, h := range w.hosts {
		if h.addr.Addr() == d.Local.Addr() {
			w.take(h, h.e.Receive(w.now, d))
		}
	}
}

// traffic sends a packet each way, if the hosts have a pair: with the one that was armed last.
func (w *world) traffic() {
	for _, h := range w.hosts {
		for spi, at := range h.prefer {
			if _, ok := h.in[spi]; ok && !at.After(w.now) {
				h.use(spi)
				delete(h.prefer, spi)
			}
		}
		if len(h.armed) == 0 {
			continue
		}
		out := h.out[h.armed[len(h.armed)-1]]
		for _, to := range w.hosts {
			if to != h {
				at := w.now.Add(w.delay)
				if w.shuffle > 0 {
					at = at.Add(time.Duration(w.rng.Int64N(int64(w.shuffle))))
				}
				w.queue = append(w.queue, flight{at: at, d: Datagram{Local: to.addr, Remote: h.addr}, spi: out.SPI})
			}
		}
	}
}

func (w *world) packet(f flight) {
	for _, h := range w.hosts {
		if h.addr == f.d.Local {
			h.packet(f.spi)
		}
	}
}

func (w *world) initiate(h *host, p Peer) SAID {
	id, o := h.e.Initiate(w.now, p)
	w.take(h, o)
	return id
}

// find returns the last event of a type.
func find[T Event](h *host) (T, bool) {
	for _, ev := range slices.Backward(h.events) {
		if e, ok := ev.(T); ok {
			return e, true
		}
	}
	var none T
	return none, false
}

func count[T Event](h *host) (n int) {
	for _, ev := range h.events {
		if _, ok := ev.(T); ok {
			n++
		}
	}
	return n
}

// peerOf is a Peer for an authenticated responder and an anonymous initiator.
func peerOf(from, to *host) Peer {
	return Peer{
		Local: from.addr, Remote: to.addr,
		RemoteID: ID{IDFQDN, to.name}, LocalID: ID{Kind: IDNull},
		Auth: Authorization{Keys: []crypto.PublicKey{to.key.Public()}},
	}
}

// checkSound looks for what must never be in an Endpoint.
func checkSound(t testing.TB, hosts ...*host) {
	t.Helper()
	for _, h := range hosts {
		for why, n := range h.e.Stats().Drops {
			if len(why) > 8 && why[:8] == "no arrow" {
				t.Errorf("%s: %s, %d times", h.name, why, n)
			}
		}
		if h.e.timers.Len() > len(h.e.sas) || h.e.stats.HalfOpen < 0 {
			t.Errorf("%s: %d timers, %d SAs, %d half-open", h.name, h.e.timers.Len(), len(h.e.sas), h.e.stats.HalfOpen)
		}
	}
}

// checkPaired makes sure that what one sends with, the other accepts, with the same key.
func checkPaired(t testing.TB, a, b *host) {
	t.Helper()
	check := func(from, to *host) {
		for id, out := range from.out {
			in, ok := to.in[out.SPI]
			if !ok || string(in.Key) != string(out.Key) || string(in.Salt) != string(out.Salt) || string(in.AuthKey) != string(out.AuthKey) || in.Integrity != out.Integrity || in.Check() != nil || in.ESN != out.ESN || in.Cipher != out.Cipher {
				t.Errorf("%s sends pair %d with SPI %v, which %s does not accept", from.name, id, out.SPI, to.name)
			}
		}
		if len(from.out) != 1 {
			t.Errorf("%s has %d pairs", from.name, len(from.out))
		}
	}
	check(a, b)
	check(b, a)
}

func (h *host) dump() string {
	s := h.name + ":"
	for _, ev := range h.events {
		s += fmt.Sprintf("\n  %T%+v", ev, ev)
	}
	return s + fmt.Sprintf("\n  %+v", h.e.Stats())
}
