package guard

import (
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// DNS is exempt (TRUST.md R6), but its ports are no door: in clear comes and goes what belongs to a flow that this host's own query
// to the peer began, or the peer's query to this host. Who can send as the peer from port 53 reaches nothing else.
//
//	           ours                                           theirs
//	client     OUTPUT, to port 53: recorded, accepted         from port 53: accepted if recorded
//	server     from port 53: accepted if recorded             PREROUTING, to port 53: recorded, accepted
//
// A flow is kept while packets of the side that began it come, so that the other side cannot keep it open. A TCP flow of ours begins with
// our SYN, and the answering side never sends one: neither a service that the peer called from port 53 nor a program that listens
// on the port of a finished query is reached.
const (
	flowUDP  = 30 * time.Second
	flowTCP  = 2 * time.Minute
	maxFlows = 65535 // of a family and a role; what finds the set full is not exempt
)

// newFlowSets makes the dynamic sets of a family, for this host as the client and as the server. The key is own address . own
// port . peer's address . peer's port . protocol.
func newFlowSets(table *nftables.Table, addr nftables.SetDatatype, suffix string) (client, server *nftables.Set) {
	key := nftables.MustConcatSetType(addr, nftables.TypeInetService, addr, nftables.TypeInetService, nftables.TypeInetProto)
	set := func(name string) *nftables.Set {
		return &nftables.Set{Table: table, Name: name + suffix, KeyType: key, HasTimeout: true, Dynamic: true, Timeout: flowUDP, Size: maxFlows}
	}
	return set("dns_client"), set("dns_server")
}

// dnsChains are entered by packets to or from a port of DNS only. What they do not accept goes on as any other packet. The chain
// leak_dns_query is of the hook that sees forwarded packets too, and so records nothing.
func dnsChains(s sets) []chain {
	query, leak, reply := chain{name: "out_dns_query"}, chain{name: "leak_dns_query"}, chain{name: "out_dns_reply"}
	question, answer := chain{name: "in_dns_query"}, chain{name: "in_dns_reply"}
	udp, tcp, accept := l4proto(unix.IPPROTO_UDP), l4proto(unix.IPPROTO_TCP), []expr.Any{verdict(expr.VerdictAccept)}
	notOpening := concat(tcp, opening(expr.CmpOpEq), []expr.Any{verdict(expr.VerdictReturn)})
	reply.add(notOpening)
	answer.add(notOpening)
	for i := range s.client {
		client, server := s.client[i], s.server[i]
		out, in := loadFlow(i, false), loadFlow(i, true)
		query.add(
			concat(udp, out, record(client, flowUDP), accept),
			concat(tcp, opening(expr.CmpOpEq), out, record(client, flowTCP), accept),
			concat(tcp, opening(expr.CmpOpNeq), out, lookup(client), record(client, flowTCP), accept))
		leak.add(concat(out, lookup(client), accept))
		reply.add(concat(out, lookup(server), accept))
		question.add(
			concat(udp, in, record(server, flowUDP), accept),
			concat(tcp, in, record(server, flowTCP), accept))
		answer.add(concat(in, lookup(client), accept))
	}
	return []chain{query, leak, reply, question, answer}
}

// record keeps the flow in the registers from now on for a while. If the set is full the rule ends.
func record(s *nftables.Set, keep time.Duration) []expr.Any {
	return []expr.Any{&expr.Dynset{SrcRegKey: regFirst, SetName: s.Name, SetID: s.ID, Operation: uint32(unix.NFT_DYNSET_OP_UPDATE), Timeout: keep}}
}

// opening compares TCP's flags with what begins a connection: of FIN, SYN, RST and ACK the SYN only (RFC 9293, 3.10.7.2).
func opening(op expr.CmpOp) []expr.Any {
	const offset, syn, mask = 13, 0x02, 0x17
	return concat(payload(expr.PayloadBaseTransportHeader, offset, 1), []expr.Any{
		&expr.Bitwise{SourceRegister: regFirst, DestRegister: regFirst, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		&expr.Cmp{Op: op, Register: regFirst, Data: []byte{syn}},
	})
}

// loadFlow loads the key of the flow sets: seen from this host, whichever way the packet goes.
func loadFlow(fam int, inbound bool) []expr.Any {
	proto, own, peer, size := addresses(fam, inbound)
	ownPort, peerPort := uint32(0), uint32(2)
	if inbound {
		ownPort, peerPort = peerPort, ownPort
	}
	reg, words := uint32(reg32First), size/4
	return append(nfproto(proto),
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: own, Len: size},
		&expr.Payload{DestRegister: reg + words, Base: expr.PayloadBaseTransportHeader, Offset: ownPort, Len: 2},
		&expr.Payload{DestRegister: reg + words + 1, Base: expr.PayloadBaseNetworkHeader, Offset: peer, Len: size},
		&expr.Payload{DestRegister: reg + 2*words + 1, Base: expr.PayloadBaseTransportHeader, Offset: peerPort, Len: 2},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg + 2*words + 2})
}
