package daemon

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"tacit/ike"
	"tacit/ipsec"
	"tacit/ipseckey"
	"tacit/pad"
)

const (
	ikePort    = 500
	nattPort   = 4500
	installing = "installing the SA"
)

// do carries one action of a peer out.
func (l *loop) do(now time.Time, p *peer, a action) {
	switch a := a.(type) {
	case doReply:
		if a.w.reply == nil {
			l.waited(now, p, a.w, a.o)
			return
		}
		a.w.reply <- a.o
	case doInitiate:
		if !l.leaving {
			l.initiate(now, p, a)
		}
	case doCommand:
		if a.c == ike.Probe && l.tellsRefusal(now, p) {
			a.c = ike.TellRefused
		}
		l.output(now, l.engine.Do(now, a.sa, a.c))
	case doDelete:
		l.delete(now, p, a)
	case doHold:
		s, until := ipsec.Host(p.local, p.remote), a.until.Add(holdMargin)
		l.jobAt(s, "holding", func() error { return l.hold(s, until) }, l.failed("holding the address", p.remote))
	case doEnd:
		l.endFlows(now, p)
	case doUnhold:
		s := ipsec.Host(p.local, p.remote)
		l.jobAt(s, "releasing", func() error { return l.unhold(s) }, l.failed("releasing the address", p.remote))
	case doAdmit:
		l.admitted(now, a)
	case doSever:
		l.severs(p)
	case doRepeat:
		l.repeat(p, a)
	case doAskReverse:
		l.askReverseAgain(p)
	case doAsk:
		l.askAgain(p, a.name)
	case doAudit:
		l.d.audit(now, a.e)
	case doTick:
		time.AfterFunc(a.in, func() {
			l.report(func(now time.Time) {
				if l.peers[p.key] == p {
					l.step(now, p, evTick{})
				}
			})
		})
	case doRemove:
		l.removeOf(now, p, a)
	}
}

// hold sets a Hold policy, and remembers if it could not be set. It runs in the data plane's goroutine.
func (l *loop) hold(s ipsec.Selector, until time.Time) error {
	err := l.dp.SetPolicy(s, ipsec.Hold, until)
	if err != nil {
		l.unheld[s] = until
		return err
	}
	delete(l.unheld, s)
	return nil
}

// holdAgain sets a hold that is to stand and could not be set before. It runs in the data plane's goroutine.
func (l *loop) holdAgain(s ipsec.Selector) error {
	if until, failed := l.unheld[s]; failed && l.now().Before(until) {
		return l.hold(s, until)
	}
	return nil
}

// remove ends a Pair, but not before the hold that is to stand in its place stands: a Pair without a peer lets nothing pass.
func (l *loop) remove(s ipsec.Selector, pair uint32) {
	call := func() error {
		if err := l.holdAgain(s); err != nil {
			return err
		}
		return l.dp.Remove(pair)
	}
	l.jobAt(s, "removing", call, func(_ time.Time, err error) {
		if err != nil {
			l.log.Error("removing an SA", "peer", s.Remote.Addr(), "err", err)
			time.AfterFunc(tick, func() { l.report(func(time.Time) { l.remove(s, pair) }) })
			return
		}
		l.lodgers.gone(pair)
	})
}

// initiate begins IKE for a claim.
func (l *loop) initiate(now time.Time, p *peer, a doInitiate) {
	c := a.claim
	peer := ike.Peer{
		Local:   netip.AddrPortFrom(p.local, ikePort),
		Remote:  netip.AddrPortFrom(p.remote, ikePort),
		LocalID: ike.ID{Kind: ike.IDNull},
		Auth:    ike.Authorization{Keys: c.PublicKeys(), Known: c.Known(), Mode: ipsec.Transport},
	}
	if c.Gateway.IsValid() {
		if err := l.viaGateway(p, c, &peer); err != nil {
			p.step(now, evBegun{})
			l.step(now, p, ike.Closed{Err: err})
			return
		}
	}
	peer.Auth.Mask = l.mask(p.local, p.remote)
	if peer.ClearRefused = l.tellsRefusal(now, p); peer.ClearRefused {
		p.attempt.refused = p.refused
	}
	if a.anybody {
		peer.Auth.Anonymous, peer.Auth.Same = true, p.same(now)
	}
	if !a.unnamed && !a.anybody && c.Name != c.Addr.String()+"." { // an address is no name that a host has
		peer.RemoteID = ike.ID{Kind: ike.IDFQDN, Value: strings.TrimSuffix(c.Name, ".")}
	}
	// An address that has begun with us knows us by our name, and would take another for somebody else. One that has refused it knows us by our mask.
	if tells, behindNAT := l.tellsName(p, c); tells && (!a.anybody || p.called) && !(a.unnamed && p.talks()) {
		peer.LocalID, peer.Tell, peer.TellBehindNAT = ike.ID{Kind: ike.IDFQDN, Value: l.d.cfg.File.Name}, ike.TellAfter, behindNAT
		if a.anybody { // it need not prove itself before
			peer.Tell = ike.TellFirst
		}
	}
	l.job("preparing for an SA", l.dp.Prepare, func(time.Time, error) {}) // beside the exchanges; what fails is tried again, and said, with the SA
	id, out := l.engine.Initiate(now, peer)
	l.enrol(p, id)
	if c.Gateway.IsValid() {
		l.gateways.begun(id, c.Gateway)
	}
	p.step(now, evBegun{id})
	l.output(now, out)
}

