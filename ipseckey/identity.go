package ipseckey

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// pemType is the PEM label of PKCS#8 (RFC 7468, 10).
const pemType = "PRIVATE KEY"

// GenerateIdentity makes a new Ed25519 key.
func GenerateIdentity() (crypto.Signer, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	return key, nil
}

// ParseIdentity reads a private key as PEM "PRIVATE KEY" (PKCS#8): Ed25519, ECDSA P-256 or P-384, RSA of 2048 to 8192 bits. Text around the one block is
// ignored, a second block is an error. No error quotes the text.
func ParseIdentity(text []byte) (crypto.Signer, error) {
	block, rest := pem.Decode(text)
	if block == nil {
		return nil, errors.New("identity: no PEM block")
	}
	if block.Type != pemType {
		return nil, fmt.Errorf("identity: a PEM block %.40q, want %q (PKCS#8)", block.Type, pemType)
	}
	if second, _ := pem.Decode(rest); second != nil {
		return nil, errors.New("identity: more than one PEM block")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("identity: a %T cannot sign", key)
	}
	if _, err := NewRecord(signer.Public()); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	return signer, nil
}

// MarshalIdentity writes a private key as PEM (PKCS#8). The result is a secret.
func MarshalIdentity(key crypto.Signer) ([]byte, error) {
	switch key.(type) {
	case ed25519.PrivateKey, *ecdsa.PrivateKey, *rsa.PrivateKey:
	default:
		return nil, fmt.Errorf("identity: a %T cannot be written", key)
	}
	if _, err := NewRecord(key.Public()); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}), nil
}

// DeriveSecret makes 32 octets of a private key that it tells nothing about, for one purpose: the same for as long as the key is ours,
// without a file of their own.
func DeriveSecret(key crypto.Signer, purpose string) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	return hkdf.Key(sha256.New, der, nil, "tacit "+purpose, sha256.Size)
}
