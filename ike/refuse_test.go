package ike

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// closedWith runs a negotiation that must fail (with want, or any error): nobody has a Child SA at the end, and nothing is left.
func closedWith(t *testing.T, w *world, a, b *host, p Peer, want error) {
	t.Helper()
	w.initiate(a, p)
	w.run(time.Second)
	c, ok := find[Closed](a)
	if !ok || c.Err == nil || want != nil && !errors.Is(c.Err, want) {
		t.Errorf("initiator closed with %v, want %v", c.Err, want)
	}
	if count[ChildUp](a) != 0 {
		t.Error("initiator has a Child SA")
	}
	w.run(2 * time.Minute)
	for _, h := range []*host{a, b} {
		if count[Established](h) > count[Closed](h) || count[ChildUp](h) > count[ChildDown](h) {
			t.Errorf("a half is left\n%s", h.dump())
		}
		if st := h.e.Stats(); st.SAs != 0 || st.HalfOpen != 0 || len(h.e.spis) != 0 || len(h.e.timers) != 0 || len(h.e.half) != 0 {
			t.Errorf("%s: %+v, %d SPIs, %d timers", h.name, st, len(h.e.spis), len(h.e.timers))
		}
	}
	checkSound(t, a, b)
}

//tacit:attack A-27 no SA with ourselves
func TestRefusals(t *testing.T) {
	other := testKeys()["other"].Public()
	for name, c := range map[string]struct {
		want  error
		setup func(a, b *host, p *Peer)
	}{
		"wrong key":    {ErrAuthentication, func(_, _ *host, p *Peer) { p.Auth.Keys = []crypto.PublicKey{other} }},
		"no key":       {ErrAuthentication, func(_, _ *host, p *Peer) { p.Auth.Keys = nil }},
		"weak key":     {ErrAuthentication, func(_, _ *host, p *Peer) { p.Auth.Keys = []crypto.PublicKey{"any"} }},
		"wrong IDr":    {ErrAuthentication, func(_, _ *host, p *Peer) { p.RemoteID.Value = "carol.example" }},
		"IDr of bytes": {ErrAuthentication, func(_, _ *host, p *Peer) { p.RemoteID = ID{IDIPv4, "192.0.2.2"} }},
		"no anonymous": {ErrAuthentication, func(_, b *host, _ *Peer) {
			b.authorize = func(AuthorizationWanted) Authorization { return Authorization{Keys: []crypto.PublicKey{other}} }
		}},
		"refused": {ErrAuthentication, func(_, b *host, _ *Peer) {
			b.authorize = func(AuthorizationWanted) Authorization { return Authorization{Refuse: true, Anonymous: true} }
		}},
		"initiator's key unknown": {ErrAuthentication, func(a, b *host, p *Peer) {
			a.key = testKeys()["other"]
			a.e.cfg.Name, a.e.cfg.Public = a.name, a.key.Public()
			p.LocalID = ID{IDFQDN, a.name}
			b.authorize = func(AuthorizationWanted) Authorization {
				return Authorization{Keys: []crypto.PublicKey{b.key.Public()}}
			}
		}},
		"responder without a key": {ErrAuthentication, func(_, b *host, _ *Peer) { b.e.cfg.Public, b.e.cfg.Name = nil, "" }},
		"responder without a key, nobody asked for": {ErrAuthentication, func(_, b *host, p *Peer) {
			b.e.cfg.Public, b.e.cfg.Name, p.RemoteID = nil, "", ID{}
		}},
		"responder's data plane": {NotifyError{wire.NoProposalChosen}, func(_, b *host, _ *Peer) {
			b.install = func(ChildWanted) error { return errors.New("full") }
		}},
		"initiator's data plane": {ErrInstall, func(a, _ *host, _ *Peer) {
			a.install = func(ChildWanted) error { return errors.New("full") }
		}},
		"our own signer":        {ErrAuthentication, func(_, b *host, _ *Peer) { b.key = brokenSigner{b.key} }},
		"to ourselves":          {ErrSelf, func(_, _ *host, p *Peer) { p.Remote = p.Local }},
		"to nobody":             {ErrRefused, func(_, _ *host, p *Peer) { p.Remote = netip.MustParseAddrPort("0.0.0.0:500") }},
		"named, without a name": {ErrAuthentication, func(_, _ *host, p *Peer) { p.LocalID = ID{IDFQDN, "alice.example"} }},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, w := pairOf(t)
			p := peerOf(a, b)
			c.setup(a, b, &p)
			closedWith(t, w, a, b, p, c.want)
		})
	}
}

