package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"tacit/lab"
)

// Clients behind NATs, each at an address that the server has assigned to it.

// lodge makes the hosts, and starts Bob, on a data plane or that under test, and the clients, on tun: the kernel's ESP does not translate. Carol may have a name.
func lodge(t *testing.T, moved, named bool, server string) (w *natWorld, clients []*lab.Host) {
	t.Helper()
	w, carolKey := namedWorld(t)
	if moved {
		moves(t, w.nat, 40_000)
		moves(t, w.nat2, 40_000)
	}
	w.bobTac = startTacit(t, w.bob, w.anchor, options{name: "bob.example", identity: w.bobKey.pem, upstream: w.upstreamOfTheHost, dataplane: server})
	w.plane = "tun"
	clients = []*lab.Host{w.carol, w.dave, w.twin}
	for _, h := range clients {
		if named && h == w.carol {
			w.saysCarol(h, carolKey)
			continue
		}
		w.client(h, "")
	}
	return w, clients
}

// routed gives hosts a default route, as servers have.
func (w *natWorld) routed(hosts ...*lab.Host) {
	w.t.Helper()
	for _, h := range hosts {
		for i, flag := range []string{"-4", "-6"} {
			output(w.t, h, "ip", flag, "route", "add", "default", "via", both(w.plain)[i].String())
		}
	}
}

// talk has clients look Bob's name up and speak with him, all at once and both ways. Nothing is so long that its ESP goes in fragments: the tap shows one that a NAT has
// put together, and taken apart again, as it came and with the addresses that it has then, and before the first.
func (w *natWorld) talk(clients ...*lab.Host) { w.talkTo([]*lab.Host{w.bob}, clients...) }

// talkTo is talk with several servers.
func (w *natWorld) talkTo(servers []*lab.Host, clients ...*lab.Host) {
	w.t.Helper()
	var wg sync.WaitGroup
	for _, h := range clients {
		for _, s := range servers {
			mustAnswer(w.t, h, s.Name+".example", both(s)...)
			for _, to := range both(s) {
				wg.Go(func() {
					datagrams(w.t, h, s, to, 3, 1, 1300)
					transfer(w.t, h, s, to, 100_000)
				})
			}
		}
	}
	wg.Wait()
}

// lodgersOf are Bob's peers at addresses that he has assigned, by the address that they are seen at.
func (w *natWorld) lodgersOf() map[netip.Addr][]peerStatus {
	w.t.Helper()
	of := map[netip.Addr][]peerStatus{}
	for _, p := range w.bobTac.statusPeers() {
		if p.Outer.IsValid() {
			of[p.Outer.Addr()] = append(of[p.Outer.Addr()], p)
		}
	}
	return of
}

// TestLodgers (newoe-25-cat, certoe-06 and -07): two clients behind one NAT and a third behind another, which has the address of the first, all speak with Bob at once,
// in both families: what passes is ESP in UDP, and each gets what is its own. They are nobody, and nothing stands on the NATs' addresses: Erin, behind the
// same NAT, goes on in clear. Bob speaks to each at the address that he has assigned.
//
//tacit:attack A-29 each is at an address of its own that the server has assigned
func TestLodgers(t *testing.T) {
	for what, moved := range map[string]bool{"ports are kept": false, "ports are moved": true} {
		t.Run(what, func(t *testing.T) {
			w, clients := lodge(t, moved, false, "")
			w.talk(clients...)
			for _, h := range clients {
				w.onlyInUDP(h, w.bob)
			}
			for _, n := range []*lab.Host{w.nat, w.nat2} {
				w.onlyInUDP(n, w.bob)
			}
			of := w.lodgersOf()
			for n, want := range map[*lab.Host]int{w.nat: 2, w.nat2: 1} {
				for _, a := range both(n) {
					if len(of[a]) != want {
						t.Errorf("at %v are %+v, want %d", a, of[a], want)
					}
					for _, p := range of[a] {
						if p.State != "protected" || p.Assurance != "anonymous" || len(p.Names) > 0 || p.BytesIn == 0 {
							t.Errorf("bob's status: %+v", p)
						}
					}
				}
			}
			for _, h := range clients {
				datagrams(t, h, w.bob, w.bob.Addr4(), 3, 1472, 9000)
				datagrams(t, h, w.bob, w.bob.Addr6(), 3, 1472, 9000)
			}
			for _, to := range both(w.bob) {
				refused(t, w.carol, to)
			}
			for _, f := range []*stream{startStream(t, w.erin, w.bob, w.bob.Addr4()), startStream(t, w.erin, w.bob, w.bob.Addr6())} {
				f.goesOn(disturbed)
			}
			for _, h := range clients {
				echo(t, h, both(h)...)
			}
			w.backwards(of)
		})
	}
}

