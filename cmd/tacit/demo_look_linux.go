package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/miekg/dns"

	"tacit/ipseckey"
	"tacit/lab"
)

// demoIdentity makes Bob's key: its IPSECKEY record data and its private half as PEM.
func demoIdentity() (record, pem string, err error) {
	key, err := ipseckey.GenerateIdentity()
	if err != nil {
		return "", "", err
	}
	text, err := ipseckey.MarshalIdentity(key)
	if err != nil {
		return "", "", err
	}
	r, err := ipseckey.NewRecord(key.Public())
	if err != nil {
		return "", "", err
	}
	return r.String(), string(text), nil
}

func (w *demoWorld) newReport() *demoReport {
	r := &demoReport{SchemaVersion: 1, Lab: w.lab.Name(), Problems: []string{}}
	about := map[string]string{
		"alice": "runs tacit, has no name and no key of her own",
		"bob":   "runs tacit, his key is in DNS",
		"plain": "has never heard of tacit",
		"ns":    "name server: signed root, example. signed, test. not",
	}
	for _, h := range w.lab.Hosts() {
		host := demoHost{Name: h.Name, About: about[h.Name]}
		for _, a := range h.Addrs() {
			host.Addresses = append(host.Addresses, a.Addr().String())
		}
		r.Hosts = append(r.Hosts, host)
	}
	return r
}

// look makes the contacts and reads the tap.
func (w *demoWorld) look(ctx context.Context, r *demoReport) error {
	for _, f := range []struct {
		kind    uint16
		network string
		a, b    netip.Addr
	}{
		{dns.TypeA, "tcp4", w.alice.Addr4(), w.bob.Addr4()},
		{dns.TypeAAAA, "tcp6", w.alice.Addr6(), w.bob.Addr6()},
	} {
		c, err := w.contact(ctx, f.kind, f.network, f.a, f.b)
		if err != nil {
			return err
		}
		r.Contacts = append(r.Contacts, c)
	}
	if err := w.lookAtPlain(ctx, r); err != nil {
		return err
	}
	return w.readTap(ctx, r)
}

// contact looks Bob's name up and gets his page over one family.
func (w *demoWorld) contact(ctx context.Context, kind uint16, network string, a, b netip.Addr) (demoContact, error) {
	c := demoContact{Question: strings.TrimSuffix(demoBob, ".") + " " + dns.TypeToString[kind]}
	asked := time.Now()
	answer, _, err := w.ask(ctx, demoBob, kind)
	if err != nil {
		return c, err
	}
	answered := time.Now()
	c.Answer = answer
	started := time.Now()
	page, err := w.alice.Fetch(ctx, network, "http://"+strings.TrimSuffix(demoBob, ".")+"/").Output()
	if err != nil {
		return c, err
	}
	got := time.Now()
	if !strings.HasPrefix(string(page), demoPage) {
		return c, fmt.Errorf("bob's page over %s: got %q", network, page)
	}
	if err := w.tap.Sync(ctx); err != nil {
		return c, err
	}
	moments := []moment{
		{at: asked, event: "question", about: "from an ordinary resolver client to alice's tacit", order: -1},
		{at: answered, event: "answer arrives", about: answer},
		{at: started, event: "HTTP client starts", about: "unmodified, a process of its own"},
		{at: got, event: "page", about: strings.ReplaceAll(strings.TrimSpace(string(page)), "\n", " ")},
	}
	log, err := os.Open(w.alice.File("/run/tacit.log"))
	if err != nil {
		return c, err
	}
	defer log.Close()
	moments = append(moments, logMoments(log, b, asked)...)
	moments = append(moments, wireMoments(w.tap.Packets(), a, b, asked)...)
	c.Events = timeline(moments)
	return c, nil
}

// wireMoments are what the tap saw between the two: the IKE messages, the first ESP each way, the first packet in clear.
func wireMoments(packets []lab.Packet, a, b netip.Addr, from time.Time) []moment {
	var out []moment
	seen := map[string]bool{}
	for _, p := range packets {
		arrow, first := "alice -> bob", "first packet"
		switch {
		case p.Time.Before(from):
			continue
		case p.Src == a && p.Dst == b:
		case p.Src == b && p.Dst == a:
			arrow, first = "alice <- bob", "first reply"
		default:
			continue
		}
		m := moment{at: p.Time}
		switch p.Class {
		case lab.ClassIKE:
			h, ok := p.IKEHeader()
			if !ok || h.Exchange == 37 {
				continue
			}
			m.event = lab.ExchangeName(h.Exchange)
			m.about = arrow + fmt.Sprintf(", %d bytes", p.Length)
		case lab.ClassESP, lab.ClassESPUDP:
			if seen[arrow] {
				continue
			}
			seen[arrow] = true
			m.event, m.about = first, arrow+", "+bytesAbout(kindOfESP(p.Class), p.Length)
		case lab.ClassClear:
			if seen["clear"] {
				continue
			}
			seen["clear"] = true
			m.event, m.about = "IN CLEAR", arrow+", "+bytesAbout(fmt.Sprintf("protocol %d", p.Proto), p.Length)
		default:
			continue
		}
		out = append(out, m)
	}
	return out
}

func kindOfESP(c lab.Class) string {
	if c == lab.ClassESPUDP {
		return "ESP in UDP"
	}
	return "ESP"
}

// lookAtPlain reaches the host without a key.
func (w *demoWorld) lookAtPlain(ctx context.Context, r *demoReport) error {
	answer, took, err := w.ask(ctx, demoPlain, dns.TypeA)
	if err != nil {
		return err
	}
	name := strings.TrimSuffix(demoPlain, ".")
	started := time.Now()
	if _, err := w.alice.Fetch(ctx, "tcp4", "http://"+name+"/").Output(); err != nil {
		return err
	}
	r.Plain = plainContact{name, answer, milliseconds(took), milliseconds(time.Since(started)), 0}
	return nil
}

// readTap counts, and notes what is not as it should be.
func (w *demoWorld) readTap(ctx context.Context, r *demoReport) error {
	if err := w.tap.Sync(ctx); err != nil {
		return err
	}
	c := w.tap.BetweenHosts(w.alice, w.bob)
	r.Tap = demoTap{ESP: c.ESP(), ESPBytes: c[lab.ClassESP].Bytes + c[lab.ClassESPUDP].Bytes, IKE: c[lab.ClassIKE].Packets,
		Neighbor: c[lab.ClassNeighbor].Packets, Clear: c.Clear() + c[lab.ClassDNS].Packets}
	var err error
	if r.Tap.Dropped, err = w.tap.Dropped(); err != nil {
		return err
	}
	r.Plain.Clear = w.tap.BetweenHosts(w.alice, w.plain).Clear()
	if r.Plain.Clear == 0 {
		r.Problems = append(r.Problems, "the tap saw nothing in clear between alice and the plain host")
	}
	for i, addr := range []netip.Addr{w.bob.Addr4(), w.bob.Addr6()} {
		if got := r.Contacts[i].Answer; got != addr.String() {
			r.Problems = append(r.Problems, fmt.Sprintf("%s is %s, want %s", r.Contacts[i].Question, got, addr))
		}
	}
	return nil
}
