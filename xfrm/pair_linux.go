package xfrm

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"tacit/ipsec"
	"tacit/plane"
)

// checkTransport checks what transport mode asks of the outer addresses: the kernel's packets keep their own.
func checkTransport(spec ipsec.Pair) error {
	local, remote := spec.Local.Addr(), spec.Remote.Addr()
	if spec.Mode == ipsec.Transport && (remote != spec.Selector.Remote.Addr() || local.IsValid() && local != spec.Selector.Local.Addr()) {
		return fmt.Errorf("%w: in transport mode they are the selector's, not %v and %v", plane.ErrOuter, local, remote)
	}
	return nil
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

// installInbound puts both SAs into the kernel; the outbound one waits for its policy. On an error nothing of them is left.
func (p *Plane) installInbound(spec ipsec.Pair) (*inbound, error) {
	if p.closed {
		return nil, plane.ErrClosed
	}
	key, err := plane.CheckSpec(spec)
	if spec.Inner.IsValid() {
		err = errors.Join(err, fmt.Errorf("%w: the kernel's ESP does not translate", plane.ErrInner))
	}
	if err := errors.Join(err, checkTransport(spec)); err != nil {
		return nil, err
	}
	pr, rekey := p.pairs[spec.ID]
	if rekey {
		if err := plane.CheckRekey(pr.spec, spec); err != nil {
			return nil, err
		}
	} else {
		pr = &pair{id: spec.ID, flow: p.policies.Flow(key), reqID: p.newReqID(), ins: make(map[ipsec.SPI]*inbound), outs: make(map[ipsec.SPI]*outbound)}
	}
	in, out, err := statesOf(spec, pr.reqID, uint64(p.cfg.SALife/time.Second))
	if err == nil {
		if _, taken := p.ins[in.SPI]; taken {
			err = fmt.Errorf("%w: %v", plane.ErrSPI, in.SPI)
		}
	}
	if err != nil {
		p.policies.Forget(pr.flow)
		return nil, err
	}
	p.order++
	i := &inbound{pair: pr, spi: in.SPI, dst: in.Dst, next: &outbound{pair: pr, order: p.order, state: out}}
	i.next.state.Alg = Algorithm{}
	if err := p.putStates(i, in, out, rekey); err != nil {
		p.policies.Forget(pr.flow)
		return nil, err
	}
	// Nothing can go wrong from here on.
	pr.spec = spec.WithoutKeys()
	if !rekey {
		pr.flow.all = append(pr.flow.all, pr)
		p.pairs[spec.ID], p.reqIDs[pr.reqID] = pr, true
		if spec.Mode == ipsec.Tunnel {
			pr.flow.tunnels++
		}
	}
	pr.ins[i.spi], pr.outs[out.SPI], p.ins[i.spi] = i, i.next, i
	return i, nil
}

// putStates makes, in this order, the latch, the policy in of a tunnel, and the two SAs: a packet that finds the inbound SA finds
// the others too. On an error it takes them back.
func (p *Plane) putStates(i *inbound, in, out State, rekey bool) error {
	f := i.pair.flow
	if err := p.expectFirst(i); err != nil {
		return err
	}
	undo := []func() error{func() error { return p.setHeard(i) }}
	fail := func(err error) error {
		if errors.Is(err, unix.EEXIST) {
			err = fmt.Errorf("%w: %w", plane.ErrSPI, err)
		}
		for k := len(undo) - 1; k >= 0; k-- {
			err = errors.Join(err, undo[k]())
		}
		return err
	}
	if in.Mode == ipsec.Tunnel && !rekey && f.tunnels == 0 {
		for _, policy := range inPolicies(f.Key, familyOf(in.Dst), p.seconds()) {
			if err := p.kernel.setPolicy(policy); err != nil {
				return fail(err)
			}
			undo = append(undo, func() error { return p.kernel.delPolicy(policy) })
		}
	}
	if err := p.kernel.addState(out); err != nil {
		return fail(err)
	}
	undo = append(undo, func() error { return p.kernel.delState(out.Dst, out.SPI) })
	if err := p.kernel.addState(in); err != nil {
		return fail(err)
	}
	return nil
}

// newReqID draws a number of our range that no Pair has.
func (p *Plane) newReqID() uint32 {
	for {
		p.reqID = (p.reqID + 1) &^ reqIDMask
		if id := reqIDs | p.reqID; p.reqID != 0 && !p.reqIDs[id] {
			return id
		}
	}
}

// InstallOutbound arms the Pair now; see [ipsec.Dataplane]. If its In was not installed, it is first.
func (p *Plane) InstallOutbound(spec ipsec.Pair) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return plane.Wrap("install outbound", spec.ID, p.installOutbound(spec))
}

