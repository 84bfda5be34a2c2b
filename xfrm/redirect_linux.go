package xfrm

import (
	"errors"
	"fmt"
	"net/netip"

	"tacit/ipsec"
)

// skipAhead is how many sequence numbers an outbound SA leaves out when it moves: packets that were under way while it was read may
// have used some, and a nonce must never be used twice (RFC 4106, 2). The peer's window follows.
const skipAhead = 1 << 16

// Redirect moves the outer addresses of a Pair; see [ipsec.Dataplane]. The kernel cannot change an SA's addresses: each is read,
// ended, and made again with its sequence numbers. Meanwhile the policy is away, and what would leave waits in the queue.
func (p *Plane) Redirect(id uint32, local, remote netip.AddrPort) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	pr, ok := p.pairs[id]
	if !ok {
		return wrap("redirect", id, errPair)
	}
	spec := pr.spec
	spec.Local, spec.Remote = local, remote
	if err := checkOuter(spec); err != nil {
		return wrap("redirect", id, err)
	}
	if spec.Encapsulated() != pr.spec.Encapsulated() {
		return wrap("redirect", id, fmt.Errorf("%w: encapsulation cannot change", errOuter))
	}
	if !local.Addr().IsValid() {
		local = netip.AddrPortFrom(pr.spec.Local.Addr(), local.Port())
	}
	return wrap("redirect", id, p.redirect(pr, spec, local, remote))
}

func (p *Plane) redirect(pr *pair, spec ipsec.Pair, local, remote netip.AddrPort) error {
	f, out := pr.flow, pr.flow.out
	if out != nil && out.pair == pr {
		if err := p.route(f, nil); err != nil {
			return err
		}
	}
	var errs []error
	for _, o := range pr.outs {
		to := o.state
		to.Src, to.Dst = local.Addr(), remote.Addr()
		if spec.Encapsulated() {
			to.Encap = Encap{local.Port(), remote.Port()}
		}
		if err := p.move(o.state.Dst, o.state.SPI, to, skipAhead); err != nil {
			errs = append(errs, err)
			continue
		}
		o.state = to
	}
	for _, in := range pr.ins {
		to := State{Src: remote.Addr(), Dst: local.Addr()}
		if spec.Encapsulated() {
			to.Encap = Encap{remote.Port(), local.Port()}
		}
		if err := p.move(in.dst, in.spi, to, 0); err != nil {
			errs = append(errs, err)
			continue
		}
		in.dst = to.Dst
	}
	if len(errs) == 0 {
		pr.spec = spec
	}
	if out != nil && out.pair == pr {
		errs = append(errs, p.route(f, out))
	}
	return errors.Join(errs...)
}

// move replaces an SA by one with the addresses of to. If that cannot be, the old one is put back.
func (p *Plane) move(dst netip.Addr, spi ipsec.SPI, to State, skip uint64) error {
	old, err := p.kernel.state(dst, spi)
	if err != nil {
		return err
	}
	next := old
	next.Src, next.Dst, next.Encap = to.Src, to.Dst, to.Encap
	if next.Replay.Out > 0 {
		next.Replay.Out += skip
	}
	if err := p.kernel.delState(dst, spi); err != nil {
		return err
	}
	if err := p.kernel.addState(next); err != nil {
		return errors.Join(err, p.kernel.addState(old))
	}
	return nil
}