type brokenSigner struct{ crypto.Signer }

func (brokenSigner) Sign(_ io.Reader, _ []byte, _ crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("the key is away")
}

// Nobody with nobody: both are allowed to be, so it comes up, and says so.
func TestAnonymousBothWays(t *testing.T) {
	a, b, w := pairOf(t)
	p := peerOf(a, b)
	b.e.cfg.Public, b.e.cfg.Name, p.RemoteID = nil, "", ID{}
	p.Auth = Authorization{Anonymous: true}
	establish(t, w, a, b, p)
	if e, _ := find[Established](a); e.Key != nil || e.RemoteID.Kind != IDNull {
		t.Errorf("%+v", e)
	}
	if up, _ := find[ChildUp](a); up.Pair.Authenticated {
		t.Error("the pair counts as authenticated")
	}
}

// A signature by a key that nobody knows is nobody's; where that is allowed the SA comes up without a key.
func TestUnknownKeyAsNobody(t *testing.T) {
	a, b, w := pairOf(t)
	p := peerOf(a, b)
	p.Auth = Authorization{Keys: []crypto.PublicKey{testKeys()["other"].Public()}, Anonymous: true}
	establish(t, w, a, b, p)
	if e, _ := find[Established](a); e.Key != nil {
		t.Errorf("%+v", e)
	}
}

// An initiator that is told to stop while its IKE_AUTH is out says so to the responder, which may have armed itself by then
// (TRUST.md R10, A-05).
//
//tacit:attack A-05 the initiator that rejects AUTH sends a DELETE, repeated, and the responder keeps nothing
func TestDeleteInFlight(t *testing.T) {
	a, b, w := pairOf(t)
	id := w.initiate(a, peerOf(a, b))
	w.until(time.Second, func() bool { return count[ChildWanted](b) == 1 })
	w.take(a, a.e.Do(w.now, id, Delete))
	if count[Closed](a) != 1 {
		t.Error("the caller must wait for it")
	}
	w.loss = 0.3
	w.run(time.Minute)
	if count[Closed](b) != 1 || count[ChildDown](b) != 1 || count[ChildWanted](a) != 0 || a.e.Stats().SAs+b.e.Stats().SAs != 0 {
		t.Errorf("%s\n%s", a.dump(), b.dump())
	}
}

func TestInvalidKE(t *testing.T) {
	for _, cookie := range []int{0, -1} {
		a, b, w := pairWith(t, Config{}, Config{CookieAbove: cookie})
		b.e.offer.groups = []uint16{groupP256}
		w.initiate(a, peerOf(a, b))
		if !w.until(time.Second, bothUp(a, b)) || w.sent != 6-2*cookie {
			t.Errorf("not up, %d messages\n%s\n%s", w.sent, a.dump(), b.dump())
		}
		checkPaired(t, a, b)
	}
}

// forge is an unencrypted IKE_SA_INIT response to the initiator that d comes from.
func forge(d *Datagram, ps ...wire.Payload) []byte {
	h, _ := wire.ParseHeader(d.Data)
	m := wire.Message{Header: wire.Header{InitiatorSPI: h.InitiatorSPI, Exchange: wire.IKESAInit, Flags: wire.FlagResponse}, Payloads: ps}
	b, err := m.Marshal()
	if err != nil {
		panic(err)
	}
	return b
}

