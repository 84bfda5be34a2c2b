package xfrm

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"

	"tacit/ipsec"
)

// golden is what iproute2 6.1 sent for the same order (the body of the message).
func golden(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name + ".hex")
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func host(s string) netip.Prefix {
	a := netip.MustParseAddr(s)
	return netip.PrefixFrom(a, a.BitLen())
}

func counting(n int) (b ipsec.Secret) {
	for i := range n {
		b = append(b, byte(i))
	}
	return b
}

// ip xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x10000001 reqid 2046820353 mode transport replay-window 128 flag esn
// aead 'rfc4106(gcm(aes))' 0x000102...1314 128 encap espinudp 4500 4500 0.0.0.0 sel src 192.0.2.1/32 dst 192.0.2.2/32
// limit packet-soft 5 limit time-hard 60 output-mark 0x7a000000 mask 0xff000000
func exampleState() State {
	life := NoLimit
	life.SoftPackets, life.HardSeconds = 5, 60
	return State{Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddr("192.0.2.2"), SPI: 0x10000001, ReqID: 0x7a000001,
		Selector: Selector{Src: host("192.0.2.1"), Dst: host("192.0.2.2"), Family: familyIPv4},
		Alg:      Algorithm{AEAD: "rfc4106(gcm(aes))", Key: counting(21), ICV: 16},
		Encap:    Encap{4500, 4500}, Output: Mark{0x7a000000, 0xff000000}, Lifetime: life,
		Replay: Replay{Window: 128, ESN: true}}
}

// ip xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x10000001 reqid 2046820353 mode transport replay-window 128 flag esn
// auth-trunc 'hmac(sha384)' 0x000102...2f 192 enc 'cbc(aes)' 0x000102...17 sel src 192.0.2.1/32 dst 192.0.2.2/32
func exampleCBC() State {
	s := exampleState()
	s.Alg = Algorithm{Auth: "hmac(sha384)", AuthKey: counting(48), Cipher: "cbc(aes)", Key: counting(24), ICV: 24}
	s.Encap, s.Output, s.Lifetime = Encap{}, Mark{}, NoLimit
	return s
}

// ip xfrm policy update src 2001:db8::1/128 dst 2001:db8::2/128 dir out priority 2059468800 mark 0 mask 0x80000000
// limit time-hard 60 tmpl src 2001:db8::1 dst 2001:db8::2 proto esp spi 0x10000001 reqid 2046820353 mode transport
func examplePolicy() Policy {
	life := NoLimit
	life.HardSeconds = 60
	src, dst := host("2001:db8::1"), host("2001:db8::2")
	return Policy{Selector: Selector{Src: src, Dst: dst, Family: familyIPv6}, Way: Out, Priority: 2059468800, Mark: Mark{0, 0x80000000},
		Lifetime: life, Templates: []Template{{Src: src.Addr(), Dst: dst.Addr(), Family: familyIPv6, SPI: 0x10000001, ReqID: 0x7a000001}}}
}

func TestStateGolden(t *testing.T) {
	for name, ours := range map[string]State{"newsa": exampleState(), "newsa-cbc": exampleCBC()} {
		want := golden(t, name)
		got, err := ParseState(want)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, ours) {
			t.Errorf("%s parsed: got %+v\nwant %+v", name, got, ours)
		}
		sameAttributes(t, name, MarshalState(ours), want, sizeSA)
	}
	if got, want := MarshalStateID(netip.MustParseAddr("192.0.2.2"), 0x10000001), golden(t, "delsa")[:sizeSAID]; !bytes.Equal(got, want) {
		t.Errorf("DELSA: got %x, want %x", got, want)
	}
}

