package daemon

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
	"tacit/ipsec/ipsectest"
	"tacit/resolver"
)

// stalling is a DNS whose reverse zones name gateways, of whose addresses nobody says anything.
type stalling struct{ t *testing.T }

func (z stalling) Lookup(ctx context.Context, name string, rrtype uint16) (a dnssec.Answer, err error) {
	if !strings.HasSuffix(name, ".in-addr.arpa.") || rrtype != dns.TypeIPSECKEY {
		<-ctx.Done()
		return a, ctx.Err()
	}
	a = dnssec.Answer{Name: name, Type: rrtype, Owner: name, Chain: []string{name}, Status: dnssec.Secure, Until: time.Now().Add(time.Minute), EDE: dnssec.NoEDE}
	for i := range 4 {
		rr, err := dns.NewRR(fmt.Sprintf("%s 60 IN IPSECKEY %d 3 4 gw%d.example. %s", name, i, i, base64.StdEncoding.EncodeToString(testKey(byte(i)).(ed25519.PublicKey))))
		if err != nil {
			z.t.Error(err)
		}
		a.RRs = append(a.RRs, rr)
	}
	a.Msg = &dns.Msg{Answer: a.RRs}
	return a, nil
}

// Gateways that are told by names which nobody answers for cost a reverse lookup as much time again as itself at most, however many there are: others wait for its place.
func TestReverseLookupIsBounded(t *testing.T) {
	const hold = 150 * time.Millisecond
	own := netip.MustParseAddr("192.0.2.1")
	d := newTestLoop(t, ipsectest.NewFake(), own, "", nil, time.Now).d
	d.cfg.File.DNS.Hold = hold
	var err error
	if d.resolver, err = resolver.New(resolver.Config{Lookup: stalling{t}, Hold: hold}); err != nil {
		t.Fatal(err)
	}
	defer d.resolver.Close()
	begun := time.Now()
	r := d.reversed(netip.MustParseAddr("203.0.113.7"))
	if took := time.Since(begun); took > 3*hold {
		t.Errorf("it took %v, the hold is %v", took, hold)
	}
	if len(r.claims) > 0 || !r.shut || r.why == "" {
		t.Errorf("got %+v, want a key that is proven and no way to it", r)
	}
}
