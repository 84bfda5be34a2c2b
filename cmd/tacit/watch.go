package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"tacit/control"
)

// source is what watch asks: the daemon's client.
type source interface {
	Status(context.Context) (control.Status, error)
	Events(ctx context.Context, after uint64) (control.Events, error)
}

// watch prints the peers that are there, and then a line for each audit event until ctx ends.
func watch(ctx context.Context, from source, w io.Writer, asJSON bool) error {
	news, err := from.Events(ctx, latestEvent) // before the peers, so that nothing that happens falls between them
	if err != nil {
		return unlessEnded(ctx, err)
	}
	s, err := from.Status(ctx)
	if err != nil {
		return unlessEnded(ctx, err)
	}
	for _, p := range s.Peers {
		e := control.Event{Time: time.Now(), Kind: control.Present, Address: p.Address, Local: p.Local, Name: shorten(p.Names), Assurance: p.Assurance,
			KeyID: p.KeyID, Suite: p.Suite, Why: string(p.State) + ": " + p.Why}
		if err := writeEvent(w, e, asJSON); err != nil {
			return err
		}
	}
	for {
		if news, err = from.Events(ctx, news.Next); err != nil {
			return unlessEnded(ctx, err)
		}
		for i, e := range news.Events {
			if i == 0 {
				e.LeftOut += news.Missed
			}
			if err := writeEvent(w, e, asJSON); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// latestEvent asks for no event but where the next one will be.
const latestEvent = 1<<64 - 1

// unlessEnded is the error of a watch that nobody interrupted.
func unlessEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func writeEvent(w io.Writer, e control.Event, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(e)
	}
	cells := []string{e.Time.Format(time.TimeOnly), string(e.Kind), e.Address.String(), dash(e.Name), string(e.Assurance)}
	for i, c := range cells {
		cells[i] = clean(c)
	}
	left := ""
	if e.LeftOut > 0 {
		left = fmt.Sprintf(" (%d events before this one were left out)", e.LeftOut)
	}
	return ignoreCount(fmt.Fprintf(w, "%s: %s%s\n", strings.Join(cells, "  "), clean(e.Why), left))
}
