package ipsectest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"tacit/lab"
)

// echoPort is where Bob answers.
const echoPort = 7007

// netName is "udp4" and the like.
func netName(proto string, f family) string { return proto + [...]string{"4", "6"}[f] }

// echo answers UDP datagrams and TCP streams on a host until the test ends.
func (w *world) echo(h *lab.Host) {
	w.Helper()
	for _, f := range families {
		at := netip.AddrPortFrom(f.of(h), echoPort).String()
		pc, err := h.ListenPacket(netName("udp", f), at)
		w.must(err)
		w.Cleanup(func() { _ = pc.Close() })
		go func() {
			b := make([]byte, 65536)
			for {
				n, from, err := pc.ReadFrom(b)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					_, _ = pc.WriteTo(b[:n], from)
				}
			}
		}()
		l, err := h.Listen(netName("tcp", f), at)
		w.must(err)
		w.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					_, _ = io.Copy(c, c)
				}()
			}
		}()
	}
}

// dial opens a UDP socket or a TCP connection from one host to the echo of another.
func (w *world) dial(proto string, f family, from, to *lab.Host) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	return from.Dial(ctx, netName(proto, f), netip.AddrPortFrom(f.of(to), echoPort).String())
}

// dialUDP opens a UDP socket that goes with the test.
func (w *world) dialUDP(f family, from, to *lab.Host) net.Conn {
	w.Helper()
	c, err := w.dial("udp", f, from, to)
	w.must(err)
	w.Cleanup(func() { _ = c.Close() })
	return c
}

// ask sends a datagram and waits for its echo.
func ask(c net.Conn, size int, within time.Duration) error {
	b := bytes.Repeat([]byte{0x5a}, size)
	if _, err := c.Write(b); err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Now().Add(within))
	got := make([]byte, size+1)
	n, err := c.Read(got)
	if err != nil {
		return err
	}
	if !bytes.Equal(got[:n], b) {
		return fmt.Errorf("echo of %d octets: got %d", size, n)
	}
	return nil
}

// answered fails the test unless a datagram is echoed.
func (w *world) answered(f family, from, to *lab.Host, sizes ...int) {
	w.Helper()
	c := w.dialUDP(f, from, to)
	for _, n := range sizes {
		if err := ask(c, n, wait); err != nil {
			w.Errorf("%v, %s to %s, %d octets: %v", f, from.Name, to.Name, n, err)
		}
	}
}

// unanswered fails the test if a datagram is echoed within a moment.
func (w *world) unanswered(f family, from, to *lab.Host) {
	w.Helper()
	if err := ask(w.dialUDP(f, from, to), 8, 300*time.Millisecond); err == nil {
		w.Errorf("%v, %s to %s: got an answer, want none", f, from.Name, to.Name)
	}
}

// bulk sends octets through a TCP connection and back and compares their hashes.
func (w *world) bulk(f family, from, to *lab.Host, size int) {
	w.Helper()
	c, err := w.dial("tcp", f, from, to)
	w.must(err)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(60 * time.Second))
	sent, got := sha256.New(), sha256.New()
	done := make(chan error, 1)
	go func() {
		block := make([]byte, 1<<16)
		for i := 0; i < size; i += len(block) {
			binary.BigEndian.PutUint64(block, uint64(i))
			sent.Write(block)
			if _, err := c.Write(block); err != nil {
				done <- err
				return
			}
		}
		done <- c.(*net.TCPConn).CloseWrite()
	}()
	n, err := io.Copy(got, c)
	w.must(errors.Join(err, <-done))
	if int(n) < size || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		w.Errorf("%v, %s to %s: %d octets came back, the hashes differ", f, from.Name, to.Name, n)
	}
}