// TRUST.md A-16: what nobody has signed does not end a negotiation.
//
//tacit:attack A-16 no forged notification ends the negotiation
func TestForgedNotifies(t *testing.T) {
	ke := func(g uint16) wire.Payload {
		return status(wire.InvalidKEPayload, binary.BigEndian.AppendUint16(nil, g))
	}
	for name, ps := range map[string][]wire.Payload{
		"NO_PROPOSAL_CHOSEN":    {&wire.Notify{Type: wire.NoProposalChosen}},
		"AUTHENTICATION_FAILED": {&wire.Notify{Type: wire.AuthenticationFailed}},
		"INVALID_SYNTAX":        {&wire.Notify{Type: wire.InvalidSyntax}},
		"INVALID_MAJOR_VERSION": {&wire.Notify{Type: wire.InvalidMajorVersion}},
		"private error":         {&wire.Notify{Type: 8192}},
		"INVALID_KE of ours":    {ke(groupX25519)},
		"INVALID_KE of P-256":   {ke(groupP256)},
		"INVALID_KE of MODP":    {ke(14)},
		"INVALID_KE, reserved":  {ke(0)},
		"INVALID_KE, no group":  {status(wire.InvalidKEPayload, nil)},
		"COOKIE":                {status(wire.Cookie, []byte("forged"))},
		"empty cookie":          {status(wire.Cookie, nil)},
		"long cookie":           {status(wire.Cookie, make([]byte, 65))},
		"nothing":               nil,
		"DELETE":                {bye()},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, w := pairOf(t)
			inits := 0
			w.tap = func(from *host, d *Datagram) bool {
				if h, _ := wire.ParseHeader(d.Data); from == a && h.Exchange == wire.IKESAInit {
					inits++
					for range 3 { // at once, before the real answer
						w.queue = append(w.queue, flight{at: w.now.Add(time.Millisecond), d: Datagram{addrA, addrB, forge(d, ps...)}})
					}
				}
				return true
			}
			w.initiate(a, peerOf(a, b))
			if !w.until(3*time.Second, bothUp(a, b)) {
				t.Errorf("not up\n%s\n%s", a.dump(), b.dump())
			}
			if inits > 2 {
				t.Errorf("%d IKE_SA_INIT requests", inits)
			}
		})
	}
}

// INVALID_KE_PAYLOAD is obeyed twice: once for whoever forges it, once for the responder, who wants the first group back.
//
//tacit:attack A-16 INVALID_KE_PAYLOAD is obeyed once
func TestForgedGroups(t *testing.T) {
	a, b, w := pairOf(t)
	inits, forged := 0, 0
	w.tap = func(from *host, d *Datagram) bool {
		h, _ := wire.ParseHeader(d.Data)
		if from != a || h.Exchange != wire.IKESAInit {
			return true
		}
		if inits++; forged < 10 {
			g := groupX25519
			if forged == 0 {
				g = groupP256
			}
			forged++
			w.queue = append(w.queue, flight{at: w.now.Add(time.Millisecond),
				d: Datagram{addrA, addrB, forge(d, status(wire.InvalidKEPayload, binary.BigEndian.AppendUint16(nil, g)))}})
		}
		return true
	}
	w.initiate(a, peerOf(a, b))
	if !w.until(3*time.Second, bothUp(a, b)) || inits > 3 {
		t.Errorf("%d IKE_SA_INIT requests\n%s\n%s", inits, a.dump(), b.dump())
	}
}

// Answers that make no sense are not the responder's: the true one is waited for, and taken.
//
//tacit:attack A-16 answers that make no sense are dropped, the true one counts
func TestForgedAnswers(t *testing.T) {
	suite := func(bits, prf uint16) *wire.SA {
		return &wire.SA{Proposals: []wire.Proposal{{Number: 1, Protocol: wire.ProtocolIKE, Transforms: []wire.Transform{
			{Type: wire.TransformEncr, ID: 20, KeyLength: bits}, {Type: wire.TransformPRF, ID: prf}, {Type: wire.TransformKE, ID: groupX25519}}}}}
	}
	sa := suite(128, wire.PRFHMACSHA2256)
	sh, _ := newShare(newSeeded(3), groupX25519)
	ke, nonce := &wire.KE{Group: groupX25519, Data: sh.public()}, &wire.Nonce{Data: make([]byte, 32)}
	good := []wire.Payload{sa, ke, nonce}
	for name, c := range map[string]struct {
		ps     []wire.Payload
		change func(asked *wire.Message, answer []byte)
	}{
		"no KE":                    {[]wire.Payload{sa, nonce}, nil},
		"no nonce":                 {[]wire.Payload{sa, ke}, nil},
		"what we did not offer":    {[]wire.Payload{suite(192, wire.PRFHMACSHA2256), ke, nonce}, nil},
		"another group":            {[]wire.Payload{sa, &wire.KE{Group: groupP256, Data: make([]byte, 64)}, nonce}, nil},
		"two SA payloads":          {[]wire.Payload{sa, sa, ke, nonce}, nil},
		"a share of one octet":     {[]wire.Payload{sa, &wire.KE{Group: groupX25519, Data: []byte{1}}, nonce}, nil},
		"a share of zeros":         {[]wire.Payload{sa, &wire.KE{Group: groupX25519, Data: make([]byte, 32)}, nonce}, nil},
		"a nonce below half a key": {[]wire.Payload{suite(128, wire.PRFHMACSHA2512), ke, &wire.Nonce{Data: make([]byte, 16)}}, nil},
		"our own nonce": {good, func(asked *wire.Message, answer []byte) {
			copy(answer[len(answer)-32:], get[*wire.Nonce](asked.Payloads).Data)
		}},
		"our own SPI":      {good, func(_ *wire.Message, answer []byte) { copy(answer[8:16], answer[:8]) }},
		"no responder SPI": {good, func(_ *wire.Message, answer []byte) { answer[15] = 0 }},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, w := pairOf(t)
			w.tap = func(from *host, d *Datagram) bool {
				if m, err := wire.Parse(d.Data); err == nil && from == a && m.Exchange == wire.IKESAInit {
					data := forge(d, c.ps...)
					data[15] = 99
					if c.change != nil {
						c.change(m, data)
					}
					w.queue = append(w.queue, flight{at: w.now.Add(time.Millisecond), d: Datagram{addrA, addrB, data}})
				}
				return true
			}
			w.initiate(a, peerOf(a, b))
			if !w.until(3*time.Second, bothUp(a, b)) || count[Closed](a) != 0 {
				t.Errorf("not up\n%s\n%s", a.dump(), b.dump())
			}
		})
	}
}

