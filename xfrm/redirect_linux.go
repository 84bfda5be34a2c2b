package xfrm

import (
	"errors"
	"fmt"
	"net/netip"

	"tacit/ipsec"
	"tacit/plane"
)

// skipAhead is how many sequence numbers an outbound SA leaves out when it moves: packets that were under way while it was read may
// have used some, and a nonce must never be used twice (RFC 4106, 2). The peer's window follows.
const skipAhead = 1 << 16

// errRedacted: a kernel under lockdown shows no keys.
var errRedacted = errors.New("the kernel does not show the SA's keys (lockdown?): it cannot be moved")

// Redirect moves the outer addresses of a Pair; see [ipsec.Dataplane]. The kernel can change an SA's ports in place, but not its
// addresses: for these each SA is read, ended, and made again with its sequence numbers. Meanwhile the policy is away, and what would
// leave waits in the queue. What comes in between the reading and the end of an inbound SA could be played back once.
func (p *Plane) Redirect(id uint32, local, remote netip.AddrPort) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	pr, ok := p.pairs[id]
	if !ok {
		return plane.Wrap("redirect", id, plane.ErrPair)
	}
	spec := pr.spec
	spec.Local, spec.Remote = local, remote
	if err := errors.Join(plane.CheckRedirect(pr.spec, spec), checkTransport(spec)); err != nil {
		return plane.Wrap("redirect", id, err)
	}
	if !local.Addr().IsValid() {
		local = netip.AddrPortFrom(pr.spec.Local.Addr(), local.Port())
	}
	return plane.Wrap("redirect", id, p.redirect(pr, spec, local, remote))
}

// redirect changes one SA after the other. On an error some may have moved: the owner tries again.
func (p *Plane) redirect(pr *pair, spec ipsec.Pair, local, remote netip.AddrPort) error {
	f, out := pr.flow, current(pr.flow.armed)
	used := out != nil && out.pair == pr
	if used {
		if err := p.route(f, nil); err != nil {
			return err
		}
	}
	toPeer, fromPeer := State{Src: local.Addr(), Dst: remote.Addr()}, State{Src: remote.Addr(), Dst: local.Addr()}
	if spec.Encapsulated() {
		toPeer.Encap, fromPeer.Encap = Encap{local.Port(), remote.Port()}, Encap{remote.Port(), local.Port()}
	}
	var errs []error
	for _, o := range pr.outs {
		err := p.move(o.state.Dst, o.state.SPI, toPeer, skipAhead)
		if err == nil {
			o.state.Src, o.state.Dst, o.state.Encap = toPeer.Src, toPeer.Dst, toPeer.Encap
		}
		errs = append(errs, err)
	}
	for _, in := range pr.ins {
		err := p.move(in.dst, in.spi, fromPeer, 0)
		if err == nil {
			in.dst = fromPeer.Dst
		}
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	if err == nil {
		pr.spec = spec
	}
	if used {
		err = errors.Join(err, p.route(f, out))
	}
	return err
}

// move gives an SA the addresses and ports of to. If that cannot be, the old one stands.
func (p *Plane) move(dst netip.Addr, spi ipsec.SPI, to State, skip uint64) error {
	old, err := p.kernel.state(dst, spi)
	if err != nil {
		return err
	}
	if old.Alg.Redacted() {
		return fmt.Errorf("SA %v to %v: %w", spi, dst, errRedacted)
	}
	next := old
	next.Src, next.Dst, next.Encap = to.Src, to.Dst, to.Encap
	if next.Src == old.Src && next.Dst == old.Dst {
		return p.kernel.updateState(next)
	}
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
