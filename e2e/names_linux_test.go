package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

// namesWorld has the lab's own DNS, which a test can change and tamper with, and a tacit on alice and bob. The zone
// example. is signed, plain. is proven insecure; bob.example. has Bob's key.
func namesWorld(t *testing.T, top string) (w *world, names *lab.DNS, alice, bob *tacit) {
	t.Helper()
	needE2E(t, "getent")
	w = newWorld(t)
	key := newIdentity(t)
	names, err := lab.NewDNS()
	if err != nil {
		t.Fatal(err)
	}
	for zone, signed := range map[string]bool{"example.": true, "plain.": false} {
		if err := names.AddZone(zone, signed); err != nil {
			t.Fatal(err)
		}
	}
	add(t, names, hostRecords("bob.example.", w.bob, &key)...)
	add(t, names, hostRecords("keyless.example.", w.plain, nil)...)
	add(t, names, hostRecords("host.plain.", w.plain, nil)...)
	if _, err := w.ns.ServeDNS(names, w.ns.Addr4().String()+":53"); err != nil {
		t.Fatal(err)
	}
	w.anchor = names.TrustAnchor()
	up := w.ns.Addr4().String()
	bob = startTacit(t, w.bob, w.anchor, options{name: "bob.example", identity: key.pem, upstream: up, top: top})
	alice = startTacit(t, w.alice, w.anchor, options{upstream: up, top: top})
	return w, names, alice, bob
}

func add(t *testing.T, names *lab.DNS, records ...string) {
	t.Helper()
	if err := names.Add(records...); err != nil {
		t.Fatal(err)
	}
}

// reply is what a resolver client got.
type reply struct {
	*dns.Msg
	took time.Duration
}

// addrs are the addresses in the answer.
func (r reply) addrs() []string {
	var out []string
	for _, rr := range r.Answer {
		switch a := rr.(type) {
		case *dns.A:
			out = append(out, a.A.String())
		case *dns.AAAA:
			out = append(out, a.AAAA.String())
		}
	}
	return out
}

// ede are the info codes of the extended errors (RFC 8914).
func (r reply) ede() map[uint16]string {
	m := map[uint16]string{}
	if o := r.IsEdns0(); o != nil {
		for _, x := range o.Option {
			if e, ok := x.(*dns.EDNS0_EDE); ok {
				m[e.InfoCode] = e.ExtraText
			}
		}
	}
	return m
}

func (r reply) String() string {
	return fmt.Sprintf("%s %v %v in %v", dns.RcodeToString[r.Rcode], r.addrs(), r.ede(), r.took.Round(10*time.Microsecond))
}

// ask asks the host's tacit, as a client with EDNS.
func ask(t *testing.T, h *lab.Host, name string, kind uint16) reply {
	t.Helper()
	r, err := tryAsk(h, name, kind, 8*time.Second)
	if err != nil {
		t.Fatalf("%s asks for %s %s: %v", h.Name, name, dns.TypeToString[kind], err)
	}
	return r
}

func tryAsk(h *lab.Host, name string, kind uint16, patience time.Duration) (reply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := h.Dial(ctx, "udp", "127.0.0.1:53")
	if err != nil {
		return reply{}, err
	}
	defer conn.Close()
	q := new(dns.Msg).SetQuestion(name, kind)
	q.SetEdns0(1232, false)
	c := dns.Client{Timeout: patience}
	r, took, err := c.ExchangeWithConnContext(ctx, q, &dns.Conn{Conn: conn, UDPSize: 1232})
	return reply{r, took}, err
}

// mustWithhold fails the test unless the lookup ends in SERVFAIL within the limit.
func mustWithhold(t *testing.T, h *lab.Host, name string, kind uint16, limit time.Duration) reply {
	t.Helper()
	r := ask(t, h, name, kind)
	if r.Rcode != dns.RcodeServerFailure || len(r.Answer) != 0 || r.took > limit {
		t.Errorf("%s %s: got %v, want SERVFAIL within %v", name, dns.TypeToString[kind], r, limit)
	}
	return r
}

// mustAnswer fails the test unless the lookup yields just the address within the limit.
func mustAnswer(t *testing.T, h *lab.Host, name string, kind uint16, want string, limit time.Duration) reply {
	t.Helper()
	r := ask(t, h, name, kind)
	if a := r.addrs(); r.Rcode != dns.RcodeSuccess || len(a) != 1 || a[0] != want || r.took > limit {
		t.Errorf("%s %s: got %v, want %s within %v", name, dns.TypeToString[kind], r, want, limit)
	}
	return r
}