// The reason is told when nothing better came: after the last wait, not before.
func TestUnauthenticatedRefusal(t *testing.T) {
	a, b, w := pairOf(t)
	b.e.offer = offering(cipherSuite{cipher: ipsec.AESGCM16, bits: 192}, groupX25519)
	w.initiate(a, peerOf(a, b))
	w.run(10 * time.Second)
	if count[Closed](a) != 0 {
		t.Fatal("closed at once")
	}
	w.run(10 * time.Second)
	if c, _ := find[Closed](a); c.Err != (NotifyError{wire.NoProposalChosen}) {
		t.Errorf("closed with %v", c.Err)
	}
	if b.e.Stats().SAs != 0 {
		t.Error("the responder keeps state")
	}
}

// TRUST.md A-21: no answer of a responder is longer than the request, also for the shortest request.
//
//tacit:attack A-21 no answer is longer than the request, also to the shortest
func TestNoAmplification(t *testing.T) {
	_, b, w := pairOf(t)
	sh, _ := newShare(newSeeded(3), groupX25519)
	ts := []wire.Transform{{Type: wire.TransformEncr, ID: 20, KeyLength: 128}, {Type: wire.TransformPRF, ID: 5}, {Type: wire.TransformKE, ID: groupX25519}}
	for _, cookie := range []int{100, -1} {
		b.e.cfg.CookieAbove = cookie
		for i, ps := range [][]wire.Payload{
			{&wire.SA{Proposals: []wire.Proposal{{Number: 1, Protocol: wire.ProtocolIKE, Transforms: ts}}}, &wire.KE{Group: groupX25519, Data: sh.public()}, &wire.Nonce{Data: make([]byte, 16)}},
			{&wire.SA{Proposals: []wire.Proposal{{Number: 1, Protocol: wire.ProtocolIKE, Transforms: ts[:2]}}}, &wire.KE{Group: 1, Data: []byte{1}}, &wire.Nonce{Data: make([]byte, 16)}},
			{&wire.SA{Proposals: []wire.Proposal{{Number: 1, Protocol: wire.ProtocolIKE, Transforms: ts}}}, &wire.KE{Group: groupX25519, Data: sh.public()}, &wire.Nonce{Data: make([]byte, 16)},
				status(wire.NATDetectionSourceIP, nil), status(wire.NATDetectionDestinationIP, nil), status(wire.SignatureHashAlgorithms, nil),
				status(wire.IKEv2FragmentationSupport, nil), status(wire.MultipleAuthSupported, nil), status(wire.SupportedAuthMethods, announcesNull)},
		} {
			m := wire.Message{Header: wire.Header{InitiatorSPI: uint64(i + 1), Exchange: wire.IKESAInit, Flags: wire.FlagInitiator}, Payloads: ps}
			data, _ := m.Marshal()
			o := b.e.Receive(w.now, Datagram{addrB, addrA, data})
			if len(o.Send) != 1 || len(o.Send[0].Data) > len(data) {
				t.Errorf("request %d of %d octets, %d answers", i, len(data), len(o.Send))
			}
			if i == 2 && b.e.half[halfKey{3, addrA}] != nil {
				t.Error("state for a request whose answer was too long")
			}
		}
	}
}

