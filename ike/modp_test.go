package ike

import (
	"bytes"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tacit/ike/wire"
)

// pi is floor(2^n pi), by Machin's formula.
func pi(n uint) *big.Int {
	const guard = 64
	one := new(big.Int).Lsh(big.NewInt(1), n+guard)
	atan := func(x int64) *big.Int { // of 1/x
		sum, term := new(big.Int), new(big.Int).Quo(one, big.NewInt(x))
		for k := int64(1); term.Sign() != 0; k += 2 {
			t := new(big.Int).Quo(term, big.NewInt(k))
			if k%4 == 3 {
				t.Neg(t)
			}
			sum.Add(sum, t)
			term.Quo(term, big.NewInt(x*x))
		}
		return sum
	}
	p := new(big.Int).Mul(atan(5), big.NewInt(4))
	p.Sub(p, atan(239)).Mul(p, big.NewInt(4))
	return p.Rsh(p, guard)
}

// RFC 3526, 3 to 5: "The prime is: 2^n - 2^(n-64) - 1 + 2^64 * { [2^(n-130) pi] + k }". It is safe, and 2 is a square.
func TestPrimes(t *testing.T) {
	for group, c := range map[uint16]struct {
		n uint
		k int64
	}{groupMODP2048: {2048, 124476}, groupMODP3072: {3072, 1690314}, groupMODP4096: {4096, 240904}} {
		one := big.NewInt(1)
		want := new(big.Int).Lsh(one, c.n)
		want.Sub(want, new(big.Int).Lsh(one, c.n-64)).Sub(want, one)
		digits := new(big.Int).Add(pi(c.n-130), big.NewInt(c.k))
		want.Add(want, digits.Lsh(digits, 64))
		m := methods[group].modp
		if got := new(big.Int).SetBytes(m.p.Nat().Bytes(m.p)); got.Cmp(want) != 0 {
			t.Errorf("%s: %x, want %x", groupName(group), got, want)
		}
		half := new(big.Int).Rsh(want, 1)
		if !want.ProbablyPrime(1) || !half.ProbablyPrime(1) || new(big.Int).Exp(big.NewInt(2), half, want).Cmp(one) != 0 {
			t.Errorf("%s: not a safe prime with the generator 2", groupName(group))
		}
	}
}

// Two ends agree, and on what math/big says.
func TestMODPSecret(t *testing.T) {
	for _, group := range []uint16{groupMODP2048, groupMODP3072, groupMODP4096} {
		rng, m := newSeeded(uint64(group)), methods[group].modp
		x, _ := newShare(rng, group)
		y, _ := newShare(rng, group)
		one, err1 := x.secret(y.public())
		two, err2 := y.secret(x.public())
		p := new(big.Int).SetBytes(m.p.Nat().Bytes(m.p))
		want := new(big.Int).Exp(new(big.Int).SetBytes(y.public()), new(big.Int).SetBytes(x.x), p).FillBytes(make([]byte, m.p.Size()))
		if err1 != nil || err2 != nil || !bytes.Equal(one, two) || !bytes.Equal(one, want) {
			t.Errorf("%s: %v %v", groupName(group), err1, err2)
		}
	}
}

// RFC 6989, 2.1: "1 < y < p-1". And a value is as long as the prime (RFC 7296, 3.4).
func TestMODPPublicValues(t *testing.T) {
	for _, group := range []uint16{groupMODP2048, groupMODP3072, groupMODP4096} {
		m := methods[group].modp
		p := new(big.Int).SetBytes(m.p.Nat().Bytes(m.p))
		x, _ := newShare(newSeeded(1), group)
		add := func(n int64) []byte { return new(big.Int).Add(p, big.NewInt(n)).FillBytes(make([]byte, m.p.Size())) }
		small := func(n byte) []byte { return append(make([]byte, m.p.Size()-1), n) }
		for name, y := range map[string][]byte{
			"0": small(0), "1": small(1), "p-1": add(-1), "p": add(0), "p+1": add(1), "all ones": bytes.Repeat([]byte{255}, m.p.Size()),
			"short": small(2)[1:], "long": append(small(0), 2), "empty": {}, "our own": x.public(),
		} {
			if _, err := x.secret(y); err == nil {
				t.Errorf("%s: %s is taken", groupName(group), name)
			}
		}
		for name, y := range map[string][]byte{"2": small(2), "p-2": add(-2)} {
			if _, err := x.secret(y); err != nil {
				t.Errorf("%s: %s is refused: %v", groupName(group), name, err)
			}
		}
	}
}

