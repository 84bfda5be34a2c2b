package upstream

import (
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// FuzzReferral: whatever a server says, a referral goes further down and towards the name, its glue is the zone's to tell, and an answer holds nothing but
// what the zone may speak of.
func FuzzReferral(f *testing.F) {
	for _, rrs := range [][][]dns.RR{
		{nil, records("deep.test. 300 NS ns.deep.test.", "deep.test. 300 NS ns.other."), records("ns.deep.test. 300 A 192.0.2.1", "ns.other. 300 A 192.0.2.2")},
		{records("www.deep.test. 300 CNAME www.other.", "www.other. 300 A 192.0.2.1"), records("test. 300 SOA a. b. 1 1 1 1 1"), nil},
		{records("deep.test. 300 DNAME other.", "www.deep.test. 300 CNAME www.other."), records(". 300 NS a."), nil},
	} {
		m := &dns.Msg{Answer: rrs[0], Ns: rrs[1], Extra: rrs[2]}
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	const zone, name = "test.", "www.deep.test."
	f.Fuzz(func(t *testing.T, packet []byte) {
		m := new(dns.Msg)
		if m.Unpack(packet) != nil {
			return
		}
		now := time.Now()
		if next := referral(&cut{zone: zone}, name, m, now); next != nil {
			if !below(next.zone, zone) || !within(name, next.zone) || len(next.names) > maxNS || len(next.names) == 0 || next.until.After(now.Add(maxCutTTL)) {
				t.Errorf("referral to %+v", next)
			}
			for server, addrs := range next.glue {
				if !within(server, zone) || !slices.Contains(next.names, server) || len(addrs) > maxGlue {
					t.Errorf("glue %s %v", server, addrs)
				}
			}
		}
		out := scrub(zone, name, in(name, dns.TypeA), m)
		for _, rr := range slices.Concat(out.Answer, out.Ns) {
			if !within(dns.CanonicalName(rr.Header().Name), zone) || rr.Header().Class != dns.ClassINET {
				t.Errorf("kept %v", rr)
			}
		}
		if len(out.Answer) > len(m.Answer) || len(out.Ns) > len(m.Ns) || len(out.Extra) > 0 {
			t.Errorf("%d and %d records of %d and %d", len(out.Answer), len(out.Ns), len(m.Answer), len(m.Ns))
		}
	})
}