func (p *Plane) installOutbound(spec ipsec.Pair) error {
	if p.closed {
		return plane.ErrClosed
	}
	if pr, ok := p.pairs[spec.ID]; ok {
		if in, ok := pr.ins[spec.In.SPI]; ok {
			if in.next.state.SPI != spec.Out.SPI {
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
		return errors.Join(err, p.dropInbound(in), p.dropPairIfEmpty(in.pair))
	}
	return nil
}

// armPair makes out the SA that a Pair sends with, unless it has a later one, and puts protection in force: first the policy, so
// that nothing waits that could go, then the verdict. On an error nothing has changed. The Plane's lock is held.
func (p *Plane) armPair(pr *pair, out *outbound) error {
	if pr.parting {
		return nil
	}
	f, before, had := pr.flow, pr.flow.out, pr.out
	if had == nil || out.order > had.order {
		pr.out = out
	}
	armed := append(plane.Without(f.armed, pr), pr)
	if err := p.route(f, current(armed)); err != nil {
		pr.out = had
		return err
	}
	if !pr.armed {
		if err := p.policies.Enforce(f, true); err != nil {
			pr.out = had
			return errors.Join(err, p.route(f, before))
		}
	}
	f.armed, pr.armed = armed, true
	if had != nil && had != pr.out && !pr.refers(had) {
		p.orphans = append(p.orphans, had)
	}
	return p.dropAdopted(f, pr)
}

// refers reports whether an inbound SA of the Pair still goes with an outbound one.
func (pr *pair) refers(out *outbound) bool {
	for _, in := range pr.ins {
		if in.next == out {
			return true
		}
	}
	return false
}

// Retire ends an older inbound SA, and the outbound one that came with it; see [ipsec.Dataplane].
func (p *Plane) Retire(id uint32, spi ipsec.SPI) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	pr, ok := p.pairs[id]
	if !ok {
		return plane.Wrap("retire", id, plane.ErrPair)
	}
	in, ok := pr.ins[spi]
	if !ok {
		return plane.Wrap("retire", id, fmt.Errorf("no inbound SA %v", spi))
	}
	return plane.Wrap("retire", id, p.dropInbound(in))
}

// dropInbound ends an inbound SA, and its outbound one unless it is in use. Their counters are kept.
func (p *Plane) dropInbound(in *inbound) error {
	pr := in.pair
	p.addUsage(&pr.past, in.dst, in.spi, true)
	err := p.end(func() error { return p.kernel.delState(in.dst, in.spi) })
	delete(pr.ins, in.spi)
	delete(p.ins, in.spi)
	err = errors.Join(err, p.setHeard(in), p.replaceOut(pr, in.next))
	if in.next != nil && in.next != pr.out && !pr.refers(in.next) { // an adopted one has none
		err = errors.Join(err, p.dropOutbound(in.next))
	}
	return err
}

// replaceOut ends the use of an outbound SA whose inbound half is gone: the peer has deleted both. At a rekey the newest of those that
// are left takes its place, though nothing came on its other half yet.
func (p *Plane) replaceOut(pr *pair, gone *outbound) error {
	if gone == nil || pr.out != gone || pr.flow.out == nil {
		return nil
	}
	for _, in := range pr.ins {
		if in.next != nil && (pr.out == gone || in.next.order > pr.out.order) {
			pr.out = in.next
		}
	}
	return p.route(pr.flow, current(pr.flow.armed))
}

func (p *Plane) dropOutbound(out *outbound) error {
	if out.pair.outs[out.state.SPI] != out {
		return nil
	}
	p.addUsage(&out.pair.past, out.state.Dst, out.state.SPI, false)
	delete(out.pair.outs, out.state.SPI)
	return p.end(func() error { return p.kernel.delState(out.state.Dst, out.state.SPI) })
}

// end ends something that nothing names any more. If that cannot be now, maintenance tries again.
func (p *Plane) end(do func() error) error {
	err := do()
	if err != nil {
		p.unended = append(p.unended, do)
	}
	return err
}

// Remove ends a Pair; see [ipsec.Dataplane]. It is no error if there is none.
func (p *Plane) Remove(id uint32) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	pr, ok := p.pairs[id]
	if !ok || p.closed {
		return nil
	}
	return plane.Wrap("remove", id, p.removePair(pr))
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
	if err := p.route(f, current(armed)); err != nil {
		return err
	}
	f.armed, pr.armed, pr.parting = armed, false, true
	return nil
}

