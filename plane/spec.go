package plane

import (
	"errors"
	"fmt"

	"tacit/guard"
	"tacit/ipsec"
)

// UDP ports of IKE (RFC 7296, 2.23).
const (
	PortIKE  = 500
	PortNATT = 4500
)

// What a data plane refuses.
var (
	ErrPair     = errors.New("no such pair")
	ErrSelector = errors.New("selector must name one local and one remote host, and all their traffic")
	ErrOuter    = errors.New("outer addresses")
	ErrInner    = errors.New("inner address")
	ErrSPI      = errors.New("SPI is in use")
	ErrClosed   = errors.New("data plane is closed")
)

// Hosts checks that a selector names two hosts, and returns them. Wider ones come with gateways.
func Hosts(s ipsec.Selector) (guard.Key, error) {
	k := guard.Key{Own: s.Local.Addr(), Peer: s.Remote.Addr()}
	if !s.Local.IsValid() || !s.Remote.IsValid() || !s.Local.IsSingleIP() || !s.Remote.IsSingleIP() ||
		k.Own.Is4() != k.Peer.Is4() || k.Own.Is4In6() || k.Peer.Is4In6() || k.Own == k.Peer ||
		s.Proto != 0 || s.LocalPort != 0 || s.RemotePort != 0 {
		return k, fmt.Errorf("selector %v: %w", s, ErrSelector)
	}
	return k, nil
}

// CheckOuter checks where the ESP of a Pair shall go.
func CheckOuter(spec ipsec.Pair) error {
	local, remote := spec.Local, spec.Remote
	switch {
	case !remote.Addr().IsValid() || remote.Addr().Is4In6():
		return fmt.Errorf("%w: remote %v", ErrOuter, remote)
	case local.Addr().IsValid() && local.Addr().Is4() != remote.Addr().Is4():
		return fmt.Errorf("%w: %v and %v are of two families", ErrOuter, local, remote)
	case spec.Encapsulated() && local.Port() != PortNATT:
		return fmt.Errorf("%w: ESP in UDP leaves from port %d, not %d", ErrOuter, PortNATT, local.Port())
	}
	return nil
}

// CheckSpec checks a Pair that is to be installed, and returns its hosts.
func CheckSpec(spec ipsec.Pair) (guard.Key, error) {
	key, err := Hosts(spec.Selector)
	if err != nil {
		return key, err
	}
	if err := spec.In.Check(); err != nil {
		return key, fmt.Errorf("inbound SA: %w", err)
	}
	if err := spec.Out.Check(); err != nil {
		return key, fmt.Errorf("outbound SA: %w", err)
	}
	if in := spec.Inner; in.IsValid() && (spec.Mode != ipsec.Tunnel || in.Is4() != key.Own.Is4() || in.Is4In6() || in == key.Peer) {
		return key, fmt.Errorf("%w: %v in %v mode", ErrInner, in, spec.Mode)
	}
	return key, CheckOuter(spec)
}

// CheckRekey checks that a Pair of the same ID carries the same traffic as before.
func CheckRekey(before, next ipsec.Pair) error {
	if before.Selector != next.Selector || before.Mode != next.Mode || before.Inner != next.Inner {
		return fmt.Errorf("a rekey does not change selector, inner address and mode: got %v, %v in %v mode, want %v, %v in %v mode",
			next.Selector, next.Inner, next.Mode, before.Selector, before.Inner, before.Mode)
	}
	return nil
}

// CheckRedirect checks the outer addresses that a Pair is to get.
func CheckRedirect(before, next ipsec.Pair) error {
	if next.Encapsulated() != before.Encapsulated() {
		return fmt.Errorf("%w: encapsulation cannot change", ErrOuter)
	}
	return CheckOuter(next)
}

// Limits say after how much an outbound SA is to be replaced, in packets and in octets: with 32 bit sequence numbers a quarter is left
// then, and of AES-CBC's blocks so few have been seen that no two of them are likely to be the same (2^48; RFC 3602, 6).
func Limits(sa ipsec.SA) (packets, octets uint64) {
	packets, octets = 3<<30, 1<<62
	if sa.ESN {
		packets = 1 << 62
	}
	if sa.Cipher == ipsec.AESCBC {
		octets = 1 << 52
	}
	return packets, octets
}

// Prefer picks, of the armed Pairs of a flow, the newest last, the one that it sends with: one with a peer that proved a key goes first,
// then the newest. A Pair with nobody never displaces one with somebody (TRUST.md A-19).
func Prefer[P any](armed []P, authenticated func(P) bool) (best P, ok bool) {
	for i := len(armed) - 1; i >= 0; i-- {
		if authenticated(armed[i]) {
			return armed[i], true
		}
		if !ok {
			best, ok = armed[i], true
		}
	}
	return best, ok
}

// Without is a list less one; the old list is left as it is.
func Without[P comparable](list []P, gone P) (out []P) {
	for _, p := range list {
		if p != gone {
			out = append(out, p)
		}
	}
	return out
}

// Wrap names the operation on a Pair in an error.
func Wrap(op string, id uint32, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s pair %d: %w", op, id, err)
}