// TRUST.md A-27: our own messages that come back are dropped, at either end, at any time.
//
//tacit:attack A-27 dropped at either end, at any time
func TestReflection(t *testing.T) {
	a, b, w := pairOf(t)
	w.tap = func(from *host, d *Datagram) bool {
		back := Datagram{Local: d.Remote, Remote: d.Local, Data: slices.Clone(d.Data)}
		w.queue = append(w.queue, flight{at: w.now.Add(time.Millisecond), d: Datagram{Local: d.Local, Remote: d.Remote, Data: back.Data}})
		return true
	}
	w.initiate(a, peerOf(a, b))
	if !w.until(time.Second, bothUp(a, b)) || a.e.Stats().SAs != 1 || b.e.Stats().SAs != 1 {
		t.Errorf("%s\n%s", a.dump(), b.dump())
	}
	// An initiator's own message is told from a peer's; a responder's names an SPI that is not ours.
	for _, h := range []*host{a, b} {
		if d := h.e.Stats().Drops; d["reflected"]+d["unknown-spi"] != 2 {
			t.Errorf("%s dropped %v", h.name, d)
		}
	}
}

// A "response" with our role and our SPI in the other's place is none.
func TestRolesAreChecked(t *testing.T) {
	a, b, w := pairOf(t)
	id, _ := a.e.Initiate(w.now, peerOf(a, b))
	m := wire.Message{
		Header:   wire.Header{InitiatorSPI: 1, ResponderSPI: uint64(id), Exchange: wire.IKESAInit, Flags: wire.FlagResponse | wire.FlagInitiator},
		Payloads: []wire.Payload{status(wire.Cookie, []byte("x"))},
	}
	data, _ := m.Marshal()
	if o := a.e.Receive(w.now, Datagram{addrA, addrB, data}); len(o.Send) != 0 || a.e.Stats().Drops["reflected"] != 1 {
		t.Errorf("%+v", a.e.Stats())
	}
}

// A man in the middle who completes both key exchanges has no key to sign with, and no SA is left anywhere.
//
//tacit:attack A-17 no SA is left anywhere
func TestManInTheMiddle(t *testing.T) {
	a, b, w := pairOf(t)
	m := newHost(t, "bob.example", addrB, testKeys()["other"], Config{})
	m.addr = b.addr
	w.hosts = []*host{a, m}
	closedWith(t, w, a, m, peerOf(a, b), ErrAuthentication)
	if count[ChildDown](m) != 1 {
		t.Errorf("the deceived end still believes\n%s", m.dump())
	}
}

func TestHigherVersion(t *testing.T) {
	a, b, w := pairOf(t)
	_, o := a.e.Initiate(w.now, peerOf(a, b))
	data := bytes.Clone(o.Send[0].Data)
	data[17] = 0x30
	d := Datagram{addrB, addrA, data}
	first, second := b.e.Receive(w.now, d), b.e.Receive(w.now, d)
	if len(first.Send) != 1 || len(second.Send) != 0 || len(first.Send[0].Data) > len(data) {
		t.Errorf("%d and %d answers", len(first.Send), len(second.Send))
	}
	m, err := wire.Parse(first.Send[0].Data)
	if err != nil || notify(m.Payloads, wire.InvalidMajorVersion) == nil {
		t.Errorf("%+v %v", m, err)
	}
	data[17] = 0x10
	if o := b.e.Receive(w.now.Add(time.Minute), d); len(o.Send) != 0 {
		t.Error("IKEv1 is answered")
	}
	if o := a.e.Receive(w.now, Datagram{addrA, addrB, first.Send[0].Data}); len(o.Events) != 0 {
		t.Errorf("%+v", o.Events)
	}
}

// Caps: a flood of first messages is met with cookies, then with silence; who is established is not harmed.
//
//tacit:attack A-22 cookies, then silence; who is established answers a probe
func TestFlood(t *testing.T) {
	a, b, w := pairWith(t, Config{}, Config{CookieAbove: 20, MaxHalfOpen: 40})
	id := establish(t, w, a, b, peerOf(a, b))
	flood := New(Config{Rand: newSeeded(9)})
	for i := range 200 {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i), 1}), 500)
		_, o := flood.Initiate(w.now, Peer{Local: from, Remote: addrB, Auth: Authorization{Anonymous: true}})
		for range 2 { // the second time with the cookie
			for _, d := range o.Send {
				r := b.e.Receive(w.now, Datagram{addrB, from, d.Data})
				o = Output{}
				for _, back := range r.Send {
					o = flood.Receive(w.now, Datagram{from, addrB, back.Data})
				}
			}
		}
	}
	st := b.e.Stats()
	if st.HalfOpen != 40 || st.Drops["cookie-demanded"] < 20 || st.Drops["too-many-half-open"] == 0 {
		t.Errorf("%+v", st)
	}
	w.take(a, a.e.Do(w.now, id, Probe))
	if !w.until(time.Second, func() bool { return count[Alive](a) == 1 }) {
		t.Error("an established SA is harmed")
	}
	w.run(time.Minute)
	if st := b.e.Stats(); st.HalfOpen != 0 || st.SAs != 1 {
		t.Errorf("after a minute: %+v", st)
	}
}

