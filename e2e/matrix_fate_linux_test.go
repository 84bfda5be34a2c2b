package e2e

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tacit/lab"
)

// TestFateOfPing: the judge of a lost ping lets the peer's losses pass, and nothing else.
func TestFateOfPing(t *testing.T) {
	alice, bob := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * slower(time.Millisecond)) }
	esp := func(ms int, from netip.Addr, spi uint32, seq int) lab.Packet {
		return lab.Packet{Time: at(ms), Length: 200 + seq*flowStep, Frame: lab.Frame{Src: from, Class: lab.ClassESP, Payload: binary.BigEndian.AppendUint32(nil, spi)}}
	}
	ike := func(ms int, from netip.Addr, exchange, flags byte) lab.Packet {
		b := make([]byte, 28)
		b[17], b[18], b[19] = 0x20, exchange, flags
		return lab.Packet{Time: at(ms), Frame: lab.Frame{Src: from, Class: lab.ClassIKE, Payload: b}}
	}
	const old, fresh, back, freshBack, answer = 0x10, 0x20, 0x11, 0x21, 0x20
	// The first ping of a slice and its reply show how long the shortest are; the one of number 3, sent at 8, is lost.
	first := []lab.Packet{esp(1, alice, old, 0), esp(2, bob, back, 0)}
	ping := esp(11, alice, old, 3)
	onNew := func(ms int) lab.Packet { return esp(ms, alice, fresh, 3) }
	byTacit := []lab.Packet{ike(3, alice, createChildSA, 0), ike(20, bob, createChildSA, answer)}
	byPeer := []lab.Packet{ike(3, bob, createChildSA, 0), ike(8, alice, createChildSA, answer)}
	closed := []lab.Packet{ike(10, bob, informational, 0), ike(15, alice, informational, answer)}
	gone := []lab.Packet{ike(8, bob, informational, 0), ike(10, alice, informational, answer)}
	for _, c := range []struct {
		name    string
		fresh   int // when the second SA was installed; 0: never
		packets [][]lab.Packet
		theirs  bool
	}{
		{"nothing on the cable", 0, nil, false},
		{"no reply, no rekey", 0, [][]lab.Packet{{ping}}, false},
		{"a reply on the old SA that tacit did not take", 0, [][]lab.Packet{{ping, esp(12, bob, back, 3)}}, false},
		{"a reply before the keys", 25, [][]lab.Packet{{ping, esp(12, bob, freshBack, 3)}, byTacit}, true},
		{"a reply after the keys", 25, [][]lab.Packet{{ping, esp(40, bob, freshBack, 3)}, byTacit}, false},
		{"tacit takes long to have the keys", 200, [][]lab.Packet{{ping, esp(60, bob, freshBack, 3)}, byTacit}, false},
		{"a reply before the keys of the peer's own rekey", 25, [][]lab.Packet{{ping, esp(12, bob, freshBack, 3)}, byPeer}, false},
		{"the old SA while the peer's DELETE is not answered", 7, [][]lab.Packet{{ping}, byPeer, closed}, true},
		{"the old SA after the answer", 7, [][]lab.Packet{{esp(30, alice, old, 3)}, byPeer, closed}, false},
		{"the old SA before the DELETE", 7, [][]lab.Packet{{ping}, byPeer, {ike(30, bob, informational, 0), ike(33, alice, informational, answer)}}, false},
		{"the old SA, and a DELETE before the rekey", 18, [][]lab.Packet{{ping}, byPeer, closed}, false},
		{"the SA that the peer has just deleted", 0, [][]lab.Packet{gone, {ping}}, true},
		{"and then there is another", 60, [][]lab.Packet{gone, {ping}}, true},
		{"long after it was deleted", 0, [][]lab.Packet{gone, {esp(300, alice, old, 3)}}, false},
		{"before it is deleted", 0, [][]lab.Packet{{ping}, {ike(30, bob, informational, 0), ike(33, alice, informational, answer)}}, false},
		{"it was asked whether it stands", 0, [][]lab.Packet{gone, {ping, esp(14, bob, back, 5)}}, false},
		{"the new SA before the peer's DELETE", 7, [][]lab.Packet{{esp(9, alice, fresh, 3)}, byPeer, closed}, false},
		{"the new SA after it", 7, [][]lab.Packet{{onNew(16)}, byPeer, closed}, true},
		{"the new SA, and the peer has been on it", 7, [][]lab.Packet{{esp(14, bob, freshBack, 5), onNew(16)}, byPeer, closed}, false},
		{"the new SA after the peer's answer", 25, [][]lab.Packet{{onNew(26)}, byTacit}, true},
		{"the new SA long after the peer's answer", 25, [][]lab.Packet{{onNew(1026)}, byTacit}, false},
		{"the new SA after the peer's answer, and it has been on it", 25, [][]lab.Packet{{esp(23, bob, freshBack, 5), onNew(26)}, byTacit}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := evidence{alice: alice, bob: bob, began: at(0), packets: first, sas: []installedSA{{"00000011", "00000010", at(-1000)}}}
			if c.fresh > 0 {
				e.sas = append(e.sas, installedSA{"00000021", "00000020", at(c.fresh)})
			}
			for _, p := range c.packets {
				e.packets = append(e.packets[:len(e.packets):len(e.packets)], p...)
			}
			slices.SortStableFunc(e.packets, func(a, b lab.Packet) int { return a.Time.Compare(b.Time) })
			if why, theirs := e.fate(lostPing{3, at(8)}); theirs != c.theirs {
				t.Errorf("the peer's loss: got %v, want %v: %s", theirs, c.theirs, why)
			}
		})
	}
}

// TestUnguarded: a peer may answer in clear between its answer that makes an SA and its first packet on it, and not for long.
func TestUnguarded(t *testing.T) {
	bob := netip.MustParseAddr("192.0.2.2")
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * slower(time.Millisecond)) }
	answer := make([]byte, 28)
	answer[17], answer[18], answer[19] = 0x20, ikeAuth, 0x20
	esp := func(ms int) lab.Packet {
		return lab.Packet{Time: at(ms), Frame: lab.Frame{Src: bob, Class: lab.ClassESP, Payload: make([]byte, 4)}}
	}
	made := lab.Packet{Time: at(10), Frame: lab.Frame{Src: bob, Class: lab.ClassIKE, Payload: answer}}
	for name, c := range map[string]struct {
		packets []lab.Packet
		at      int
		is      bool
	}{
		"nothing before":      {nil, 12, false},
		"after the answer":    {[]lab.Packet{esp(5), made}, 12, true},
		"before it":           {[]lab.Packet{made}, 9, false},
		"long after":          {[]lab.Packet{made}, 1012, false},
		"it was on it before": {[]lab.Packet{made, esp(11)}, 12, false},
	} {
		e := evidence{bob: bob, packets: c.packets}
		if why, is := e.unguarded(at(c.at)); is != c.is {
			t.Errorf("%s: got %v: %s", name, is, why)
		}
	}
}
