package ipsectest
func testHold(w *world) {}
func testHoldEnds(w *world) {}
func testDeadPeer(w *world) {}
func testBlock(w *world) {}
func testBypass(w *world) {}
func testPairToHold(w *world) {}
func testRekey(w *world) {}
func testNeighbours(w *world) {}
func testReversePath(w *world) {}
func testForward(w *world) {}
func testIKE(w *world) {}
func testMoved(w *world) {}
func testRefused(w *world) {}
func testKill(w *world) {}
func testTraces(w *world) {}
