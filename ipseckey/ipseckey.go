// Package ipseckey turns IPSECKEY records (RFC 4025, 9373) into public keys and back, and holds our own identity.
package ipseckey

import (
	"crypto"
	"net/netip"
)

// Type is the IPSECKEY RR type.
const Type = 45

// GatewayType is the second octet of the RDATA (RFC 4025, 2.3).
type GatewayType uint8

// The gateway types.
const (
	GatewayNone GatewayType = 0
	GatewayIPv4 GatewayType = 1
	GatewayIPv6 GatewayType = 2
	GatewayName GatewayType = 3
)

// Algorithm is the third octet of the RDATA.
type Algorithm uint8

// The algorithms (RFC 4025, 2.4; RFC 9373). ECDSA keys have the form of RFC 6605, RSA of RFC 3110, Ed25519 of RFC 8080.
const (
	AlgNone  Algorithm = 0
	AlgDSA   Algorithm = 1
	AlgRSA   Algorithm = 2
	AlgECDSA Algorithm = 3
	AlgEdDSA Algorithm = 4
)

// Record is one IPSECKEY record.
type Record struct {
	Precedence  uint8
	GatewayType GatewayType
	GatewayAddr netip.Addr // for IPv4 and IPv6
	GatewayName string     // for a name, with the final dot
	Algorithm   Algorithm
	RawKey      []byte           // as published; the DER of the record's key field is its identity
	Key         crypto.PublicKey // ed25519.PublicKey, *ecdsa.PublicKey, *rsa.PublicKey; nil where Unusable
	Unusable    string           // why the key cannot be used ("RSA modulus of 1024 bits"); empty if it can
}
