package esp

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"hash"
	"sync/atomic"

	"tacit/ipsec"
)

// separate encrypts with AES-CBC (RFC 3602), then authenticates with HMAC-SHA-2 (RFC 4868): "encryption is performed first,
// before the integrity algorithm is applied" (RFC 4303, 3.3.2.1).
type separate struct {
	block cipher.Block
	hash  func() hash.Hash
	key   ipsec.Secret // of the HMAC
	icv   int
	esn   bool
	idle  atomic.Pointer[worker]
}

// worker is the state of one packet's work: none of it may be shared, and made anew for each packet it would be garbage. One waits
// in idle for the next packet; a goroutine that finds none there, because another has it, makes its own.
type worker struct {
	mac      hash.Hash
	enc, dec reusable // made when first needed: an SA goes one way
	buf      [sha512.Size]byte
}

// reusable is what AES-CBC of the standard library is: it can be used again with another IV.
type reusable interface {
	cipher.BlockMode
	SetIV([]byte)
}

func newSeparate(sa ipsec.SA) (transform, error) {
	block, err := aes.NewCipher(sa.Key)
	if err != nil {
		return nil, fmt.Errorf("esp: %w", err)
	}
	s := &separate{block: block, key: append(ipsec.Secret(nil), sa.AuthKey...), icv: sa.Integrity.ICVLen(), esn: sa.ESN}
	switch sa.Integrity {
	case ipsec.HMACSHA256:
		s.hash = sha256.New
	case ipsec.HMACSHA384:
		s.hash = sha512.New384
	case ipsec.HMACSHA512:
		s.hash = sha512.New
	}
	return s, nil
}

// seal draws the IV: "The IV MUST be chosen at random, and MUST be unpredictable" (RFC 3602, 3). A counter would not do.
func (s *separate) seal(packet []byte, seq uint64, _ []byte) {
	iv, text := packet[spiSeqLen:spiSeqLen+aes.BlockSize], packet[spiSeqLen+aes.BlockSize:len(packet)-s.icv]
	_, _ = rand.Read(iv) // never fails
	w := s.take()
	if w.enc == nil {
		w.enc = cipher.NewCBCEncrypter(s.block, iv).(reusable)
	}
	w.enc.SetIV(iv)
	w.enc.CryptBlocks(text, text)
	copy(packet[len(packet)-s.icv:], s.sum(w, packet, seq))
	s.idle.Store(w)
}

// open decrypts nothing that is not authentic, so that no padding is ever judged that an attacker chose.
func (s *separate) open(dst, packet []byte, seq uint64, _ []byte) ([]byte, error) {
	iv, text := packet[spiSeqLen:spiSeqLen+aes.BlockSize], packet[spiSeqLen+aes.BlockSize:len(packet)-s.icv]
	w := s.take()
	defer s.idle.Store(w)
	if !hmac.Equal(s.sum(w, packet, seq), packet[len(packet)-s.icv:]) {
		return nil, ErrAuth
	}
	if w.dec == nil {
		w.dec = cipher.NewCBCDecrypter(s.block, iv).(reusable)
	}
	w.dec.SetIV(iv)
	if dst == nil {
		w.dec.CryptBlocks(text, text)
		return text, nil
	}
	at := len(dst)
	dst = append(dst, text...)
	w.dec.CryptBlocks(dst[at:], dst[at:])
	return dst, nil
}

// sum is the ICV that a packet should have: over all of it before the ICV, and with ESN "the high-order 32 bits of the sequence
// number are appended after the Next Header field for purposes of this computation, but are not transmitted" (RFC 4303, 3.3.2.1).
// What it returns is the worker's, until its next packet.
func (s *separate) sum(w *worker, packet []byte, seq uint64) []byte {
	w.mac.Reset()
	w.mac.Write(packet[:len(packet)-s.icv])
	if s.esn {
		binary.BigEndian.PutUint32(w.buf[:], uint32(seq>>32))
		w.mac.Write(w.buf[:4])
	}
	return w.mac.Sum(w.buf[:0])[:s.icv]
}

func (s *separate) take() *worker {
	if w := s.idle.Swap(nil); w != nil {
		return w
	}
	return &worker{mac: hmac.New(s.hash, s.key)}
}
