package tun

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"tacit/esp"
	"tacit/guard"
	"tacit/ipsec"
)

var (
	errPair     = errors.New("no such pair")
	errSelector = errors.New("selector must name one local and one remote host, and all their traffic")
	errOuter    = errors.New("outer addresses")
	errSPI      = errors.New("SPI is in use")
	errClosed   = errors.New("tun: closed")
)

// expireAfter is when Expiring is raised, in sequence numbers: with 32 bits there is a quarter left.
const (
	expireAfter    = 3 << 30
	expireAfterESN = 1 << 62
)

// hosts checks that a selector names two hosts, and returns them. Wider ones come with gateways.
func hosts(s ipsec.Selector) (guard.Key, error) {
	k := guard.Key{Own: s.Local.Addr(), Peer: s.Remote.Addr()}
	if !s.Local.IsValid() || !s.Remote.IsValid() || !s.Local.IsSingleIP() || !s.Remote.IsSingleIP() ||
		k.Own.Is4() != k.Peer.Is4() || k.Own.Is4In6() || k.Peer.Is4In6() || k.Own == k.Peer ||
		s.Proto != 0 || s.LocalPort != 0 || s.RemotePort != 0 {
		return k, fmt.Errorf("selector %v: %w", s, errSelector)
	}
	return k, nil
}

// checkOuter checks where the ESP of a Pair shall go.
func (p *Plane) checkOuter(spec ipsec.Pair) error {
	local, remote := spec.Local, spec.Remote
	switch {
	case !remote.Addr().IsValid() || remote.Addr().Is4In6():
		return fmt.Errorf("%w: remote %v", errOuter, remote)
	case local.Addr().IsValid() && local.Addr().Is4() != remote.Addr().Is4():
		return fmt.Errorf("%w: %v and %v are of two families", errOuter, local, remote)
	case spec.Encapsulated() && local.Port() != portNATT:
		return fmt.Errorf("%w: ESP in UDP leaves from port %d, not %d", errOuter, portNATT, local.Port())
	case p.socketFor(spec) == nil:
		return fmt.Errorf("%w: no socket for %v (a kernel without IPv6?)", errOuter, remote)
	}
	return nil
}

// socketFor is the socket that the Pair's ESP leaves by; nil where the kernel lacks the family.
func (p *Plane) socketFor(spec ipsec.Pair) *socket {
	family := 0
	if spec.Remote.Addr().Is6() {
		family = 1
	}
	if spec.Encapsulated() {
		return p.socks.natt[family]
	}
	return p.socks.esp[family]
}

// flow finds or makes the flow of a key. The Plane's lock is held.
func (p *Plane) flow(k guard.Key) *flow {
	f, ok := p.all[k]
	if !ok {
		f = &flow{key: k}
		p.all[k] = f
		p.flows.put(keyOf(k.Own, k.Peer), f)
	}
	return f
}

// forget removes a flow that nothing asks for.
func (p *Plane) forget(f *flow) {
	if f.pairs == 0 && f.until.IsZero() && f.verdict == guard.Pass {
		delete(p.all, f.key)
		p.flows.remove(keyOf(f.key.Own, f.key.Peer))
	}
}

// address gives an outbound SA its way: socket, destination, source, and what fits.
func (p *Plane) address(out *outbound, spec ipsec.Pair) {
	out.sock, out.to = p.socketFor(spec), makeSockaddr(spec.Remote)
	out.control = putLocal(make([]byte, 0, controlSize), spec.Local.Addr())
	out.mtu = p.probe.mtu(spec.Remote.Addr())
	out.fits = out.mtu - ipv4Header - udpHeader
	if spec.Remote.Addr().Is6() {
		out.fits = out.mtu - ipv6Header - udpHeader
	}
	out.mss = segmentLimit(spec, out.mtu)
	out.segments.Store(spec.Encapsulated() && !p.cfg.NoOffload)
}

// InstallInbound accepts p.In; see [ipsec.Dataplane].
func (p *Plane) InstallInbound(spec ipsec.Pair) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := p.installInbound(spec)
	return wrap("install inbound", spec.ID, err)
}

