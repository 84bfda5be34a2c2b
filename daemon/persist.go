package daemon

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"tacit/pad"
)

// What addresses have proved outlives the process, keys of SAs do not (TRUST.md R11): a daemon that was killed holds the same addresses when it comes
// back, before it answers a lookup, and knows whom to ask for which key when a packet waits for one of them.

const (
	rememberEvery = 5 * time.Second // at most so often, and only what has changed
	rememberSteps = 10              // a proof is noted when it has become newer by this part of linger
	restoreTime   = 10 * time.Second
	memoryVersion = 1
)

// memory is the file. It says with whom this host speaks: it is nobody's to read.
type memory struct {
	Version int      `json:"version"`
	Proofs  []proven `json:"proofs"`
	// Masks is what the keys are made of that we show where we are nobody: after a crash we are the same nobody, or those who had a conversation with
	// us would let nobody else in.
	Masks []byte `json:"masks"`
}

// proven is what an address showed last.
type proven struct {
	Local  netip.Addr `json:"local"`
	Remote netip.Addr `json:"remote"`
	Name   string     `json:"name"`
	Key    []byte     `json:"key"` // SubjectPublicKeyInfo, DER
	At     time.Time  `json:"at"`
	// On whose word, and who proved it in the address's place.
	Source  pad.Source `json:"source,omitempty"`
	Gateway netip.Addr `json:"gateway,omitzero"`
}

// remember writes what was proven whenever it has changed, until ctx ends.
func (d *Daemon) remember(ctx context.Context) {
	ticker := time.NewTicker(rememberEvery)
	defer ticker.Stop()
	var last string
	failed := false
	for {
		var all []proven
		for _, l := range d.shards.loops {
			if l.ask(ctx, func(now time.Time) { all = append(all, l.proofs(now)...) }) != nil {
				return
			}
		}
		text, err := d.shards.memory(all)
		if err == nil && string(text) != last {
			if err = d.cfg.SaveProofs(text); err == nil {
				last = string(text)
			}
		}
		if err != nil && !failed {
			d.log.Warn("what was proven is not saved: after a crash addresses are held, and keyed at the next lookup only", "err", err)
		}
		failed = err != nil
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// memory is the file, in an order of its own.
func (s *shards) memory(all []proven) ([]byte, error) {
	slices.SortFunc(all, func(a, b proven) int { return cmp.Or(a.Remote.Compare(b.Remote), a.Local.Compare(b.Local)) })
	return json.Marshal(memory{Version: memoryVersion, Proofs: all, Masks: s.masks[:]})
}

// proofs are those of the loop's peers that still count. The times are rounded up, so that they do not change with every packet.
func (l *loop) proofs(now time.Time) (all []proven) {
	for _, p := range l.peers {
		k, at, ok := p.pad.Key()
		if !ok || k.Public == nil || p.last.Name == "" || !p.pad.Held(now) {
			continue
		}
		der, err := x509.MarshalPKIXPublicKey(k.Public)
		if err != nil {
			continue
		}
		step := max(p.linger/rememberSteps, time.Second)
		all = append(all, proven{p.local, p.remote, p.last.Name, der, at.Truncate(step).Add(step), p.last.Source, p.last.Gateway})
	}
	return all
}

// recall reads what a process before us knew.
func recall(text []byte) (m memory, err error) {
	if err := json.Unmarshal(text, &m); err != nil {
		return memory{}, err
	}
	if m.Version != memoryVersion {
		return memory{}, fmt.Errorf("version %d, and we know %d", m.Version, memoryVersion)
	}
	return m, nil
}

// restore takes over what was proven to a process before us, and returns when the addresses are held.
func (d *Daemon) restore(ctx context.Context, text []byte) error {
	m, err := recall(text)
	if err != nil {
		return err
	}
	own := d.host.environment().Own
	for _, x := range m.Proofs {
		if err := d.restoreOne(ctx, x, own); err != nil {
			return fmt.Errorf("%v: %w", x.Remote, err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, restoreTime)
	defer cancel()
	if err := d.acknowledged(ctx); err != nil {
		return err
	}
	d.log.Info("restored", "proofs", len(m.Proofs))
	return nil
}

// restoreOne takes one proof over, unless it has ended, or the address is not ours any more.
func (d *Daemon) restoreOne(ctx context.Context, x proven, own []netip.Addr) error {
	pub, err := x509.ParsePKIXPublicKey(x.Key)
	if err != nil {
		return err
	}
	k := pad.KeyOf(pub)
	if k.ID == "" || !x.Local.IsValid() || !x.Remote.IsValid() || x.Name == "" {
		return fmt.Errorf("no proof: a %T", pub)
	}
	l := d.shards.of(x.Remote)
	return l.ask(ctx, func(now time.Time) {
		linger := d.cfg.File.Linger
		at := x.At
		if most := now.Add(linger / rememberSteps); at.After(most) { // our clock was wrong, or is
			at = most
		}
		if now.Sub(at) >= linger || !slices.Contains(own, x.Local) {
			return
		}
		if p := l.peerOf(now, x.Local, x.Remote); p != nil {
			l.step(now, p, evElsewhere{at, k, pad.Claim{Name: x.Name, Addr: x.Remote, Keys: []pad.Key{k}, Until: at.Add(linger), Source: x.Source, Gateway: x.Gateway}})
			l.repin(now, p, d.rules.Load())
		}
	})
}
