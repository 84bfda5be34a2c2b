package e2e

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"tacit/lab"
)

// kernelState is what of ours could stand in a host's kernel, as the administrator's tools show it.
func kernelState(t *testing.T, h *lab.Host) string {
	t.Helper()
	var all strings.Builder
	for _, c := range []string{
		"nft list ruleset", "ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all", "ip -o link", "ip -o addr",
		"grep -rs . /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf | sort",
	} {
		all.WriteString("# " + c + "\n" + output(t, h, "sh", "-c", c))
	}
	return all.String()
}

// sameState fails the test where a host's kernel differs from before.
func sameState(t *testing.T, h *lab.Host, before string) {
	t.Helper()
	if now := kernelState(t, h); now != before {
		a, b := strings.Split(before, "\n"), strings.Split(now, "\n")
		for i := 0; i < max(len(a), len(b)); i++ {
			if i >= len(a) || i >= len(b) || a[i] != b[i] {
				t.Errorf("%s: line %d: was %q, is %q", h.Name, i, at(a, i), at(b, i))
				return
			}
		}
	}
}

func at(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return "(nothing)"
}

// verdicts are the elements that touch packets: all but the counters of what was dropped.
func verdicts(t *testing.T, h *lab.Host) (list []string) {
	t.Helper()
	for _, e := range elements(t, h) {
		if !strings.HasPrefix(e, "seen") {
			list = append(list, e)
		}
	}
	return list
}

// pester sends datagrams and pings all the time, whatever becomes of them, until the test ends.
func pester(t *testing.T, from, to *lab.Host) {
	t.Helper()
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	for i, addr := range both(to) {
		u, err := from.Dial(t.Context(), "udp", netip.AddrPortFrom(addr, 7000).String())
		if err != nil {
			t.Fatal(err)
		}
		network, kind := "ip4:icmp", byte(8)
		if addr.Is6() {
			network, kind = "ip6:ipv6-icmp", 128
		}
		p, err := from.ListenPacket(network, both(from)[i].String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { u.Close(); p.Close() })
		go func() {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			b := make([]byte, 64)
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				_, _ = u.Write([]byte("do not read me"))
				b[0], b[2], b[3] = kind, 0, 0
				if kind == 8 {
					sum := checksum(b)
					b[2], b[3] = byte(sum>>8), byte(sum)
				}
				_, _ = p.WriteTo(b, &net.IPAddr{IP: addr.AsSlice()})
			}
		}()
	}
}

// crashWorld has tacit on both hosts, and traffic of all kinds through their SAs both ways.
func crashWorld(t *testing.T, linger string) (w *attackWorld, before map[*lab.Host]string, answered time.Time, flows []*stream) {
	t.Helper()
	w = newAttackWorld(t, func(w *attackWorld) []zoneFile {
		return []zoneFile{{"example.", bindNSEC, hostRecords("bob.example.", w.bob, &w.bobKey)}}
	})
	before = map[*lab.Host]string{w.alice: kernelState(t, w.alice), w.bob: kernelState(t, w.bob)}
	echo(t, w.bob, both(w.bob)...)
	echo(t, w.alice, both(w.alice)...)
	w.run("linger = \"" + linger + "\"")
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	answered = time.Now()
	for i := range both(w.bob) {
		flows = append(flows, startStream(t, w.alice, w.bob, both(w.bob)[i]))
		flows = append(flows, startStream(t, w.bob, w.alice, both(w.alice)[i]))
	}
	pester(t, w.alice, w.bob)
	pester(t, w.bob, w.alice)
	time.Sleep(300 * time.Millisecond)
	for _, f := range flows {
		f.goesOn(slower(5 * time.Second))
	}
	return w, before, answered, flows
}

// clearBetween are the first and last moment of clear packets between the hosts, and their number.
func (w *world) clearBetween(a, b *lab.Host, from, until time.Time) (n int, first, last lab.Packet) {
	w.sync()
	for _, p := range w.tap.Packets() {
		if p.Class != lab.ClassClear && p.Class != lab.ClassDNS || p.Time.Before(from) || p.Time.After(until) {
			continue
		}
		if has(a, p.Src) && has(b, p.Dst) || has(b, p.Src) && has(a, p.Dst) {
			if n == 0 {
				first = p
			}
			n++
			last = p
		}
	}
	return n, first, last
}

