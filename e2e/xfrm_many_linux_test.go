package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

const (
	manyPerFamily = 500             // addresses; the kernel's neighbour table holds 1,024 of a family
	manyPerName   = 10              // and family
	manyAsking    = 2               // lookups at once
	manyTime      = 4 * time.Minute // a quiet machine needs half a minute
)

// TestXFRMThousandAddresses: one host keys a thousand addresses of another, by their names. Each has its SAs and its policy, a datagram to each
// travels as ESP, and the end leaves nothing, whether in good order or not.
func TestXFRMThousandAddresses(t *testing.T) {
	needESP(t, "nsd", "unbound", "dnssec-signzone", "ldns-signzone", "getent")
	w := newWorld(t)
	key := newIdentity(t)
	addrs, names, records := manyAddresses(t, w.bob, &key)
	for _, n := range []string{"198.51.100.0/24", "203.0.113.0/24"} {
		output(t, w.alice, "ip", "route", "add", n, "dev", "eth0")
	}
	dir, anchor := signZones(t, zoneFile{"example.", bindNSEC, records})
	startNSD(t, w.ns, dir)
	startUnbound(t, w.up, w.ns.Addr4().String())
	before := map[*lab.Host]string{w.alice: ipsecState(t, w.alice), w.bob: ipsecState(t, w.bob)}
	up := w.up.Addr4().String()
	top := `post-quantum = "off"` // a thousand rekeys more would tell nothing of the data plane
	bob := startTacit(t, w.bob, anchor, options{name: "bob.example", identity: key.pem, upstream: up, top: top, dataplane: "xfrm"})
	alice := startTacit(t, w.alice, anchor, options{upstream: up, top: top, dns: "hold = \"8s\"", dataplane: "xfrm"})

	began := time.Now()
	lookUpMany(t, w.alice, names)
	t.Logf("%d addresses keyed in %v", len(addrs), time.Since(began).Round(time.Millisecond))
	began = time.Now()
	answerMany(t, w.alice, w.bob, addrs)
	t.Logf("%d datagrams and their answers in %v", len(addrs), time.Since(began).Round(time.Millisecond))

	w.onlyProtected(w.alice, w.bob)
	lines := map[string]int{}
	for _, what := range []string{"state", "policy"} {
		for line := range strings.Lines(output(t, w.alice, "ip", "xfrm", what)) {
			lines[strings.TrimRight(line, " \n")]++
		}
	}
	for _, a := range addrs {
		own := both(w.alice)[index(a)]
		if c := w.tap.Between(own, a); c.ESP() < 2 {
			t.Errorf("tap between %v and %v: %v, want a datagram and its answer", own, a, c)
		}
		for _, line := range []string{
			fmt.Sprintf("src %v dst %v", own, a), // SAs
			fmt.Sprintf("src %v dst %v", a, own),
			fmt.Sprintf("src %v/%d dst %v/%d", own, own.BitLen(), a, a.BitLen()), // the policy
		} {
			if lines[line] != 1 {
				t.Errorf("ip xfrm: %d times %q, want it once", lines[line], line)
			}
		}
	}

	bob.stop()
	began = time.Now()
	alice.kill()
	if _, err := alice.run("cleanup"); err != nil {
		t.Errorf("cleanup: %v", err)
	}
	t.Logf("cleaned up in %v", time.Since(began).Round(time.Millisecond))
	for h, was := range before {
		if is := ipsecState(t, h); is != was {
			t.Errorf("%s afterwards: got\n%s\nwant\n%s", h.Name, tail(is, 20), tail(was, 20))
		}
	}
}

// manyAddresses gives a host its thousand addresses, and some of them to each of many names with its key.
func manyAddresses(t *testing.T, h *lab.Host, key *identity) (addrs []netip.Addr, names, records []string) {
	t.Helper()
	for i := range manyPerFamily {
		name := fmt.Sprintf("host%d.example.", i/manyPerName)
		if i%manyPerName == 0 {
			names = append(names, name)
			records = append(records, name+" 600 IN "+key.typ45)
		}
		v4 := netip.AddrFrom4([4]byte{198, 51, 100, byte(1 + i)})
		if i >= manyPerFamily/2 {
			v4 = netip.AddrFrom4([4]byte{203, 0, 113, byte(1 + i - manyPerFamily/2)})
		}
		v6 := netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 13: 1, 14: byte(i >> 8), 15: byte(i)})
		for _, a := range []netip.Addr{v4, v6} {
			if err := h.AddAddr(netip.PrefixFrom(a, a.BitLen())); err != nil {
				t.Fatal(err)
			}
			addrs = append(addrs, a)
		}
		records = append(records, fmt.Sprintf("%s 600 IN A %v", name, v4), fmt.Sprintf("%s 600 IN AAAA %v", name, v6))
	}
	return addrs, names, records
}

// lookUpMany asks a host's tacit for both families of all names, several at once, and wants every address. It asks again as the C
// library does, which a slow machine needs.
func lookUpMany(t *testing.T, h *lab.Host, names []string) {
	t.Helper()
	questions := make(chan dns.Question)
	end := time.Now().Add(manyTime)
	var wg sync.WaitGroup
	for range manyAsking {
		wg.Go(func() {
			for q := range questions {
				why := "no time left"
				for time.Now().Before(end) {
					a, err := query(t.Context(), h, q.Name, q.Qtype)
					if err == nil && len(a.addrs()) == manyPerName {
						why = ""
						break
					}
					if why = fmt.Sprint(err); err == nil {
						_, why = a.ede()
					}
				}
				if why != "" {
					t.Errorf("%s %s: %s", q.Name, dns.Type(q.Qtype), why)
				}
			}
		})
	}
	for _, name := range names {
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
			questions <- dns.Question{Name: name, Qtype: kind}
		}
	}
	close(questions)
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// answerMany sends one datagram to each address of a host, and wants them all back.
func answerMany(t *testing.T, from, to *lab.Host, addrs []netip.Addr) {
	t.Helper()
	echo(t, to, addrs...)
	for i, network := range []string{"udp4", "udp6"} {
		c, err := from.ListenPacket(network, netip.AddrPortFrom(both(from)[i], 0).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		missing := map[netip.Addr]bool{}
		for _, a := range addrs {
			if a.Is4() != (i == 0) {
				continue
			}
			missing[a] = true
			if _, err := c.WriteTo([]byte("hello"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 7000))); err != nil {
				t.Errorf("to %v: %v", a, err)
			}
		}
		b := make([]byte, 64)
		for len(missing) > 0 {
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			_, peer, err := c.ReadFrom(b)
			if err != nil {
				t.Errorf("%d of %d datagrams were not answered: %v", len(missing), manyPerFamily, err)
				break
			}
			delete(missing, peer.(*net.UDPAddr).AddrPort().Addr().Unmap())
		}
	}
}
