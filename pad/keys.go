package pad

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
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

// Is reports whether the public key is this one. It makes nothing for a key that it has in hand: this is asked for every peer every second.
func (k Key) Is(pub crypto.PublicKey) bool {
	switch own := k.Public.(type) {
	case ed25519.PublicKey:
		return own.Equal(pub)
	case *ecdsa.PublicKey:
		if other, ok := pub.(*ecdsa.PublicKey); ok && other == own {
			return true
		}
	case *rsa.PublicKey:
		if other, ok := pub.(*rsa.PublicKey); ok && other == own {
			return true
		}
	}
	return ipseckey.Fingerprint(pub) == k.ID
}

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
	var rs reasons
	for _, r := range byPrecedence(records) {
		reason := unfit(r)
		switch {
		case r.GatewayType == ipseckey.GatewayName:
			reason = "its gateway is a name"
		case r.GatewayType != ipseckey.GatewayNone && r.GatewayAddr.Unmap() != addr.Unmap():
			reason = fmt.Sprintf("its gateway is %v", r.GatewayAddr)
		}
		if reason != "" {
			rs.add(reason)
			continue
		}
		keys = addKey(keys, r)
	}
	if len(keys) > 0 {
		return keys, ""
	}
	return nil, rs.String()
}

// byPrecedence is the records in the order in which they are to be tried. RFC 4025, 2.1: "Gateways listed in IPSECKEY records with lower
// precedence are to be attempted first."
func byPrecedence(records []ipseckey.Record) []ipseckey.Record {
	records = slices.Clone(records)
	slices.SortStableFunc(records, func(a, b ipseckey.Record) int { return int(a.Precedence) - int(b.Precedence) })
	return records
}

// unfit says why a record's key cannot be used, whatever its gateway; "": it can.
func unfit(r ipseckey.Record) string {
	switch {
	case r.Unusable != "":
		return r.Unusable
	case r.Key == nil:
		return "it holds no key"
	}
	return ""
}

// addKey adds a record's key, unless it is there or there are MaxKeys.
func addKey(keys []Key, r ipseckey.Record) []Key {
	if k := KeyOf(r.Key); !contains(keys, k.ID) && len(keys) < MaxKeys {
		keys = append(keys, k)
	}
	return keys
}

// reasons are what was wrong with records: the first three kinds.
type reasons []string

func (rs *reasons) add(reason string) {
	if !slices.Contains(*rs, reason) && len(*rs) < 3 {
		*rs = append(*rs, reason)
	}
}

func (rs reasons) String() string {
	if len(rs) == 0 {
		return "no record"
	}
	return strings.Join(rs, "; ")
}

func contains(keys []Key, id string) bool {
	return id != "" && slices.ContainsFunc(keys, func(k Key) bool { return k.ID == id })
}
