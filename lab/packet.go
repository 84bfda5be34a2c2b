package lab

import "time"

// Packet is one frame that the tap saw.
type Packet struct {
	Time   time.Time // from the kernel, on arrival at the switch
	Length int       // of the frame, in bytes
	Frame            // Payload is empty where only the head was kept
	Head   []byte    // the frame's beginning; all of it for IKE and DNS
}

// IKEHeader is the header of the IKE message in the packet, if it holds one.
func (p Packet) IKEHeader() (IKEHeader, bool) {
	if p.Class != ClassIKE {
		return IKEHeader{}, false
	}
	return ParseIKEHeader(p.Payload)
}