// removePair first puts in force what is to be without the Pair, then ends its SAs.
func (p *Plane) removePair(pr *pair) error {
	if err := p.disarm(pr); err != nil {
		return err
	}
	var errs []error
	for _, in := range pr.ins {
		errs = append(errs, p.dropInbound(in))
	}
	return errors.Join(append(errs, p.dropPairIfEmpty(pr))...)
}

// dropPairIfEmpty ends a Pair whose inbound SAs are gone.
func (p *Plane) dropPairIfEmpty(pr *pair) error {
	if len(pr.ins) > 0 {
		return nil
	}
	var errs []error
	for _, out := range pr.outs {
		errs = append(errs, p.dropOutbound(out))
	}
	f := pr.flow
	f.all = plane.Without(f.all, pr)
	if pr.spec.Mode == ipsec.Tunnel {
		if f.tunnels--; f.tunnels == 0 {
			for _, policy := range inPolicies(f.Key, 0, 0) {
				errs = append(errs, p.end(func() error {
					if f, ok := p.policies.Find(f.Key); ok && f.tunnels > 0 {
						return nil // another came meanwhile
					}
					return p.kernel.delPolicy(policy)
				}))
			}
		}
	}
	if p.pairs[pr.id] == pr {
		delete(p.pairs, pr.id)
	}
	delete(p.reqIDs, pr.reqID)
	p.policies.Forget(f)
	return errors.Join(errs...)
}

// Usage returns the counters of a Pair.
func (p *Plane) Usage(id uint32) (ipsec.Usage, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pr, ok := p.pairs[id]
	if !ok {
		return ipsec.Usage{}, plane.Wrap("usage", id, plane.ErrPair)
	}
	u := pr.past
	for _, in := range pr.ins {
		p.addUsage(&u, in.dst, in.spi, true)
	}
	for _, out := range pr.outs {
		p.addUsage(&u, out.state.Dst, out.state.SPI, false)
	}
	u.Armed, u.ClearDropped = pr.armed, pr.flow.ClearDropped
	pr.noteUse(&u, p.now())
	return u, nil
}

// Used returns all Pairs: the kernel has nothing to say of those that it used but their counters.
func (p *Plane) Used() []uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.pairs))
}

// noteUse makes up for kernels before 6.2, which tell when an SA was used first, but not last: what carried packets since we asked
// before was used just now.
func (pr *pair) noteUse(u *ipsec.Usage, now time.Time) {
	use := func(last *time.Time, packets, before uint64, known time.Time) {
		if packets > before {
			known = now
		}
		if known.After(*last) {
			*last = known
		}
	}
	use(&u.LastIn, u.InPackets, pr.last.InPackets, pr.last.LastIn)
	use(&u.LastOut, u.OutPackets, pr.last.OutPackets, pr.last.LastOut)
	pr.last = *u
}

// addUsage adds the counters of one SA. One that the kernel ended by itself has none.
func (p *Plane) addUsage(u *ipsec.Usage, dst netip.Addr, spi ipsec.SPI, in bool) {
	s, err := p.kernel.state(dst, spi)
	if err != nil {
		return
	}
	packets, bytes, last := &u.OutPackets, &u.OutBytes, &u.LastOut
	if in {
		packets, bytes, last = &u.InPackets, &u.InBytes, &u.LastIn
		u.Replayed += uint64(s.ReplayDrops) + uint64(s.WindowDrops)
		u.Invalid += uint64(s.Invalid)
	}
	*packets += s.Current.Packets
	*bytes += s.Current.Bytes
	used := s.LastUsed
	if used == 0 && s.Current.Packets > 0 {
		used = s.Current.Used // see noteUse
	}
	if t := time.Unix(int64(used), 0); used != 0 && t.After(*last) {
		*last = t
	}
}
