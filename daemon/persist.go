package daemon

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"iter"
	"maps"
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

// memory is the file, as it is read. It says with whom this host speaks: it is nobody's to read.
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

// proof is what the peer's address showed last, without the key, if it still counts; of an address that we have assigned nothing does without its SA. The time is rounded up, so that it does not change with every packet.
func (p *peer) proof(now time.Time) (x proven, k pad.Key, ok bool) {
	if p.last.Name == "" || p.outer.IsValid() { // most of those who are many
		return x, k, false
	}
	k, at, ok := p.pad.Key()
	if !ok || k.Public == nil || !p.pad.Held(now) {
		return x, k, false
	}
	step := max(p.linger/rememberSteps, time.Second)
	return proven{p.local, p.remote, p.last.Name, nil, at.Truncate(step).Add(step), p.last.Source, p.last.Gateway}, k, true
}

// remember writes what was proven whenever it has changed, until ctx ends.
func (d *Daemon) remember(ctx context.Context) {
	ticker := time.NewTicker(rememberEvery)
	defer ticker.Stop()
	r := remembering{s: d.shards}
	failed := false
	for {
		err := r.turn(ctx, d.cfg.SaveProofs)
		if ctx.Err() != nil || errors.Is(err, errEnded) {
			return
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

// remembering is what is known of the file, and the room to write it in. Thousands of peers are looked at, and hardly anything is made for them; a write takes
// a few at a time.
type remembering struct {
	s      *shards
	saved  bool
	last   uint64 // the sum of what was saved
	peers  []*peer
	pieces []shown
}

// shown is a proof on its way into the file.
type shown struct {
	proven
	key crypto.PublicKey
}

// rememberedAtOnce is how many proofs a loop hands over at once.
const rememberedAtOnce = 256

// turn saves what was proven if it is not what was saved last.
func (r *remembering) turn(ctx context.Context, save func(func(io.Writer) error) error) error {
	var sum uint64
	for _, l := range r.s.loops {
		if err := l.ask(ctx, func(now time.Time) { sum += l.sum(now, r.s.seed) }); err != nil {
			return err
		}
	}
	if r.saved && sum == r.last {
		return nil
	}
	if err := save(func(w io.Writer) error {
		return r.s.write(w, func(put func(shown) error) error { return r.each(ctx, put) })
	}); err != nil {
		return err
	}
	r.saved, r.last = true, sum
	return nil
}

// sum is a number that differs when the file would.
func (l *loop) sum(now time.Time, seed maphash.Seed) (sum uint64) {
	var h maphash.Hash
	h.SetSeed(seed)
	for _, p := range l.peers {
		x, k, ok := p.proof(now)
		if !ok {
			continue
		}
		h.Reset()
		for _, a := range [...]netip.Addr{x.Local, x.Remote, x.Gateway} {
			b := a.As16()
			_, _ = h.Write(b[:])
			_, _ = h.WriteString(a.Zone())
		}
		_, _ = h.WriteString(x.Name)
		_, _ = h.WriteString(k.ID)
		maphash.WriteComparable(&h, x.At.UnixNano())
		maphash.WriteComparable(&h, x.Source)
		sum += h.Sum64() // in any order
	}
	return sum
}

// each hands over what the loops' peers have proved.
func (r *remembering) each(ctx context.Context, put func(shown) error) error {
	for _, l := range r.s.loops {
		if err := l.ask(ctx, func(time.Time) { r.peers = slices.AppendSeq(r.peers[:0], maps.Values(l.peers)) }); err != nil {
			return err
		}
		for some := range slices.Chunk(r.peers, rememberedAtOnce) {
			if err := l.ask(ctx, func(now time.Time) { r.pieces = appendProofs(r.pieces[:0], now, slices.Values(some)) }); err != nil {
				return err
			}
			if err := handOver(r.pieces)(put); err != nil {
				return err
			}
		}
		clear(r.peers) // they may have gone when the next file is written
	}
	return nil
}

// appendProofs appends what peers have proved that still counts.
func appendProofs(all []shown, now time.Time, peers iter.Seq[*peer]) []shown {
	for p := range peers {
		if x, k, ok := p.proof(now); ok {
			all = append(all, shown{x, k.Public})
		}
	}
	return all
}

// handOver hands over those that are there.
func handOver(all []shown) func(put func(shown) error) error {
	return func(put func(shown) error) error {
		for _, x := range all {
			if err := put(x); err != nil {
				return err
			}
		}
		return nil
	}
}

// write writes the file as it gets the proofs.
func (s *shards) write(w io.Writer, each func(put func(shown) error) error) error {
	out := bufio.NewWriterSize(w, 32<<10)
	_, err := fmt.Fprintf(out, `{"version":%d,"masks":%q,"proofs":[`, memoryVersion, base64.StdEncoding.EncodeToString(s.masks[:]))
	text, some := json.NewEncoder(out), false
	var one proven // the room for each
	var key []byte
	err = errors.Join(err, each(func(x shown) (err error) {
		if key, err = appendKey(key[:0], x.key); err != nil {
			return nil // of no use to whoever reads it
		}
		if some {
			err = out.WriteByte(',')
		}
		some = true
		one = x.proven
		one.Key = key
		return errors.Join(err, text.Encode(&one))
	}))
	_, e := out.WriteString("]}\n")
	return errors.Join(err, e, out.Flush())
}

// edwards is what stands before every Ed25519 key in a SubjectPublicKeyInfo (RFC 8410, 4).
var edwards = []byte{0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00}

// appendKey appends the SubjectPublicKeyInfo. Of the kind that nearly all have it makes no garbage.
func appendKey(b []byte, pub crypto.PublicKey) ([]byte, error) {
	if k, ok := pub.(ed25519.PublicKey); ok {
		return append(append(b, edwards...), k...), nil
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	return append(b, der...), err
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
