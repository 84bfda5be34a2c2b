package daemon

import (
	"context"
	"crypto"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"tacit/config"
	"tacit/control"
	"tacit/dnssec"
	"tacit/ike"
	"tacit/ipsec"
	"tacit/ipseckey"
	"tacit/pad"
	"tacit/policy"
	"tacit/resolver"
)

// Initiators that tell a name (TRUST.md R7). It counts if DNSSEC proves that the address they stand at is the name's, and their key too. The loop
// does not wait for DNS: who may be nobody comes in as nobody after a moment, and is promoted when the proof arrives; anybody else waits for it.

const (
	patience         = 50 * time.Millisecond // how long an initiator that may come in as nobody waits for its name
	maxInquiries     = 256                   // names of initiators that a loop has looked up at once
	maxNetInquiries  = 8                     // of one network's (IPv4 /24, IPv6 /56)
	maxInquiryCalled = 16                    // IKE SAs that wait for the same name
)

// callers is what a loop knows of the names of initiators.
type callers struct {
	inquiries map[calling]*inquiry
	networks  map[netip.Prefix]int
	claims    map[ike.SAID]pad.Claim // what DNS has proven, of SAs that live
}

// calling is a name that somebody at an address says is his.
type calling struct {
	name   string // canonical
	remote netip.Addr
}

// inquiry is a lookup under way, and who waits for it.
type inquiry struct {
	sas   []*caller
	again []*peer // who have proven the name before
}

// caller is an IKE SA whose initiator told a name.
type caller struct {
	ike.AuthorizationWanted
	answered bool // as nobody
}

func newCallers() callers {
	return callers{map[calling]*inquiry{}, map[netip.Prefix]int{}, map[ike.SAID]pad.Claim{}}
}

// admit answers AuthorizationWanted, at once or when DNS has.
func (l *loop) admit(now time.Time, e ike.AuthorizationWanted) {
	if why := l.barred(e); why != "" {
		l.refuse(now, e, why)
		return
	}
	if e.Null {
		l.judge(now, e, pad.Claim{}, "")
		return
	}
	c := calling{remote: e.Remote.Addr().Unmap()}
	if e.ID.Kind == ike.IDFQDN {
		c.name = dns.CanonicalName(e.ID.Value)
	}
	known, ok := l.d.pinned(c)
	switch {
	case ok && e.Inner && l.d.pins[c] == nil: // whoever is behind that
		l.judge(now, e, pad.Claim{}, "the administrator has said who its NAT's address is")
		return
	case ok, c.name == "":
		l.judge(now, e, known, "")
		return
	}
	if p := l.incumbent(e); p != nil {
		if known, ok := p.pad.Claimed(now, c.name); ok {
			l.judge(now, e, known, "")
			return
		}
	}
	q, why := l.inquire(c)
	if q == nil {
		l.judge(now, e, pad.Claim{}, why)
		return
	}
	w := &caller{AuthorizationWanted: e}
	q.sas = append(q.sas, w)
	if a, _ := l.verdict(now, e, pad.Claim{}); a.Anonymous {
		time.AfterFunc(patience, func() { l.report(func(now time.Time) { l.admitAsNobody(now, w) }) })
	}
}

// admitAsNobody lets an initiator in whose name has not been found yet, if it still may.
func (l *loop) admitAsNobody(now time.Time, w *caller) {
	if w.answered || !l.asks(w.SA) {
		return
	}
	if a, _ := l.verdict(now, w.AuthorizationWanted, pad.Claim{}); a.Anonymous && !another(a, w.AuthorizationWanted) {
		w.answered, a.Pending = true, true
		l.authorize(now, w.AuthorizationWanted, a)
	}
}

// inquire looks a name up beside the loop, once for all who tell it. Without an inquiry why says what stands against it.
func (l *loop) inquire(c calling) (q *inquiry, why string) {
	if q = l.callers.inquiries[c]; q != nil {
		if len(q.sas) >= maxInquiryCalled {
			return nil, "too many tell the same name"
		}
		return q, ""
	}
	net := network(c.remote)
	switch {
	case l.d.find == nil:
		return nil, "names are not looked up"
	case len(l.callers.inquiries) >= maxInquiries, l.callers.networks[net] >= maxNetInquiries:
		return nil, "too many names of initiators are being looked up"
	}
	q = &inquiry{}
	l.callers.inquiries[c] = q
	l.callers.networks[net]++
	go func() {
		var claim pad.Claim
		var why string
		if l.beside("name of an initiator", c.remote, func() { claim, why = l.d.find(c.name, c.remote) }) != nil {
			claim, why = pad.Claim{}, "an internal error"
		}
		l.report(func(now time.Time) { l.inquired(now, c, claim, why) })
	}()
	return q, ""
}

