package daemon

import (
	"context"
	"slices"
	"strings"
	"time"

	"tacit/control"
	"tacit/ipseckey"
	"tacit/resolver"
)

// handler is the Daemon as the control socket sees it.
type handler struct{ d *Daemon }

// Status is what `tacit status` shows. It never claims more than was proven (TRUST.md I8).
func (h handler) Status(ctx context.Context) (control.Status, error) {
	d := h.d
	s := control.Status{
		SchemaVersion: control.SchemaVersion, Version: d.cfg.Version, Since: d.started, Name: d.cfg.File.Name, Observe: d.cfg.Observe,
		Dataplane: control.Dataplane{Kind: d.cfg.DataplaneName, Why: d.cfg.DataplaneWhy},
		DNS:       control.DNS{Listen: d.resolver.Addrs(), Validation: Validation(d.cfg.File), Stub: "ok"},
		Counters:  d.counters(),
	}
	for _, u := range d.cfg.File.DNS.Upstream {
		s.DNS.Upstream = append(s.DNS.Upstream, u.String())
	}
	for _, w := range d.upstream.States() {
		s.DNS.Ways = append(s.DNS.Ways, control.Way(w))
	}
	if err := resolver.CheckStub(stubFile, d.resolver.Addrs()); err != nil {
		s.DNS.Stub = "FAIL: " + err.Error()
	}
	if d.shards == nil {
		return s, nil
	}
	pairs := map[int]uint32{} // of s.Peers[i]
	for _, l := range d.shards.loops {
		if err := l.ask(ctx, func(now time.Time) { l.rows(now, &s, pairs) }); err != nil {
			return control.Status{}, err
		}
	}
	for i, id := range pairs {
		if u, err := d.shards.dp.Usage(id); err == nil {
			s.Peers[i].BytesIn, s.Peers[i].BytesOut = u.InBytes, u.OutBytes
		}
	}
	slices.SortFunc(s.Peers, func(a, b control.Peer) int { return a.Address.Compare(b.Address) })
	return s, nil
}

// Reload is what `tacit reload` does.
func (h handler) Reload(ctx context.Context) error { return h.d.ReloadFile(ctx) }

// Events is what `tacit status --watch` shows.
func (h handler) Events(ctx context.Context, after uint64) (control.Events, error) {
	return h.d.trail.after(ctx, after), nil
}

// rows adds the peers of a loop, and its counters. pairs are those of the rows.
func (l *loop) rows(now time.Time, s *control.Status, pairs map[int]uint32) {
	for _, p := range l.peers {
		if p.state == idle {
			continue
		}
		row, a := p.row(now)
		if a != nil {
			pairs[len(s.Peers)] = a.pair.ID
		}
		s.Peers = append(s.Peers, row)
	}
	s.Counters["packets_reverse_lookups"] += l.packets.lookups
	s.Counters["packets_let_go"] += l.packets.letGo
	s.Counters["packets_shut"] += l.packets.keptShut
	s.Counters["packets_denials"] += uint64(len(l.packets.denials.of))
	st := l.engine.Stats()
	s.Counters["ike_sas"] += uint64(st.SAs)
	s.Counters["ike_half_open"] += uint64(st.HalfOpen)
	s.Counters["ike_sent"] += st.Sent
	s.Counters["ike_received"] += st.Received
	s.Counters["ike_retransmitted"] += st.Retransmitted
	for why, n := range st.Drops {
		s.Counters["ike_dropped_"+why] += n
	}
}

// stubFile is where the host's programs read who answers their lookups.
const stubFile = "/etc/resolv.conf"

// row is a peer's line of status, and the association that it describes.
func (p *peer) row(now time.Time) (control.Peer, *association) {
	r := control.Peer{
		Address: p.remote, Local: p.local, State: control.State(p.state.String()), Assurance: control.NoAssurance, Since: timeOf(now, p.since), Why: p.why, Names: []string{},
	}
	if p.outer.IsValid() {
		r.Outer, r.Why = p.outer, join(p.why, "behind a NAT at "+p.outer.String())
	}
	satisfied, _ := p.pad.Names(now)
	for _, n := range satisfied {
		r.Names = append(r.Names, strings.TrimSuffix(n, "."))
	}
	a := p.authenticated()
	if a == nil {
		for _, x := range p.live() {
			if a == nil || x.since.After(a.since) {
				a = x
			}
		}
	}
	if a == nil {
		return r, nil
	}
	r.Assurance, r.Suite, r.Mode, r.KeyID = control.Anonymous, a.suite, a.pair.mode.String(), a.raw
	if a.pair.encapsulated {
		r.Mode += "-udp"
	}
	if a.key != nil {
		r.Assurance, r.KeyID = control.Authenticated, ipseckey.Fingerprint(a.key)
	}
	return r, a
}

func (d *Daemon) counters() map[string]uint64 {
	s, caught := d.resolver.Stats(), uint64(0)
	if d.shards != nil {
		caught = d.shards.panics.Load()
	}
	return map[string]uint64{
		"dns_queries": s.Queries, "dns_cached": s.Cached, "dns_lookups": s.Lookups, "dns_watched": s.Watched, "dns_withheld": s.Withheld,
		"dns_bogus": s.Bogus, "dns_timed_out": s.TimedOut, "dns_overload": s.Overload,
		"panics": s.Panics + caught,
	}
}
