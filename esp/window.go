package esp

// WindowSize is how far behind the newest packet another may come, in packets.
const WindowSize = (windowBlocks - 1) * 64

const windowBlocks = 32 // a power of two

// Window is an anti-replay window (RFC 4303, 3.4.3), a ring of blocks as in RFC 6479: one block more than the window, so
// that moving it clears whole blocks and shifts nothing. Numbers are 64 bits wide; without ESN the upper half is 0. The
// zero value has seen nothing. Number 0 is never valid: "The first packet sent using a given SA will contain a sequence
// number of 1" (RFC 4303, 2.2).
type Window struct {
	top  uint64 // the highest number that was added
	bits [windowBlocks]uint64
}

// Check reports whether the number is new and not too old. It changes nothing.
func (w *Window) Check(seq uint64) bool {
	switch {
	case seq == 0:
		return false
	case seq > w.top:
		return true
	case w.top-seq >= WindowSize:
		return false
	}
	return w.bits[seq/64%windowBlocks]&(1<<(seq%64)) == 0
}

// Add notes a number whose packet proved valid. It reports false, and changes nothing, when Check does.
func (w *Window) Add(seq uint64) bool {
	if !w.Check(seq) {
		return false
	}
	if seq > w.top {
		// At most once around: a jump ahead clears every block.
		for n, block := min(seq/64-w.top/64, windowBlocks), w.top/64; n > 0; n-- {
			block++
			w.bits[block%windowBlocks] = 0
		}
		w.top = seq
	}
	w.bits[seq/64%windowBlocks] |= 1 << (seq % 64)
	return true
}

// Infer completes the lower 32 bits of an extended sequence number (RFC 4303, appendix A2.2): the number is taken from the
// subspace that the window lies in, or its neighbour. It reports false where there is no such number: before the first
// subspace and after the last. A guess that is wrong fails the integrity check.
func (w *Window) Infer(low uint32) (seq uint64, ok bool) {
	top, high := uint32(w.top), w.top>>32
	bottom := top - (WindowSize - 1) // modulo 2^32
	switch {
	case top >= WindowSize-1 && low < bottom: // case A, the window lies in one subspace: below it is the next one
		high++
	case top < WindowSize-1 && low >= bottom: // case B, it spans two: the upper numbers are of the one before
		if high == 0 {
			return 0, false
		}
		high--
	}
	return high<<32 | uint64(low), high <= 0xffffffff
}