// askAgain finds out whether a name is still the peer's. Where it cannot be asked now it is later.
func (l *loop) askAgain(p *peer, name string) {
	if q, _ := l.inquire(calling{name, p.place()}); q != nil {
		q.again = append(q.again, p)
	}
}

// network is what the caps for strangers are by.
func network(a netip.Addr) netip.Prefix {
	bits := 56
	if a.Is4() {
		bits = 24
	}
	p, _ := a.WithZone("").Prefix(bits)
	return p
}

// inquired is what DNS said.
func (l *loop) inquired(now time.Time, c calling, claim pad.Claim, why string) {
	q := l.callers.inquiries[c]
	delete(l.callers.inquiries, c)
	if net := network(c.remote); l.callers.networks[net] > 1 {
		l.callers.networks[net]--
	} else {
		delete(l.callers.networks, net)
	}
	for _, p := range q.again {
		if len(claim.Keys) > 0 && l.peers[p.key] == p {
			claim.Addr = p.remote
			l.step(now, p, evClaim{claim})
		}
	}
	for _, w := range q.sas {
		if !w.answered || l.lodgers.waits(w.SA) {
			if w.answered = true; !l.asks(w.SA) {
				continue
			}
			l.judge(now, w.AuthorizationWanted, claim, why)
			continue
		}
		l.promote(now, w.AuthorizationWanted, claim, why)
	}
}

// promote makes somebody of a peer that came in as nobody.
func (l *loop) promote(now time.Time, e ike.AuthorizationWanted, claim pad.Claim, why string) {
	p := l.bySA[e.SA]
	if p == nil {
		return // it ended meanwhile
	}
	if len(claim.Keys) > 0 && e.Inner && p.place() != e.Remote.Addr().Unmap() {
		claim, why = pad.Claim{}, "it has moved to "+p.place().String()
	}
	if len(claim.Keys) == 0 {
		l.log.Info("initiator not promoted", "peer", p.remote, "name", e.ID.Value, "why", why)
		return
	}
	if why := l.closedTo(e, claim); why != "" { // as judge does: it is no matter whether the name is found soon
		l.log.Info("an initiator that came in as nobody is not let stay", "peer", p.remote, "name", e.ID.Value, "why", why)
		l.output(now, l.engine.Do(now, e.SA, ike.Delete))
		return
	}
	keys, contest := p.pad.Initiator(now, claim)
	keys = l.d.onlyPinned(p.remote, keys)
	if contest {
		l.disputed(now, p, e, claim)
	}
	l.callers.claims[e.SA] = claim
	l.output(now, l.engine.Promote(now, e.SA, keys))
}

// barred says why an initiator does not come in, whoever it is; "": nothing speaks against it.
func (l *loop) barred(e ike.AuthorizationWanted) string {
	remote, port := e.Remote.Addr().Unmap(), e.Remote.Port()
	if ok, why := pad.Claimable(remote, l.d.host.forResponder(), e.ID.Value); !ok {
		return why
	}
	if port != ikePort && port != nattPort && !e.Inner { // R7: others are behind the same address
		return "it is behind a NAT, and asks for no address"
	}
	class := l.d.rules.Load().ForAddr(remote).Class
	if !e.Null && e.ID.Kind == ike.IDFQDN && l.d.rules.Load().Named(e.ID.Value) {
		class = l.d.rules.Load().For(e.ID.Value, remote).Class
	}
	if closed(class) && !e.More { // the name of one that comes a second time is still to come
		return "its class is " + class.String()
	}
	return ""
}

// closed reports whether nobody comes in.
func closed(c policy.Class) bool { return c == policy.Clear || c == policy.Block }

// closedTo says why an initiator does not come in as whom DNS says that it is; "": it may. The name that it tells may be an alias.
func (l *loop) closedTo(e ike.AuthorizationWanted, claim pad.Claim) string {
	class := l.d.rules.Load().ForChain(e.ID.Value, claim.Name, e.Remote.Addr().Unmap()).Class
	if !closed(class) {
		return ""
	}
	return "its class is " + class.String()
}

