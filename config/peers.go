package config

import (
	"net/netip"
	"slices"

	"github.com/pelletier/go-toml/v2/unstable"
)

// openPeer begins a [[peer]].
func (p *parser) openPeer(at unstable.Range) {
	p.config.Peer = append(p.config.Peer, Peer{Start: "on-demand", Line: p.doc.Shape(at).Start.Line})
	p.peers = append(p.peers, at)
}

// peer is the [[peer]] that we are in.
func (p *parser) peer() *Peer { return &p.config.Peer[len(p.config.Peer)-1] }

func (p *parser) setPeerName(v value) {
	n, ok := p.host(v)
	if !ok {
		return
	}
	if slices.ContainsFunc(p.config.Peer, func(o Peer) bool { return o.Name == n }) {
		p.errorf(v.place, v.key, "%q: another [[peer]] has this name", v.node.Data)
		return
	}
	p.peer().Name = n
}

func (p *parser) setPeerAddress(v value) {
	s, ok := p.text(v)
	if !ok {
		return
	}
	a, err := netip.ParseAddr(s)
	a = a.Unmap()
	switch {
	case err != nil:
		p.errorf(v.place, v.key, "%q is no address", s)
	case !oneOther(a):
		p.errorf(v.place, v.key, "%q: want the address of one other host", s)
	default:
		p.peer().Address = a
	}
}

// setPeerPin reads fingerprints.
func (p *parser) setPeerPin(v value) {
	var pins []string
	p.list(v, func(s string, at unstable.Range) {
		err := checkFingerprint(s)
		switch {
		case err != nil:
			p.errorf(at, v.key, "%v", err)
		case slices.Contains(pins, s):
			p.errorf(at, v.key, "%q: given twice", s)
		case len(pins) == maxPins:
			p.errorf(at, v.key, "more than %d keys", maxPins)
		default:
			pins = append(pins, s)
		}
	})
	p.peer().Pin = pins
}

// finishPeers checks what the keys of each [[peer]] say together.
func (p *parser) finishPeers() {
	for i, peer := range p.config.Peer {
		switch {
		case len(p.errs) > 0: // they may be why something is missing
		case peer.Name == "":
			p.errorf(p.peers[i], "peer.name", "missing")
		case peer.Address.IsValid() && len(peer.Pin) == 0:
			p.errorf(p.peers[i], "peer.address", "nobody's word says whose it is: give a pin, too, or leave the address to DNS")
		}
	}
}