// installInbound checks everything first and changes state last. The Plane's lock is held.
func (p *Plane) installInbound(spec ipsec.Pair) (*inbound, error) {
	if p.closed {
		return nil, errClosed
	}
	key, err := hosts(spec.Selector)
	if err != nil {
		return nil, err
	}
	if err := p.checkOuter(spec); err != nil {
		return nil, err
	}
	if _, taken := p.spis.get(spec.In.SPI); taken {
		return nil, fmt.Errorf("%w: %v", errSPI, spec.In.SPI)
	}
	opener, err := esp.NewOpener(spec.In)
	if err != nil {
		return nil, fmt.Errorf("inbound SA: %w", err)
	}
	sealer, err := esp.NewSealer(spec.Out)
	if err != nil {
		return nil, fmt.Errorf("outbound SA: %w", err)
	}
	pr, ok := p.pairs[spec.ID]
	if ok && pr.spec.Selector != spec.Selector {
		return nil, fmt.Errorf("a rekey does not change the selector: got %v, want %v", spec.Selector, pr.spec.Selector)
	}
	// Nothing can go wrong from here on.
	if !ok {
		pr = &pair{id: spec.ID, spec: spec, flow: p.flow(key), ins: make(map[ipsec.SPI]*inbound)}
		pr.spec.In.Key, pr.spec.In.Salt, pr.spec.Out.Key, pr.spec.Out.Salt = nil, nil, nil, nil
		pr.flow.pairs++
		p.pairs[spec.ID] = pr
	}
	pr.spec.Local, pr.spec.Remote = spec.Local, spec.Remote
	p.order++
	out := &outbound{pair: pr, order: p.order, spi: spec.Out.SPI, sealer: sealer, expire: expireAfter, tunnel: spec.Mode == ipsec.Tunnel}
	if spec.Out.ESN {
		out.expire = expireAfterESN
	}
	p.address(out, spec)
	in := &inbound{pair: pr, spi: spec.In.SPI, next: out, local: key.Own, peer: key.Peer, mode: spec.Mode,
		encap: spec.Encapsulated(), mss: out.mss, opener: opener}
	in.outer.Store(&spec.Remote)
	pr.ins[in.spi] = in
	p.spis.put(in.spi, in)
	return in, nil
}

// InstallOutbound arms the Pair now; see [ipsec.Dataplane]. If its In was not installed, it is first.
func (p *Plane) InstallOutbound(spec ipsec.Pair) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return wrap("install outbound", spec.ID, p.installOutbound(spec))
}

// installOutbound arms a Pair. The outbound SA of an inbound one that stands is used as it is: a second Sealer would repeat
// IVs. On an error nothing of a new Pair is left. The Plane's lock is held.
func (p *Plane) installOutbound(spec ipsec.Pair) error {
	if p.closed {
		return errClosed
	}
	if pr, ok := p.pairs[spec.ID]; ok {
		if in, ok := pr.ins[spec.In.SPI]; ok {
			if in.next.spi != spec.Out.SPI {
				return fmt.Errorf("outbound SPI %v was not installed with inbound %v", spec.Out.SPI, spec.In.SPI)
			}
			return p.armPair(pr, in.next)
		}
	}
	in, err := p.installInbound(spec)
	if err != nil {
		return err
	}
	if err := p.armPair(in.pair, in.next); err != nil {
		p.dropInbound(in)
		if len(in.pair.ins) == 0 {
			p.dropPair(in.pair)
		}
		return err
	}
	return nil
}

// Retire ends an older inbound SA; see [ipsec.Dataplane].
func (p *Plane) Retire(id uint32, spi ipsec.SPI) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	pr, ok := p.pairs[id]
	if !ok {
		return wrap("retire", id, errPair)
	}
	in, ok := pr.ins[spi]
	if !ok {
		return wrap("retire", id, fmt.Errorf("no inbound SA %v", spi))
	}
	p.dropInbound(in)
	pr.replace(in.next)
	p.switchTo(pr.flow, pr.flow.current())
	return nil
}