// TestKilled kills one of the daemons under traffic. Within linger nothing passes in clear; after it nothing of the dead one
// stands, the other one has let go too, and the hosts reach each other as hosts without tacit do. `tacit cleanup` removes what
// touches no packet, and a stop in good order leaves nothing.
//
//tacit:attack A-58 dropped within linger, and let go after it
func TestKilled(t *testing.T) {
	const linger = 5 * time.Second
	for _, who := range []string{"alice", "bob"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			w, before, answered, flows := crashWorld(t, linger.String())
			dead, other := w.aliceTac, w.bobTac
			if who == "bob" {
				dead, other = other, dead
			}
			dead.kill()
			killed := time.Now()
			time.Sleep(time.Until(killed.Add(linger)))
			if n, first, _ := w.clearBetween(w.alice, w.bob, answered, killed.Add(linger)); n > 0 {
				t.Errorf("%d packets in clear within linger, the first %v after the kill: %v -> %v protocol %d ports %d %d", n, first.Time.Sub(killed),
					first.Src, first.Dst, first.Proto, first.SrcPort, first.DstPort)
			}
			for _, f := range flows {
				f.stop() // what began encrypted ends before the hold does
			}
			// The renewal interval is a fifth of linger: what was renewed just before the kill stands so much longer.
			eventually(t, linger/5+2*time.Second, "the dead daemon's elements end", func() bool { return len(verdicts(t, dead.host)) == 0 })
			t.Logf("the elements of %s were gone %v after the kill", who, time.Since(killed).Round(10*time.Millisecond))
			eventually(t, 15*time.Second, "the other lets go", func() bool {
				return len(other.peers(dead.host)) == 0 && len(verdicts(t, other.host)) == 0
			})
			t.Logf("the other let go %v after the kill", time.Since(killed).Round(10*time.Millisecond))
			for _, addr := range both(w.bob) {
				transfer(t, w.alice, w.bob, addr, 100_000)
			}
			for _, addr := range both(w.alice) {
				transfer(t, w.bob, w.alice, addr, 100_000)
			}
			if _, err := dead.run("cleanup"); err != nil {
				t.Errorf("cleanup: %v", err)
			}
			sameState(t, dead.host, before[dead.host])
			if _, err := other.run("cleanup"); err == nil {
				t.Error("cleanup is not refused while a daemon runs")
			}
			other.stop()
			sameState(t, other.host, before[other.host])
		})
	}
}

// TestRestarted kills one of the daemons under traffic and starts it again within linger: the hosts are keyed again, and
// nothing passes in clear at any time. Flows go on encrypted or end.
//
//tacit:attack A-57 no packet in clear after the answer, with a lookup and without
func TestRestarted(t *testing.T) {
	const linger = "20s"
	for _, tt := range []struct {
		name   string
		who    string
		lookup bool // of Alice's; without it the packets that wait are all that asks for keys
	}{
		{"alice, and a lookup", "alice", true},
		{"bob, and a lookup", "bob", true},
		{"bob, no lookup", "bob", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w, _, answered, flows := crashWorld(t, linger)
			d := w.aliceTac
			if tt.who == "bob" {
				d = w.bobTac
			}
			d.kill()
			killed := time.Now()
			time.Sleep(200 * time.Millisecond)
			d.start(false)
			if tt.lookup {
				mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
				t.Logf("answered %v after the kill", time.Since(killed).Round(time.Millisecond))
			}
			for _, addr := range both(w.bob) {
				eventually(t, 20*time.Second, "packets to "+addr.String()+" and back", func() bool { return burst(t, w.alice, addr, 1, 100*time.Millisecond) == nil })
				t.Logf("%v answers %v after the kill", addr, time.Since(killed).Round(time.Millisecond))
			}
			for _, addr := range both(w.bob) {
				transfer(t, w.alice, w.bob, addr, 100_000)
			}
			for _, addr := range both(w.alice) {
				transfer(t, w.bob, w.alice, addr, 100_000)
			}
			for _, f := range flows {
				rounds, longest, err := f.state()
				t.Logf("%s: %d rounds, the longest %v, error %v", f.name, rounds, longest.Round(time.Millisecond), err)
			}
			if n, first, _ := w.clearBetween(w.alice, w.bob, answered, time.Now()); n > 0 {
				t.Errorf("%d packets in clear, the first %v after the kill: %v -> %v protocol %d ports %d %d", n, first.Time.Sub(killed),
					first.Src, first.Dst, first.Proto, first.SrcPort, first.DstPort)
			}
			w.onlyProtected(w.alice, w.bob)
			for _, p := range w.aliceTac.peers(w.bob) {
				if p.State != "protected" || p.Assurance != "authenticated" {
					t.Errorf("alice's status of bob: %+v", p)
				}
			}
		})
	}
}

