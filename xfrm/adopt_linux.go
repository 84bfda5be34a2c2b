package xfrm

import (
	"errors"
	"net/netip"
	"time"

	"tacit/guard"
	"tacit/ipsec"
	"tacit/plane"
)

// adopt takes over what a dead process, or Close(true), left: what it held is held on, for as long as it would have been; what it
// protected flows on through its SAs, until it is keyed anew or their policy ends. Acquire is raised for the latter: nobody has an
// IKE SA for them any more. SAs that no policy uses go.
func (p *Plane) adopt(left []guard.Element) error {
	p.policies.Adopt(left)
	policies, foreign, err := p.kernel.policies()
	if err != nil {
		return err
	}
	for _, q := range foreign {
		p.log.Info("another's policy goes before ours where both select a packet", "way", q.Way, "selector", q.Selector, "priority", q.Priority)
	}
	states, err := p.kernel.states()
	if err != nil {
		return err
	}
	for _, q := range policies {
		if q.Way == Out && q.Priority == peerRank {
			p.adoptPair(q, states)
		}
	}
	var errs []error
	for _, s := range states {
		if !p.reqIDs[s.ReqID] {
			errs = append(errs, p.kernel.delState(s.Dst, s.SPI))
		}
	}
	p.left = append(p.left, p.policies.Left(left)...)
	return errors.Join(errs...)
}

// adoptPair makes a Pair of a policy out and the SAs with its reqid. The Pair has no ID: nobody can name it.
func (p *Plane) adoptPair(q Policy, states []State) {
	if len(q.Templates) != 1 || !isOurs(q.Templates[0].ReqID) {
		return
	}
	t := q.Templates[0]
	f := p.policies.Flow(guard.Key{Own: q.Selector.Src.Addr(), Peer: q.Selector.Dst.Addr()})
	pr := &pair{flow: f, reqID: t.ReqID, armed: true, adopted: true, ins: make(map[ipsec.SPI]*inbound), outs: make(map[ipsec.SPI]*outbound)}
	pr.spec = ipsec.Pair{Selector: f.Selector(), Mode: t.Mode, Local: netip.AddrPortFrom(t.Src, 0), Remote: netip.AddrPortFrom(t.Dst, 0)}
	for _, s := range states {
		if s.ReqID != t.ReqID {
			continue
		}
		s.Alg = Algorithm{} // the keys stay in the kernel
		if s.Selector.Dst.Addr() == f.Key.Peer {
			out := &outbound{pair: pr, state: s}
			pr.outs[s.SPI] = out
			if s.SPI == t.SPI {
				pr.out, pr.spec.Out.SPI = out, s.SPI
			}
		} else {
			in := &inbound{pair: pr, spi: s.SPI, dst: s.Dst, heard: true}
			pr.ins[s.SPI], p.ins[s.SPI], pr.spec.In.SPI = in, in, s.SPI
		}
		if s.Encap != (Encap{}) {
			pr.spec.Local, pr.spec.Remote = netip.AddrPortFrom(t.Src, plane.PortNATT), netip.AddrPortFrom(t.Dst, s.Encap.SrcPort^s.Encap.DstPort^plane.PortNATT)
		}
	}
	if pr.out == nil {
		return // its SAs are gone: what it sends is held by guard, or lost, but never in clear
	}
	if pr.spec.Mode == ipsec.Tunnel {
		f.tunnels++
	}
	f.all, f.armed, f.out = append(f.all, pr), append(f.armed, pr), pr.out
	f.adopted = p.policies.KeepUntil(f, p.now().Add(time.Duration(q.Lifetime.HardSeconds)*time.Second))
	p.reqIDs[pr.reqID] = true
	p.left = append(p.left, pr.spec)
	p.left[len(p.left)-1].Until = f.adopted
	p.acquire(f)
}

// Existing returns what stood in the kernel when this Plane was opened: Pairs with their selector, SPIs and outer addresses, and those
// with a selector only, which are held.
func (p *Plane) Existing() ([]ipsec.Pair, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]ipsec.Pair(nil), p.left...), nil
}

// dropAdopted ends what a dead process left on a flow, now that pr is armed.
func (p *Plane) dropAdopted(f *flow, pr *pair) error {
	var errs []error
	for _, other := range f.all {
		if other.adopted && other != pr {
			errs = append(errs, p.removePair(other))
		}
	}
	return errors.Join(errs...)
}
