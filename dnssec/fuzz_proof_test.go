package dnssec

import (
	"maps"
	"slices"
	"testing"

	"github.com/miekg/dns"
)

// proofLabels make the names that proofs are sought for: those of the test's zones, and some between and beside them.
var proofLabels = []string{"bob", "alias", "x", "wild", "*", "old", "host", "deep", "ent", "sub", "sec", "www", "none", "a", "zz", "walias", "loop1", "\\000", "BOB", "costly"}

// proofTypes are the types.
var proofTypes = []uint16{dns.TypeA, dns.TypeIPSECKEY, dns.TypeDS, dns.TypeCNAME, dns.TypeNS, dns.TypeMX, dns.TypeANY, dns.TypeSOA, dns.TypeDNAME}

// contradicts says how a proof contradicts the zone; empty: it does not.
func (z *testZone) contradicts(name string, rrtype uint16, got what) string {
	if got == unproven || got == tooCostly {
		return ""
	}
	if got == optedOut {
		if z.mode != optout {
			return "opt-out in a zone without"
		}
		if len(z.node[name][dns.TypeDS]) > 0 {
			return "opt-out for a name with DS"
		}
		return ""
	}
	cut, node := z.cutAbove(name), z.node[name]
	switch {
	case cut != "" && cut != name:
		if got == noDelegation && rrtype == dns.TypeDS {
			return "a name below a zone cut"
		}
		return "below a zone cut"
	case rrtype == dns.TypeDS:
		isCut := len(node[dns.TypeNS]) > 0 && name != z.name
		switch {
		case len(node[dns.TypeDS]) > 0:
			return "there is a DS"
		case got == unsignedCut && !isCut, got == noDelegation && isCut:
			return "a zone cut, or none"
		}
		return ""
	case cut == name:
		return "the child's to say"
	}
	owner := name
	if !z.exists(name) {
		encloser := parent(name)
		for !z.exists(encloser) {
			encloser = parent(encloser)
		}
		for n := encloser; within(n, z.name); n = parent(n) {
			if len(z.node[n][dns.TypeDNAME]) > 0 {
				return "below a DNAME"
			}
			if n == z.name {
				break
			}
		}
		if owner = wildcardOf(encloser); !z.exists(owner) {
			return ""
		}
		node = z.node[owner]
	}
	switch {
	case got == noName || got == notNamed:
		return "the name, or a wildcard for it, is there"
	case len(node[rrtype]) > 0, len(node[dns.TypeCNAME]) > 0 && rrtype != dns.TypeCNAME, rrtype == dns.TypeANY && len(node) > 0:
		return "there is such a record"
	}
	return ""
}

// Whatever genuine NSEC and NSEC3 records of a zone come together, and whatever is asked, nothing is proven that is not so.
func FuzzProve(f *testing.F) {
	w, _ := hierarchy(f)
	var zones []*testZone
	for _, name := range []string{"signed.test.", "hashed.test.", "loose.test."} {
		zones = append(zones, w.zones[name])
	}
	f.Add(byte(0), uint64(1<<63-1), byte(0), []byte{0})
	f.Add(byte(1), uint64(0xffff), byte(1), []byte{6, 12})
	f.Add(byte(2), uint64(5), byte(2), []byte{9})
	f.Add(byte(0), uint64(0xff), byte(6), []byte{14, 3})
	f.Add(byte(1), uint64(0xff), byte(0), []byte{14, 7, 8})
	f.Fuzz(func(t *testing.T, which byte, mask uint64, kind byte, labels []byte) {
		z := zones[int(which)%len(zones)]
		name := z.name
		for _, l := range labels[:min(len(labels), 6)] {
			name = dns.CanonicalName(proofLabels[int(l)%len(proofLabels)] + "." + name)
		}
		rrtype := proofTypes[int(kind)%len(proofTypes)]
		c := checker{now: testNow, rules: &rules{iterations: maxIterations}, work: newBudget()}
		d := &denials{zone: z.name}
		for i, key := range slices.Sorted(maps.Keys(z.denial)) {
			if mask>>(i%64)&1 == 1 {
				d.take(&c, dns.Copy(z.denial[key]), z.name)
			}
		}
		for _, claimed := range []bool{true, false} {
			for _, got := range []what{c.prove(name, rrtype, claimed, d), c.proveFully(name, rrtype, claimed, d)} {
				if got == noName && rrtype == dns.TypeDS { // of proveFully: there is no such name at all
					if z.exists(name) {
						t.Errorf("%s DS: no name, but it is there", name)
					}
					continue
				}
				if why := z.contradicts(name, rrtype, got); why != "" {
					t.Errorf("%s %s: proven %d, but %s", name, typeName(rrtype), got, why)
				}
			}
		}
		for base := name; ; base = parent(base) { // a wildcard that is signed is there
			if below(name, base) && z.exists(wildcardOf(base)) && c.proveExpansion(name, wildcardOf(base), d) == noName && z.exists(ancestor(name, dns.CountLabel(base)+1)) {
				t.Errorf("%s: rightly made from %s, it seems", name, wildcardOf(base))
			}
			if base == z.name {
				break
			}
		}
	})
}
