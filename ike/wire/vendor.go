package wire

import "golang.org/x/crypto/cryptobyte"

// VendorID is the Vendor ID payload (RFC 7296, 3.12). An unknown one means nothing.
type VendorID struct{ Data []byte }

// PayloadType is PayloadVendorID.
func (*VendorID) PayloadType() PayloadType { return PayloadVendorID }

func (p *VendorID) marshal(b *cryptobyte.Builder) { b.AddBytes(p.Data) }

func parseVendorID(r *reader) *VendorID { return &VendorID{Data: r.rest()} }
