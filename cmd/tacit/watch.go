package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"time"

	"tacit/control"
)

// watchEvery is the time between two looks.
const watchEvery = time.Second

// change is a line of `tacit status --watch`: what became of a peer.
type change struct {
	Time      time.Time         `json:"time"`
	Address   netip.Addr        `json:"address"`
	Local     netip.Addr        `json:"local"`
	Names     []string          `json:"names"`
	Was       control.State     `json:"was"` // empty: it is new
	State     control.State     `json:"state"`
	Assurance control.Assurance `json:"assurance"`
	Why       string            `json:"why"`
}

// watch prints a line for each change of a peer until ctx ends, beginning with what is there.
func watch(ctx context.Context, status func(context.Context) (control.Status, error), w io.Writer, asJSON bool) error {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	var before []control.Peer
	for {
		s, err := status(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		for _, c := range changes(before, s.Peers, time.Now()) {
			if err := c.write(w, asJSON); err != nil {
				return err
			}
		}
		before = s.Peers
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// changes compares two looks at the peers. One that has gone is clear.
func changes(before, now []control.Peer, at time.Time) (all []change) {
	type key struct{ address, local netip.Addr }
	old := map[key]control.Peer{}
	for _, p := range before {
		old[key{p.Address, p.Local}] = p
	}
	for _, p := range now {
		k := key{p.Address, p.Local}
		o, known := old[k]
		delete(old, k)
		if !known || o.State != p.State || o.Assurance != p.Assurance || o.KeyID != p.KeyID {
			all = append(all, change{at, p.Address, p.Local, p.Names, o.State, p.State, p.Assurance, p.Why})
		}
	}
	for _, p := range before {
		if _, gone := old[key{p.Address, p.Local}]; gone {
			all = append(all, change{at, p.Address, p.Local, p.Names, p.State, control.Clear, control.NoAssurance, "nothing is known of it any more"})
		}
	}
	return all
}

func (c change) write(w io.Writer, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(c)
	}
	was := ""
	if c.Was != "" {
		was = string(c.Was) + " -> "
	}
	return ignoreCount(fmt.Fprintf(w, "%s  %v  %s  %s%s, %s: %s\n", c.Time.Format(time.TimeOnly), c.Address, clean(dash(shorten(c.Names))), was, c.State, c.Assurance, clean(c.Why)))
}
