package ipsectest

import (
	"crypto/rand"
	"fmt"
	"os"
	"testing"

	"tacit/ipsec"
	"tacit/lab"
)

// suite is how an SA protects packets. keyLen is the length of the cipher's key in octets.
type suite struct {
	cipher    ipsec.Cipher
	keyLen    int
	integrity ipsec.Integrity
	esn       bool
}

func (s suite) String() string {
	return fmt.Sprintf("%v-%d %v esn=%v", s.cipher, 8*s.keyLen, s.integrity, s.esn)
}

// preferred is the suite of tests that are about something else.
var preferred = suite{ipsec.AESGCM16, 32, ipsec.NoIntegrity, true}

// suites are all that a Dataplane must have.
func suites() (all []suite) {
	for _, esn := range []bool{true, false} {
		all = append(all, suite{ipsec.AESGCM16, 16, ipsec.NoIntegrity, esn}, suite{ipsec.AESGCM16, 32, ipsec.NoIntegrity, esn},
			suite{ipsec.ChaCha20Poly1305, 32, ipsec.NoIntegrity, esn})
		for _, i := range []ipsec.Integrity{ipsec.HMACSHA256, ipsec.HMACSHA384, ipsec.HMACSHA512} {
			all = append(all, suite{ipsec.AESCBC, 16, i, esn}, suite{ipsec.AESCBC, 32, i, esn})
		}
	}
	return all
}

// newSA makes one direction of a Child SA with random keys.
func newSA(s suite) ipsec.SA {
	secret := func(n int) ipsec.Secret {
		b := make(ipsec.Secret, n)
		_, _ = rand.Read(b)
		return b
	}
	sa := ipsec.SA{SPI: ipsec.SPI(0x1000_0000 + spis.Add(1)), Cipher: s.cipher, Key: secret(s.keyLen), Integrity: s.integrity, ESN: s.esn}
	if s.cipher.Combined() {
		sa.Salt = secret(4)
	} else {
		sa.AuthKey = secret(s.integrity.KeyLen())
	}
	return sa
}

// testCiphers: every suite carries datagrams and TCP over both families, with TACIT_LONG=1 in both modes (else one, and with the other
// kind of sequence numbers the other); the tap sees ESP only, and none of TCP's in fragments: what fits depends on the suite.
func testCiphers(w *world) {
	w.echo(w.alice)
	w.echo(w.bob)
	da, db := w.open(w.alice), w.open(w.bob)
	id := uint32(0)
	for k, c := range suites() {
		for _, f := range families {
			for _, m := range []ipsec.Mode{ipsec.Transport, ipsec.Tunnel} {
				id++
				if os.Getenv("TACIT_LONG") == "" && k%2 != int(m) {
					continue
				}
				s := shape{f, m, id%3 == 0} // each suite and shape some times in UDP
				w.Run(fmt.Sprintf("%v %v", c, s), func(t *testing.T) {
					in := w.within(t)
					in.reset()
					alice, bob := in.pairsOf(id, s, c)
					in.up(da, db, alice, bob)
					in.answered(f, w.alice, w.bob, 1, 2, 1200)
					in.answered(f, w.bob, w.alice, 15, 600)
					in.bulk(f, w.alice, w.bob, 200<<10)
					in.noClear(f)
					in.protected(da, db, id, s, 5)
					if n := len(w.tap.Select(func(p lab.Packet) bool { return p.Fragment || p.FirstFragment })); n != 0 {
						t.Errorf("tap: got %d fragments, want none", n)
					}
					in.must(da.Remove(id))
					in.must(db.Remove(id))
				})
			}
		}
	}
}

// protected fails the test unless the tap saw ESP of the shape, at least a number of packets each way, and both ends counted them.
func (w *world) protected(da, db ipsec.Dataplane, id uint32, s shape, each int) {
	w.Helper()
	want := lab.ClassESP
	if s.udp {
		want = lab.ClassESPUDP
	}
	if c := w.counts(s.family); c[want].Packets < 2*each {
		w.Errorf("tap: got %v, want %v", c, want)
	}
	for _, d := range []ipsec.Dataplane{da, db} {
		u, err := d.Usage(id)
		w.must(err)
		if !u.Armed || u.InPackets < uint64(each) || u.OutPackets < uint64(each) || u.LastIn.IsZero() || u.Invalid+u.Replayed != 0 {
			w.Errorf("usage: got %+v", u)
		}
	}
}
