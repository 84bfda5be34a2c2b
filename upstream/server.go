package upstream

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// The ports of DNS (RFC 1035, 7858).
const (
	portDNS = 53
	portTLS = 853
)

// maxPins bounds the pins of a server: one for now, some for later (RFC 7858, 4.2).
const maxPins = 8

// pinPrefix stands before the SHA-256 digest of a key's SubjectPublicKeyInfo, in Base64.
const pinPrefix = "pin-sha256="

// Server is a forwarder as the configuration names it: an address, or one that is asked over TLS (RFC 7858) and proves its name or its key.
type Server struct {
	Addr netip.AddrPort // not valid where only a name is given, which is to be looked up; Port is valid all the same
	Port uint16
	TLS  bool
	Name string              // TLS: what the certificate must be for, canonical without the final dot; empty: the address, or the pins
	Pins [][sha256.Size]byte // TLS: one of them is the server's key
}

// ParseServer reads "address", "address:port", "tls://name", "tls://address#name", and both of these with a port. After # there may also stand pins of the
// server's key, "pin-sha256=" and the digest in Base64, separated by commas.
func ParseServer(text string) (Server, error) {
	rest, tls := strings.CutPrefix(text, "tls://")
	s := Server{TLS: tls, Port: portDNS}
	if !tls {
		return s, s.parseAddr(rest)
	}
	s.Port = portTLS
	host, proof, has := strings.Cut(rest, "#")
	if has {
		if err := s.parseProof(proof); err != nil {
			return Server{}, err
		}
	}
	if err := s.parseAddr(host); err == nil {
		return s, nil
	} else if strings.ContainsAny(host, "[]") {
		return Server{}, err
	}
	name, port, hasPort := strings.Cut(host, ":")
	if hasPort {
		ap, err := netip.ParseAddrPort("192.0.2.1:" + port)
		if err != nil || ap.Port() == 0 {
			return Server{}, fmt.Errorf("%q is no port", port)
		}
		s.Port = ap.Port()
	}
	name, err := hostName(name)
	switch {
	case err != nil:
		return Server{}, err
	case s.Name != "" && s.Name != name:
		return Server{}, fmt.Errorf("two names: %s and %s", name, s.Name)
	}
	s.Name = name
	return s, nil
}

// parseAddr reads an address, with a port or without.
func (s *Server) parseAddr(text string) error {
	ap, err := netip.ParseAddrPort(text)
	if a, aerr := netip.ParseAddr(text); aerr == nil {
		ap, err = netip.AddrPortFrom(a, s.Port), nil
	}
	if err != nil {
		return errors.New("no address")
	}
	// Everywhere else an IPv4 address is 4 octets; mapped it would be compared in vain.
	ap = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	switch {
	case ap.Port() == 0:
		return errors.New("there is no port 0")
	case strings.ContainsAny(ap.Addr().Zone(), "[]%:#, "):
		return errors.New("no name of an interface")
	case ap.Addr().IsMulticast(), ap.Addr().IsUnspecified():
		return errors.New("want the address of one host")
	}
	s.Addr, s.Port = ap, ap.Port()
	return nil
}

// parseProof reads what the server has to prove.
func (s *Server) parseProof(text string) error {
	for _, part := range strings.Split(text, ",") {
		digest, isPin := strings.CutPrefix(part, pinPrefix)
		if !isPin {
			name, err := hostName(part)
			if err != nil {
				return err
			}
			if s.Name != "" {
				return fmt.Errorf("two names: %s and %s", s.Name, name)
			}
			s.Name = name
			continue
		}
		b, err := base64.StdEncoding.Strict().DecodeString(digest)
		switch {
		case err != nil || len(b) != sha256.Size:
			return fmt.Errorf("%q is no SHA-256 digest in Base64", digest)
		case len(s.Pins) == maxPins:
			return fmt.Errorf("more than %d pins", maxPins)
		case slices.Contains(s.Pins, [sha256.Size]byte(b)):
			return fmt.Errorf("%q: given twice", part)
		}
		s.Pins = append(s.Pins, [sha256.Size]byte(b))
	}
	return nil
}

// hostName is the name of a host as certificates have it: letters, digits and hyphens.
func hostName(text string) (string, error) {
	name := strings.TrimSuffix(strings.ToLower(text), ".")
	_, ok := dns.IsDomainName(name)
	if !ok || name == "" || strings.HasSuffix(name, ".") || strings.ContainsFunc(name, func(r rune) bool { return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-.", r) }) {
		return "", fmt.Errorf("%q is no name of a host", text)
	}
	if _, err := netip.ParseAddr(name); err == nil || !strings.ContainsAny(name, "abcdefghijklmnopqrstuvwxyz") {
		return "", fmt.Errorf("%q is no name of a host", text)
	}
	return name, nil
}

// String is the form that ParseServer reads, with the port.
func (s Server) String() string {
	if !s.TLS {
		return s.Addr.String()
	}
	var proof []string
	text := fmt.Sprintf("tls://%s:%d", s.Name, s.Port)
	if s.Addr.IsValid() {
		text = "tls://" + s.Addr.String()
		if s.Name != "" {
			proof = append(proof, s.Name)
		}
	}
	for _, p := range s.Pins {
		proof = append(proof, pinPrefix+base64.StdEncoding.EncodeToString(p[:]))
	}
	if len(proof) > 0 {
		text += "#" + strings.Join(proof, ",")
	}
	return text
}

// MarshalText is String.
func (s Server) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
