package pad

import (
	"crypto"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tacit/ipseckey"
)

// Key is a public key that a claim offers.
type Key struct {
	ID     string           // ipseckey.Fingerprint
	Public crypto.PublicKey // nil: only the fingerprint is known, and the peer is to send the key
}

// KeyOf returns the Key of a public key.
func KeyOf(pub crypto.PublicKey) Key { return Key{ipseckey.Fingerprint(pub), pub} }

// Pinned returns the keys that the administrator has named by their fingerprints, with those of them that the records hold.
func Pinned(fingerprints []string, records []ipseckey.Record) (keys []Key) {
	for _, id := range fingerprints {
		k := Key{ID: id}
		for _, r := range records {
			if r.Key != nil && r.Unusable == "" && ipseckey.Fingerprint(r.Key) == id {
				k.Public = r.Key
			}
		}
		keys = append(keys, k)
	}
	return keys
}

// UsableKeys returns the keys of an IPSECKEY RRset that may speak for the address, most preferred first, at most MaxKeys. A
// record counts if its gateway is absent or is the address itself (TRUST.md R5, A-07): whom a name's owner would like packets
// for the address to go to is not his to say. why tells what was wrong with the records if no key is left.
func UsableKeys(records []ipseckey.Record, addr netip.Addr) (keys []Key, why string) {
	records = slices.Clone(records)
	// RFC 4025, 2.1: "Gateways listed in IPSECKEY records with lower precedence are to be attempted first."
	slices.SortStableFunc(records, func(a, b ipseckey.Record) int { return int(a.Precedence) - int(b.Precedence) })
	var reasons []string
	for _, r := range records {
		reason := ""
		switch {
		case r.GatewayType == ipseckey.GatewayName:
			reason = "its gateway is a name"
		case r.GatewayType != ipseckey.GatewayNone && r.GatewayAddr.Unmap() != addr.Unmap():
			reason = fmt.Sprintf("its gateway is %v", r.GatewayAddr)
		case r.Unusable != "":
			reason = r.Unusable
		case r.Key == nil:
			reason = "it holds no key"
		}
		if reason != "" {
			if !slices.Contains(reasons, reason) && len(reasons) < 3 {
				reasons = append(reasons, reason)
			}
			continue
		}
		k := KeyOf(r.Key)
		if !contains(keys, k.ID) && len(keys) < MaxKeys {
			keys = append(keys, k)
		}
	}
	switch {
	case len(keys) > 0:
		return keys, ""
	case len(records) == 0:
		return nil, "no record"
	}
	return nil, strings.Join(reasons, "; ")
}

func contains(keys []Key, id string) bool {
	return id != "" && slices.ContainsFunc(keys, func(k Key) bool { return k.ID == id })
}
