package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"tacit/lab"
)

// icmpErrors are the errors that somebody may send for a packet: type and code, and the word before the quotation.
func icmpErrors(family int) (all []icmp.Message) {
	add := func(t icmp.Type, code int, word uint32) {
		all = append(all, icmp.Message{Type: t, Code: code, Body: &icmp.RawBody{Data: binary.BigEndian.AppendUint32(nil, word)}})
	}
	if family == 0 {
		for _, code := range []int{0, 1, 2, 3, 5, 9, 10, 13} {
			add(ipv4.ICMPTypeDestinationUnreachable, code, 0)
		}
		add(ipv4.ICMPTypeDestinationUnreachable, 4, 68) // fragmentation is needed, to the least that there is
		add(ipv4.ICMPTypeTimeExceeded, 0, 0)
		add(ipv4.ICMPTypeParameterProblem, 0, 9<<24)
		return all
	}
	for code := range 7 {
		add(ipv6.ICMPTypeDestinationUnreachable, code, 0)
	}
	add(ipv6.ICMPTypePacketTooBig, 0, 1280)
	add(ipv6.ICMPTypeTimeExceeded, 0, 0)
	add(ipv6.ICMPTypeParameterProblem, 1, 6)
	return all
}

// TestForgedICMP: while Alice waits for Bob's answer somebody who sees her messages go by sends her every ICMP error there is about each of them, from an address
// of his own as any router may. None ends the negotiation, which is done as soon as Bob's answer comes; what is sent then is protected.
//
//tacit:attack A-16 no forged ICMP error ends a negotiation, or what is protected afterwards
func TestForgedICMP(t *testing.T) {
	w, alice, _ := jobWorld(t, "bob.example", "")
	run := &matrixRun{matrix: &matrix{world: w}, tacit: alice}
	lift := run.filter(t, w.alice, "udp dport 500 @th,208,8 34 @th,216,8 & 0x20 == 0x20 counter drop")
	looked := make(chan error, 1)
	go func() {
		addrs, err := getaddrinfo(t, w.alice, "ahosts", "bob.example")
		if err == nil && len(addrs) != 2 {
			err = fmt.Errorf("got %v", addrs)
		}
		looked <- err
	}()
	told, began := 0, time.Now()
	done := map[string]bool{}
	forge := func() {
		for _, p := range w.tap.Packets() {
			family := 0
			if p.Src == w.alice.Addr6() {
				family = 1
			}
			h, ok := p.IKEHeader()
			if at := fmt.Sprint(p.Src, h.InitiatorSPI, h.MessageID, p.Time); !ok || p.Src != both(w.alice)[family] || p.Dst != both(w.bob)[family] || done[at] {
				continue
			} else {
				done[at] = true
			}
			from := both(w.plain)[family]
			for _, m := range icmpErrors(family) {
				b := m.Body.(*icmp.RawBody)
				b.Data = append(b.Data, p.Head[14:]...)
				if err := w.plain.Inject(icmpPacket(t, from, p.Src, m)); err != nil {
					t.Fatal(err)
				}
				told++
			}
		}
	}
	for time.Since(began) < 1200*time.Millisecond { // two of the first three sends, and their repeats
		forge()
		time.Sleep(20 * time.Millisecond)
	}
	select {
	case err := <-looked:
		t.Fatalf("the lookup ended before Bob has answered: %v\n%s", err, tail(alice.log(), 20))
	default:
	}
	lift()
	for err, waits := error(nil), true; waits; {
		select {
		case err = <-looked:
			if waits = false; err != nil {
				t.Errorf("%v\n%s", err, tail(alice.log(), 30))
			}
		case <-time.After(20 * time.Millisecond):
			forge()
		}
	}
	forge()
	t.Logf("%d errors about %d messages", told, len(done))
	if len(done) < 6 { // two IKE_SA_INITs and an IKE_AUTH in each family
		t.Errorf("errors about %d messages only", len(done))
	}
	for file, counter := range map[string]string{"/proc/net/snmp": "InType3", "/proc/net/snmp6": "Icmp6InType1"} { // the kernel's count of what it has understood
		if counts := output(t, w.alice, "cat", file); !strings.Contains(counts, counter) {
			t.Errorf("the errors did not arrive: %s", counts)
		}
	}
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 200_000)
	}
	w.onlyProtected(w.alice, w.bob)
}

// icmpPacket is an error on the wire.
func icmpPacket(t *testing.T, src, dst netip.Addr, m icmp.Message) []byte {
	t.Helper()
	proto, pseudo := uint8(1), []byte(nil)
	if src.Is6() {
		proto, pseudo = 58, icmp.IPv6PseudoHeader(net.IP(src.AsSlice()), net.IP(dst.AsSlice()))
	}
	b, err := m.Marshal(pseudo)
	if err != nil {
		t.Fatal(err)
	}
	return lab.IPPacket(src, dst, proto, b)
}