// modpOnly are two hosts of which the responder has MODP groups and no others.
func modpOnly(t testing.TB) (*host, *host, *world) {
	a, b, w := pairOf(t)
	b.e.offer.groups = []uint16{groupMODP2048}
	return a, b, w
}

// Arithmetic that takes long is done for who has returned a cookie, however few SAs are half-open, and by workers.
func TestMODPAfterCookie(t *testing.T) {
	a, b, w := modpOnly(t)
	early := 0
	w.tap = func(from *host, d *Datagram) bool {
		if m, err := wire.Parse(d.Data); err == nil && from == b && notify(m.Payloads, wire.Cookie) != nil {
			early += len(b.work) + b.e.Stats().HalfOpen
		}
		return true
	}
	w.initiate(a, peerOf(a, b))
	// x25519 and INVALID_KE_PAYLOAD, MODP and COOKIE, MODP with the cookie, IKE_AUTH
	if !w.until(time.Second, bothUp(a, b)) || w.sent != 8 {
		t.Fatalf("%d messages\n%s\n%s", w.sent, a.dump(), b.dump())
	}
	if st := b.e.Stats(); st.Drops["cookie-demanded"] != 1 || early != 0 || len(b.work) != 1 || len(a.work) != 2 {
		t.Errorf("%d half-open or at work before the cookie, %d and %d computed; %+v", early, len(a.work), len(b.work), st)
	}
	checkPaired(t, a, b)
	checkSound(t, a, b)
}

// A forged INVALID_KE_PAYLOAD does not bring two ends that have a curve to MODP.
func TestMODPIsNotPreferred(t *testing.T) {
	a, b, w := pairOf(t)
	forged := false
	w.tap = func(from *host, d *Datagram) bool {
		if h, _ := wire.ParseHeader(d.Data); from == a && h.Exchange == wire.IKESAInit && !forged {
			forged = true
			w.queue = append(w.queue, flight{at: w.now, d: Datagram{addrA, addrB, forge(d, status(wire.InvalidKEPayload, []byte{0, byte(groupMODP2048)}))}})
			return false
		}
		return true
	}
	id := w.initiate(a, peerOf(a, b))
	if !w.until(2*time.Second, bothUp(a, b)) {
		t.Fatalf("not up\n%s\n%s", a.dump(), b.dump())
	}
	if slow(a.e.sas[id].keys.suite.group) || len(b.work) != 0 {
		t.Errorf("downgraded\n%s\n%s", a.dump(), b.dump())
	}
	if b.e.Stats().Drops["invalid-ke"] != 1 {
		t.Errorf("%+v", b.e.Stats())
	}
}

// While a key exchange is computed nothing is answered, nothing is taken twice, and an SA that has ended meanwhile stays so.
func TestMODPWhileComputing(t *testing.T) {
	a, b, w := modpOnly(t)
	a.busy, b.busy = true, true
	id := w.initiate(a, peerOf(a, b))
	answer := func(h *host) {
		t.Helper()
		if len(h.work) == 0 {
			t.Fatalf("%s has nothing to compute\n%s\n%s", h.name, a.dump(), b.dump())
		}
		ev := h.work[0]
		h.work = h.work[1:]
		r := ev.Compute()
		w.take(h, h.e.Supply(w.now, ev.SA, r))
		sent := w.sent
		w.take(h, h.e.Supply(w.now, ev.SA, r)) // the same again is ignored
		w.take(h, h.e.Supply(w.now, ev.SA, SharedSecret{Token: 12345}))
		if w.sent != sent {
			t.Errorf("%s acts twice", h.name)
		}
	}
	w.run(30 * time.Millisecond)
	answer(a)
	w.run(30 * time.Millisecond)
	before := b.e.Stats().Sent
	w.run(2 * time.Second) // a repeats itself
	if st := b.e.Stats(); st.Sent != before || st.Drops["repeat"] == 0 || len(b.work) != 1 || st.HalfOpen != 1 {
		t.Errorf("while computing: %+v", st)
	}
	answer(b)
	w.run(2 * time.Second)
	if len(a.work) != 1 || count[Established](a) != 0 {
		t.Errorf("%s", a.dump())
	}
	ev := a.work[0]
	w.take(a, a.e.Do(w.now, id, Delete))
	w.take(a, a.e.Supply(w.now, id, ev.Compute()))
	w.run(time.Minute)
	if len(a.e.sas)+len(b.e.sas)+len(a.e.work)+len(b.e.work) != 0 || count[Closed](a) != 1 || count[Established](b) != 0 {
		t.Errorf("%s\n%s", a.dump(), b.dump())
	}
	checkSound(t, a, b)
}