// incumbent is the peer that an initiator may be; nil: there is none, as behind a NAT, where every IKE SA has an address of its own.
func (l *loop) incumbent(e ike.AuthorizationWanted) *peer {
	if e.Inner {
		return nil
	}
	return l.peers[key{e.Local.Addr().Unmap(), e.Remote.Addr().Unmap()}]
}

// verdict is what an initiator may be of whom DNS says the claim (TRUST.md R2, R3, A-19). Where the address proved a key no longer ago than linger,
// only that key may come in: nobody displaces somebody, nor takes his place. contest: the incumbent is to be asked whether it still stands.
func (l *loop) verdict(now time.Time, e ike.AuthorizationWanted, claim pad.Claim) (a ike.Authorization, contest bool) {
	remote := e.Remote.Addr().Unmap()
	r := l.d.rules.Load().ForAddr(remote)
	a = ike.Authorization{Mode: ipsec.Transport, Anonymous: r.AcceptAnonymous && !closed(r.Class), Keys: l.d.onlyPinned(remote, claim.PublicKeys()), Known: claim.Known()}
	if l.d.cfg.File.Name == "" {
		a.Mask = l.mask(e.Local.Addr().Unmap(), remote)
	}
	if e.Inner {
		a.Mode = ipsec.Tunnel
	}
	p := l.incumbent(e)
	if p == nil {
		return a, false
	}
	a.Same = p.same(e.Began)
	a.Keys, contest = p.pad.Initiator(now, claim)
	a.Keys = l.d.onlyPinned(remote, a.Keys)
	if p.pad.Live() {
		a.Known = nil
	}
	if p.pad.Live() || p.pad.Held(now) {
		a.Anonymous = false
		contest = contest || (e.Null || e.ID.Kind == ike.IDNull) && !e.More // it will be refused: either somebody else, or the incumbent has forgotten us
	}
	return a, contest
}

// judge answers AuthorizationWanted.
func (l *loop) judge(now time.Time, e ike.AuthorizationWanted, claim pad.Claim, why string) {
	if len(claim.Keys) > 0 {
		if why := l.closedTo(e, claim); why != "" {
			l.refuse(now, e, why)
			return
		}
		l.callers.claims[e.SA] = claim
	}
	a, contest := l.verdict(now, e, claim)
	if contest {
		l.disputed(now, l.incumbent(e), e, claim)
	}
	if len(a.Keys) == 0 && a.Known == nil && !a.Anonymous && !e.More {
		if why == "" {
			why = "no anonymous clients are accepted"
		}
		l.refuse(now, e, why)
		return
	}
	if len(a.Keys) == 0 && a.Known == nil && !e.More && another(a, e) {
		l.step(now, l.incumbent(e), evKnock{e})
		return
	}
	if why != "" {
		l.log.Info("the initiator's name is not proven", "peer", e.Remote, "name", e.ID.Value, "why", why)
	}
	l.authorize(now, e, a)
}

// disputed has the incumbent of an address asked (R3): somebody else stands there, or it has forgotten us.
func (l *loop) disputed(now time.Time, p *peer, e ike.AuthorizationWanted, claim pad.Claim) {
	f := p.face()
	kind, why := control.Downgrade, "an initiator that proves nothing is not let in where a key was proven"
	if f.name = e.ID.Value; len(claim.Keys) > 0 {
		kind, why = control.Conflict, "the initiator's name publishes another key than the one that the address has proved"
	}
	l.d.audit(now, p.event(kind, f, why).e)
	l.step(now, p, evContest{})
}

// another reports whether an initiator who is nobody is not the one that he may be.
func another(a ike.Authorization, e ike.AuthorizationWanted) bool {
	return a.Anonymous && a.Same != nil && !a.Same(e.Raw)
}

// refuse answers AUTHENTICATION_FAILED.
func (l *loop) refuse(now time.Time, e ike.AuthorizationWanted, why string) {
	delete(l.refusals.asked, e.SA)
	l.sayRefused(now, "client refused", e.Remote, e.ID.Value, why)
	l.output(now, l.engine.Authorize(now, e.SA, ike.Authorization{Refuse: true}))
}

// named gives the peer the claim that its SA's key proved, if it is one of the claim's. Behind a NAT it is one on the address that we have assigned, never on
// the NAT's (TRUST.md R7).
func (l *loop) named(now time.Time, p *peer, sa ike.SAID, key crypto.PublicKey) {
	c, ok := l.callers.claims[sa]
	if !ok {
		return
	}
	delete(l.callers.claims, sa)
	c.Addr = p.remote
	if key != nil && c.Has(ipseckey.Fingerprint(key)) {
		l.step(now, p, evNamed{sa, c})
	}
}

