package ike

import (
	"tacit/ike/wire"
)

// set is a set of payload types. The ones that we know are below 64.
type set uint64

func types(ts ...wire.PayloadType) set {
	var s set
	for _, t := range ts {
		s |= 1 << t
	}
	return s
}

// rule says which payloads a message holds: must, may (at most once), many (any number). Types that we do not know are
// skipped (RFC 7296, 2.5; the critical ones do not parse).
type rule struct{ must, may, many set }

// The table of RFC 7296, 1.2 to 1.4 and its appendix C.
var (
	anyTime = types(wire.PayloadNotify, wire.PayloadVendorID)

	ruleInit = rule{
		must: types(wire.PayloadSA, wire.PayloadKE, wire.PayloadNonce),
		many: anyTime | types(wire.PayloadCertReq),
	}
	ruleAuthRequest = rule{
		must: types(wire.PayloadIDi, wire.PayloadAuth, wire.PayloadSA, wire.PayloadTSi, wire.PayloadTSr),
		may:  types(wire.PayloadIDr, wire.PayloadConfig),
		many: anyTime | types(wire.PayloadCert, wire.PayloadCertReq),
	}
	ruleAuthResponse = rule{
		must: types(wire.PayloadIDr, wire.PayloadAuth),
		may:  types(wire.PayloadSA, wire.PayloadTSi, wire.PayloadTSr, wire.PayloadConfig),
		many: anyTime | types(wire.PayloadCert),
	}
	ruleChildlessAuthRequest = rule{ // RFC 6023
		must: types(wire.PayloadIDi, wire.PayloadAuth),
		may:  types(wire.PayloadIDr, wire.PayloadConfig),
		many: anyTime | types(wire.PayloadCert, wire.PayloadCertReq),
	}
	// With a second authentication (RFC 4739) the responder proves itself first, and speaks of the Child SA in the end.
	ruleProofResponse = rule{
		must: types(wire.PayloadIDr, wire.PayloadAuth),
		many: anyTime | types(wire.PayloadCert),
	}
	ruleSecondAuthRequest = rule{
		must: types(wire.PayloadIDi, wire.PayloadAuth),
		many: anyTime | types(wire.PayloadCert, wire.PayloadCertReq),
	}
	ruleSecondAuthResponse = rule{
		may:  types(wire.PayloadSA, wire.PayloadTSi, wire.PayloadTSr, wire.PayloadConfig),
		many: anyTime,
	}
	ruleCreateChildRequest = rule{
		must: types(wire.PayloadSA, wire.PayloadNonce),
		may:  types(wire.PayloadKE, wire.PayloadTSi, wire.PayloadTSr, wire.PayloadConfig),
		many: anyTime,
	}
	ruleCreateChildResponse = rule{
		must: types(wire.PayloadSA, wire.PayloadNonce, wire.PayloadTSi, wire.PayloadTSr),
		may:  types(wire.PayloadKE, wire.PayloadConfig),
		many: anyTime,
	}
	ruleIKERekey = rule{
		must: types(wire.PayloadSA, wire.PayloadKE, wire.PayloadNonce),
		many: anyTime,
	}
	ruleIntermediate  = rule{must: types(wire.PayloadKE), many: anyTime} // RFC 9370, 2.2.2
	ruleNotifyOnly    = rule{many: anyTime}
	ruleInformational = rule{may: types(wire.PayloadConfig), many: anyTime | types(wire.PayloadDelete)}
)

const knownTypes = set(1<<wire.PayloadSA | 1<<wire.PayloadKE | 1<<wire.PayloadIDi | 1<<wire.PayloadIDr | 1<<wire.PayloadCert |
	1<<wire.PayloadCertReq | 1<<wire.PayloadAuth | 1<<wire.PayloadNonce | 1<<wire.PayloadNotify | 1<<wire.PayloadDelete |
	1<<wire.PayloadVendorID | 1<<wire.PayloadTSi | 1<<wire.PayloadTSr | 1<<wire.PayloadSK | 1<<wire.PayloadConfig |
	1<<wire.PayloadEAP | 1<<wire.PayloadSKF)

// check holds a chain against the rule.
func (r rule) check(ps []wire.Payload) error {
	var seen set
	for _, p := range ps {
		t := p.PayloadType()
		if t >= 64 || knownTypes&(1<<t) == 0 {
			continue
		}
		bit := set(1) << t
		switch {
		case r.many&bit != 0:
		case (r.must|r.may)&bit == 0:
			return refuse(wire.InvalidSyntax, "%v does not belong here", t)
		case seen&bit != 0:
			return refuse(wire.InvalidSyntax, "%v occurs twice", t)
		}
		seen |= bit
	}
	if missing := r.must &^ seen; missing != 0 {
		for t := wire.PayloadType(0); t < 64; t++ {
			if missing&(1<<t) != 0 {
				return refuse(wire.InvalidSyntax, "%v is missing", t)
			}
		}
	}
	return nil
}

// get returns the first payload of a type; the zero value (nil) if there is none.
func get[T wire.Payload](ps []wire.Payload) T {
	p, _ := wire.Find[T](ps)
	return p
}

// getID and getTS tell the initiator's from the responder's.
func getID(ps []wire.Payload, responder bool) *wire.ID {
	for _, p := range ps {
		if id, ok := p.(*wire.ID); ok && id.Responder == responder {
			return id
		}
	}
	return nil
}

func getTS(ps []wire.Payload, responder bool) *wire.TS {
	for _, p := range ps {
		if ts, ok := p.(*wire.TS); ok && ts.Responder == responder {
			return ts
		}
	}
	return nil
}

// notify returns the first notification of a type, nil if there is none.
func notify(ps []wire.Payload, t wire.NotifyType) *wire.Notify {
	for _, p := range ps {
		if n, ok := p.(*wire.Notify); ok && n.Type == t {
			return n
		}
	}
	return nil
}

// failure returns the first notification that is an error, nil if there is none.
func failure(ps []wire.Payload) *wire.Notify {
	for _, p := range ps {
		if n, ok := p.(*wire.Notify); ok && n.Type.Error() {
			return n
		}
	}
	return nil
}

func status(t wire.NotifyType, data []byte) *wire.Notify { return &wire.Notify{Type: t, Data: data} }
