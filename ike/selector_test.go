package ike

import (
	"net/netip"
	"testing"
	"time"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// ts is a traffic selector: first and last address, protocol, first and last port.
func ts(first, last string, proto uint8, ports ...uint16) wire.TrafficSelector {
	t := wire.TrafficSelector{Start: netip.MustParseAddr(first), End: netip.MustParseAddr(last), Proto: proto, EndPort: 65535}
	if len(ports) == 2 {
		t.StartPort, t.EndPort = ports[0], ports[1]
	}
	return t
}

// What a responder makes of what peers ask for (RFC 7296, 2.9; TRUST.md A-28).
func TestNarrow(t *testing.T) {
	const a, b = "192.0.2.1", "192.0.2.2" // the peer and we
	host := ipsec.Host(netip.MustParseAddr(b), netip.MustParseAddr(a))
	with := func(s ipsec.Selector, proto uint8, local, remote uint16) ipsec.Selector {
		s.Proto, s.LocalPort, s.RemotePort = proto, local, remote
		return s
	}
	nets := ipsec.Selector{Local: netip.MustParsePrefix("10.2.0.0/16"), Remote: netip.MustParsePrefix("10.1.0.0/16")}
	sub := func(local, remote string) ipsec.Selector {
		return ipsec.Selector{Local: netip.MustParsePrefix(local), Remote: netip.MustParsePrefix(remote)}
	}
	six := ipsec.Host(netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8::1"))
	type list = []wire.TrafficSelector
	for name, c := range map[string]struct {
		want          ipsec.Selector
		remote, local list
		sel           ipsec.Selector
		ok            bool
	}{
		"just that":                        {host, list{ts(a, a, 0)}, list{ts(b, b, 0)}, host, true},
		"all addresses":                    {host, list{ts("0.0.0.0", "255.255.255.255", 0)}, list{ts("0.0.0.0", "255.255.255.255", 0)}, host, true},
		"a range":                          {host, list{ts("192.0.2.0", "192.0.2.77", 0)}, list{ts("192.0.2.2", "192.0.2.3", 0)}, host, true},
		"somebody else's address":          {host, list{ts("192.0.2.3", "192.0.2.9", 0)}, list{ts(b, b, 0)}, ipsec.Selector{}, false},
		"not our address":                  {host, list{ts(a, a, 0)}, list{ts("192.0.2.3", "192.0.2.9", 0)}, ipsec.Selector{}, false},
		"the other way round":              {host, list{ts(b, b, 0)}, list{ts(a, a, 0)}, ipsec.Selector{}, false},
		"the wrong family":                 {host, list{ts("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 0)}, list{ts(b, b, 0)}, ipsec.Selector{}, false},
		"another family beside":            {host, list{ts("2001:db8::1", "2001:db8::1", 0), ts(a, a, 0)}, list{ts("2001:db8::2", "2001:db8::2", 0), ts(b, b, 0)}, host, true},
		"IPv6":                             {six, list{ts("2001:db8::", "2001:db8::ff", 0)}, list{ts("2001:db8::2", "2001:db8::2", 0)}, six, true},
		"nothing":                          {host, nil, list{ts(b, b, 0)}, ipsec.Selector{}, false},
		"the packet first, then all":       {host, list{ts(a, a, 6, 40000, 40000), ts(a, a, 0)}, list{ts(b, b, 6, 443, 443), ts(b, b, 0)}, host, true},
		"the packet of ICMP, then all":     {host, list{ts(a, a, 1, 2048, 2048), ts(a, a, 0)}, list{ts(b, b, 1, 2048, 2048), ts(b, b, 0)}, host, true},
		"a type of ICMP only":              {host, list{ts(a, a, 1, 2048, 2048)}, list{ts(b, b, 1, 2048, 2048)}, ipsec.Selector{}, false},
		"ICMP":                             {host, list{ts(a, a, 1)}, list{ts(b, b, 1)}, with(host, 1, 0, 0), true},
		"one flow":                         {host, list{ts(a, a, 6, 40000, 40000)}, list{ts(b, b, 6, 443, 443)}, with(host, 6, 443, 40000), true},
		"one protocol":                     {host, list{ts(a, a, 17)}, list{ts(b, b, 17)}, with(host, 17, 0, 0), true},
		"a protocol on one side":           {host, list{ts(a, a, 0)}, list{ts(b, b, 17, 53, 53)}, with(host, 17, 53, 0), true},
		"two protocols":                    {host, list{ts(a, a, 6)}, list{ts(b, b, 17)}, ipsec.Selector{}, false},
		"the packet's protocol of two":     {host, list{ts(a, a, 17, 9, 9), ts(a, a, 6), ts(a, a, 17)}, list{ts(b, b, 17, 9, 9), ts(b, b, 6), ts(b, b, 17)}, with(host, 17, 0, 0), true},
		"ports of no protocol":             {host, list{ts(a, a, 0)}, list{ts(b, b, 0, 80, 80)}, ipsec.Selector{}, false},
		"OPAQUE ports":                     {host, list{ts(a, a, 6, 65535, 0)}, list{ts(b, b, 6)}, ipsec.Selector{}, false},
		"a range of ports":                 {host, list{ts(a, a, 6)}, list{ts(b, b, 6, 8000, 8999)}, ipsec.Selector{}, false},
		"a range of ports with the packet": {host, list{ts(a, a, 6, 50000, 50000), ts(a, a, 6)}, list{ts(b, b, 6, 8080, 8080), ts(b, b, 6, 8000, 8999)}, with(host, 6, 8080, 0), true},
		"what we allow, of all":            {with(host, 6, 443, 0), list{ts(a, a, 0)}, list{ts(b, b, 0)}, with(host, 6, 443, 0), true},
		"what we allow, of a range":        {with(host, 6, 443, 0), list{ts(a, a, 6)}, list{ts(b, b, 6, 1, 1023)}, with(host, 6, 443, 0), true},
		"what we do not allow":             {with(host, 6, 443, 0), list{ts(a, a, 17)}, list{ts(b, b, 17)}, ipsec.Selector{}, false},
		"a port that we do not allow":      {with(host, 6, 443, 0), list{ts(a, a, 6)}, list{ts(b, b, 6, 80, 80)}, ipsec.Selector{}, false},
		"networks":                         {nets, list{ts("10.0.0.0", "10.255.255.255", 0)}, list{ts("10.2.0.0", "10.2.255.255", 0)}, nets, true},
		"a host of a network":              {nets, list{ts("10.1.2.3", "10.1.2.3", 0)}, list{ts("10.2.0.0", "10.2.255.255", 0)}, sub("10.2.0.0/16", "10.1.2.3/32"), true},
		"half of a network":                {nets, list{ts("10.1.128.0", "10.3.0.0", 0)}, list{ts("10.2.0.0", "10.2.255.255", 0)}, sub("10.2.0.0/16", "10.1.128.0/17"), true},
		"no prefix, with the packet": {nets, list{ts("10.1.2.9", "10.1.2.9", 0), ts("10.1.2.1", "10.1.2.13", 0)}, list{ts("10.2.0.1", "10.2.0.1", 0), ts("10.2.0.0", "10.2.255.255", 0)},
			sub("10.2.0.0/16", "10.1.2.8/30"), true},
		"the packet is elsewhere": {nets, list{ts("172.16.0.1", "172.16.0.1", 0), ts("10.1.0.0", "10.1.255.255", 0)}, list{ts("10.2.0.1", "10.2.0.1", 0), ts("10.2.0.0", "10.2.255.255", 0)}, nets, true},
	} {
		sel, ok := narrow(c.want, c.remote, c.local)
		if ok != c.ok || sel != c.sel {
			t.Errorf("%s: %v %v, want %v %v", name, sel, ok, c.sel, c.ok)
		}
	}
}

// Whatever is asked for, nothing is granted that was not, or that we do not allow.
func FuzzNarrow(f *testing.F) {
	f.Add([]byte{10, 1, 0, 0, 10, 1, 255, 255, 6, 0, 80, 0, 80}, []byte{10, 2, 0, 0, 10, 2, 255, 255, 0, 0, 0, 255, 255})
	want := ipsec.Selector{Local: netip.MustParsePrefix("10.2.0.0/16"), Remote: netip.MustParsePrefix("10.1.0.0/17")}
	parse := func(b []byte) (all []wire.TrafficSelector) {
		for ; len(b) >= 13 && len(all) < 8; b = b[13:] {
			t := wire.TrafficSelector{Proto: b[8], StartPort: uint16(b[9])<<8 | uint16(b[10]), EndPort: uint16(b[11])<<8 | uint16(b[12])}
			t.Start, _ = netip.AddrFromSlice(b[:4])
			t.End, _ = netip.AddrFromSlice(b[4:8])
			if !t.End.Less(t.Start) && (t.StartPort <= t.EndPort || t.Opaque()) {
				all = append(all, t)
			}
		}
		return all
	}
	f.Fuzz(func(t *testing.T, rb, lb []byte) {
		remote, local := parse(rb), parse(lb)
		s, ok := narrow(want, remote, local)
		if !ok {
			return
		}
		has := func(ts []wire.TrafficSelector, p netip.Prefix, port uint16) bool {
			for _, x := range ts {
				in := !p.Addr().Less(x.Start) && !x.End.Less(lastAddr(p)) && (x.Proto == 0 || x.Proto == s.Proto)
				if in && (port == 0 && x.StartPort == 0 && x.EndPort == 65535 || port != 0 && x.StartPort <= port && port <= x.EndPort) {
					return true
				}
			}
			return false
		}
		if !has(remote, s.Remote, s.RemotePort) || !has(local, s.Local, s.LocalPort) ||
			!want.Remote.Contains(s.Remote.Addr()) || s.Remote.Bits() < 17 || !want.Local.Contains(s.Local.Addr()) || s.Local.Bits() < 16 {
			t.Errorf("%v of %v and %v", s, remote, local)
		}
	})
}

// A peer that wants a Child SA for one pair of addresses alone is asked for no more than that; one that says so all the same is told apart.
func TestSinglePairRequired(t *testing.T) {
	a, b, w := pairOf(t)
	w.tap = rewrite(t, b, func(ps []wire.Payload) []wire.Payload {
		return append(drop[*wire.TS](drop[*wire.SA](ps)), &wire.Notify{Type: wire.SinglePairRequired})
	})
	w.initiate(a, peerOf(a, b))
	w.run(time.Second)
	if c, _ := find[Closed](a); c.Err != (NotifyError{wire.SinglePairRequired}) || count[ChildWanted](a) != 0 {
		t.Errorf("%s", a.dump())
	}
}
