package tacit

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// rootCause is a mistake that broke others (TRUST.md 5), the test that refuses it here, and the check behind that: the line of the source,
// and what it would be without the check. The test must fail then.
type rootCause struct {
	cause, dir, test string
	file             string // seen from dir
	check, without   string
}

// The catalogue of TRUST.md 6.
var rootCauses = []rootCause{
	{"KE group private, unknown, reserved", "ike", "TestBadFirstMessages", "sa_init.go",
		"case suite.group != ke.Group:\n\t\te.drop(\"invalid-ke\")", "case false:\n\t\te.drop(\"invalid-ke\")"},
	{"KE data empty", "ike/wire", "TestBodies", "ke.go", "*r.err == nil && len(p.Data) == 0 {", "false {"},
	{"KE data short, long, zero (g^x = 0), no point", "ike", "TestBadFirstMessages", "sa_init.go",
		"if r.err == nil {\n\t\t\tr.err = s.finishInit", "if true {\n\t\t\tr.err = s.finishInit"},
	{"MODP value 0, 1, p-1", "ike", "TestMODPPublicValues", "modp.go", "if n.IsZero()|n.IsOne()|n.IsMinusOne(m.p) != 0 {", "if false {"},
	{"proposal without D-H", "ike", "TestBadFirstMessages", "proposal.go", "wire.TransformPRF, wire.TransformKE) || c.seen", "wire.TransformPRF) || c.seen"},
	{"proposal with an algorithm that we lack", "ike", "TestBadFirstMessages", "proposal.go", "return c.seen&^c.have == 0 && !c.foreign", "return true"},
	{"version byte before the length", "ike/wire", "TestVersionComesBeforeLength", "message.go", "if *r.err == nil && version>>4 != 2 {", "if false {"},
	{"other versions of IKE", "ike", "TestHigherVersion", "sa_init.go", "if !v.Higher() || h.InitiatorSPI == 0", "if h.InitiatorSPI == 0"},
	{"missing payloads", "ike", "TestBadAuthRequests", "table.go", "missing := r.must &^ seen; missing != 0 {", "missing := r.must &^ seen; false {"},
	{"repeated payloads", "ike", "TestBadFirstMessages", "table.go", "case seen&bit != 0:", "case false:"},
	{"payloads where they do not belong", "ike", "TestBadFirstMessages", "table.go", "case (r.must|r.may)&bit == 0:", "case false:"},
	{"length below the header, zero-length TLVs and transforms", "ike/wire", "TestBodies", "message.go", "if *r.err == nil && n < genericLen {", "if false {"},
	{"lengths that drive allocation", "ike/wire", "TestBodies", "delete.go", "case size == 0 && count != 0, count > MaxSPIs:", "case size == 0 && count != 0:"},
	{"counts without a bound", "ike/wire", "TestTooMany", "sa.go", "if len(p.Transforms) == MaxTransforms {", "if false {"},
	{"unknown critical payload", "ike/wire", "TestCriticalPayloads", "unknown.go", "if critical && t != PayloadEAP", "if false && t != PayloadEAP"},
	{"INFORMATIONAL and CREATE_CHILD_SA before AUTH", "ike", "TestNothingBeforeAuth", "exchange.go",
		"return x == wire.IKEAuth\n\tcase authAgain", "return true\n\tcase authAgain"},
	{"rekey of an SA that is not established", "ike", "Test2252IKERekeyWhileClosing", "succession.go",
		"case !s.open():\n\t\treturn refuse(wire.TemporaryFailure, \"it is %v\", s.state)", "case false:"},
	{"rekey with a wrong protocol id", "ike", "TestBadRequests", "rekey.go", "if r.Protocol == wire.ProtocolESP && len(r.SPI) == 4 {\n\t\tp, old", "if len(r.SPI) == 4 {\n\t\tp, old"},
	{"success or error notifies out of order", "ike", "TestForgedNotifies", "sa_init.go", "hs.hint = NotifyError{n.Type}", "s.fail(NotifyError{n.Type})"},
	{"TS with start > end", "ike/wire", "TestBodies", "ts.go", "case t.End.Less(t.Start):", "case false:"},
	{"TS with zero selectors", "ike/wire", "TestBodies", "ts.go", "if *r.err == nil && count == 0 {", "if false {"},
	{"TS of the wrong family", "ike/wire", "TestBodies", "ts.go", "if len(r.s) != want {", "if false {"},
	{"TS with 255 selectors", "ike/wire", "Test255Selectors", "payload.go", "\t}\n\tr.done(\"payload\")\n\treturn p", "\t}\n\treturn p"},
	{"REKEY_SA for an unknown SPI", "ike", "TestBadRequests", "rekey.go", "case old == nil:", "case false:"},
	{"DELETE of someone else's SPI", "ike", "TestDeleteIsScoped", "sa_child.go", "if x.out == spi && x.state != childRetired {", "if x.state != childRetired {"},
	{"SKF total 0, number > total", "ike/wire", "TestBodies", "encrypted.go", "(p.Number == 0 || p.Number > p.Total) {\n\t\t// RFC", "false {\n\t\t// RFC"},
	{"SKF changing totals", "ike", "TestFragmentBounds", "fragment.go", "case a != nil && p.Total < a.total:", "case false:"},
	{"SKF repeats", "ike", "TestFragmentBounds", "fragment.go", "if a.parts[n] != nil || a.size", "if a.size"},
	{"message id far ahead", "ike", "TestBadRequests", "exchange.go", "case h.MessageID != s.in.next || s.in.busy:", "case s.in.busy:"},
	{"SPI zero", "ike/wire", "TestInitiatorSPIZero", "message.go", "if *r.err == nil && h.InitiatorSPI == 0 {", "if false {"},
	{"own SPI reflected", "ike", "TestRolesAreChecked", "endpoint.go", "case s.initiator == fromInitiator:", "case false:"},
	{"simultaneous initiation", "ike", "TestLowestNonceLoses", "crossing.go", "first, ruled := bytes.Compare(c.low, o.kin.cross.low) < 0,", "first, ruled := false,"},
	{"simultaneous rekey of a Child SA", "ike", "TestRekeyCrossing", "rekey.go", "mine := lower(n.ni, nr); bytes.Compare(mine, r.low) > 0", "true"},
	{"simultaneous rekey of an IKE SA", "ike", "Test282SimultaneousIKERekey", "succession.go", "case bytes.Compare(low, r.rivalLow) > 0:", "case false:"},
	{"simultaneous rekey of an IKE SA, to be followed up", "ike", "Test282SimultaneousHybridRekey", "succession.go", "if suite.add != groupNone && s.outdone(r, low) {", "if false {"},
	{"rekey of an IKE SA while ours is followed up", "ike", "Test282HybridFollowUpUnderWay", "succession.go", "r.answered = true", ""},
	{"simultaneous rekey of a Child SA, to be followed up", "ike", "Test281HybridChild", "rekey.go", "pending := r != nil && s.child.theirs == r && s.awaits()", "pending := false"},
	{"simultaneous rekey of both, lost halves", "ike", "Test282LostHalves", "succession.go", "case s.state == rekeying && s.kin.rekey.rivalLives():", "case false:"},

	{"signature equal to n", "ike", "TestHostileSignatures", "auth.go", "return rsa.VerifyPKCS1v15(pub, s.hash, signed, sig) == nil", "return len(sig) == pub.Size()"},
	{"RSA modulus even, tiny or of 16k bits", "ike", "TestKeyFloor", "auth.go", "pub.N.BitLen() < 2048 || pub.N.BitLen() > 8192 || pub.N.Bit(0) == 0 {", "false {"},
	{"RSA exponent 0, 1, 2, even, 3", "ike", "TestKeyFloor", "auth.go", "if pub.E < 65537 || pub.E&1 == 0 {", "if false {"},
	{"a weak key at AUTH", "ike", "TestWeakKeyProvesNothing", "auth.go", "if floor(k) == nil && slices", "if slices"},
	{"PKCS#1 v1.5 parsed instead of re-encoded", "ike", "TestWycheproofSignatures", "auth.go",
		"return rsa.VerifyPKCS1v15(pub, s.hash, signed, sig) == nil", "return bytes.HasSuffix(new(big.Int).Exp(new(big.Int).SetBytes(sig), big.NewInt(int64(pub.E)), pub.N).Bytes(), signed)"},
	{"PSS salt length", "ike", "TestSaltLength", "auth.go", "SaltLength: rsa.PSSSaltLengthEqualsHash", "SaltLength: rsa.PSSSaltLengthAuto"},
	{"PSS parameters", "ike", "TestAlgorithmIdentifiers", "auth.go", "saltField.Empty() && saltLen == int(salt)", "saltField.Empty()"},
	{"AlgorithmIdentifier unknown, truncated, with other parameters", "ike", "TestAlgorithmIdentifiers", "auth.go",
		"s.method != wire.AuthDigitalSignature || bytes.Equal(alg, s.algID) || pss {", "true || pss {"},
	{"a verify result that is no strict bool", "ike", "TestSignatures", "auth.go", "{ return s.verify(k, what, sig) }", "{ return true }"},
	{"a raw-key check that accepts any key", "ike", "TestRawKeyIsNoName", "sa_auth.go", "sch.prove(auth.Keys, signed, sig)", "sch.prove(append(auth.Keys, rawKeys(ps)...), signed, sig)"},
	{"method 13 where policy wants a key", "ike", "TestRefusals", "sa_auth.go", "if !auth.Anonymous {\n\t\t\treturn nil, fmt.Errorf(\"%w: NULL", "if false {\n\t\t\treturn nil, fmt.Errorf(\"%w: NULL"},

	{"NULL AUTH that is no proof of the key exchange", "ike", "TestBadAuthRequests", "sa_auth.go", "if hmac.Equal(s.hs.auths.method.Data, nullAuth(", "if true || hmac.Equal(s.hs.auths.method.Data, nullAuth("},

	{"A-14: the name that was not asked for", "ike", "TestUnknownKeyShare", "sa_auth.go", "want.Kind != 0 && a.remoteID != normal(want) {", "false {"},
	{"A-14: a name that is not ours", "ike", "TestForeignIDr", "sa_auth.go", "if err == nil && (id.Kind != IDFQDN ||", "if false && (id.Kind != IDFQDN ||"},
	{"A-16: a forged COOKIE, again and again", "ike", "TestForgedCookies", "sa_init.go", "if hs.usedCookie == 2 || len(n.Data) == 0", "if len(n.Data) == 0"},
	{"A-16: a forged COOKIE in the true one's place", "ike", "TestForgedCookieBeforeTheTrueOne", "sa_init.go", "hs.usedCookie == 2", "hs.usedCookie == 1"},
	{"A-16: the first message again by who has seen it", "ike", "TestFirstMessageCopied", "sa_init.go", "s.hs.cookied = bytes.Clone(d.Data)", "s.hs.message1 = bytes.Clone(d.Data)"},
	{"A-16: forged INVALID_KE_PAYLOADs, again and again", "ike", "TestForgedGroups", "sa_init.go", "if hs.usedKE == 2 || !s.e", "if !s.e"},
	{"A-16: an answer that makes no sense", "ike", "TestForgedAnswers", "sa_init.go",
		"if err := s.acceptInit(d, h, m.Payloads); err != nil {\n\t\ts.badInit(err)", "if err := s.acceptInit(d, h, m.Payloads); err != nil {\n\t\ts.fail(err)"},
	{"A-21: an answer longer than the request", "ike", "TestNoAmplification", "sa_init.go", "if len(data) > most {", "if false {"},
	{"A-22: state for spoofed first messages", "ike", "TestSpoofedFlood", "sa_init.go", "if !shown && e.crowded(all, there) {", "if false {"},
	{"A-22: one network takes all places", "ike", "TestFloodFromOneNetwork", "sa_init.go", "|| there.Half >= max(e.cfg.MaxHalfOpen/4, 1):", ":"},
	{"A-22: as many places as a host has shards", "ike", "TestCapsAreShared", "endpoint.go", "if c.Census == nil {", "{"},
	{"A-22: as many places as a daemon has loops", "daemon", "TestCapsHoldForAllLoops", "shards.go", "AskKeys: true, Census: newCensus(),", "AskKeys: true,"},
	{"A-21: a repeat from elsewhere answered there", "ike", "TestRepeatFromElsewhere", "exchange.go", " || d.Remote.Addr() != s.remote.Addr() && !s.lodges()", ""},
	{"A-23: one peer takes all SAs", "ike", "TestTooManyOfAPeer", "peers.go", "if n <= e.cfg.MaxPerPeer ||", "if n <= 1<<20 ||"},
	{"A-23: one network takes all SAs", "ike", "TestTooManyOfANetwork", "sa_init.go", "there.Open >= e.cfg.MaxPerNetwork", "there.Open >= 1<<20"},
	{"A-23: a storm of requests", "ike", "TestRequestBudget", "peers.go", "if s.e.now.Sub(s.spent) < requestEvery {", "if false {"},
	{"A-24: more fragments than 16", "ike", "TestFragmentBounds", "fragment.go", "case !s.frag.on || p.Total > maxFragments:", "case !s.frag.on:"},
	{"A-24: fragments without the notification", "ike", "TestFragmentBounds", "fragment.go", "case !s.frag.on || p.Total > maxFragments:", "case p.Total > maxFragments:"},
	{"A-24: longer messages than we hold", "ike", "TestFragmentBounds", "fragment.go", "a.size+len(plain) > maxReassembled || s.e", "s.e"},
	{"A-24: fragments that are kept for ever", "ike", "TestFragmentBounds", "fragment.go", "if *r != nil && due((*r).until, s.e.now) {", "if false {"},
	{"A-27: our own first message reflected", "ike", "TestReflection", "sa_init.go",
		"case e.sas[SAID(h.InitiatorSPI)] != nil:\n\t\te.drop(\"reflected\")", "case false:\n\t\te.drop(\"reflected\")"},
	{"A-27: connecting to ourselves", "ike", "TestRefusals", "sa_init.go", "case p.Local.Addr().Unmap() == p.Remote.Addr().Unmap():", "case false:"},
	{"A-28: the traffic of somebody else's address", "ike", "TestForeignSelector", "selector.go", "t.End.Less(last) {\n\t\tlast = t.End\n\t}\n\treturn first, last, !last.Less(first)",
		"t.End.Less(last) {\n\t\tlast = t.End\n\t}\n\treturn p.Masked().Addr(), lastAddr(p), true"},
	{"A-28: everybody's traffic", "ike", "TestWideSelectorIsNarrowed", "selector.go", "	first, last = p.Masked().Addr(), lastAddr(p)\n", "	first, last = t.Start, t.End\n"},
	{"A-28: a NAT's address at which nobody sees us", "ike", "TestNotOutside", "outside.go", " && bytes.Equal(n.Data, hash) {", " && !bytes.Equal(n.Data, nil) && hash != nil {"},
	{"A-28: a NAT's address that our data plane does not translate", "ike", "TestNotOutside", "inner.go", "return s.e.cfg.Inner && s.nat.supported", "return s.nat.supported"},
	{"A-29: an assigned address that cannot be ours", "ike", "TestSillyInner", "inner.go", "if !a.IsGlobalUnicast() || a.Is4In6() || a == own || a == s.remote.Addr().Unmap() {", "if a.Is4In6() {"},
	{"A-29: an assigned address, and the traffic of another", "ike", "TestSillyInner", "sa_child.go", "n.selector.Local = single(s.own())", "n.selector.Local = single(tsi.Selectors[0].Start)"},
	{"A-29: clients of one NAT taken for one", "ike", "TestInnersAreApart", "peers.go", "if s.lodges() {", "if false {"},
	{"A-30: somebody behind no NAT followed", "ike", "TestInnerMoves", "inner.go", "if s.lodges() && remote.Addr()", "if remote.Addr()"},
	{"A-30: somebody who claims a NAT followed", "ike", "TestClaimedNATMovesNobody", "nat.go", "|| s.lodges() {", "|| s.nat.remote && s.guest {"},
	{"A-52: the name for nobody", "ike", "TestNobodyLearnsNoName", "second_auth.go", "if a.remoteKey == nil {", "if false {"},
	{"A-52: the name for who cannot wait for it", "ike", "TestNameToldWithoutSecondAuthentication", "second_auth.go", "&& s.hs.peer.Tell != TellOnlyAfter", ""},
	{"A-52: our name for who is refused", "ike", "TestRefusedLearnsNoName", "sa_auth.go", "case auth.Refuse:\n\t\ts.deny(ErrRefused)\n\t\treturn\n", ""},
	{"A-54: INITIAL_CONTACT of another name", "ike", "TestInitialContactIsScoped", "peers.go", "same := x.remoteID == s.remoteID && sameKey", "same := sameKey"},
	{"A-54: INITIAL_CONTACT with another key", "ike", "TestInitialContactIsScoped", "peers.go", " && sameKey(x.key, s.key)", ""},
	{"A-54: INITIAL_CONTACT of another address", "ike", "TestInitialContactIsScoped", "peers.go", `remote := s.remote.Addr().Unmap().WithZone("")`, "remote := s.local.Addr()"},
	{"A-54: INITIAL_CONTACT while both begin", "ike", "TestInitialContactIsScoped", "peers.go", "|| s.e.now.Sub(x.since) < contactAge {", "{"},
	{"a crash that nobody has proved", "ike", "TestForgedCrash", "crash.go", "hmac.Equal(n.Data, s.token) {", "hmac.Equal(nil, nil) {"},
	{"the token of an SA that lives", "ike", "TestTokensShown", "endpoint.go", "s := e.sas[SAID(ours)]\n", "s := e.sas[SAID(ours)]\n\te.onUnknown(d, h)\n"},
	{"R7: promoted while the data plane is asked", "ike", "TestPromotionMeanwhile", "sa_child.go", "if s.key != nil && !n.pair.Authenticated {", "if false {"},
	{"R7: promoted too late", "ike", "TestNoPromotion", "promote.go", "if due(s.late.until, s.e.now) {", "if false {"},
	{"no Child SA from who did not hear that it is possible", "ike", "TestChildlessUnasked", "childless.go", "return s.hs.auths.offersNone && get", "return get"},

	{"RDATA of 0 and 1 octet", "ipseckey", "TestParseRefuses", "rdata.go", "if len(rdata) < 3 {", "if false {"},
	{"unknown gateway type", "ipseckey", "TestParseRefuses", "rdata.go", "return 0, fmt.Errorf(\"unknown type %d\", r.GatewayType)", "return 0, nil"},
	{"compressed gateway name", "ipseckey", "TestParseRefuses", "rdata.go", "case l >= 0xc0:", "case false:"},
	{"key with algorithm 0", "ipseckey", "TestParseRefuses", "key.go", "if len(r.RawKey) > 0 {", "if false {"},
	{"empty key", "ipseckey", "TestParseRefuses", "key.go", "if len(r.RawKey) == 0 {", "if false {"},
	{"Ed25519 key that is not 32 octets", "ipseckey", "TestParseRefuses", "key.go",
		"return fmt.Errorf(\"EdDSA key of %d octets, want 32\", len(b))", "r.Key = ed25519.PublicKey(b)"},
	{"Ed25519 key of small order", "ipseckey", "TestParseUnusable", "key.go", "if small {", "if small && false {"},
	{"EC point that is not on its curve", "ipseckey", "TestParseRefuses", "key.go", "if err != nil {\n\t\treturn fmt.Errorf(\"the point is not", "if err != nil && false {\n\t\treturn fmt.Errorf(\"the point is not"},
	{"RFC 3110 exponent of length 0, 3-octet form", "ipseckey", "TestParseRefuses", "key.go", "if n < 256 {", "if false {"},
	{"1000 records in one set", "ike", "TestKeysTried", "auth.go", "keys[:min(len(keys), maxKeys)]", "keys"},

	{"A-01: a denial without its proof", "e2e", "TestStrippedKey", "../dnssec/lookup.go",
		"\tdefault:\n\t\treturn d.fail(of, z)\n\t}\n\treturn v", "\t}\n\treturn v"},
	{"A-02: a signature that is not verified", "e2e", "TestBogusKey", "../dnssec/verify.go",
		"if verify(sig, k, set) != nil {", "if verify(sig, k, set) != nil && false {"},
	{"A-03: an unsigned key counts", "e2e", "TestInjectedKey", "../policy/decide.go",
		"return f.Addr == dnssec.Insecure },", "return false },"},
	{"A-04: an address that is not verified", "e2e", "TestBogusAddress", "../dnssec/verify.go",
		"if verify(sig, k, set) != nil {", "if verify(sig, k, set) != nil && false {"},
	{"A-10: a link of a chain that does not weaken it", "e2e", "TestAliasThroughUnsigned", "../dnssec/lookup.go",
		"if v.status < l.ans.Status {", "if v.status < l.ans.Status && v.status != Insecure {"},
	{"A-11: an expansion without proof", "e2e", "TestWildcardsAndGaps", "../dnssec/lookup.go",
		"\tcase noName:\n\t\tl.v.proofs.putWild", "\tdefault:\n\t\tl.v.proofs.putWild"},
	{"A-12: what has expired", "e2e", "TestReplay", "../dnssec/verify.go",
		"if int64(int32(sig.Expiration-now))+int64(c.rules.late/time.Second) < 0 {", "if false {"},
	{"A-31: signatures of one RRset without a bound", "dnssec", "TestKeyTrap", "verify.go",
		"if i == maxSetSigs {", "if i == 1<<20 {"},
	{"A-31: keys of one tag without a bound", "dnssec", "TestKeyTrap", "verify.go",
		"if tried++; tried > maxTagKeys {", "if tried++; false {"},
	{"A-31: a lookup without a bound", "dnssec", "TestKeyTrap", "verify.go",
		"if !c.work.signature() {", "if false {"},
	{"A-31: traps in the lane of honest lookups", "dnssec", "TestTrapsAreHeavy", "verify.go",
		"if len(set.sigs) > fastSetSigs {\n\t\tc.work.odd.Store(true)", "if false {\n\t\tc.work.odd.Store(true)"},
	{"A-32: every name of a zone waits", "e2e", "TestTarpit", "../resolver/breaker.go",
		"if !ok || t.fails < breakerTrips {", "if true {"},
	{"A-34: an answer that has ended", "e2e", "TestNothingStale", "../resolver/cache.go",
		"if now.Sub(epoch)-e.at >= e.life {\n\t\tc.remove(e)", "if false {\n\t\tc.remove(e)"},
	{"A-34: a zone that its parent has taken back", "e2e", "TestNothingStale", "../dnssec/cache.go",
		"if ok && !now.Before(k.until) {", "if false {"},
	{"A-43: a clock that is known to be wrong", "e2e", "TestClockIsWrong", "../dnssec/validator.go",
		"if now.Before(v.rules.floor) {", "if false {"},
	{"A-44: a new key of the root before its time", "e2e", "TestAnchorsRoll", "../dnssec/rollover.go",
		"k.Seen >= minSeen && now.Sub(k.Changed) >= holdDown {", "k.Seen >= minSeen {"},
}