// replace ends the use of an outbound SA whose inbound half is gone: the peer has deleted both. At a rekey the newest of those that
// are left takes its place, though nothing came on it yet.
func (pr *pair) replace(gone *outbound) {
	if pr.out != gone {
		return
	}
	for _, in := range pr.ins {
		if pr.out == gone || in.next.order > pr.out.order {
			pr.out = in.next
		}
	}
}

// dropInbound ends an inbound SA. A packet that is being opened with it is still delivered.
func (p *Plane) dropInbound(in *inbound) {
	delete(in.pair.ins, in.spi)
	p.spis.remove(in.spi)
}

// Remove ends a Pair; see [ipsec.Dataplane]. It is no error if there is none.
func (p *Plane) Remove(id uint32) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	pr, ok := p.pairs[id]
	if !ok || p.closed {
		return nil
	}
	f, armed := pr.flow, pr.flow.armed
	f.armed = without(armed, pr)
	verdict, timeout := p.want(f, p.now())
	if err := p.enforce(f, verdict, timeout); err != nil {
		f.armed = armed
		return wrap("remove", id, err)
	}
	for _, in := range pr.ins {
		p.dropInbound(in)
	}
	p.dropPair(pr)
	return nil
}

// dropPair ends a Pair whose inbound SAs are gone. The flow's own policy decides over what it still sends.
func (p *Plane) dropPair(pr *pair) {
	f := pr.flow
	delete(p.pairs, pr.id)
	f.armed = without(f.armed, pr)
	f.pairs--
	p.switchTo(f, f.current())
	p.forget(f)
}

// without is the list less one Pair; the old list is left as it is.
func without(list []*pair, pr *pair) []*pair {
	var out []*pair
	for _, other := range list {
		if other != pr {
			out = append(out, other)
		}
	}
	return out
}

// Redirect moves the outer addresses of a Pair; see [ipsec.Dataplane].
func (p *Plane) Redirect(id uint32, local, remote netip.AddrPort) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	pr, ok := p.pairs[id]
	if !ok {
		return wrap("redirect", id, errPair)
	}
	spec := pr.spec
	spec.Local, spec.Remote = local, remote
	if err := p.checkOuter(spec); err != nil {
		return wrap("redirect", id, err)
	}
	if spec.Encapsulated() != pr.spec.Encapsulated() {
		return wrap("redirect", id, fmt.Errorf("%w: encapsulation cannot change", errOuter))
	}
	pr.spec = spec
	moved := make(map[*outbound]*outbound)
	move := func(old *outbound) *outbound {
		if old != nil && moved[old] == nil {
			next := &outbound{pair: pr, order: old.order, spi: old.spi, sealer: old.sealer, expire: old.expire, tunnel: old.tunnel}
			p.address(next, spec)
			moved[old] = next
		}
		return moved[old]
	}
	pr.out = move(pr.out)
	for _, in := range pr.ins {
		in.next = move(in.next)
		in.outer.Store(&remote)
	}
	p.switchTo(pr.flow, pr.flow.current())
	return nil
}

// Usage returns the counters of a Pair.
func (p *Plane) Usage(id uint32) (ipsec.Usage, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pr, ok := p.pairs[id]
	if !ok {
		return ipsec.Usage{}, wrap("usage", id, errPair)
	}
	return ipsec.Usage{
		InPackets: pr.inPackets.Load(), OutPackets: pr.outPackets.Load(),
		InBytes: pr.inBytes.Load(), OutBytes: pr.outBytes.Load(),
		LastIn: timeOf(pr.lastIn.Load()), LastOut: timeOf(pr.lastOut.Load()),
		Replayed: pr.replayed.Load(), Invalid: pr.invalid.Load(),
		Armed: pr.armed, ClearDropped: pr.flow.clearDropped.Load(),
	}, nil
}

func timeOf(nano int64) time.Time {
	if nano == 0 {
		return time.Time{}
	}
	return time.Unix(0, nano)
}

// wrap adds the operation to an error.
func wrap(op string, id uint32, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s pair %d: %w", op, id, err)
}