// tellsName decides whether the peer may learn our name: by `identify`, or because it knows it: a responder of ours has
// authenticated itself to this address already. In that case we also must: an address that proved a key is spoken for by that
// key alone, so the peer would refuse us as nobody. From an address that our name does not publish nobody would believe it, unless behindNAT: that of a NAT which
// it publishes may be before it. Where no name has led to the address, but
// its own zone or the administrator says what it must prove, it is the address that a rule has to name.
func (l *loop) tellsName(p *peer, c pad.Claim) (tells, behindNAT bool) {
	f := l.d.cfg.File
	identify, rules := *l.d.identify.Load(), l.d.rules.Load()
	switch {
	case f.Name == "" || l.d.cfg.Signer == nil || identify == "never":
		return false, false
	case p.called:
		return true, false
	case !l.d.publishes(p.local) && len(rules.PinsAt(p.remote)) == 0: // who is known without DNS may know us so, too
		if behindNAT = l.d.publishesNAT(p.local); !behindNAT {
			return false, false
		}
	}
	own := c.Source == pad.Reverse || c.Source == pad.Administrator
	return identify == "all" || rules.Named(c.Name) || rules.Endpoint(c.Name) || own && rules.NamedAddr(p.remote), behindNAT
}

// engineEvent takes one event of the IKE engine.
func (l *loop) engineEvent(now time.Time, e ike.Event) {
	switch e := e.(type) {
	case ike.AuthorizationWanted:
		l.refusals.asked[e.SA] = e
		l.admit(now, e)
	case ike.SignatureWanted:
		l.sign(now, e)
	case ike.SharedSecretWanted:
		l.compute(e)
	case ike.ChildWanted:
		l.install(now, e)
	case ike.Established:
		l.gateways.over(e.SA)
		l.over(now, e.SA, nil)
		if p := l.adopt(now, e); p != nil {
			l.step(now, p, e)
			if e.Key != nil {
				l.named(now, p, e.SA, e.Key)
			}
		}
	case ike.Promoted:
		if p := l.bySA[e.SA]; p != nil {
			l.log.Info("initiator promoted", "peer", p.remote, "id", e.RemoteID.Value, "key", ipseckey.Fingerprint(e.Key))
			l.named(now, p, e.SA, e.Key)
			l.step(now, p, e)
		}
	case ike.ClearRefused:
		if p := l.bySA[e.SA]; p != nil {
			l.step(now, p, e)
		}
	case ike.ChildUp:
		if p := l.bySA[e.SA]; p != nil {
			l.pairs[e.Pair.ID] = p
			l.step(now, p, e)
			l.readSoon(p)
			l.watchAgain(p)
		}
	case ike.ChildRetired:
		l.job("retiring", func() error { return l.dp.Retire(e.Pair, e.In) }, func(time.Time, error) {})
	case ike.ChildDown:
		if p := l.bySA[e.SA]; p != nil {
			l.step(now, p, e)
			l.readSoon(p)
		}
	case ike.Rekeyed:
		if p := l.bySA[e.SA]; p != nil {
			l.log.Info("ike-rekeyed", "peer", p.remote, "initiator", e.Initiator, "suite", e.Summary)
			l.step(now, p, e)
		}
	case ike.ChildPreferred:
		l.prefer(e)
	case ike.Redirected:
		l.redirect(now, e)
	case ike.Alive:
		if p, _ := e.Owner.(*peer); p != nil && !l.hears(now, p, e.SA) {
			l.step(now, p, e)
		}
	case ike.Closed:
		l.gateways.over(e.SA)
		delete(l.callers.claims, e.SA)
		l.over(now, e.SA, e.Err)
		if p := l.bySA[e.SA]; p != nil {
			delete(l.bySA, e.SA)
			l.step(now, p, e)
		}
		l.depart(e.SA)
	}
}