// TestAlgorithm: what IKE negotiates has the names that the kernel knows, with salt behind the key and the RFC's ICV; the rest is refused.
func TestAlgorithm(t *testing.T) {
	salt := ipsec.Secret{9, 8, 7, 6}
	for name, c := range map[string]struct {
		sa   ipsec.SA
		want Algorithm
	}{
		"AES-GCM-128": {ipsec.SA{Cipher: ipsec.AESGCM16, Key: counting(16), Salt: salt},
			Algorithm{AEAD: "rfc4106(gcm(aes))", Key: append(counting(16), salt...), ICV: 16}},
		"ChaCha20": {ipsec.SA{Cipher: ipsec.ChaCha20Poly1305, Key: counting(32), Salt: salt},
			Algorithm{AEAD: "rfc7539esp(chacha20,poly1305)", Key: append(counting(32), salt...), ICV: 16}},
		"SHA-256": {ipsec.SA{Cipher: ipsec.AESCBC, Key: counting(16), Integrity: ipsec.HMACSHA256, AuthKey: counting(32)},
			Algorithm{Cipher: "cbc(aes)", Key: counting(16), Auth: "hmac(sha256)", AuthKey: counting(32), ICV: 16}},
		"SHA-384": {ipsec.SA{Cipher: ipsec.AESCBC, Key: counting(24), Integrity: ipsec.HMACSHA384, AuthKey: counting(48)},
			exampleCBC().Alg},
		"SHA-512": {ipsec.SA{Cipher: ipsec.AESCBC, Key: counting(32), Integrity: ipsec.HMACSHA512, AuthKey: counting(64)},
			Algorithm{Cipher: "cbc(aes)", Key: counting(32), Auth: "hmac(sha512)", AuthKey: counting(64), ICV: 32}},
	} {
		c.sa.SPI = 256
		if got, err := algorithm(c.sa); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, c.want)
		}
		c.sa.AuthKey = append(c.sa.AuthKey, 0)
		if got, err := algorithm(c.sa); err == nil {
			t.Errorf("%s, a key too long: got %+v", name, got)
		}
	}
}

func TestPolicyGolden(t *testing.T) {
	want := golden(t, "updpolicy")
	got, err := ParsePolicy(want)
	if err != nil {
		t.Fatal(err)
	}
	if ours := examplePolicy(); !reflect.DeepEqual(got, ours) {
		t.Errorf("parsed: got %+v\nwant %+v", got, ours)
	}
	sameAttributes(t, "UPDPOLICY", MarshalPolicy(examplePolicy()), want, sizePolicy)
}

// sameAttributes compares the fixed part, and the attributes in whatever order.
func sameAttributes(t *testing.T, name string, got, want []byte, fixed int) {
	t.Helper()
	if !bytes.Equal(got[:fixed], want[:fixed]) {
		t.Errorf("%s: got\n%x, want\n%x", name, got[:fixed], want[:fixed])
	}
	list := func(b []byte) map[uint16]string {
		m := make(map[uint16]string)
		r := &reader{b: b, at: fixed}
		r.attrs(func(kind uint16, data []byte) error { m[kind] = hex.EncodeToString(data); return nil })
		if r.err != nil {
			t.Fatal(r.err)
		}
		return m
	}
	if g, w := list(got), list(want); !reflect.DeepEqual(g, w) {
		t.Errorf("%s: attributes: got %v\nwant %v", name, g, w)
	}
}

// TestRoundTrip: everything that can be said in a State or a Policy comes back.
func TestRoundTrip(t *testing.T) {
	six := exampleState()
	six.Src, six.Dst = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	six.Mode, six.Encap, six.Output = ipsec.Tunnel, Encap{}, Mark{}
	six.Alg = Algorithm{Auth: "hmac(sha256)", AuthKey: counting(32), Cipher: "cbc(aes)", Key: counting(16), ICV: 16}
	six.Replay = Replay{Window: 4096, ESN: true, Out: 1<<40 + 7, In: 3<<32 + 1, Bitmap: make([]uint32, 128)}
	six.Replay.Bitmap[3] = 0xdeadbeef
	six.Mark, six.Direction, six.Offload = Mark{1, 3}, Outbound, Offload{Device: 7, Packet: true}
	in := six
	in.Direction, in.Offload = Inbound, Offload{Device: 9, Inbound: true}
	chacha := exampleState()
	chacha.Alg = Algorithm{AEAD: "rfc7539esp(chacha20,poly1305)", Key: counting(36), ICV: 16}
	for i, want := range []State{exampleState(), six, in, chacha} {
		got, err := ParseState(MarshalState(want))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("state %d: got %+v, %v\nwant %+v", i, got, err, want)
		}
	}
	bypass := Policy{Selector: Selector{Family: familyIPv6, Proto: 58, SrcPort: 135}, Way: In, Priority: 1, Lifetime: NoLimit}
	block := examplePolicy()
	block.Block, block.Templates, block.Way = true, nil, Forward
	two := examplePolicy()
	two.Templates = append(two.Templates, Template{Family: familyIPv4, Mode: ipsec.Tunnel, Optional: true})
	for i, want := range []Policy{examplePolicy(), bypass, block, two} {
		got, err := ParsePolicy(MarshalPolicy(want))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("policy %d: got %+v, %v\nwant %+v", i, got, err, want)
		}
	}
}

