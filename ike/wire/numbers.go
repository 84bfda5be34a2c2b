package wire

import "fmt"

// PayloadType is a Next Payload value (RFC 7296, 3.2).
type PayloadType uint8

// The payload types.
const (
	PayloadNone     PayloadType = 0
	PayloadSA       PayloadType = 33
	PayloadKE       PayloadType = 34
	PayloadIDi      PayloadType = 35
	PayloadIDr      PayloadType = 36
	PayloadCert     PayloadType = 37
	PayloadCertReq  PayloadType = 38
	PayloadAuth     PayloadType = 39
	PayloadNonce    PayloadType = 40
	PayloadNotify   PayloadType = 41
	PayloadDelete   PayloadType = 42
	PayloadVendorID PayloadType = 43
	PayloadTSi      PayloadType = 44
	PayloadTSr      PayloadType = 45
	PayloadSK       PayloadType = 46
	PayloadConfig   PayloadType = 47
	PayloadEAP      PayloadType = 48
	PayloadSKF      PayloadType = 53 // RFC 7383
)

var payloadNames = map[PayloadType]string{
	PayloadNone: "none", PayloadSA: "SA", PayloadKE: "KE", PayloadIDi: "IDi", PayloadIDr: "IDr", PayloadCert: "CERT",
	PayloadCertReq: "CERTREQ", PayloadAuth: "AUTH", PayloadNonce: "Nonce", PayloadNotify: "N", PayloadDelete: "D",
	PayloadVendorID: "V", PayloadTSi: "TSi", PayloadTSr: "TSr", PayloadSK: "SK", PayloadConfig: "CP", PayloadEAP: "EAP",
	PayloadSKF: "SKF",
}

// String is the notation of RFC 7296, 1.2.
func (t PayloadType) String() string { return named(payloadNames, t, "payload") }

// ExchangeType is what an exchange is about (RFC 7296, 3.1).
type ExchangeType uint8

// The exchange types.
const (
	IKESAInit     ExchangeType = 34
	IKEAuth       ExchangeType = 35
	CreateChildSA ExchangeType = 36
	Informational ExchangeType = 37
	Intermediate  ExchangeType = 43 // RFC 9242
	FollowupKE    ExchangeType = 44 // RFC 9370
)

var exchangeNames = map[ExchangeType]string{
	IKESAInit: "IKE_SA_INIT", IKEAuth: "IKE_AUTH", CreateChildSA: "CREATE_CHILD_SA", Informational: "INFORMATIONAL",
	Intermediate: "IKE_INTERMEDIATE", FollowupKE: "IKE_FOLLOWUP_KE",
}

func (t ExchangeType) String() string { return named(exchangeNames, t, "exchange") }

// Flags are the flags of the header (RFC 7296, 3.1).
type Flags uint8

// The flags.
const (
	FlagInitiator Flags = 0x08 // the sender is the original initiator of the IKE SA
	FlagVersion   Flags = 0x10 // the sender could speak a higher major version
	FlagResponse  Flags = 0x20 // a response to the request with the same Message ID

	definedFlags = FlagInitiator | FlagVersion | FlagResponse
)

// Protocol is a Protocol ID (RFC 7296, 3.3.1).
type Protocol uint8

// The protocols. None occurs in Notify payloads without an SPI.
const (
	ProtocolNone Protocol = 0
	ProtocolIKE  Protocol = 1
	ProtocolAH   Protocol = 2
	ProtocolESP  Protocol = 3
)

var protocolNames = map[Protocol]string{ProtocolNone: "none", ProtocolIKE: "IKE", ProtocolAH: "AH", ProtocolESP: "ESP"}

func (p Protocol) String() string { return named(protocolNames, p, "protocol") }

// TransformType is what a transform is for (RFC 7296, 3.3.2).
type TransformType uint8

// The transform types.
const (
	TransformEncr  TransformType = 1
	TransformPRF   TransformType = 2
	TransformInteg TransformType = 3
	TransformKE    TransformType = 4 // Diffie-Hellman group
	TransformESN   TransformType = 5
	TransformAddKE TransformType = 6 // additional key exchange 1 (RFC 9370)

	LastTransform TransformType = 12 // additional key exchange 7
)

var transformNames = map[TransformType]string{
	TransformEncr: "ENCR", TransformPRF: "PRF", TransformInteg: "INTEG", TransformKE: "D-H", TransformESN: "ESN",
	TransformAddKE: "ADDKE1",
}

func (t TransformType) String() string { return named(transformNames, t, "transform") }

// Transform IDs that we use or must recognise (RFC 7296, 3.3.2; RFC 3526; RFC 4868; RFC 5282; RFC 7634; RFC 8031).
const (
	EncrAESGCM16         uint16 = 20 // with a Key Length of 128 or 256
	EncrChaCha20Poly1305 uint16 = 28 // without one

	PRFHMACSHA2256 uint16 = 5
	PRFHMACSHA2384 uint16 = 6
	PRFHMACSHA2512 uint16 = 7

	IntegNone uint16 = 0

	GroupNone       uint16 = 0
	GroupMODP2048   uint16 = 14
	GroupMODP3072   uint16 = 15
	GroupMODP4096   uint16 = 16
	GroupP256       uint16 = 19
	GroupP384       uint16 = 20
	GroupP521       uint16 = 21
	GroupCurve25519 uint16 = 31
	GroupCurve448   uint16 = 32
	KEMLKEM768      uint16 = 36

	ESNNo  uint16 = 0
	ESNYes uint16 = 1
)

// named looks a number up, and prints the number where it has no name.
func named[T ~uint8 | ~uint16](names map[T]string, v T, what string) string {
	if s, ok := names[v]; ok {
		return s
	}
	return fmt.Sprintf("%s-%d", what, v)
}
