package tun

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"tacit/esp"
	"tacit/ipsec"
	"tacit/plane"
)

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

func (p *Plane) checkSocket(spec ipsec.Pair) error {
	if p.socketFor(spec) == nil {
		return fmt.Errorf("%w: no socket for %v (a kernel without IPv6?)", plane.ErrOuter, spec.Remote)
	}
	return nil
}

// expireAfter is the sequence number at which an SA is to be replaced. No packet has more than 2^16 octets.
func expireAfter(sa ipsec.SA) uint64 {
	packets, octets := plane.Limits(sa)
	return min(packets, octets>>16)
}

// address gives an outbound SA its way: socket, destination, source, and what fits. Most that are installed are never sent with, so it has none before it is.
func (p *Plane) address(out *outbound, spec ipsec.Pair) {
	out.sock, out.to = p.socketFor(spec), makeSockaddr(spec.Remote)
	out.control = putLocal(make([]byte, 0, controlSize), spec.Local.Addr())
	out.mtu = int32(p.probe.mtu(spec.Remote.Addr()))
	out.fits = out.mtu - ipv4Header - udpHeader
	if spec.Remote.Addr().Is6() {
		out.fits = out.mtu - ipv6Header - udpHeader
	}
	out.mss = segmentLimit(spec, int(out.mtu), out.sealer)
	out.segments.Store(spec.Encapsulated() && !p.cfg.NoOffload)
}

// addressed gives it its way, unless it has one.
func (p *Plane) addressed(out *outbound) {
	if out.sock == nil {
		p.address(out, out.pair.spec())
	}
}

// Prepare brings the hooks of the packet filter; see [ipsec.Dataplane].
func (p *Plane) Prepare() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return plane.ErrClosed
	}
	return p.policies.Guard.Wake()
}

// InstallInbound accepts p.In; see [ipsec.Dataplane].
func (p *Plane) InstallInbound(spec ipsec.Pair) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := p.installInbound(spec)
	return plane.Wrap("install inbound", spec.ID, err)
}

// installInbound checks everything first and changes state last. The Plane's lock is held.
func (p *Plane) installInbound(spec ipsec.Pair) (*inbound, error) {
	if p.closed {
		return nil, plane.ErrClosed
	}
	key, err := plane.CheckSpec(spec)
	if err == nil {
		err = p.checkSocket(spec)
	}
	if err != nil {
		return nil, err
	}
	if _, taken := p.spis.get(spec.In.SPI); taken {
		return nil, fmt.Errorf("%w: %v", plane.ErrSPI, spec.In.SPI)
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
	if ok {
		if err := plane.CheckRekey(pr.spec(), spec); err != nil {
			return nil, err
		}
	}
	// Nothing can go wrong from here on.
	if !ok {
		pr = &pair{id: spec.ID, flow: p.policies.Flow(key), mode: spec.Mode, authenticated: spec.Authenticated}
		if spec.Inner.IsValid() {
			inner := spec.Inner.As16()
			pr.inner = &inner
		}
		pr.flow.pairs++
		p.pairs[spec.ID] = pr
	}
	pr.local, pr.remote = spec.Local, spec.Remote
	p.order++
	made := &struct { // what comes and goes together
		in    inbound
		out   outbound
		outer netip.AddrPort
	}{
		in:    inbound{pair: pr, spi: spec.In.SPI, mode: spec.Mode, encap: spec.Encapsulated(), opener: opener},
		out:   outbound{pair: pr, order: p.order, spi: spec.Out.SPI, sealer: sealer, expire: expireAfter(spec.Out), tunnel: spec.Mode == ipsec.Tunnel},
		outer: spec.Remote,
	}
	in := &made.in
	in.next = &made.out
	in.outer.Store(&made.outer)
	pr.ins = append(pr.ins, in)
	p.spis.put(in.spi, in)
	return in, nil
}

// InstallOutbound arms the Pair now; see [ipsec.Dataplane]. If its In was not installed, it is first.
func (p *Plane) InstallOutbound(spec ipsec.Pair) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return plane.Wrap("install outbound", spec.ID, p.installOutbound(spec))
}

