package ike

import (
	"crypto"
	"crypto/hmac"
	"io"
	"net/netip"
	"time"
)

// cookieLife is for how long a secret makes cookies; for as long again they are accepted (RFC 7296, 2.6).
const cookieLife = time.Minute

// cookies makes stateless cookies: a version, and a MAC of Ni, IPi and SPIi under a secret that changes.
type cookies struct {
	secret, old [32]byte
	version     byte
	until       moment
}

// rotate changes the secret when its time is over.
func (c *cookies) rotate(now moment, rand io.Reader) {
	if now.Before(c.until) {
		return
	}
	c.old = c.secret
	if _, err := io.ReadFull(rand, c.secret[:]); err != nil {
		return // the old secret goes on: no cookie of it was seen to be broken
	}
	if now.After(c.until.Add(cookieLife)) {
		c.old = c.secret // nothing of before is valid any longer
	}
	c.version++
	c.until = now.Add(cookieLife)
}

func cookie(secret [32]byte, version byte, ni []byte, from netip.Addr, spi uint64) []byte {
	mac := prf(crypto.SHA256, secret[:], ni, from.Unmap().AsSlice(), spiBytes(spi))
	return append([]byte{version}, mac[:16]...)
}

// give is the cookie to demand.
func (c *cookies) give(ni []byte, from netip.Addr, spi uint64) []byte {
	return cookie(c.secret, c.version, ni, from, spi)
}

// valid checks a cookie that came back.
func (c *cookies) valid(got, ni []byte, from netip.Addr, spi uint64) bool {
	return hmac.Equal(got, cookie(c.secret, c.version, ni, from, spi)) ||
		hmac.Equal(got, cookie(c.old, c.version-1, ni, from, spi))
}
