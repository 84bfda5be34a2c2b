package ipsec

import (
	"errors"
	"fmt"
	"slices"
)

// Cipher is an encryption algorithm of ESP: IKEv2's Transform Type 1.
type Cipher uint16

// The ciphers a Dataplane accepts; the values are IANA's IKEv2 encryption transform ids. The length of the key tells AES-128,
// AES-192 and AES-256 apart.
const (
	AESCBC           Cipher = 12 // AES-CBC (RFC 3602), which needs an Integrity
	AESGCM16         Cipher = 20 // AES-GCM with a 16 octet ICV (RFC 4106), with 128 or 256 bits
	ChaCha20Poly1305 Cipher = 28 // RFC 7634
)

func (c Cipher) String() string {
	switch c {
	case AESCBC:
		return "aes-cbc"
	case AESGCM16:
		return "aes-gcm-16"
	case ChaCha20Poly1305:
		return "chacha20-poly1305"
	}
	return fmt.Sprintf("cipher-%d", uint16(c))
}

// Combined reports whether the cipher protects integrity too ("combined mode", RFC 4303, 3.2.3).
func (c Cipher) Combined() bool { return c == AESGCM16 || c == ChaCha20Poly1305 }

// Integrity is an integrity algorithm of ESP: IKEv2's Transform Type 3.
type Integrity uint16

// The integrity algorithms a Dataplane accepts; the values are IANA's IKEv2 integrity transform ids. All are of RFC 4868: HMAC
// with a key as long as the hash, and its output cut to half.
const (
	NoIntegrity Integrity = 0 // of a combined-mode cipher
	HMACSHA256  Integrity = 12
	HMACSHA384  Integrity = 13
	HMACSHA512  Integrity = 14
)

func (i Integrity) String() string {
	switch i {
	case NoIntegrity:
		return "none"
	case HMACSHA256, HMACSHA384, HMACSHA512:
		return fmt.Sprintf("hmac-sha2-%d-%d", 8*i.KeyLen(), 8*i.ICVLen())
	}
	return fmt.Sprintf("integrity-%d", uint16(i))
}

// KeyLen is the length of the algorithm's key in octets: that of the hash's output, "and key lengths other than the output length
// MUST NOT be supported" (RFC 4868, 2.1.1). It is 0 for none and for one that we do not have.
func (i Integrity) KeyLen() int {
	switch i {
	case HMACSHA256:
		return 32
	case HMACSHA384:
		return 48
	case HMACSHA512:
		return 64
	}
	return 0
}

// ICVLen is the length of the integrity check value in octets (RFC 4868, 2.1.2 and 2.3); 0 as with KeyLen.
func (i Integrity) ICVLen() int { return i.KeyLen() / 2 }

// Secret is key material. It prints as ***.
type Secret []byte

func (Secret) String() string   { return "***" }
func (Secret) GoString() string { return "***" }

// MarshalText keeps a Secret out of JSON and of logs.
func (Secret) MarshalText() ([]byte, error) { return []byte("***"), nil }

// SA is one direction of a Child SA.
type SA struct {
	SPI       SPI
	Cipher    Cipher
	Key       Secret    // the cipher's key
	Salt      Secret    // of a combined-mode cipher: the 4 octets that begin the nonce (RFC 4106, 8.1; RFC 7634, 2)
	Integrity Integrity // of any other cipher
	AuthKey   Secret    // the key of Integrity
	ESN       bool      // 64 bit sequence numbers (RFC 4303, 2.2.1)
}

// saltLen is the length of every Salt (RFC 4106, 4; RFC 7634, 2).
const saltLen = 4

var errSPI = errors.New("SPI is reserved (RFC 4303, 2.1)") // 0 to 255

// Check says what is wrong with an SA: a reserved SPI, algorithms that no Dataplane has or that do not go together, keys of a wrong
// length. The error names lengths, never keys.
func (sa SA) Check() error {
	if sa.SPI < 256 {
		return errSPI
	}
	var keys []int
	switch sa.Cipher {
	case AESCBC:
		keys = []int{16, 24, 32}
	case AESGCM16:
		keys = []int{16, 32}
	case ChaCha20Poly1305:
		keys = []int{32}
	default:
		return fmt.Errorf("%v is not supported", sa.Cipher)
	}
	if !slices.Contains(keys, len(sa.Key)) {
		return fmt.Errorf("%v with a key of %d octets, want one of %v", sa.Cipher, len(sa.Key), keys)
	}
	salt := 0
	if sa.Cipher.Combined() {
		salt = saltLen
	}
	// RFC 7296, 3.3: a combined-mode cipher goes with no integrity algorithm, any other needs one; encryption alone is not secure
	// (RFC 4303, 1).
	if sa.Cipher.Combined() != (sa.Integrity == NoIntegrity) || sa.Integrity != NoIntegrity && sa.Integrity.KeyLen() == 0 {
		return fmt.Errorf("%v with integrity %v", sa.Cipher, sa.Integrity)
	}
	if len(sa.Salt) != salt {
		return fmt.Errorf("%v with a salt of %d octets, want %d", sa.Cipher, len(sa.Salt), salt)
	}
	if len(sa.AuthKey) != sa.Integrity.KeyLen() {
		return fmt.Errorf("%v with a key of %d octets, want %d", sa.Integrity, len(sa.AuthKey), sa.Integrity.KeyLen())
	}
	return nil
}
