package esp

import "testing"

func BenchmarkSeal(b *testing.B) {
	payload := make([]byte, 1400)
	for _, tt := range sas {
		b.Run(tt.name, func(b *testing.B) {
			s, _ := pair(b, tt.sa)
			dst := make([]byte, 0, s.PacketLen(len(payload))+Scratch)
			b.SetBytes(int64(len(payload)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Seal(dst, 4, payload); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	payload := make([]byte, 1400)
	for _, tt := range sas {
		b.Run(tt.name, func(b *testing.B) {
			s, o := pair(b, tt.sa)
			packet, dst := seal(b, s, 4, payload), make([]byte, 0, 2000)
			b.SetBytes(int64(len(payload)))
			b.ReportAllocs()
			for b.Loop() {
				o.window = Window{} // the same packet again
				if _, _, err := o.Open(dst, packet); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
