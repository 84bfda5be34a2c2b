package lab

import (
	"bytes"
	"crypto"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// makeKey gives the zone its key, one for everything (flags 257).
func (z *zone) makeKey(algorithm uint8) error {
	bits := map[uint8]int{dns.ED25519: 256, dns.ECDSAP256SHA256: 256, dns.ECDSAP384SHA384: 384, dns.RSASHA256: 2048}[algorithm]
	key := &dns.DNSKEY{Hdr: header(z.apex, dns.TypeDNSKEY), Flags: 257, Protocol: 3, Algorithm: algorithm}
	private, err := key.Generate(bits)
	if err != nil {
		return err
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return fmt.Errorf("algorithm %d: its key does not sign", algorithm)
	}
	z.key, z.private = key, signer
	z.add(key)
	return nil
}

// signed appends the signature to a set of records, made now if it is not there yet. A wildcard's records are signed
// under the wildcard's name; owner is the name in the answer.
func (z *zone) signed(set []dns.RR, owner string, now time.Time) ([]dns.RR, error) {
	if z.key == nil || len(set) == 0 {
		return set, nil
	}
	k := setKey{set[0].Header().Name, set[0].Header().Rrtype}
	sig, ok := z.sigs[k]
	if !ok || k.kind == dns.TypeNSEC {
		sig = &dns.RRSIG{Hdr: header(k.name, dns.TypeRRSIG), Algorithm: z.key.Algorithm, KeyTag: z.key.KeyTag(), SignerName: z.apex,
			Inception: uint32(now.Add(-signedSince).Unix()), Expiration: uint32(now.Add(signedUntil).Unix())}
		sig.Hdr.Ttl = set[0].Header().Ttl
		if err := sig.Sign(z.private, set); err != nil {
			return nil, fmt.Errorf("sign %s %s: %w", k.name, dns.TypeToString[k.kind], err)
		}
		z.sigs[k] = sig
	}
	out := slices.Clone(set)
	if owner != k.name {
		out = rename(out, owner)
		renamed := dns.Copy(sig).(*dns.RRSIG)
		renamed.Hdr.Name = owner
		return append(out, renamed), nil
	}
	return append(out, dns.Copy(sig)), nil
}

func rename(set []dns.RR, owner string) []dns.RR {
	out := make([]dns.RR, len(set))
	for i := range set {
		out[i] = dns.Copy(set[i])
		out[i].Header().Name = owner
	}
	return out
}

// owners are the names that own records, in canonical order (RFC 4034, 6.1).
func (z *zone) owners() []string {
	if z.names == nil {
		seen := map[string]bool{}
		for k := range z.sets {
			if !seen[k.name] {
				seen[k.name] = true
				z.names = append(z.names, k.name)
			}
		}
		slices.SortFunc(z.names, compareNames)
	}
	return z.names
}

// compareNames compares label by label from the right (RFC 4034, 6.1); names are in lower case.
func compareNames(a, b string) int {
	la, lb := dns.SplitDomainName(a), dns.SplitDomainName(b)
	for i := 1; i <= len(la) && i <= len(lb); i++ {
		if c := bytes.Compare([]byte(la[len(la)-i]), []byte(lb[len(lb)-i])); c != 0 {
			return c
		}
	}
	return len(la) - len(lb)
}

// nsec is the NSEC record that matches the name or, if there is none of that name, covers it.
func (z *zone) nsec(name string) *dns.NSEC {
	names := z.authoritative()
	i, found := slices.BinarySearchFunc(names, name, compareNames)
	if !found {
		i--
	}
	if i < 0 {
		i = len(names) - 1
	}
	owner := names[i]
	r := &dns.NSEC{Hdr: header(owner, dns.TypeNSEC), NextDomain: names[(i+1)%len(names)], TypeBitMap: z.types(owner)}
	r.Hdr.Ttl = 60
	return r
}

// authoritative leaves out the names below a delegation: glue is not part of the chain.
func (z *zone) authoritative() []string {
	var out []string
	for _, n := range z.owners() {
		if z.cut(n) == "" {
			out = append(out, n)
		}
	}
	return out
}

// cut is the delegation strictly above the name, if there is one.
func (z *zone) cut(name string) string {
	for n := name; n != z.apex && n != "."; {
		n = parentName(n)
		if _, ok := z.sets[setKey{n, dns.TypeNS}]; ok && n != z.apex {
			return n
		}
	}
	return ""
}

// types is the bit map of an NSEC record; at a delegation only NS and DS are the zone's own.
func (z *zone) types(owner string) []uint16 {
	kinds := []uint16{dns.TypeRRSIG, dns.TypeNSEC}
	delegation := owner != z.apex && z.sets[setKey{owner, dns.TypeNS}] != nil
	for k := range z.sets {
		if k.name == owner && (!delegation || k.kind == dns.TypeNS || k.kind == dns.TypeDS) {
			kinds = append(kinds, k.kind)
		}
	}
	slices.Sort(kinds)
	return kinds
}

// exists says whether the name owns records or stands above one that does (an empty non-terminal).
func (z *zone) exists(name string) bool {
	for _, n := range z.owners() {
		if n == name || strings.HasSuffix(n, "."+name) || name == "." {
			return true
		}
	}
	return false
}
