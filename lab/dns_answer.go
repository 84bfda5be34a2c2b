package lab

import (
	"github.com/miekg/dns"
)

// maxAliases ends a chain of CNAME records.
const maxAliases = 8

// Answer answers a query from the zones, without Tamper. It never returns nil.
func (d *DNS) Answer(q *dns.Msg) *dns.Msg {
	r := new(dns.Msg)
	r.SetReply(q)
	r.RecursionAvailable = true
	r.CheckingDisabled = q.CheckingDisabled
	do := false
	if o := q.IsEdns0(); o != nil {
		do = o.Do()
		r.SetEdns0(4096, do)
	}
	if len(q.Question) != 1 || q.Opcode != dns.OpcodeQuery || q.Question[0].Qclass != dns.ClassINET {
		r.Rcode = dns.RcodeRefused
		return r
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.fill(r, dns.CanonicalName(q.Question[0].Name), q.Question[0].Qtype, do); err != nil {
		r.Answer, r.Ns, r.Rcode = nil, nil, dns.RcodeServerFailure
	}
	if len(r.Answer) > 0 {
		restoreCase(r, q.Question[0].Name)
	}
	return r
}

// restoreCase gives the first owner the letters of the question, as real servers do.
func restoreCase(r *dns.Msg, name string) {
	for i, rr := range r.Answer {
		if h := rr.Header(); h.Name == dns.CanonicalName(name) && h.Name != name {
			r.Answer[i] = dns.Copy(rr)
			r.Answer[i].Header().Name = name
		}
	}
}

// fill follows the chain of aliases across the zones.
func (d *DNS) fill(r *dns.Msg, name string, kind uint16, do bool) error {
	for range maxAliases {
		next, err := d.fillOne(r, name, kind, do)
		if err != nil || next == "" {
			return err
		}
		name = dns.CanonicalName(next)
	}
	return nil
}

// fillOne answers for one name; next is the target of an alias.
func (d *DNS) fillOne(r *dns.Msg, name string, kind uint16, do bool) (next string, err error) {
	z := d.zoneOf(name, kind)
	source, wild := name, false
	if !z.exists(name) {
		ce := z.encloser(name)
		if source = "*." + ce; ce == "." {
			source = "*."
		}
		if _, wild = z.owns(source); !wild {
			r.Rcode = dns.RcodeNameError
			return "", d.deny(r, z, do, name, source)
		}
	}
	set := z.sets[setKey{source, kind}]
	if kind == dns.TypeANY {
		set = z.sets[setKey{source, dns.TypeA}]
	}
	if set == nil && kind != dns.TypeCNAME {
		if alias := z.sets[setKey{source, dns.TypeCNAME}]; alias != nil {
			set, next = alias, alias[0].(*dns.CNAME).Target
		}
	}
	if kind == dns.TypeNSEC && z.key != nil && set == nil {
		if n := z.nsec(name); n.Hdr.Name == name {
			set = []dns.RR{n}
		}
	}
	if set == nil {
		if wild {
			return "", d.deny(r, z, do, name, source)
		}
		return "", d.deny(r, z, do, name)
	}
	if err := put(&r.Answer, z, set, name, do, d); err != nil {
		return "", err
	}
	if wild && do && z.key != nil { // the name itself must be proven absent (RFC 4035, 3.1.3.3)
		err = put(&r.Ns, z, []dns.RR{z.nsec(name)}, "", do, d)
	}
	return next, err
}

// deny puts the SOA record and, with DO, the NSEC records that match or cover the names.
func (d *DNS) deny(r *dns.Msg, z *zone, do bool, names ...string) error {
	if err := put(&r.Ns, z, z.sets[setKey{z.apex, dns.TypeSOA}], z.apex, do, d); err != nil {
		return err
	}
	if !do || z.key == nil {
		return nil
	}
	done := map[string]bool{}
	for _, n := range names {
		proof := z.nsec(n)
		if done[proof.Hdr.Name] {
			continue
		}
		done[proof.Hdr.Name] = true
		if err := put(&r.Ns, z, []dns.RR{proof}, "", do, d); err != nil {
			return err
		}
	}
	return nil
}

// put appends the set under the owner's name, with its signature where DO is set.
func put(section *[]dns.RR, z *zone, set []dns.RR, owner string, do bool, d *DNS) error {
	if owner == "" {
		owner = set[0].Header().Name
	}
	if do {
		signed, err := z.signed(set, owner, d.now())
		if err != nil {
			return err
		}
		if len(signed) > 0 && signed[0].Header().Name != owner { // unsigned zone
			signed = rename(signed, owner)
		}
		*section = append(*section, signed...)
		return nil
	}
	*section = append(*section, rename(set, owner)...)
	return nil
}

// owns says whether the name has records of its own.
func (z *zone) owns(name string) (string, bool) {
	for k := range z.sets {
		if k.name == name {
			return name, true
		}
	}
	return "", false
}

// encloser is the closest name above that exists.
func (z *zone) encloser(name string) string {
	for n := parentName(name); ; n = parentName(n) {
		if n == z.apex || z.exists(n) {
			return n
		}
	}
}