// The direction and the offload are attributes that no kernel here knows: their octets are all that is tested.
func TestLaterAttributes(t *testing.T) {
	s := exampleState()
	s.Direction, s.Offload = Inbound, Offload{Device: 0x01020304, Inbound: true, Packet: true}
	b := MarshalState(s)
	for _, want := range []string{"0500210001000000", "0c001c000403020106000000"} {
		if !strings.Contains(hex.EncodeToString(b), want) {
			t.Errorf("no %s in %x", want, b)
		}
	}
}

// events builds the kernel's messages from what is tested above.
func exampleExpire() []byte {
	return append(append(MarshalState(exampleState())[:sizeSA:sizeSA], 1), make([]byte, sizeExpire-sizeSA-1)...)
}

func examplePolicyExpire() []byte {
	all := MarshalPolicy(examplePolicy())
	return append(append(append(all[:sizePolicy:sizePolicy], 1), make([]byte, 7)...), all[sizePolicy:]...)
}

func exampleAcquire() []byte {
	w := &writer{}
	w.addr(netip.MustParseAddr("2001:db8::2"))
	w.zero(8)
	w.addr(netip.MustParseAddr("2001:db8::1"))
	w.selector(examplePolicy().Selector)
	all := MarshalPolicy(examplePolicy())
	w.u8(all[:sizePolicy]...)
	w.zero(12)
	w.u32(42)
	w.u8(all[sizePolicy:]...)
	return w.b
}

func exampleMapping() []byte {
	w := &writer{}
	w.addr(netip.MustParseAddr("192.0.2.2"))
	w.be32(0x10000001)
	w.u16(familyIPv4)
	w.u8(protoESP, 0)
	w.u32(0x7a000001)
	w.addr(netip.MustParseAddr("192.0.2.1"))
	w.addr(netip.MustParseAddr("192.0.2.11"))
	w.be16(4500)
	w.be16(1024)
	return w.b
}

func exampleQueued() []byte {
	w := &writer{}
	queueHead(w, 0x7ac1)
	w.attr(queueHeader, []byte{0, 0, 0, 9, 8, 0, hookOutput})
	w.attr(queueMark, []byte{0, 0, 1, 2})
	w.attr(queuePayload, append([]byte{0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0}, 192, 0, 2, 1, 192, 0, 2, 2))
	return w.b
}

func TestEvents(t *testing.T) {
	e, err := ParseExpire(exampleExpire())
	if err != nil || !e.Hard || e.State.SPI != 0x10000001 || e.State.ReqID != 0x7a000001 {
		t.Errorf("expire: got %+v, %v", e, err)
	}
	p, err := ParsePolicyExpire(examplePolicyExpire())
	if err != nil || !p.Hard || !reflect.DeepEqual(p.Policy, examplePolicy()) {
		t.Errorf("policy expire: got %+v, %v", p, err)
	}
	a, err := ParseAcquire(exampleAcquire())
	if err != nil || a.Sequence != 42 || a.Dst != netip.MustParseAddr("2001:db8::2") || !reflect.DeepEqual(a.Policy, examplePolicy()) {
		t.Errorf("acquire: got %+v, %v", a, err)
	}
	m, err := ParseMapping(exampleMapping())
	if err != nil || m.New != netip.MustParseAddrPort("192.0.2.11:1024") || m.Old != netip.MustParseAddrPort("192.0.2.1:4500") || m.SPI != 0x10000001 {
		t.Errorf("mapping: got %+v, %v", m, err)
	}
	q, err := ParseQueued(exampleQueued())
	packet := exampleQueued()[len(exampleQueued())-20:]
	if err != nil || !reflect.DeepEqual(q, Queued{ID: 9, Hook: hookOutput, Mark: 0x102, Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddr("192.0.2.2"), Data: packet}) {
		t.Errorf("queued: got %+v, %v", q, err)
	}
}

