package e2e

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

// coldAddrs is how many addresses of each family Bob has for first contacts; rounds restart Alice.
const (
	coldAddrs  = 10
	coldRounds = 10
)

// TestColdFirstContacts is A-39, both sides: 200 first contacts, and at the very arrival of each answer a burst of first packets.
// None leaves in clear, none meets a host that cannot open it yet, and what the daemons and the tap wrote down agrees that the
// answer came after Alice's installation and IKE_AUTH's reply after Bob's.
//
//tacit:attack A-39 200 first contacts with a burst at the arrival of the answer: no packet in clear, none lost
func TestColdFirstContacts(t *testing.T) {
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		z := zoneFile{"example.", bindNSEC, []string{"bob.example. 60 IN " + w.bobKey.typ45}}
		for i := range coldAddrs {
			z.records = append(z.records, fmt.Sprintf("bob.example. 60 IN A 192.0.2.%d", 100+i), fmt.Sprintf("bob.example. 60 IN AAAA 2001:db8::%d", 100+i))
		}
		return []zoneFile{z}
	})
	var addrs []netip.Addr
	for i := range coldAddrs {
		for _, p := range lab.Prefixes(fmt.Sprintf("192.0.2.%d/24", 100+i), fmt.Sprintf("2001:db8::%d/64", 100+i)) {
			if err := w.bob.AddAddr(p); err != nil {
				t.Fatal(err)
			}
			addrs = append(addrs, p.Addr())
		}
	}
	echo(t, w.bob, addrs...)
	w.run("")
	contacts := 0
	for round := range coldRounds {
		if round > 0 {
			w.aliceTac.stop()
			w.aliceTac.start(false)
		}
		var wg sync.WaitGroup
		var mu sync.Mutex // counts what the goroutines reach
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
			wg.Go(func() {
				r, err := query(t.Context(), w.alice, "bob.example", kind)
				if err != nil || r.Rcode != dns.RcodeSuccess || len(r.addrs()) != coldAddrs {
					t.Errorf("round %d, %s: %v, %v", round, dns.Type(kind), r.Msg, err)
					return
				}
				for _, a := range r.addrs() {
					wg.Go(func() {
						if err := burst(t, w.alice, a, 5, 3*time.Second); err != nil {
							t.Errorf("round %d: %v", round, err)
							return
						}
						mu.Lock()
						contacts++
						mu.Unlock()
					})
				}
			})
		}
		wg.Wait()
	}
	t.Logf("%d first contacts, 5 first packets each", contacts)
	if contacts != coldRounds*2*coldAddrs {
		t.Errorf("%d contacts, want %d", contacts, coldRounds*2*coldAddrs)
	}
	w.onlyProtected(w.alice, w.bob)
	w.ackOrder(t, contacts)
}

// burst sends n datagrams at once and wants each of them back within the time, none sent again.
func burst(t *testing.T, from *lab.Host, to netip.Addr, n int, within time.Duration) error {
	c, err := from.Dial(t.Context(), "udp", netip.AddrPortFrom(to, 7000).String())
	if err != nil {
		return err
	}
	defer c.Close()
	for i := range n {
		if _, err := c.Write(binary.BigEndian.AppendUint32(nil, uint32(i))); err != nil {
			return fmt.Errorf("to %v: packet %d: %w", to, i, err)
		}
	}
	_ = c.SetReadDeadline(time.Now().Add(within))
	b := make([]byte, 16)
	for i := range n {
		if _, err := c.Read(b); err != nil {
			return fmt.Errorf("to %v: reply %d of %d: %w", to, i, n, err)
		}
	}
	return nil
}

var logged = regexp.MustCompile(`msg=(sa-installed|answer-released)\b.* peer=(\S+) .*\bt=(\S+)`)

// moments are when the daemon logged an event for each address, in order; rekeys are no contacts.
func moments(t *testing.T, log, event string) map[netip.Addr][]time.Time {
	t.Helper()
	m := map[netip.Addr][]time.Time{}
	for line := range strings.Lines(log) {
		f := logged.FindStringSubmatch(strings.TrimSpace(line))
		if f == nil || f[1] != event || strings.Contains(line, " rekey=true ") {
			continue
		}
		a, err := netip.ParseAddr(f[2])
		at, err2 := time.Parse(time.RFC3339Nano, f[3])
		if err != nil || err2 != nil {
			t.Fatalf("%s: %v, %v", line, err, err2)
		}
		m[a] = append(m[a], at)
	}
	return m
}

// ackOrder compares the daemons' logs with the tap. Both clocks are this machine's.
func (w *attackWorld) ackOrder(t *testing.T, contacts int) {
	t.Helper()
	installed, released := moments(t, w.aliceTac.log(), "sa-installed"), moments(t, w.aliceTac.log(), "answer-released")
	n := 0
	for a, list := range released {
		for i, at := range list {
			if i >= len(installed[a]) || at.Before(installed[a][i]) {
				t.Errorf("alice: the answer with %v left at %v, her SAs were installed at %v", a, at, installed[a])
			}
			n++
		}
	}
	if n != contacts {
		t.Errorf("alice released %d addresses, want %d", n, contacts)
	}
	// Bob logs by Alice's address; his installations, in order, must be no later than his replies, in order.
	const ikeAuth = 35
	n = 0
	for family, alice := range both(w.alice) {
		installed := moments(t, w.bobTac.log(), "sa-installed")[alice]
		replies := w.tap.Select(func(p lab.Packet) bool {
			h, ok := p.IKEHeader()
			return ok && h.Exchange == ikeAuth && h.Response && p.Dst == alice
		})
		if len(replies) != len(installed) {
			t.Errorf("family %d: bob sent %d replies to IKE_AUTH and installed %d SAs", family, len(replies), len(installed))
			continue
		}
		for i := range replies {
			if replies[i].Time.Before(installed[i]) {
				t.Errorf("bob: reply %d to IKE_AUTH was on the cable at %v, his SA was installed at %v", i, replies[i].Time, installed[i])
			}
			n++
		}
	}
	t.Logf("order of installation and reply compared for %d answers and %d replies to IKE_AUTH", contacts, n)
}