// 100,000 first messages from spoofed addresses leave no state beyond the threshold, nor memory, and get back less than they are; who is
// established rekeys meanwhile (TRUST.md ).
//
//tacit:attack A-22 100,000 first messages leave no state beyond the threshold; who is established rekeys meanwhile
func TestSpoofedFlood(t *testing.T) {
	a, b, w := pairOf(t)
	id := establish(t, w, a, b, peerOf(a, b))
	data := initRequest(1, func(*wire.Message) {})
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	var before uint64
	rekeys := 0
	for i := range uint32(100_000) {
		if i == 1000 {
			before = heap()
		}
		binary.BigEndian.PutUint64(data, uint64(i)<<20+1)
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{100, byte(i >> 12), byte(i >> 4), byte(i)}), 500)
		out := 0
		for _, s := range b.e.Receive(w.now, Datagram{addrB, from, data}).Send {
			out += len(s.Data)
		}
		if out > len(data) {
			t.Fatalf("%d octets answered with %d", len(data), out)
		}
		if i%10_000 == 0 {
			up := count[ChildUp](a)
			w.take(a, a.e.Do(w.now, id, RekeyChild))
			if w.until(time.Second, func() bool { return count[ChildUp](a) > up }) {
				rekeys++
			}
		}
	}
	if st := b.e.Stats(); st.HalfOpen > b.e.cfg.CookieAbove || st.SAs != st.HalfOpen+1 || rekeys != 10 {
		t.Errorf("%d half-open of %d SAs, %d rekeys", st.HalfOpen, st.SAs, rekeys)
	}
	if grown := int64(heap()) - int64(before); grown > 1<<20 {
		t.Errorf("%d octets more memory", grown)
	}
	w.run(time.Minute)
	if st := b.e.Stats(); st.HalfOpen != 0 || st.SAs != 1 || len(b.e.half)+len(b.e.networks()) != 1 {
		t.Errorf("after a minute: %+v", st)
	}
	runtime.KeepAlive(b)
}

// One network alone cannot take all places.
//
//tacit:attack A-22 one network does not take all places
func TestFloodFromOneNetwork(t *testing.T) {
	_, b, w := pairWith(t, Config{}, Config{MaxHalfOpen: 40, CookieAbove: 1000})
	flood := New(Config{Rand: newSeeded(9)})
	for i := range 60 {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 500)
		_, o := flood.Initiate(w.now, Peer{Local: from, Remote: addrB, Auth: Authorization{Anonymous: true}})
		b.e.Receive(w.now, Datagram{addrB, from, o.Send[0].Data})
	}
	if n := b.e.Stats().HalfOpen; n != 10 {
		t.Errorf("%d half-open SAs of one /24, want 10 of 40", n)
	}
}

// TRUST.md A-21: a refusal that would be longer than the request is not sent.
//
//tacit:attack A-21 a refusal that would be longer than the request is not sent
func TestShortRefusals(t *testing.T) {
	_, b, w := pairOf(t)
	h := wire.Header{InitiatorSPI: 1, Exchange: wire.IKESAInit, Flags: wire.FlagInitiator}
	bare, _ := (&wire.Message{Header: h}).Marshal()
	version := append([]byte{}, bare...)
	version[17] = 0x30
	critical := append(append([]byte{}, bare...), 0, 0x80, 0, 4)
	critical[16], critical[27] = 200, 32
	for _, data := range [][]byte{version, critical} {
		o := b.e.Receive(w.now, Datagram{addrB, addrA, data})
		if len(o.Send) != 0 || o.Dropped != "amplifies" {
			t.Errorf("%x: %d answers, dropped %q", data, len(o.Send), o.Dropped)
		}
	}
}