// installOutbound arms a Pair. The outbound SA of an inbound one that stands is used as it is: a second Sealer would repeat
// IVs. On an error nothing of a new Pair is left. The Plane's lock is held.
func (p *Plane) installOutbound(spec ipsec.Pair) error {
	if p.closed {
		return plane.ErrClosed
	}
	if pr, ok := p.pairs[spec.ID]; ok {
		if in := pr.inbound(spec.In.SPI); in != nil {
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
		return plane.Wrap("retire", id, plane.ErrPair)
	}
	in := pr.inbound(spi)
	if in == nil {
		return plane.Wrap("retire", id, fmt.Errorf("no inbound SA %v", spi))
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
	in.pair.ins = plane.Without(in.pair.ins, in)
	p.spis.remove(in.spi)
}

// Disarm stops sending with a Pair; see [ipsec.Dataplane].
func (p *Plane) Disarm(id uint32) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	pr, ok := p.pairs[id]
	if !ok || p.closed {
		return nil
	}
	return plane.Wrap("disarm", id, p.disarm(pr))
}

// disarm puts in force what is to be without the Pair.
func (p *Plane) disarm(pr *pair) error {
	f, armed := pr.flow, plane.Without(pr.flow.armed, pr)
	if err := p.policies.Enforce(f, len(armed) > 0); err != nil {
		return err
	}
	f.armed, pr.armed, pr.parting = armed, false, true
	p.switchTo(f, f.current())
	return nil
}

// Remove ends a Pair; see [ipsec.Dataplane]. It is no error if there is none.
func (p *Plane) Remove(id uint32) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	pr, ok := p.pairs[id]
	if !ok || p.closed {
		return nil
	}
	if err := p.disarm(pr); err != nil {
		return plane.Wrap("remove", id, err)
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
	f.armed = plane.Without(f.armed, pr)
	f.pairs--
	p.switchTo(f, f.current())
	p.policies.Forget(f)
}

// Redirect moves the outer addresses of a Pair; see [ipsec.Dataplane].
func (p *Plane) Redirect(id uint32, local, remote netip.AddrPort) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	pr, ok := p.pairs[id]
	if !ok {
		return plane.Wrap("redirect", id, plane.ErrPair)
	}
	spec := pr.spec()
	spec.Local, spec.Remote = local, remote
	if err := errors.Join(plane.CheckRedirect(pr.spec(), spec), p.checkSocket(spec)); err != nil {
		return plane.Wrap("redirect", id, err)
	}
	pr.local, pr.remote = local, remote
	moved := make(map[*outbound]*outbound)
	move := func(old *outbound) *outbound {
		if old != nil && moved[old] == nil {
			next := &outbound{pair: pr, order: old.order, spi: old.spi, sealer: old.sealer, expire: old.expire, tunnel: old.tunnel}
			if old.sock != nil {
				p.address(next, spec)
			}
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
		return ipsec.Usage{}, plane.Wrap("usage", id, plane.ErrPair)
	}
	return ipsec.Usage{
		InPackets: pr.inPackets.Load(), OutPackets: pr.outPackets.Load(),
		InBytes: pr.inBytes.Load(), OutBytes: pr.outBytes.Load(),
		LastIn: timeOf(pr.lastIn.Load()), LastOut: timeOf(pr.lastOut.Load()),
		Replayed: pr.replayed.Load(), Invalid: pr.invalid.Load(),
		Armed: pr.armed, ClearDropped: pr.flow.ClearDropped,
	}, nil
}

// Used returns the Pairs that were used, or armed, since it was called before.
func (p *Plane) Used() (ids []uint32) {
	for pr := p.used.Swap(nil); pr != nil; {
		next := pr.nextUsed
		pr.inUsed.Store(false) // then it may be put there again, with what is counted from now on
		ids = append(ids, pr.id)
		pr = next
	}
	return ids
}

// wasUsed has Used tell of a Pair. What was counted of it is seen by whoever hears of that.
func (p *Plane) wasUsed(pr *pair) {
	if pr.inUsed.Load() || !pr.inUsed.CompareAndSwap(false, true) {
		return
	}
	for {
		pr.nextUsed = p.used.Load()
		if p.used.CompareAndSwap(pr.nextUsed, pr) {
			return
		}
	}
}

func timeOf(nano int64) time.Time {
	if nano == 0 {
		return time.Time{}
	}
	return time.Unix(0, nano)
}
