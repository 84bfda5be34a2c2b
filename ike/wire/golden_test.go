package wire

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"net/netip"
	"os"
	"strings"
	"testing"
)

// golden is what two strongSwans sent to each other.
type golden struct {
	secrets  map[string][]byte
	messages []goldenMessage
}

type goldenMessage struct {
	fromInitiator bool
	datagram      []byte
	plain         []byte // the decrypted chain; nil: not encrypted
}

func readGolden(t testing.TB) (g golden) {
	t.Helper()
	f, err := os.Open("testdata/strongswan.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	g.secrets = map[string][]byte{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		switch w := strings.Fields(lines.Text()); w[0] {
		case "secret":
			g.secrets[w[1]] = unhex(t, w[2])
		case "initiator", "responder":
			g.messages = append(g.messages, goldenMessage{fromInitiator: w[0] == "initiator", datagram: unhex(t, w[1])})
		case "plain":
			g.messages[len(g.messages)-1].plain = append([]byte{}, unhex(t, strings.TrimPrefix(w[1], "-"))...)
		}
	}
	if err := lines.Err(); err != nil || len(g.messages) != 10 {
		t.Fatalf("%d messages, %v, want 10", len(g.messages), err)
	}
	return g
}

// types is a chain in the notation of RFC 7296.
func types(ps []Payload) string {
	var s []string
	for _, p := range ps {
		if n, ok := p.(*Notify); ok {
			s = append(s, "N("+n.Type.String()+")")
			continue
		}
		s = append(s, p.PayloadType().String())
	}
	return strings.Join(s, " ")
}

func TestStrongSwanMessages(t *testing.T) {
	g := readGolden(t)
	want := []struct {
		exchange ExchangeType
		chain    string
	}{
		{IKESAInit, "SA KE Nonce N(NAT_DETECTION_SOURCE_IP) N(NAT_DETECTION_DESTINATION_IP) N(IKEV2_FRAGMENTATION_SUPPORTED) " +
			"N(SIGNATURE_HASH_ALGORITHMS) N(REDIRECT_SUPPORTED)"},
		{IKESAInit, "SA KE Nonce N(NAT_DETECTION_SOURCE_IP) N(NAT_DETECTION_DESTINATION_IP) N(IKEV2_FRAGMENTATION_SUPPORTED) " +
			"N(SIGNATURE_HASH_ALGORITHMS) N(CHILDLESS_IKEV2_SUPPORTED) N(MULTIPLE_AUTH_SUPPORTED)"},
		{IKEAuth, "IDi N(INITIAL_CONTACT) IDr AUTH SA TSi TSr N(MULTIPLE_AUTH_SUPPORTED) N(EAP_ONLY_AUTHENTICATION) N(IKEV2_MESSAGE_ID_SYNC_SUPPORTED)"},
		{IKEAuth, "IDr AUTH SA TSi TSr"},
		{CreateChildSA, "N(REKEY_SA) SA Nonce KE TSi TSr"},
		{CreateChildSA, "SA Nonce KE TSi TSr"},
		{Informational, "D"},
		{Informational, "D"},
		{Informational, "D"},
		{Informational, ""},
	}
	for i, gm := range g.messages {
		m, err := Parse(gm.datagram)
		if err != nil {
			t.Errorf("message %d: %v", i, err)
			continue
		}
		if m.Exchange != want[i].exchange || m.Flags&FlagResponse != 0 == gm.fromInitiator || m.Flags&FlagInitiator != 0 != gm.fromInitiator {
			t.Errorf("message %d: header %+v", i, m.Header)
		}
		if again, err := m.Marshal(); err != nil || !bytes.Equal(again, gm.datagram) {
			t.Errorf("message %d is written as %x, %v", i, again, err)
		}
		ps := m.Payloads
		if e, n := Find[*Encrypted](ps); n == 1 {
			plain := decrypt(t, g, gm, e)
			if !bytes.Equal(plain, gm.plain) {
				t.Errorf("message %d: decrypted to %x, want %x", i, plain, gm.plain)
			}
			if ps, err = ParsePayloads(e.First, plain); err != nil {
				t.Errorf("message %d: %v", i, err)
				continue
			}
			if first, again, err := MarshalPayloads(ps); err != nil || first != e.First || !bytes.Equal(again, gm.plain) {
				t.Errorf("message %d: chain is written as %v %x, %v", i, first, again, err)
			}
		}
		if got := types(ps); got != want[i].chain {
			t.Errorf("message %d: got %s, want %s", i, got, want[i].chain)
		}
	}
}

// decrypt opens an Encrypted payload with AES-GCM (RFC 5282): that the Body is the tail of the datagram and the associated
// data all before it is what this package promises.
func decrypt(t *testing.T, g golden, gm goldenMessage, e *Encrypted) []byte {
	t.Helper()
	key := g.secrets["sk_er"]
	if gm.fromInitiator {
		key = g.secrets["sk_ei"]
	}
	block, err := aes.NewCipher(key[:16])
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasSuffix(gm.datagram, e.Body) {
		t.Fatal("the body is not the tail")
	}
	nonce := append(bytes.Clone(key[16:]), e.Body[:8]...)
	plain, err := gcm.Open(nil, nonce, e.Body[8:], gm.datagram[:len(gm.datagram)-len(e.Body)])
	if err != nil {
		t.Fatal(err)
	}
	return plain[:len(plain)-1-int(plain[len(plain)-1])]
}

func TestStrongSwanFields(t *testing.T) {
	g := readGolden(t)
	m, err := Parse(g.messages[0].datagram)
	if err != nil {
		t.Fatal(err)
	}
	sa, _ := Find[*SA](m.Payloads)
	if n := len(sa.Proposals); n != 2 {
		t.Fatalf("%d proposals, want 2", n)
	}
	if tr := sa.Proposals[0].Transforms[0]; tr != (Transform{Type: TransformEncr, ID: EncrAESGCM16, KeyLength: 128}) {
		t.Errorf("first transform %+v", tr)
	}
	if tr := sa.Proposals[1].Transforms[0]; sa.Proposals[1].Number != 2 || tr != (Transform{Type: TransformEncr, ID: EncrChaCha20Poly1305}) {
		t.Errorf("second proposal %+v", sa.Proposals[1])
	}
	if ke, _ := Find[*KE](m.Payloads); ke.Group != GroupCurve25519 || len(ke.Data) != 32 {
		t.Errorf("key exchange %+v", ke)
	}
	ps, err := ParsePayloads(PayloadIDi, g.messages[2].plain)
	if err != nil {
		t.Fatal(err)
	}
	if id, n := Find[*ID](ps); n != 2 || id.Responder || id.Kind != IDFQDN || string(id.Data) != "alice.example" {
		t.Errorf("IDi %+v of %d", id, n)
	}
	if auth, _ := Find[*Auth](ps); auth.Method != AuthSharedKey || len(auth.Data) != 32 {
		t.Errorf("AUTH %+v", auth)
	}
	want := Host(netip.MustParseAddr("10.88.0.1"))
	if ts, _ := Find[*TS](ps); len(ts.Selectors) != 1 || ts.Selectors[0] != want || ts.Responder {
		t.Errorf("TSi %+v, want %v", ts, want)
	}
	ps, err = ParsePayloads(PayloadDelete, g.messages[6].plain)
	if err != nil {
		t.Fatal(err)
	}
	if d, _ := Find[*Delete](ps); d.Protocol != ProtocolESP || len(d.SPIs) != 1 || d.SPIs[0] != 0xd302f0d5 {
		t.Errorf("delete %+v", d)
	}
}