// prefer has the data plane send with a Pair in another's place, or with a newer SA of a Pair that is armed: what the peer has not sent
// on yet enforces nothing (TRUST.md R10).
func (l *loop) prefer(e ike.ChildPreferred) {
	p := l.bySA[e.SA]
	if p == nil || e.Rekey && !p.uses(e.SA, e.Pair.ID) {
		return
	}
	l.job("preferring", func() error { return l.dp.InstallOutbound(e.Pair) }, func(now time.Time, err error) {
		if err != nil {
			l.log.Error("preferring an SA", "peer", p.remote, "err", err)
			return
		}
		l.step(now, p, e)
	})
}

// enrol notes whose an SA is.
func (l *loop) enrol(p *peer, id ike.SAID) {
	l.bySA[id] = p
	l.engine.Own(id, p)
}

// adopt finds the peer of an SA; a responder's is new to us.
func (l *loop) adopt(now time.Time, e ike.Established) *peer {
	p := l.bySA[e.SA]
	if p == nil {
		lodger, lodges := l.lodgers.of[e.SA]
		remote := e.Remote.Addr()
		if lodges {
			remote = lodger.inner
		}
		if p = l.peerOf(now, e.Local.Addr(), remote); p == nil {
			l.output(now, l.engine.Do(now, e.SA, ike.Delete))
			return nil
		}
		if lodges {
			p.outer = e.Remote
		}
		l.enrol(p, e.SA)
	}
	key := "none"
	if e.Key != nil {
		key = ipseckey.Fingerprint(e.Key)
	}
	l.log.Info("ike-established", "peer", e.Remote, "initiator", e.Initiator, "id", e.RemoteID.Value, "key", key, "suite", e.Summary)
	return p
}

// sign has our key sign: beside the loop, unless that takes no longer than to hand it over.
func (l *loop) sign(now time.Time, e ike.SignatureWanted) {
	r := ike.Signature{Token: e.Token}
	if quick(l.d.cfg.Signer) {
		r.Sig, r.Err = l.d.cfg.Signer.Sign(rand.Reader, e.Data, e.Opts)
		l.output(now, l.engine.Supply(now, e.SA, r))
		return
	}
	go func() {
		l.signers <- struct{}{}
		r.Sig, r.Err = l.d.cfg.Signer.Sign(rand.Reader, e.Data, e.Opts)
		<-l.signers
		l.report(func(now time.Time) { l.output(now, l.engine.Supply(now, e.SA, r)) })
	}()
}

// quick reports whether a key signs in some tens of microseconds.
func quick(s crypto.Signer) bool {
	switch k := s.(type) {
	case ed25519.PrivateKey:
		return true
	case *ecdsa.PrivateKey:
		return k.Curve == elliptic.P256()
	}
	return false
}

// compute does the arithmetic of a key exchange beside the loop.
func (l *loop) compute(e ike.SharedSecretWanted) {
	go func() {
		l.signers <- struct{}{}
		var r ike.SharedSecret
		err := contained(&l.panics, func() error { r = e.Compute(); return nil })
		<-l.signers
		if err != nil { // the SA ends by its timer
			l.log.Error("contained", "what", "key exchange", "err", err)
			return
		}
		l.report(func(now time.Time) { l.output(now, l.engine.Supply(now, e.SA, r)) })
	}()
}

// install gives the data plane a Child SA and the engine its acknowledgement.
func (l *loop) install(now time.Time, e ike.ChildWanted) {
	start := now
	call := func() error {
		if err := l.dp.InstallInbound(e.Pair); err != nil {
			return err
		}
		if !e.Initiator {
			return nil
		}
		if err := l.dp.InstallOutbound(e.Pair); err != nil {
			if e.Rekey {
				return fmt.Errorf("%w (retire: %v)", err, l.dp.Retire(e.Pair.ID, e.Pair.In.SPI))
			}
			return fmt.Errorf("%w (remove: %v)", err, l.dp.Remove(e.Pair.ID))
		}
		return nil
	}
	l.lodgers.house(e.SA, e.Pair.ID)
	l.jobAt(e.Pair.Selector, installing, call, func(now time.Time, err error) {
		if err != nil {
			l.log.Error(installing, "peer", e.Pair.Remote, "err", err)
			if !e.Rekey {
				l.lodgers.gone(e.Pair.ID)
			}
		} else {
			l.log.Info("sa-installed", "peer", e.Pair.Selector.Remote.Addr(), "pair", e.Pair.ID, "in", e.Pair.In.SPI, "out", e.Pair.Out.SPI,
				"mode", e.Pair.Mode, "rekey", e.Rekey, "took", now.Sub(start), "t", now.Format(time.RFC3339Nano))
		}
		if l.bySA[e.SA] == nil && err == nil && !e.Rekey { // the SA ended meanwhile
			l.remove(e.Pair.Selector, e.Pair.ID)
		}
		l.output(now, l.engine.Supply(now, e.SA, ike.Installed{Token: e.Token, Err: err}))
	})
}