// What happens while a rekey is computed, at either end, for the request or for the answer, leaves nothing behind.
func TestMODPRekeyMeetsDelete(t *testing.T) {
	for _, c := range []Command{RekeyChild, RekeyIKE} {
		for step := range 3 { // the initiator's value, the responder's half, the initiator's secret
			for _, byInitiator := range []bool{true, false} {
				a, b, w := modpOnly(t)
				id := w.initiate(a, peerOf(a, b))
				w.until(time.Second, bothUp(a, b))
				a.work, b.work = nil, nil
				a.busy, b.busy = step != 1, step == 1
				w.take(a, a.e.Do(w.now, id, c))
				if step == 2 {
					a.busy = false
					w.take(a, a.e.Supply(w.now, id, a.work[0].Compute()))
					a.busy, a.work = true, nil
				}
				w.run(50 * time.Millisecond)
				h := []*host{a, b, a}[step]
				at := h.work
				if len(at) != 1 {
					t.Fatalf("%v %d: %d at work", c, step, len(at))
				}
				up, _ := find[Established](b)
				if byInitiator {
					w.take(a, a.e.Do(w.now, id, Delete))
				} else {
					w.take(b, b.e.Do(w.now, up.SA, Delete))
				}
				w.run(50 * time.Millisecond)
				a.busy, b.busy = false, false
				w.take(h, h.e.Supply(w.now, at[0].SA, at[0].Compute()))
				w.run(time.Minute)
				if n := len(a.e.sas) + len(b.e.sas) + len(a.e.work) + len(b.e.work) + len(a.e.spis) + len(b.e.spis); n != 0 || count[Closed](a) != 1 || count[Closed](b) != 1 {
					t.Errorf("%v %d %v: %d left\n%s\n%s", c, step, byInitiator, n, a.dump(), b.dump())
				}
				checkSound(t, a, b)
			}
		}
	}
}

// Neither the question nor the answer tells a key to whom prints it.
func TestMODPSecretsDoNotPrint(t *testing.T) {
	sh, _ := newShare(newSeeded(1), groupMODP2048)
	other, _ := newShare(newSeeded(2), groupMODP2048)
	w := SharedSecretWanted{SA: 1, Token: 2, share: sh, peer: other.public()}
	r := w.Compute()
	for _, v := range []any{w, r} {
		for _, format := range []string{"%v", "%+v", "%s"} {
			if text := fmt.Sprintf(format, v); len(text) > 60 || strings.Contains(text, fmt.Sprint([]byte(sh.x)[:3])[1:8]) {
				t.Errorf("%s: %s", format, text)
			}
		}
	}
}

// Work that is out is bounded, whoever asks for it with good cookies.
func TestMODPWorkIsBounded(t *testing.T) {
	b := newHost(t, "bob.example", addrB, testKeys()["ed25519"], Config{CookieAbove: -1})
	b.e.offer.groups = []uint16{groupMODP2048}
	sh, _ := newShare(newSeeded(3), groupMODP2048)
	ke := &wire.KE{Group: groupMODP2048, Data: sh.public()}
	for i := range maxWork + 20 {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, byte(i >> 8), byte(i), 1}), 500)
		m := wire.Message{Header: wire.Header{InitiatorSPI: uint64(i + 1), Exchange: wire.IKESAInit, Flags: wire.FlagInitiator},
			Payloads: []wire.Payload{defaultOffer.ikeProposal(groupMODP2048), ke, &wire.Nonce{Data: make([]byte, 32)}}}
		data, _ := m.Marshal()
		o := b.e.Receive(start, Datagram{addrB, from, data})
		back, _ := wire.Parse(o.Send[0].Data)
		m.Payloads = slices.Insert(m.Payloads, 0, wire.Payload(notify(back.Payloads, wire.Cookie)))
		data, _ = m.Marshal()
		b.e.Receive(start, Datagram{addrB, from, data})
	}
	if st := b.e.Stats(); len(b.e.work) != maxWork || st.HalfOpen != maxWork || st.Drops["busy"] != 20 {
		t.Errorf("%d at work, %+v", len(b.e.work), st)
	}
}

