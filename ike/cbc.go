package ike

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"errors"
	"hash"

	"tacit/ipsec"
)

// cbc is AES-CBC with HMAC behind it, as a cipher.AEAD whose nonce is the IV and whose plain text is a multiple of the block. The HMAC
// covers associated data, IV and cipher text, and is looked at before anything is decrypted (RFC 7296, 3.14), so that padding tells
// nobody anything.
type cbc struct {
	block cipher.Block
	mac   hash.Hash
	icv   int
}

func newCBC(block cipher.Block, i ipsec.Integrity, key []byte) *cbc {
	h := map[ipsec.Integrity]crypto.Hash{ipsec.HMACSHA256: crypto.SHA256, ipsec.HMACSHA384: crypto.SHA384, ipsec.HMACSHA512: crypto.SHA512}[i]
	return &cbc{block, hmac.New(h.New, key), i.ICVLen()}
}

// NonceSize and Overhead are those of cipher.AEAD.
func (c *cbc) NonceSize() int { return aes.BlockSize }

// Overhead is the length of the integrity check value.
func (c *cbc) Overhead() int { return c.icv }

func (c *cbc) sum(nonce, text, additional []byte) []byte {
	c.mac.Reset()
	c.mac.Write(additional)
	c.mac.Write(nonce)
	c.mac.Write(text)
	return c.mac.Sum(nil)[:c.icv]
}

// Seal panics, as cipher.BlockMode does, if plain is not a multiple of the block.
func (c *cbc) Seal(dst, nonce, plain, additional []byte) []byte {
	at := len(dst)
	dst = append(dst, plain...)
	cipher.NewCBCEncrypter(c.block, nonce).CryptBlocks(dst[at:], dst[at:])
	return append(dst, c.sum(nonce, dst[at:], additional)...)
}

var errICV = errors.New("integrity check value")

// Open decrypts what Seal has made, and nothing else.
func (c *cbc) Open(dst, nonce, text, additional []byte) ([]byte, error) {
	n := len(text) - c.icv
	if n < 0 || n%aes.BlockSize != 0 || !hmac.Equal(text[n:], c.sum(nonce, text[:n], additional)) {
		return nil, errICV
	}
	at := len(dst)
	dst = append(dst, text[:n]...)
	cipher.NewCBCDecrypter(c.block, nonce).CryptBlocks(dst[at:], dst[at:])
	return dst, nil
}
