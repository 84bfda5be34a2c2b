package tun

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"tacit/ipsec"
	"tacit/lab"
	"tacit/plane"
)

// BenchmarkStream is one TCP stream between two hosts: in clear, and through two Planes, ESP in UDP and plain. It needs root.
func BenchmarkStream(b *testing.B) {
	needLab(b)
	for _, c := range []struct {
		name      string
		protected bool
		port      uint16
		config    Config
	}{
		{"veth", false, 0, Config{}},
		{"udp", true, plane.PortNATT, Config{}},
		{"esp", true, 0, Config{}},
		{"udp-no-offload", true, plane.PortNATT, Config{NoOffload: true}},
	} {
		b.Run(c.name, func(b *testing.B) {
			alice, bob := benchHosts(b)
			if c.protected {
				benchPair(b, alice, bob, c.port, c.config)
			}
			benchStream(b, alice, bob)
		})
	}
}

func benchHosts(b *testing.B) (alice, bob *lab.Host) {
	l, err := lab.New("bench")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close() })
	hosts := make([]*lab.Host, 2)
	for i, name := range []string{"alice", "bob"} {
		if hosts[i], err = l.Host(name, netip.PrefixFrom([]netip.Addr{alice4, bob4}[i], 24)); err != nil {
			b.Fatal(err)
		}
		if err := hosts[i].Offload(true); err != nil {
			b.Fatal(err)
		}
	}
	return hosts[0], hosts[1]
}

// benchPair protects the traffic of two hosts, with the Pair that one of them initiated.
func benchPair(b *testing.B, alice, bob *lab.Host, port uint16, cfg Config) {
	pa := ipsec.Pair{ID: 1, Local: netip.AddrPortFrom(alice4, port), Remote: netip.AddrPortFrom(bob4, port),
		Selector: ipsec.Host(alice4, bob4), In: testSA(1001), Out: testSA(1002)}
	pb := ipsec.Pair{ID: 1, Local: pa.Remote, Remote: pa.Local, Selector: ipsec.Host(bob4, alice4), In: pa.Out, Out: pa.In}
	for _, end := range []struct {
		host *lab.Host
		pair ipsec.Pair
	}{{bob, pb}, {alice, pa}} {
		err := end.host.Do(func() error {
			p, err := Open(cfg)
			if err != nil {
				return err
			}
			b.Cleanup(func() { _ = p.Close(false) })
			return p.InstallOutbound(end.pair)
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func benchStream(b *testing.B, alice, bob *lab.Host) {
	l, err := bob.Listen("tcp4", bob4.String()+":7")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	received := make(chan int64)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		n, _ := io.Copy(io.Discard, c)
		received <- n
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := alice.Dial(ctx, "tcp4", bob4.String()+":7")
	if err != nil {
		b.Fatal(err)
	}
	block := make([]byte, 1<<20)
	b.SetBytes(int64(len(block)))
	n := int64(0)
	for b.Loop() {
		if _, err := c.Write(block); err != nil {
			b.Fatal(err)
		}
		n += int64(len(block))
	}
	_ = c.(*net.TCPConn).CloseWrite()
	if got := <-received; got != n {
		b.Errorf("got %d octets, want %d", got, n)
	}
}

// BenchmarkInstall is one Pair put up and taken down beside many others, and the arming that goes with it. It needs root.
func BenchmarkInstall(b *testing.B) {
	needLab(b)
	for _, c := range []struct {
		name string
		n    int
	}{{"10", 10}, {"1000", 1000}, {"10000", 10000}} {
		b.Run(c.name, func(b *testing.B) {
			alice, _ := benchHosts(b)
			var p *Plane
			if err := alice.Do(func() (err error) { p, err = Open(Config{}); return err }); err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = p.Close(false) })
			pair := func(i int) ipsec.Pair {
				peer := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
				return ipsec.Pair{ID: uint32(i), Local: netip.AddrPortFrom(alice4, plane.PortNATT), Remote: netip.AddrPortFrom(peer, plane.PortNATT),
					Selector: ipsec.Host(alice4, peer), In: testSA(ipsec.SPI(1000 + i)), Out: testSA(ipsec.SPI(1000 + i))}
			}
			for i := range c.n {
				if err := p.InstallOutbound(pair(i)); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				if err := p.InstallOutbound(pair(c.n)); err != nil {
					b.Fatal(err)
				}
				if err := p.Remove(uint32(c.n)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