// pinned is what the administrator says of a name at an address, or of whoever is there. Then nobody asks DNS (R3).
func (d *Daemon) pinned(c calling) (pad.Claim, bool) {
	rules := d.rules.Load()
	pins := rules.PinsAt(c.remote)
	if len(pins) == 0 {
		return pad.Claim{}, false
	}
	if d.pins[c] == nil { // he says nothing of that name
		return atAddress(c.remote, pins, d.now().Add(2*lookAnyway)), true
	}
	pins, _ = rules.Pins(c.name, c.name, c.remote)
	return pad.Claim{Name: c.name, Addr: c.remote, Keys: pad.Pinned(pins, nil), Until: d.now().Add(2 * lookAnyway), Source: pad.Administrator}, true
}

// onlyPinned are those of the keys that the administrator lets speak for the address.
func (d *Daemon) onlyPinned(addr netip.Addr, keys []crypto.PublicKey) []crypto.PublicKey {
	pins := d.rules.Load().PinsAt(addr)
	if len(pins) == 0 {
		return keys
	}
	return slices.DeleteFunc(keys, func(k crypto.PublicKey) bool { return !slices.Contains(pins, ipseckey.Fingerprint(k)) })
}

// atAddress is the administrator's claim on an address for nobody but the address itself.
func atAddress(addr netip.Addr, pins []string, until time.Time) pad.Claim {
	return pad.Claim{Name: addr.String() + ".", Addr: addr, Keys: pad.Pinned(pins, nil), Until: until, Source: pad.Administrator}
}

// pinsOf finds the endpoints with an address of their own.
func pinsOf(peers []config.Peer) map[calling]*config.Peer {
	pins := map[calling]*config.Peer{}
	for i := range peers {
		if p := &peers[i]; p.Address.IsValid() {
			pins[calling{p.Name, p.Address}] = p
		}
	}
	return pins
}

// findClaim is what the administrator, or DNS, says of a name that an initiator at an address tells: it must be the address's, and hold a key. It may take the whole hold.
func (d *Daemon) findClaim(name string, remote netip.Addr) (c pad.Claim, why string) {
	if known, ok := d.pinned(calling{name, remote}); ok {
		return known, ""
	}
	typ := uint16(dns.TypeAAAA)
	if remote.Is4() {
		typ = dns.TypeA
	}
	f := d.resolver.Find(context.Background(), name, typ)
	rules := d.rules.Load()
	pins, _ := rules.Pins(f.Asked, f.Owner, remote)
	return claimOf(pins, f, *d.host.environment(), remote)
}

// claimOf is the claim of a name on an address of its own. It must be proven from the root to both, the weakest link counts; but keys that the
// administrator has pinned need no proof.
func claimOf(pins []string, f resolver.Found, env pad.Environment, remote netip.Addr) (c pad.Claim, why string) {
	owner := strings.TrimSuffix(f.Owner, ".")
	mine := false
	for _, a := range f.Addrs {
		mine = mine || a.Unmap() == remote
	}
	keys, unusable := pad.UsableKeys(f.Keys, remote)
	if len(pins) > 0 && f.AddrStatus == dnssec.Insecure {
		f.AddrStatus = dnssec.Secure
	}
	if len(pins) > 0 {
		f.KeyStatus, keys = dnssec.Secure, pad.Pinned(pins, f.Keys)
	}
	switch {
	case f.AddrStatus != dnssec.Secure:
		return c, join("the addresses of "+owner+" are "+f.AddrStatus.String(), f.KeyWhy)
	case !mine:
		return c, remote.String() + " is no address of " + owner
	case f.KeyStatus != dnssec.Secure:
		return c, join("the key of "+owner+" is "+f.KeyStatus.String(), f.KeyWhy)
	case len(keys) == 0:
		return c, join(owner+" publishes no key for its address", unusable)
	}
	if ok, why := pad.Claimable(remote, env, f.Owner); !ok {
		return c, why
	}
	c = pad.Claim{Name: f.Owner, Addr: remote, Keys: keys, Until: latest(f.Until, f.AskedAt.Add(transaction))}
	if len(pins) > 0 {
		c.Source = pad.Administrator
	}
	return c, ""
}

func join(what, why string) string {
	if why == "" {
		return what
	}
	return what + ": " + why
}