func BenchmarkMODP(b *testing.B) {
	for _, group := range []uint16{groupMODP2048, groupMODP3072, groupMODP4096} {
		b.Run(groupName(group), func(b *testing.B) {
			x, _ := newShare(newSeeded(1), group)
			y := x.public()
			x, _ = newShare(newSeeded(2), group)
			x.pub = x.public()
			for b.Loop() {
				if _, err := x.secret(y); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A rekey of the IKE SA takes milliseconds to answer where the group is slow. What we begin meanwhile with a Child SA would not end in the heir, so that the peer
// is asked to try again (RFC 7296, 2.25.2).
func TestMODPHeirMeetsChild(t *testing.T) {
	a, b, w := modpOnly(t)
	id := w.initiate(a, peerOf(a, b))
	w.until(time.Second, bothUp(a, b))
	e, _ := find[Established](b)
	a.work, b.work = nil, nil
	b.busy = true
	w.take(a, a.e.Do(w.now, id, RekeyIKE))
	w.run(100 * time.Millisecond)
	if len(b.work) != 1 {
		t.Fatalf("%d at work", len(b.work))
	}
	ours := b.work[0]
	w.take(b, b.e.Do(w.now, e.SA, RekeyChild))
	w.take(b, b.e.Supply(w.now, e.SA, ours.Compute()))
	b.busy = false
	w.take(b, b.e.Supply(w.now, e.SA, b.work[1].Compute()))
	w.run(50 * time.Millisecond)
	if s := b.e.find(e.SA); count[Rekeyed](b) != 0 || count[ChildUp](b) != 2 {
		t.Errorf("%d heirs, %d Child SAs, busy %v\n%s", count[Rekeyed](b), count[ChildUp](b), s.child.busy(), b.states())
	}
	w.run(time.Minute) // it tries again
	for range 2 {      // and of either kind, in the SA that serves now
		w.take(b, b.e.Do(w.now, e.SA, RekeyIKE))
		w.run(time.Minute)
		w.take(b, b.e.Do(w.now, e.SA, RekeyChild))
		w.run(time.Minute)
	}
	if count[Rekeyed](b) != 3 || count[ChildUp](b) != 4 {
		t.Errorf("%d heirs, %d Child SAs\n%s", count[Rekeyed](b), count[ChildUp](b), b.states())
	}
	checkPaired(t, a, b)
	checkSound(t, a, b)
}

// Who is authenticated has no more work done than others: beyond the bound it is asked to try again, and does.
func TestMODPRekeysAreBounded(t *testing.T) {
	for _, c := range []Command{RekeyChild, RekeyIKE} {
		a, b, w := modpOnly(t)
		id := w.initiate(a, peerOf(a, b))
		w.until(time.Second, bothUp(a, b))
		b.work = nil
		others := &sa{slot: gone}
		for i := range uint64(maxWork) {
			b.e.work[1<<40+i] = work{sa: others}
		}
		w.take(a, a.e.Do(w.now, id, c))
		w.run(100 * time.Millisecond)
		if len(b.work) != 0 || len(b.e.work) != maxWork || count[ChildUp](b) != 1 || count[Rekeyed](b) != 0 {
			t.Errorf("command %d: %d at work\n%s", c, len(b.work), b.dump())
		}
		clear(b.e.work)
		w.run(2 * time.Minute)
		if count[ChildUp](b)+count[Rekeyed](b) != 2 {
			t.Errorf("command %d: not tried again\n%s", c, b.dump())
		}
		checkSound(t, a, b)
	}
}

// A peer may answer what was not asked yet: our half of its key exchange is still being computed. It is not listened to.
func TestMODPAnswerBeforeTheQuestion(t *testing.T) {
	a, b, w := modpOnly(t)
	id := w.initiate(a, peerOf(a, b))
	w.until(time.Second, bothUp(a, b))
	a.work, a.busy = nil, true
	w.take(a, a.e.Do(w.now, id, RekeyChild))
	s := only(t, a)
	k := only(t, b)
	for _, ps := range [][]wire.Payload{{&wire.Notify{Type: wire.TemporaryFailure}}, {&wire.Notify{Type: wire.ChildSANotFound}}, {&wire.Nonce{Data: make([]byte, 32)}}} {
		data, err := k.keys.seal.seal(k.header(wire.CreateChildSA, s.out.next, true), ps)
		if err != nil {
			t.Fatal(err)
		}
		if o := a.e.Receive(w.now, Datagram{addrA, addrB, data}); len(o.Send)+len(o.Events) != 0 || o.Dropped != "message-id" || s.out.state != waiting {
			t.Errorf("%+v: %v", ps[0], o)
		}
	}
	a.busy = false
	w.take(a, a.e.Supply(w.now, id, a.work[0].Compute()))
	w.run(time.Second)
	if count[ChildUp](a) != 2 {
		t.Error(a.dump())
	}
	checkPaired(t, a, b)
}