func (c rootCause) path() string { return filepath.Join(filepath.FromSlash(c.dir), c.file) }

// TestRootCauses: every row of the catalogue names a test that there is and a check that stands in the source once; and TRUST.md 6 says the
// same.
func TestRootCauses(t *testing.T) {
	trust, err := os.ReadFile("TRUST.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]string{}
	for _, s := range sources(t) {
		if s.test() {
			tests[s.dir] += string(s.text)
		}
	}
	for _, c := range rootCauses {
		if !strings.Contains(tests[c.dir], "func "+c.test+"(t *testing.T)") {
			t.Errorf("%s: no test %s in %s", c.cause, c.test, c.dir)
		}
		text, err := os.ReadFile(c.path())
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(text), c.check); n != 1 {
			t.Errorf("%s: the check stands %d times in %s, want once: %q", c.cause, n, c.path(), c.check)
		}
		if row := fmt.Sprintf("| %s | `%s` %s |", c.cause, c.dir, c.test); !strings.Contains(string(trust), row+"\n") {
			t.Errorf("TRUST.md has no row\n%s", row)
		}
	}
}

// TestRootCausesWithoutChecks takes each check out in turn, and sees its test fail. It compiles a package for each: some minutes, so only
// where TACIT_LONG=1.
func TestRootCausesWithoutChecks(t *testing.T) {
	if os.Getenv("TACIT_LONG") != "1" {
		t.Skip("long: needs TACIT_LONG=1")
	}
	only := regexp.MustCompile(os.Getenv("TACIT_CAUSE"))
	for _, c := range rootCauses {
		if !only.MatchString(c.cause) {
			continue
		}
		t.Run(c.cause, func(t *testing.T) {
			if c.dir == "e2e" && os.Getenv("TACIT_E2E") != "1" {
				t.Skip("end to end: needs root and TACIT_E2E=1")
			}
			out, err := withoutCheck(t, c)
			switch {
			case err == nil:
				t.Errorf("%s passes without its check", c.test)
			case strings.Contains(out, "[build failed]") || strings.Contains(out, "[setup failed]"):
				t.Errorf("does not compile:\n%s", out)
			}
		})
	}
}

// withoutCheck runs the test of a row with the check taken out of its file by an overlay.
func withoutCheck(t *testing.T, c rootCause) (string, error) {
	t.Helper()
	path, err := filepath.Abs(c.path())
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	changed, overlay := filepath.Join(dir, filepath.Base(c.file)), filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(changed, []byte(strings.Replace(string(text), c.check, c.without, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(map[string]map[string]string{"Replace": {path: changed}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(overlay, b, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-vet=off", "-timeout=120s", "-overlay", overlay, "-run", "^"+c.test+"$", "./"+c.dir)
	cmd.Env = append(os.Environ(), "GOFLAGS=-overlay="+overlay) // for the daemon that the end-to-end tests build
	out, err := cmd.CombinedOutput()
	return string(out), err
}
