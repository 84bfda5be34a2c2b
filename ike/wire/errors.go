package wire

import "fmt"

// SyntaxError says where a message or a chain of payloads is not what RFC 7296, section 3 makes it. Answered, where an
// answer is due, with INVALID_SYNTAX.
type SyntaxError struct {
	Payload PayloadType // in which it is; 0: the header
	Offset  int         // octets from the start of the message (Parse) or of the chain (ParsePayloads)
	Field   string
	Err     error
}

func (e *SyntaxError) Error() string {
	in := "header"
	if e.Payload != 0 {
		in = e.Payload.String()
	}
	return fmt.Sprintf("wire: %s: %s at octet %d: %v", in, e.Field, e.Offset, e.Err)
}

func (e *SyntaxError) Unwrap() error { return e.Err }

// Notify is the notification that answers the error.
func (e *SyntaxError) Notify() NotifyType { return InvalidSyntax }

// VersionError is a message of another major version (RFC 7296, 2.5). A higher one "SHOULD" be answered with
// INVALID_MAJOR_VERSION, a lower one is dropped.
type VersionError struct{ Major, Minor uint8 }

func (e *VersionError) Error() string {
	return fmt.Sprintf("wire: version %d.%d, want 2.0", e.Major, e.Minor)
}

// Higher reports whether the version is above ours.
func (e *VersionError) Higher() bool { return e.Major > 2 }

// Notify is the notification that answers the error.
func (e *VersionError) Notify() NotifyType { return InvalidMajorVersion }

// CriticalError is a payload of a type that we do not know and must not skip (RFC 7296, 2.5). Its answer carries Type in
// one octet.
type CriticalError struct {
	Type   PayloadType
	Offset int // octets from the start of the message or of the chain
}

func (e *CriticalError) Error() string {
	return fmt.Sprintf("wire: critical payload of unknown type %d at octet %d", uint8(e.Type), e.Offset)
}

// Notify is the notification that answers the error.
func (e *CriticalError) Notify() NotifyType { return UnsupportedCriticalPayload }