// TestRestartedWithoutLookup: a client that was killed and started again knows no names. What its predecessor protected stays shut
// for as long as it would have been, and no longer; its connections do not go on after it.
func TestRestartedWithoutLookup(t *testing.T) {
	t.Parallel()
	const linger = 5 * time.Second
	w, _, answered, flows := crashWorld(t, linger.String())
	w.aliceTac.kill()
	killed := time.Now()
	w.aliceTac.start(false)
	if list := verdicts(t, w.alice); len(list) != 2 {
		t.Errorf("taken over: %v, want both families of bob", list)
	}
	time.Sleep(time.Until(killed.Add(linger)))
	if n, first, _ := w.clearBetween(w.alice, w.bob, answered, killed.Add(linger)); n > 0 {
		t.Errorf("%d packets in clear within linger, the first %v after the kill: %v -> %v protocol %d ports %d %d", n, first.Time.Sub(killed),
			first.Src, first.Dst, first.Proto, first.SrcPort, first.DstPort)
	}
	eventually(t, linger/5+2*time.Second, "the hold ends", func() bool { return len(verdicts(t, w.alice)) == 0 })
	time.Sleep(time.Second) // in which they would go on
	w.streamsNotInClear(answered, flows)
	for _, f := range flows {
		if _, _, err := f.state(); err == nil && strings.HasPrefix(f.name, "TCP alice") { // Bob's end hears of it when his own hold ends
			t.Errorf("%s is not ended", f.name)
		}
		f.stop()
	}
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	answered = time.Now()
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 100_000)
	}
	w.noClearSince(answered)
}

// TestStopped stops the daemons in good order, with SAs and traffic: both kernels are as they were before, at once.
func TestStopped(t *testing.T) {
	for _, first := range []string{"alice", "bob"} {
		t.Run(first, func(t *testing.T) {
			t.Parallel()
			w, before, _, _ := crashWorld(t, "30s")
			one, two := w.aliceTac, w.bobTac
			if first == "bob" {
				one, two = two, one
			}
			one.stop()
			sameState(t, one.host, before[one.host])
			two.stop()
			sameState(t, two.host, before[two.host])
		})
	}
}

// TestRestartRemembers (TRUST.md R11): a client that was killed knows what was proven to the one before it. Its flows go on, keyed by the packets that
// wait, without a lookup and without a packet in clear.
//
//tacit:attack A-57 flows go on without a lookup and without a packet in clear
func TestRestartRemembers(t *testing.T) {
	t.Parallel()
	w, _, answered, flows := crashWorld(t, "60s")
	eventually(t, 10*time.Second, "the proofs are saved", func() bool {
		text, _ := os.ReadFile(w.alice.File("/run/proofs.json"))
		return strings.Count(string(text), `"bob.example."`) == 2
	})
	w.aliceTac.kill()
	w.aliceTac.start(false)
	for _, f := range flows {
		f.goesOn(10 * time.Second)
	}
	w.noClearSince(answered)
	if !w.aliceTac.knows(w.bob, "authenticated") {
		t.Errorf("alice's status of bob: %+v", w.aliceTac.peers(w.bob))
	}
	w.aliceTac.stop()
	if _, err := os.Stat(w.alice.File("/run/proofs.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after a stop in good order the proofs are kept: %v", err)
	}
}
