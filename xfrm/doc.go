// Package xfrm is the data plane where the Linux kernel does ESP: it keeps SAs and policies in the kernel by messages of its own
// encoding, and asks package guard for what waits, what is dropped, and what is exempt. It passes ipsectest.TestDataplane.
//
// What is in the kernel for two addresses, one of ours and a peer's:
//
//	two SAs for each Child SA, limited to the two addresses, with a reqid of our range;
//	once it is armed, one policy out, whose template names the outbound SA by its SPI: a rekey replaces the template in one step,
//	    and packets under way with the older SA find it until Retire;
//	for tunnel mode, policies in and fwd, which let through what came out of our SAs (the kernel refuses it otherwise);
//	while something is held or protected, an element of guard's set divert: what is about to leave in clear waits in a queue
//	    that we read (hold.go), what comes in clear is dropped and counted; the same where a rule of a prefix says so;
//	while an inbound SA has not been heard, an element of guard's set latch: what comes out of an SA passes by us, so that
//	    the reply to the first packet is protected (latch.go, TRUST.md R10).
//
// All of it ends by itself, soon after nobody renews it: policies by time-hard, elements by their timeouts, SAs by SALife.
// Policies in are not asked to refuse clear packets: guard does, which knows what is exempt (ports left in clear, DHCP, DNS).
package xfrm
