package xfrm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tacit/guard"
	"tacit/ipsec"
	"tacit/lab"
	"tacit/plane"
)

// labHost makes a host with the two documentation addresses, and a neighbour to send to.
func labHost(t *testing.T) *lab.Host {
	t.Helper()
	if os.Getenv("TACIT_E2E") != "1" {
		t.Skip("needs root and network namespaces: set TACIT_E2E=1")
	}
	l, err := lab.New("xf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := l.Host("bob", lab.Prefixes("192.0.2.2/24", "2001:db8::2/64")...); err != nil {
		t.Fatal(err)
	}
	h, err := l.Host("alice", lab.Prefixes("192.0.2.1/24", "2001:db8::1/64")...)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func text(t *testing.T, h *lab.Host, line string) string {
	t.Helper()
	args := strings.Fields(line)
	out, err := h.Command(context.Background(), args[0], args[1:]...).Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// TestPoliciesLive: on any kernel with policies, iproute2 prints ours as it prints the same ones of its own, and what we list is
// what we set.
func TestPoliciesLive(t *testing.T) {
	h := labHost(t)
	err := h.Do(func() error {
		k, err := dialKernel()
		if err != nil {
			return err
		}
		defer k.close()
		own, peer := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
		out := State{Src: own, Dst: peer, SPI: 0x10000001, ReqID: 0x7a000001}
		set := append(exemptions(60), inPolicies(guard.Key{Own: own, Peer: peer}, familyIPv6, 60)...)
		set = append(set, outPolicy(out, own, peer, 60))
		for _, p := range set {
			if err := k.setPolicy(p); err != nil {
				return err
			}
		}
		const theirs = "ip xfrm policy update src 2001:db8::1/128 dst 2001:db8::2/128 dir out priority %d mark %d mask 0x80000000 limit time-hard 60 " +
			"tmpl src 2001:db8::1 dst 2001:db8::2 proto esp spi 0x10000001 reqid 2046820353 mode transport"
		ours := text(t, h, "ip -s xfrm policy list dir out src 2001:db8::1/128")
		if err := k.delPolicy(set[len(set)-1]); err != nil {
			return err
		}
		text(t, h, fmt.Sprintf(theirs, peerRank, peerMark.Value))
		if want := text(t, h, "ip -s xfrm policy list dir out src 2001:db8::1/128"); stable(ours) != stable(want) {
			t.Errorf("iproute2 prints ours as\n%s\nits own as\n%s", ours, want)
		}
		listed, foreign, err := k.policies()
		if err != nil || len(listed) != len(set) || len(foreign) != 0 {
			t.Errorf("listed: got %d and %d foreign, %v; want %d", len(listed), len(foreign), err, len(set))
		}
		if err := k.sweep(); err != nil {
			return err
		}
		if left := text(t, h, "ip xfrm policy"); left != "" {
			t.Errorf("after the sweep: %s", left)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// stable leaves out what the kernel chooses.
func stable(s string) string {
	var out []string
	for _, line := range strings.Split(s, "\n") {
		if !strings.Contains(line, "add ") {
			out = append(out, strings.TrimSpace(strings.Join(strings.Fields(line), " ")))
		}
	}
	return index.ReplaceAllString(strings.Join(out, "\n"), "index N")
}

var index = regexp.MustCompile("index [0-9]+")

// TestAcquireLive: the kernel's own ACQUIRE for a policy whose SA is missing is read, whole.
func TestAcquireLive(t *testing.T) {
	h := labHost(t)
	err := h.Do(func() error {
		k, err := dialKernel()
		if err != nil {
			return err
		}
		defer k.close()
		news, err := openNews()
		if err != nil {
			return err
		}
		defer news.Close()
		own, peer := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
		policy := outPolicy(State{Src: own, Dst: peer, ReqID: 0x7a000001}, own, peer, 60)
		if err := k.setPolicy(policy); err != nil {
			return err
		}
		defer k.sweep()
		c, err := h.Dial(context.Background(), "udp4", "192.0.2.2:7")
		if err != nil {
			return err
		}
		defer c.Close()
		_, _ = c.Write([]byte("x")) // EAGAIN or lost: nobody holds it
		_ = news.SetReadDeadline(time.Now().Add(2 * time.Second))
		messages, err := news.Receive()
		if err != nil {
			return fmt.Errorf("no ACQUIRE: %w", err)
		}
		a, err := ParseAcquire(messages[0].Data)
		if err != nil {
			return err
		}
		if a.Dst != peer || a.Policy.Selector != policy.Selector || !a.Policy.ours() || a.Selector.DstPort != 7 || a.Selector.Proto != unix.IPPROTO_UDP {
			t.Errorf("acquire: got %+v", a)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestLimitsLive: a soft limit of an SA, in packets, octets or seconds, is told once as a soft EXPIRE, and the SA goes on.
func TestLimitsLive(t *testing.T) {
	needLab(t)
	h := labHost(t)
	own := netip.MustParseAddr("192.0.2.1")
	spec := examplePair(7, ipsec.Transport)
	for i, limit := range []func(*Lifetime){
		func(l *Lifetime) { l.SoftPackets = 3 },
		func(l *Lifetime) { l.SoftBytes = 300 },
		func(l *Lifetime) { l.SoftSeconds, l.HardSeconds = 1, 60 },
	} {
		peer := netip.AddrFrom4([4]byte{192, 0, 2, byte(20 + i)})
		err := h.Do(func() error {
			k, err := dialKernel()
			if err != nil {
				return err
			}
			defer k.close()
			news, err := openNews()
			if err != nil {
				return err
			}
			defer news.Close()
			spec.Selector, spec.Remote = ipsec.Host(own, peer), netip.AddrPortFrom(peer, 0)
			_, out, err := statesOf(spec, reqIDs+7, 3600)
			if err != nil {
				return err
			}
			out.Lifetime = NoLimit
			limit(&out.Lifetime)
			if err := errors.Join(k.addState(out), k.setPolicy(outPolicy(out, own, peer, 60))); err != nil {
				return err
			}
			defer k.sweep()
			c, err := h.Dial(context.Background(), "udp4", peer.String()+":7")
			if err != nil {
				return err
			}
			defer c.Close()
			for range 5 {
				_, _ = c.Write(make([]byte, 100)) // nobody answers
			}
			_ = news.SetReadDeadline(time.Now().Add(5 * time.Second))
			messages, err := news.Receive()
			if err != nil {
				return fmt.Errorf("limit %d: no EXPIRE: %w", i, err)
			}
			e, err := ParseExpire(messages[0].Data)
			if err != nil || e.Hard || e.State.SPI != out.SPI || e.State.Dst != peer || len(messages) != 1 {
				t.Errorf("limit %d: got %+v and %d more, %v", i, e, len(messages)-1, err)
			}
			if s, err := k.state(peer, out.SPI); err != nil || s.Current.Packets != 5 {
				t.Errorf("limit %d: %d packets went through, %v", i, s.Current.Packets, err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// TestErrorsLive: what the kernel refuses comes back with the operation, its own words, and a hint.
func TestErrorsLive(t *testing.T) {
	h := labHost(t)
	err := h.Do(func() error {
		k, err := dialKernel()
		if err != nil {
			return err
		}
		defer k.close()
		at := netip.MustParseAddr("127.0.0.1")
		s := State{Src: at, Dst: at, SPI: probeSPI, Selector: selectorOf(at, at), Lifetime: NoLimit,
			Alg: Algorithm{AEAD: "rfc4106(gcm(nonsense))", Key: make([]byte, 20), ICV: 16}, Replay: Replay{Window: 64, ESN: true}}
		err = k.addState(s)
		for _, want := range []string{"add SA 7ac17ac1 to 127.0.0.1", "does the kernel have the algorithm?"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q in it", err, want)
			}
		}
		if err := k.delState(at, probeSPI); err != nil {
			t.Errorf("an SA that is not there: %v", err)
		}
		if err := k.delPolicy(outPolicy(s, at, at, 0)); err != nil {
			t.Errorf("a policy that is not there: %v", err)
		}
		q, _, err := openQueue(DefaultQueue)
		if err != nil {
			return err
		}
		defer q.Close()
		if err := Cleanup(Config{}); !errors.Is(err, ErrRunning) {
			t.Errorf("cleanup beside a running daemon: got %v, want %v", err, ErrRunning)
		}
		if Available() == nil { // a second daemon leaves the first one's alone
			if err := k.setPolicy(exemptions(60)[0]); err != nil {
				return err
			}
			if _, err := Open(Config{}); !errors.Is(err, ErrRunning) {
				t.Errorf("open beside a running daemon: got %v, want %v", err, ErrRunning)
			}
			if left := text(t, h, "ip xfrm policy"); left == "" {
				t.Error("the first one's policies are gone")
			}
		}
		taken, err := openSocket(plane.PortIKE, false)
		if err != nil {
			return err
		}
		defer taken.close()
		if _, err := openSocket(plane.PortIKE, false); err == nil || !strings.Contains(err.Error(), "by xfrm.test (pid ") {
			t.Errorf("a port that is taken: got %v, want who has it", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func needPlane(t *testing.T, h *lab.Host, cfg Config) (p *Plane) {
	t.Helper()
	needLab(t)
	if err := h.Do(func() (err error) { p, err = Open(cfg); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(false); err != nil {
			t.Error(err)
		}
	})
	return p
}

func examplePair(id uint32, mode ipsec.Mode) ipsec.Pair {
	own, peer := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	sa := func(spi ipsec.SPI) ipsec.SA {
		return ipsec.SA{SPI: spi, Cipher: ipsec.AESGCM16, Key: bytes.Repeat([]byte{7}, 32), Salt: make([]byte, 4), ESN: true}
	}
	return ipsec.Pair{ID: id, Mode: mode, Local: netip.AddrPortFrom(own, 4500), Remote: netip.AddrPortFrom(peer, 4500),
		Selector: ipsec.Host(own, peer), In: sa(ipsec.SPI(0x1000 * id)), Out: sa(ipsec.SPI(0x1000*id + 1))}
}

const everything = "ip xfrm state; ip xfrm policy; nft list ruleset"

func all(t *testing.T, h *lab.Host) (s string) {
	for _, line := range strings.Split(everything, ";") {
		s += text(t, h, line)
	}
	return s
}
