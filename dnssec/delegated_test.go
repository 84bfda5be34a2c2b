package dnssec

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// trustee is a resolver that validates: it asks a world, sets AD on what its own Validator calls Secure, and refuses what is Bogus, with an extended error if
// it has that. CD is given everything.
type trustee struct {
	t    *testing.T
	w    *world
	v    *Validator
	ede  bool
	lazy bool // validates nothing
	mu   sync.Mutex
	saw  []*dns.Msg
}

func (r *trustee) Exchange(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	r.mu.Lock()
	r.saw = append(r.saw, q.Copy())
	r.mu.Unlock()
	m, err := r.w.Exchange(ctx, q)
	if err != nil || q.CheckingDisabled || r.lazy {
		return m, err
	}
	got, err := r.v.Lookup(ctx, q.Question[0].Name, q.Question[0].Qtype)
	if err != nil {
		return nil, err
	}
	m.AuthenticatedData = got.Status == Secure && q.AuthenticatedData
	if got.Status < Insecure {
		m.Answer, m.Ns, m.Rcode = nil, nil, dns.RcodeServerFailure
		if r.ede {
			m.SetEdns0(1232, true)
			m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_EDE{InfoCode: got.EDE, ExtraText: got.Why})
		}
	}
	return m, nil
}

// asked is what it was asked so far: questions that nobody waits for may come yet.
func (r *trustee) asked() []*dns.Msg {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.saw)
}

// With WithDelegation the trusted resolver's word is what counts: AD, its absence, and what it gives with CD only.
func TestDelegation(t *testing.T) {
	w, a := hierarchy(t)
	w.set(func(q dns.Question, m *dns.Msg) {
		switch q.Name {
		case "x.wild.signed.test.":
			m.Answer = m.Answer[:min(1, len(m.Answer))] // its signature is gone
		case "silent.signed.test.":
			m.Answer, m.Ns, m.Rcode = nil, nil, dns.RcodeServerFailure
		}
	})
	for _, ede := range []bool{true, false} {
		up := &trustee{t: t, w: w, v: New(w, a, WithClock(clock)), ede: ede}
		v := New(up, a, WithClock(clock), WithDelegation())
		for _, tt := range []struct {
			name   string
			rrtype uint16
			want   Status
			ede    uint16
			rcode  int
			owner  string
			denied bool
		}{
			{bob, dns.TypeIPSECKEY, Secure, NoEDE, 0, bob, false},
			{bob, dns.TypeMX, Secure, NoEDE, 0, bob, true},
			{none, dns.TypeA, Secure, NoEDE, dns.RcodeNameError, none, true},
			{"alias.signed.test.", dns.TypeA, Secure, NoEDE, 0, bob, false},
			{"host.old.signed.test.", dns.TypeA, Secure, NoEDE, 0, "host.hashed.test.", false},
			{"away.signed.test.", dns.TypeA, Insecure, NoEDE, 0, "www.plain.test.", false},
			{"www.plain.test.", dns.TypeA, Insecure, NoEDE, 0, "www.plain.test.", false},
			{"none.plain.test.", dns.TypeA, Insecure, NoEDE, dns.RcodeNameError, "none.plain.test.", true},
			{"x.wild.signed.test.", dns.TypeA, Bogus, map[bool]uint16{true: 10, false: 6}[ede], 0, "x.wild.signed.test.", false},
			{"silent.signed.test.", dns.TypeA, Indeterminate, 22, dns.RcodeServerFailure, "silent.signed.test.", false},
		} {
			got, err := v.Lookup(context.Background(), tt.name, tt.rrtype)
			if err != nil || got.Status != tt.want || got.EDE != tt.ede || got.Rcode != tt.rcode || got.Owner != tt.owner || got.Denied != tt.denied {
				t.Errorf("%s %s: got %v EDE %d rcode %d at %s denied %v (%s), %v, want %+v", tt.name, typeName(tt.rrtype), got.Status, got.EDE, got.Rcode, got.Owner, got.Denied,
					got.Why, err, tt)
				continue
			}
			if want := map[Status]string{Secure: "says that it is authentic", Insecure: "does not say", Bogus: "refuses it", Indeterminate: "SERVFAIL"}[tt.want]; !strings.Contains(got.Why, want) {
				t.Errorf("%s: why %q, want %q", tt.name, got.Why, want)
			}
			if tt.want == Bogus && (got.Msg == nil || len(got.Msg.Answer) == 0) {
				t.Errorf("%s: nothing to show to those who ask with CD", tt.name)
			}
			for _, l := range got.Links {
				if l.Status == Secure && l.Proof != "AD" || l.Algorithm != 0 {
					t.Errorf("%s: link %+v claims what nobody here has seen", tt.name, l)
				}
			}
			if tt.want >= Insecure && !got.Until.After(testNow) {
				t.Errorf("%s: until %v", tt.name, got.Until)
			}
		}
		if n := len(up.asked()); n > 40 {
			t.Errorf("%d questions", n)
		}
		for i, q := range up.asked() {
			opt := q.IsEdns0()
			if q.CheckingDisabled == q.AuthenticatedData || opt == nil || !opt.Do() {
				t.Errorf("question %d has CD %v AD %v, EDNS %v", i, q.CheckingDisabled, q.AuthenticatedData, opt)
			}
		}
	}
}

// A resolver that validates nothing proves nothing, be the names signed or not; and zones that the configuration calls unsigned are so.
func TestDelegationToNobody(t *testing.T) {
	w, a := hierarchy(t)
	v := New(&trustee{t: t, w: w, lazy: true}, a, WithClock(clock), WithDelegation(), WithUnsigned("loose.test"))
	for name, want := range map[string]Status{bob: Indeterminate, "www.plain.test.": Indeterminate, "host.loose.test.": Insecure} {
		got, err := v.Lookup(context.Background(), name, dns.TypeA)
		if err != nil || got.Status != want || want == Indeterminate && !strings.Contains(got.Why, "does not validate") {
			t.Errorf("%s: got %v (%s), %v, want %v", name, got.Status, got.Why, err, want)
		}
	}
}

// Without WithDelegation AD says nothing, and is not asked for.
func TestADIsNoProof(t *testing.T) {
	w, a := hierarchy(t)
	w.set(func(q dns.Question, m *dns.Msg) {
		m.AuthenticatedData = true
		if q.Name == bob {
			m.Answer = m.Answer[:min(1, len(m.Answer))]
		}
	})
	up := &trustee{t: t, w: w, lazy: true}
	for name, want := range map[string]Status{bob: Bogus, "www.plain.test.": Insecure} {
		if got, err := New(up, a, WithClock(clock)).Lookup(context.Background(), name, dns.TypeA); err != nil || got.Status != want {
			t.Errorf("%s: got %v (%s), %v, want %v", name, got.Status, got.Why, err, want)
		}
	}
	for _, q := range up.asked() {
		if q.AuthenticatedData || !q.CheckingDisabled {
			t.Errorf("%v asks for AD", q.Question)
		}
	}
}
