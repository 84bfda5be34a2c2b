package xfrm

import (
	"net/netip"

	"tacit/guard"
	"tacit/ipsec"
	"tacit/plane"
)

// What is ours in the kernel is told by these: SAs by their reqid, policies by their priority and mark. Our priorities are worse
// than those of any daemon (strongSwan's lie below 400,000, libreswan's below 2,100,000) and of what `ip xfrm` makes: where two policies select a
// packet, the other one decides.
const (
	reqIDs     uint32 = 0x7a00_0000
	reqIDMask  uint32 = 0xff00_0000
	exemptRank uint32 = 0x7ac1_0000
	peerRank   uint32 = 0x7ac1_1000
)

// peerMark is the mark of every policy on a peer. It takes all packets but those that somebody marked in the uppermost bit, which
// guard then does not let out in clear; and it tells our policy from another's on the same two addresses, since the
// kernel finds policies by selector and mark.
var peerMark = Mark{0, 0x8000_0000}

// ownMark is that of our own sockets.
var ownMark = Mark{guard.MarkOwn, guard.MarkMask}

func isOurs(reqID uint32) bool { return reqID&reqIDMask == reqIDs }

func (p Policy) ours() bool {
	return p.Priority == exemptRank || p.Priority == peerRank && p.Mark == peerMark
}

// replayWindow is how many packets of an SA may overtake each other (TRUST.md A-49).
const replayWindow = 4096

// selectorOf is the traffic from one host to another.
func selectorOf(src, dst netip.Addr) Selector {
	return Selector{Src: netip.PrefixFrom(src, src.BitLen()), Dst: netip.PrefixFrom(dst, dst.BitLen()), Family: familyOf(dst)}
}

// statesOf are the two SAs of a Pair.
func statesOf(p ipsec.Pair, reqID uint32, seconds uint64) (in, out State, err error) {
	local, remote := p.Local.Addr(), p.Remote.Addr()
	if !local.IsValid() {
		local = p.Selector.Local.Addr()
	}
	own, peer := p.Selector.Local.Addr(), p.Selector.Remote.Addr()
	life := NoLimit
	life.HardSeconds = seconds
	in = State{Src: remote, Dst: local, SPI: p.In.SPI, Mode: p.Mode, Selector: selectorOf(peer, own), ReqID: reqID,
		Replay: Replay{Window: replayWindow, ESN: p.In.ESN}, Lifetime: life}
	if in.Alg, err = algorithm(p.In); err != nil {
		return in, out, err
	}
	life.SoftPackets, life.SoftBytes = plane.Limits(p.Out)
	life.SoftSeconds = seconds * 3 / 4 // IKE rekeys much sooner
	out = State{Src: local, Dst: remote, SPI: p.Out.SPI, Mode: p.Mode, Selector: selectorOf(own, peer), ReqID: reqID,
		Replay: Replay{Window: replayWindow, ESN: p.Out.ESN}, Lifetime: life, Output: ownMark}
	if out.Alg, err = algorithm(p.Out); err != nil {
		return in, out, err
	}
	if p.Encapsulated() {
		in.Encap = Encap{p.Remote.Port(), p.Local.Port()}
		out.Encap = Encap{p.Local.Port(), p.Remote.Port()}
	}
	return in, out, nil
}

// outPolicy sends what goes to the peer through one outbound SA.
func outPolicy(out State, own, peer netip.Addr, seconds uint64) Policy {
	return peerPolicy(Out, own, peer, seconds, Template{Src: out.Src, Dst: out.Dst, Family: familyOf(out.Dst), SPI: out.SPI,
		ReqID: out.ReqID, Mode: out.Mode})
}

// inPolicies let through what came out of any tunnel of ours from the peer, for this host, or, where it translates addresses, for those
// behind it: without a policy the kernel refuses what a tunnel carried. The peer's clear packets are guard's.
func inPolicies(k guard.Key, outer uint16, seconds uint64) []Policy {
	t := Template{Family: outer, Mode: ipsec.Tunnel, Optional: true}
	return []Policy{peerPolicy(In, k.Peer, k.Own, seconds, t), peerPolicy(Forward, k.Peer, k.Own, seconds, t)}
}

func peerPolicy(way Way, src, dst netip.Addr, seconds uint64, t Template) Policy {
	life := NoLimit
	life.HardSeconds = seconds
	return Policy{Selector: selectorOf(src, dst), Way: way, Priority: peerRank, Mark: peerMark, Templates: []Template{t}, Lifetime: life}
}

// exemptions are the policies that stand before all of ours: our own sockets, and neighbour discovery (ICMPv6 133 to 137), without
// which IPv6 to a protected peer ends when its neighbour entry does. Other exemptions, and all inbound ones, are guard's.
func exemptions(seconds uint64) (all []Policy) {
	life := NoLimit
	life.HardSeconds = seconds
	for _, family := range []uint16{familyIPv4, familyIPv6} {
		all = append(all, Policy{Selector: Selector{Family: family}, Way: Out, Priority: exemptRank, Mark: ownMark, Lifetime: life})
	}
	for kind := uint16(133); kind <= 137; kind++ {
		s := Selector{Family: familyIPv6, Proto: 58, SrcPort: kind}
		all = append(all, Policy{Selector: s, Way: Out, Priority: exemptRank, Mark: peerMark, Lifetime: life})
	}
	return all
}
