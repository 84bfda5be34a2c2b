package lab

import (
	"context"
	"testing"
	"time"
)

// TestSyncSeesAll sends datagrams, one of them in fragments, and counts them right after Sync.
func TestSyncSeesAll(t *testing.T) {
	l, alice, bob := newLab(t)
	tap, err := l.Tap()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	srv, err := bob.ListenPacket("udp", "192.0.2.2:53")
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	c, err := alice.Dial(ctx, "udp", "192.0.2.2:53")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(make([]byte, 4000)); err != nil { // three fragments; the class is the first one's
		t.Fatal(err)
	}
	if err := tap.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if got := tap.From(alice.Addr4(), bob.Addr4()); got[ClassDNS].Packets != 3 || got.Clear() != 0 {
		t.Errorf("a datagram in fragments: got %v", got)
	}
	for range 500 {
		if _, err := c.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := tap.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if got := tap.From(alice.Addr4(), bob.Addr4()); got[ClassDNS].Packets != 503 {
		t.Errorf("got %v, want 503 packets", got)
	}
	tap.Reset()
	if got := tap.BetweenHosts(alice, bob); got != (Counts{}) {
		t.Errorf("after Reset: got %v", got)
	}
}

func TestPlugAndFlush(t *testing.T) {
	_, alice, bob := newLab(t)
	reach := func(patience time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c, err := alice.Dial(ctx, "tcp", "[2001:db8::2]:7")
		if err == nil {
			c.Close()
		}
		return err
	}
	ln, err := bob.Listen("tcp", "[2001:db8::2]:7")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := reach(300 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if err := alice.FlushNeighbours(); err != nil {
		t.Fatal(err)
	}
	if err := reach(300 * time.Millisecond); err != nil {
		t.Errorf("after the flush: %v", err)
	}
	if err := bob.Plug(false); err != nil {
		t.Fatal(err)
	}
	if err := reach(300 * time.Millisecond); err == nil {
		t.Error("reached without a cable")
	}
	if err := bob.Plug(true); err != nil {
		t.Fatal(err)
	}
	if err := reach(5 * time.Second); err != nil {
		t.Errorf("plugged in again: %v", err)
	}
}
