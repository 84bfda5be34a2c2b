package ike

import (
	"fmt"
	"net/netip"
	"strings"

	"tacit/ike/wire"
)

// toID reads an identity. FQDNs are held to what a host name is made of, so that none can lie to a terminal or a log.
func toID(p *wire.ID) (ID, error) {
	id := ID{Kind: IDKind(p.Kind)}
	switch p.Kind {
	case wire.IDFQDN:
		id = normal(ID{IDFQDN, string(p.Data)})
		if !isName(id.Value) {
			return ID{}, fmt.Errorf("identity %q is not a host name", p.Data)
		}
	case wire.IDIPv4Addr, wire.IDIPv6Addr:
		addr, _ := netip.AddrFromSlice(p.Data)
		id.Value = addr.String()
	case wire.IDNull:
	default:
		if len(p.Data) > 255 {
			return ID{}, fmt.Errorf("identity of %d octets", len(p.Data))
		}
		id.Value = fmt.Sprintf("%x", p.Data)
	}
	return id, nil
}

// fromID is its inverse for the kinds that we send.
func fromID(id ID) (*wire.ID, error) {
	switch id.Kind {
	case IDFQDN:
		return &wire.ID{Kind: wire.IDFQDN, Data: []byte(normal(id).Value)}, nil
	case IDIPv4, IDIPv6:
		addr, err := netip.ParseAddr(id.Value)
		if err != nil {
			return nil, err
		}
		return &wire.ID{Kind: uint8(id.Kind), Data: addr.AsSlice()}, nil
	case IDNull:
		return &wire.ID{Kind: wire.IDNull}, nil
	}
	return nil, fmt.Errorf("no identity of type %d", id.Kind)
}

// normal is the form that identities are compared in.
func normal(id ID) ID {
	if id.Kind == IDFQDN {
		id.Value = strings.ToLower(strings.TrimSuffix(id.Value, "."))
	}
	return id
}

func isName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_') {
			return false
		}
	}
	return true
}