// backwards has Bob send to every client at the address that he has assigned: all of them have an echo.
func (w *natWorld) backwards(of map[netip.Addr][]peerStatus) {
	w.t.Helper()
	for _, list := range of {
		for _, p := range list {
			ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
			c, err := w.bob.Dial(ctx, "udp", netip.AddrPortFrom(p.Address, 7000).String())
			cancel()
			if err != nil {
				w.t.Fatal(err)
			}
			if !sendNumber(c, 7, 3*time.Second) {
				w.t.Errorf("nothing comes back from %v, which is at %v", p.Address, p.Outer)
			}
			c.Close()
			refused(w.t, w.bob, p.Address)
		}
	}
}

// refused sends a datagram to a port that nobody has: the ICMP error must find the socket.
func refused(t *testing.T, h *lab.Host, to netip.Addr) {
	t.Helper()
	c, err := h.Dial(t.Context(), "udp", netip.AddrPortFrom(to, 7).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Write([]byte("is anybody there?"))
	if err == nil {
		_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("%s to %v: %v, want a refusal", h.Name, to, err)
	}
}

// TestLodgersMove (certoe-08): the NATs forget what they knew, and give other ports. The server follows the first packet that is valid, and no connection breaks.
//
//tacit:attack A-30 the server follows valid ESP through a NAT that has forgotten
func TestLodgersMove(t *testing.T) {
	w, clients := lodge(t, true, false, "")
	w.lodgersMove(clients)
}

// TestXFRMLodgers: the server has the kernel's ESP, and one of the clients a name.
func TestXFRMLodgers(t *testing.T) {
	needESP(t, "nft", "nsd", "unbound", "dnssec-signzone", "ldns-signzone", "getent")
	w, clients := lodge(t, true, true, "xfrm")
	w.lodgersMove(clients)
	for a, list := range w.lodgersOf() {
		named := 0
		for _, p := range list {
			if p.Assurance == "authenticated" && slices.Equal(p.Names, []string{"carol.example"}) {
				named++
			}
		}
		if want := map[bool]int{false: 0, true: 1}[has(w.nat, a)]; named != want {
			t.Errorf("at %v are %+v, of whom %d are Carol, want %d", a, list, named, want)
		}
	}
}

func (w *natWorld) lodgersMove(clients []*lab.Host) {
	t := w.t
	t.Helper()
	w.talk(clients...)
	before := w.lodgersOf()
	var says []func() error
	for _, h := range clients {
		for _, to := range both(w.bob) {
			says = append(says, connect(t, h, w.bob, to))
		}
	}
	say := func() {
		t.Helper()
		for _, s := range says {
			if err := s(); err != nil {
				t.Error(err)
			}
		}
	}
	forgets(t, w.nat, w.nat2)
	say()
	for _, n := range []*lab.Host{w.nat, w.nat2} {
		moves(t, n, 50_000)
	}
	time.Sleep(3 * time.Second) // no packet: the NATs have forgotten
	say()
	for at, list := range w.lodgersOf() {
		for _, p := range list {
			if p.Outer.Port() < 50_000 {
				t.Errorf("%v is still at %v", p.Address, p.Outer)
			}
		}
		if len(list) != len(before[at]) {
			t.Errorf("at %v are %d, and were %d", at, len(list), len(before[at]))
		}
	}
	for _, h := range clients {
		w.onlyInUDP(h, w.bob)
	}
}

// connect makes a TCP connection to an echo, over which the function sends something that must come back.
func connect(t *testing.T, a, b *lab.Host, addr netip.Addr) (say func() error) {
	t.Helper()
	l, err := b.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := a.Dial(ctx, "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	text := a.Name + " speaks"
	return func() error {
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.WriteString(c, text); err != nil {
			return err
		}
		got := make([]byte, len(text))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
			return fmt.Errorf("%s: %q came back, %w", a.Name, got, err)
		}
		return nil
	}
}

// TestLodgersOfTwo (newoe-25-cat-2 and -3): two servers assign the same three addresses to the same three clients, who speak with both at once. Then every client has an
// address that another one has at the other server, or the same at both.
func TestLodgersOfTwo(t *testing.T) {
	var aliceKey identity
	w := newNATWorld(t, func(w *natWorld) []zoneFile {
		aliceKey = newIdentity(t)
		return []zoneFile{{"example.", bindNSEC, append(hostRecords("bob.example.", w.bob, &w.bobKey), hostRecords("alice.example.", w.alice, &aliceKey)...)}}
	})
	servers := []*lab.Host{w.bob, w.alice}
	w.routed(servers...)
	for i, key := range []identity{w.bobKey, aliceKey} {
		d := startTacit(t, servers[i], w.anchor, options{name: servers[i].Name + ".example", identity: key.pem, upstream: w.upstreamOfTheHost,
			top: `nat-pool = ["198.19.0.0/30", "2001:2::/126"]`, env: []string{"GOMAXPROCS=1"}}) // else each processor has its part of the addresses
		defer func() {
			for _, p := range d.statusPeers() {
				if p.State != "protected" || p.Address.As16()[15] > 3 {
					t.Errorf("%s: %+v", d.host.Name, p)
				}
			}
		}()
	}
	w.plane = "tun"
	clients := []*lab.Host{w.carol, w.dave, w.twin}
	for _, h := range clients {
		w.client(h, "")
	}
	w.talkTo(servers, clients...)
	for _, s := range servers {
		for _, n := range []*lab.Host{w.nat, w.nat2} {
			w.onlyInUDP(n, s)
		}
	}
}

// TestLodgersUnwanted: who takes no anonymous clients, or has no addresses to assign, takes nobody behind a NAT. The name is withheld from them, and nothing
// leaves in clear.
func TestLodgersUnwanted(t *testing.T) {
	w := newNATWorld(t, func(w *natWorld) []zoneFile {
		return []zoneFile{{"example.", bindNSEC, hostRecords("bob.example.", w.bob, &w.bobKey)}}
	})
	w.routed(w.bob)
	w.bobTac = startTacit(t, w.bob, w.anchor, options{name: "bob.example", identity: w.bobKey.pem, upstream: w.upstreamOfTheHost, top: "nat-pool = [\"198.19.0.0/16\"]",
		policy: fmt.Sprintf("[[policy]]\nmatch = [%q]\naccept-anonymous = false\n", w.nat2.Addr4())})
	w.plane = "tun"
	w.client(w.carol, "")
	w.client(w.twin, "")
	mustWithhold(t, w.twin, "bob.example") // in neither family
	a := ask(t, w.carol, "bob.example", dns.TypeAAAA)
	if len(a.addrs()) > 0 {
		t.Errorf("carol got %v", a.addrs())
	}
	mustAnswer(t, w.carol, "bob.example", w.bob.Addr4())
	w.wantNothing(w.twin, w.bob)
}