// onesSum is the sum of RFC 1071, folded.
func onesSum(parts ...[]byte) uint16 {
	sum := uint32(0)
	for i, b := range bytes.Join(parts, nil) {
		sum += uint32(b) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// unfinished is a packet as the kernel queues it for a device that finishes checksums: the field has the sum of the pseudo-header, which comes with it.
func unfinished(v6 bool, proto uint8, field int, payload ...byte) (packet, pseudo []byte, head int) {
	segment := append(make([]byte, field+2), payload...)
	segment[0] = 0x13
	head = 20
	packet = append([]byte{0x45, 0, 0, byte(20 + len(segment)), 0, 0, 0x40, 0, 64, proto, 0, 0}, 192, 0, 2, 1, 192, 0, 2, 2)
	addrs := packet[12:]
	if v6 {
		head = 40
		packet = append(append([]byte{0x60, 0, 0, 0, 0, byte(len(segment)), proto, 64}, golden6...), golden6...)
		addrs = packet[8:]
	}
	pseudo = append(bytes.Clone(addrs), 0, proto, 0, byte(len(segment)))
	big.PutUint16(segment[field:], onesSum(pseudo))
	return append(packet, segment...), pseudo, head
}

var golden6 = netip.MustParseAddr("2001:db8::1").AsSlice()

// What is kept of a queued packet is the whole of it, with the checksum that the kernel leaves to the device; a part, or what becomes several packets, is not.
func TestQueuedWhole(t *testing.T) {
	queued := func(packet []byte, info uint32, part bool) Queued {
		w := &writer{}
		queueHead(w, 0x7ac1)
		w.attr(queueHeader, []byte{0, 0, 0, 9, 8, 0, hookOutput})
		w.attr(queuePayload, packet)
		if part {
			w.attr(queueWholeLength, big.AppendUint32(nil, 5000))
		}
		if info != 0 {
			w.attr(queueInfo, big.AppendUint32(nil, info))
		}
		q, err := ParseQueued(w.b)
		if err != nil {
			t.Fatal(err)
		}
		return q
	}
	for _, v6 := range []bool{false, true} {
		for proto, field := range map[uint8]int{protoTCP: 16, protoUDP: 6} {
			packet, pseudo, head := unfinished(v6, proto, field, 1, 2, 3)
			if got := queued(packet, 0, false).Data; !bytes.Equal(got, packet) {
				t.Errorf("finished: got %x, want it as it came, %x", got, packet)
			}
			got := queued(packet, infoNoChecksum, false).Data
			if len(got) != len(packet) || onesSum(pseudo, got[head:]) != 0xffff || !bytes.Equal(got[:head], packet[:head]) {
				t.Errorf("IPv6 %v, protocol %d: %x of %x", v6, proto, got, packet)
			}
			if queued(packet, infoNoChecksum|infoSegments, false).Data != nil || queued(packet, infoSegments, false).Data != nil || queued(packet, 0, true).Data != nil {
				t.Error("a part, or several packets, is taken for one")
			}
			if queued(packet[:head+field+1], infoNoChecksum, false).Data != nil {
				t.Error("a checksum beyond the end")
			}
		}
	}
	icmp, _, _ := unfinished(false, 1, 2)
	if queued(icmp, infoNoChecksum, false).Data != nil || queued(icmp, 0, false).Data == nil {
		t.Error("ICMP: its checksum is never left to the device")
	}
	zero, _, _ := unfinished(false, protoUDP, 6)
	big.PutUint16(zero[20:], 0) // a sum of 0xffff: its complement would say that there is no checksum
	big.PutUint16(zero[26:], 0xffff)
	if got := queued(zero, infoNoChecksum, false).Data; big.Uint16(got[26:]) != 0xffff {
		t.Errorf("UDP with a checksum of 0: %x", got)
	}
}

// TestPrefixes: what is cut anywhere but between attributes fails; there, what is left means the same without them.
func TestPrefixes(t *testing.T) {
	whole := func(b []byte, fixed int) map[int]bool {
		ends := map[int]bool{fixed: true}
		r := &reader{b: b, at: fixed}
		r.attrs(func(uint16, []byte) error { ends[min(len(b), (r.at+3)&^3)], ends[r.at] = true, true; return nil })
		return ends
	}
	for name, c := range map[string]struct {
		b     []byte
		fixed int
		parse func([]byte) error
	}{
		"state":         {MarshalState(exampleState()), sizeSA, func(b []byte) error { _, err := ParseState(b); return err }},
		"state of CBC":  {MarshalState(exampleCBC()), sizeSA, func(b []byte) error { _, err := ParseState(b); return err }},
		"policy":        {MarshalPolicy(examplePolicy()), sizePolicy, func(b []byte) error { _, err := ParsePolicy(b); return err }},
		"expire":        {exampleExpire(), sizeExpire, func(b []byte) error { _, err := ParseExpire(b); return err }},
		"policy expire": {examplePolicyExpire(), sizePolExpire, func(b []byte) error { _, err := ParsePolicyExpire(b); return err }},
		"acquire":       {exampleAcquire(), sizeAcquire, func(b []byte) error { _, err := ParseAcquire(b); return err }},
		"mapping":       {exampleMapping(), sizeMapping, func(b []byte) error { _, err := ParseMapping(b); return err }},
		"queued":        {exampleQueued(), len(exampleQueued()), func(b []byte) error { _, err := ParseQueued(b); return err }},
	} {
		ends := whole(c.b, c.fixed)
		for n := range c.b {
			padding := false
			for k := range 4 {
				padding = padding || ends[n-k] && (n+3)&^3 == (n-k+3)&^3
			}
			err := c.parse(c.b[:n])
			if err == nil && !padding {
				t.Errorf("%s: %d of %d octets parse", name, n, len(c.b))
			}
		}
		if err := c.parse(c.b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestContradictory(t *testing.T) {
	alter := func(b []byte, at int, v ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[at:], v)
		return b
	}
	attr := func(b []byte, kind uint16, data ...byte) []byte {
		w := &writer{bytes.Clone(b)}
		w.attr(kind, data)
		return w.b
	}
	state, policy := MarshalState(exampleState()), MarshalPolicy(examplePolicy())
	parseState := func(b []byte) error { _, err := ParseState(b); return err }
	parsePolicy := func(b []byte) error { _, err := ParsePolicy(b); return err }
	for name, err := range map[string]error{
		"prefix longer than the address": parseState(alter(state, 42, 33)),
		"AH":                             parseState(alter(state, 76, 51)),
		"BEET":                           parseState(alter(state, 214, 4)),
		"no family":                      parseState(alter(state, 212, 0)),
		"attribute of length 0":          parseState(alter(state, sizeSA, 0, 0)),
		"attribute past the end":         parseState(alter(state, sizeSA, 0xff, 0x7f)),
		"short mark":                     parseState(attr(state, attrMark, 1, 2, 3)),
		"short replay state":             parseState(attr(state, attrReplayESN, make([]byte, 20)...)),
		"replay state of other length":   parseState(attr(state, attrReplayESN, append([]byte{9}, make([]byte, 27)...)...)),
		"nameless algorithm":             parseState(attr(state, attrAlgAEAD, bytes.Repeat([]byte{'x'}, 80)...)),
		"key longer than its attribute":  parseState(attr(state, attrAlgCrypt, append(make([]byte, 64), 0xff, 0xff, 0xff, 0xff)...)),
		"encapsulation in TCP":           parseState(attr(state, attrEncap, append([]byte{7}, make([]byte, 23)...)...)),
		"direction 3":                    parseState(attr(state, attrDirection, 3)),
		"short offload":                  parseState(attr(state, attrOffload, 1, 2)),
		"short time":                     parseState(attr(state, attrLastUsed, 1)),
		"short output mark":              parseState(attr(state, attrSetMark, 1)),
		"direction of a policy":          parsePolicy(alter(policy, 160, 9)),
		"action 2":                       parsePolicy(alter(policy, 161, 2)),
		"half a template":                parsePolicy(attr(policy, attrTemplate, make([]byte, 70)...)),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func fuzz[T any](f *testing.F, parse func([]byte) (T, error), seeds ...[]byte) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := parse(b); err != nil && !reflect.ValueOf(&v).Elem().IsZero() {
			t.Errorf("an error and a value: %v, %+v", err, v)
		}
	})
}

func FuzzParseState(f *testing.F) {
	fuzz(f, ParseState, golden(f, "newsa"), golden(f, "newsa-cbc"), MarshalState(exampleState()))
}
func FuzzParsePolicy(f *testing.F) {
	fuzz(f, ParsePolicy, golden(f, "updpolicy"), MarshalPolicy(examplePolicy()))
}
func FuzzParseExpire(f *testing.F)       { fuzz(f, ParseExpire, exampleExpire()) }
func FuzzParsePolicyExpire(f *testing.F) { fuzz(f, ParsePolicyExpire, examplePolicyExpire()) }
func FuzzParseAcquire(f *testing.F)      { fuzz(f, ParseAcquire, exampleAcquire()) }
func FuzzParseMapping(f *testing.F)      { fuzz(f, ParseMapping, exampleMapping()) }
func FuzzParseQueued(f *testing.F)       { fuzz(f, ParseQueued, exampleQueued()) }
