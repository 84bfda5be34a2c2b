package lab

import (
	"bufio"
	"encoding/binary"
	"io"
)

// writePcap writes packets in the classic capture format, with times in nanoseconds.
func writePcap(w io.Writer, packets []Packet) error {
	bw := bufio.NewWriter(w)
	le := binary.LittleEndian
	head := le.AppendUint32(nil, 0xa1b23c4d)
	head = le.AppendUint16(head, 2)
	head = le.AppendUint16(head, 4)
	head = append(head, make([]byte, 8)...)
	head = le.AppendUint32(head, 65535)
	head = le.AppendUint32(head, 1) // Ethernet
	if _, err := bw.Write(head); err != nil {
		return err
	}
	for _, p := range packets {
		rec := le.AppendUint32(nil, uint32(p.Time.Unix()))
		rec = le.AppendUint32(rec, uint32(p.Time.Nanosecond()))
		rec = le.AppendUint32(rec, uint32(len(p.Head)))
		rec = le.AppendUint32(rec, uint32(p.Length))
		if _, err := bw.Write(append(rec, p.Head...)); err != nil {
			return err
		}
	}
	return bw.Flush()
}
