package ike

import (
	"fmt"
	"time"

	"tacit/ipsec"
)

// maxWork bounds the key exchanges that are out with the caller's workers: beyond it a responder drops first messages, and their senders
// repeat them.
const maxWork = 256

// SharedSecretWanted asks for the arithmetic of a key exchange that takes milliseconds (MODP): call Compute outside of the Endpoint's
// goroutine. Answer: Supply with what it returned. The SA may be one that no other event has named yet.
type SharedSecretWanted struct {
	SA    SAID
	Token uint64

	share share
	peer  []byte // the peer's public value; nil: only ours is wanted
}

// SharedSecret answers SharedSecretWanted.
type SharedSecret struct {
	Token uint64

	share  share
	secret ipsec.Secret
	err    error
}

// String tells of no key: printing does not ask what is inside of a struct whether it is a secret.
func (w SharedSecretWanted) String() string {
	return fmt.Sprintf("SharedSecretWanted{%v %v %s}", w.SA, w.Token, groupName(w.share.group))
}

// String tells of no key.
func (r SharedSecret) String() string {
	return fmt.Sprintf("SharedSecret{%v %s %v}", r.Token, groupName(r.share.group), r.err)
}

func (SharedSecretWanted) event() {}
func (SharedSecret) result()      {}

// Compute does the arithmetic. It may run beside the Endpoint.
func (w SharedSecretWanted) Compute() SharedSecret {
	r := SharedSecret{Token: w.Token, share: w.share}
	r.share.pub = r.share.public()
	if w.peer != nil {
		r.secret, r.err = r.share.secret(w.peer)
	}
	return r
}

// work is a key exchange that is out.
type work struct {
	sa   *sa
	then func(SharedSecret)
}

// compute does the arithmetic of a key exchange, and goes on with then: at once, or, where it takes long, when the caller has had it done
// elsewhere. then must expect that the SA's state has changed meanwhile; it is not called once the SA is forgotten.
func (s *sa) compute(sh share, peer []byte, then func(SharedSecret)) {
	w := SharedSecretWanted{SA: s.id, share: sh, peer: peer}
	if !slow(sh.group) {
		then(w.Compute())
		return
	}
	w.Token = s.e.token()
	s.e.work[w.Token] = work{s, then}
	s.e.out.Events = append(s.e.out.Events, w) // also of an SA that is quiet: the caller need not know it
}

// onSharedSecret goes on with what waited for it.
func (e *Endpoint) onSharedSecret(now time.Time, r SharedSecret) Output {
	e.begin(now)
	w, ok := e.work[r.Token]
	delete(e.work, r.Token)
	if ok && w.sa.slot != gone {
		w.then(r)
		w.sa.pump()
		e.schedule(w.sa)
	}
	return e.finish()
}
