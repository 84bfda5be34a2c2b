package upstream

import (
	"crypto/rand"

	"github.com/miekg/dns"
)

// mixCase gives each letter of a name a random case (draft-vixie-dnsext-dns0x20): an answer repeats it, a guess does not.
func mixCase(name string) string {
	b := []byte(name)
	bits := make([]byte, (len(b)+7)/8)
	_, _ = rand.Read(bits) // never fails (crypto/rand)
	escaped := false
	for i, c := range b {
		switch {
		case escaped:
			escaped = false
		case c == '\\': // presentation form: \. and \DDD stay as they are
			escaped = true
		case (c|0x20 >= 'a' && c|0x20 <= 'z') && bits[i/8]>>(i%8)&1 == 1:
			b[i] = c ^ 0x20
		}
	}
	return string(b)
}

// restore puts q's id and letters back into the answer to out, so that the caller sees no trace of the mixing.
func restore(m, q, out *dns.Msg) {
	m.Id = q.Id
	m.Question = []dns.Question{q.Question[0]}
	asked, mixed := q.Question[0].Name, out.Question[0].Name
	if asked == mixed {
		return
	}
	// Servers compress names against the question, so its letters come back in owners and in the names of these types (RFC 3597, 4).
	for _, rrs := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range rrs {
			unmix(&rr.Header().Name, asked, mixed)
			switch r := rr.(type) {
			case *dns.CNAME:
				unmix(&r.Target, asked, mixed)
			case *dns.DNAME:
				unmix(&r.Target, asked, mixed)
			case *dns.NS:
				unmix(&r.Ns, asked, mixed)
			case *dns.PTR:
				unmix(&r.Ptr, asked, mixed)
			case *dns.MX:
				unmix(&r.Mx, asked, mixed)
			case *dns.SRV:
				unmix(&r.Target, asked, mixed)
			case *dns.SOA:
				unmix(&r.Ns, asked, mixed)
				unmix(&r.Mbox, asked, mixed)
			}
		}
	}
}

func unmix(name *string, asked, mixed string) {
	if n := sharedSuffix(*name, mixed); n > 0 {
		*name = (*name)[:len(*name)-n] + asked[len(asked)-n:]
	}
}

// sharedSuffix is how many octets of name, from its end and in whole labels, are written as in the mixed question.
func sharedSuffix(name, mixed string) int {
	i := 0
	for i < len(name) && i < len(mixed) && name[len(name)-1-i] == mixed[len(mixed)-1-i] {
		i++
	}
	for i > 1 { // back to the start of a label
		if k := len(name) - i; k == 0 || name[k-1] == '.' {
			break
		}
		i--
	}
	if i <= 1 {
		return 0
	}
	return i
}
