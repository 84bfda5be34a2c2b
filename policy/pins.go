package policy

import (
	"net/netip"
	"slices"
)

// WithEndpoints returns the table with the peers that the administrator gave: names, canonical with the final dot, and addresses as
// netip.Addr.String has them. To each belong the fingerprints of the keys that it must prove, if he gave any: then no other key will do, and
// it needs no DNS to be believed (TRUST.md R3: the administrator's word comes first).
func (t *Table) WithEndpoints(pins map[string][]string) *Table {
	with := *t
	with.endpoints = pins
	return &with
}

// Endpoint reports whether the name is one of a peer that the administrator gave.
func (t *Table) Endpoint(name string) bool {
	_, ok := t.endpoints[canonical(name)]
	return ok
}

// PinsAt are the fingerprints for an address, whatever the name.
func (t *Table) PinsAt(addr netip.Addr) []string {
	if len(t.endpoints) == 0 {
		return nil
	}
	return t.endpoints[addr.Unmap().String()]
}

// Pins are the fingerprints for a name that was looked up, or for the one that it leads to, at an address. pinned without any: the name and
// the address have pins, and none in common.
func (t *Table) Pins(asked, owner string, addr netip.Addr) (pins []string, pinned bool) {
	if len(t.endpoints) == 0 {
		return nil, false
	}
	at := t.PinsAt(addr)
	if pins = t.endpoints[canonical(asked)]; len(pins) == 0 {
		pins = t.endpoints[canonical(owner)]
	}
	switch {
	case len(pins) == 0:
		pins = at
	case len(at) > 0:
		pins = slices.DeleteFunc(slices.Clone(pins), func(p string) bool { return !slices.Contains(at, p) })
		return pins, true
	}
	return pins, len(pins) > 0
}
