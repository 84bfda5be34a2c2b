package guard

import (
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Ports that a rule leaves in clear are so for the peers of its range, whatever stands on them, and for who begins at one end only: to such a port
// of the peer, or to such a port of ours. Who can send as the peer from such a port reaches nothing else. A TCP connection is begun by a
// SYN, which the side with the port never sends; so nothing need be remembered of it, and it may be idle for long. With UDP the flow is
// recorded, as that of DNS is (dns.go).
const flowPort = 3 * time.Minute

// portChains are entered by packets to or from such a port. What they do not accept goes on as any other packet.
func portChains(s sets) []chain {
	query, leak, reply := chain{name: "out_port_query"}, chain{name: "leak_port_query"}, chain{name: "out_port_reply"}
	question, answer := chain{name: "in_port_query"}, chain{name: "in_port_reply"}
	udp, accept := l4proto(unix.IPPROTO_UDP), []expr.Any{verdict(expr.VerdictAccept)}
	tcp := concat(l4proto(unix.IPPROTO_TCP), accept)
	answering := concat(l4proto(unix.IPPROTO_TCP), opening(expr.CmpOpNeq), accept)
	query.add(tcp)
	leak.add(tcp)
	reply.add(answering)
	question.add(tcp)
	answer.add(answering)
	for i := range s.client {
		client, server := s.client[i], s.server[i]
		out, in := loadFlow(i, false), loadFlow(i, true)
		query.add(concat(udp, out, record(client, flowPort), accept))
		leak.add(concat(udp, out, lookup(client), accept))
		reply.add(concat(udp, out, lookup(server), accept))
		question.add(concat(udp, in, record(server, flowPort), accept))
		answer.add(concat(udp, in, lookup(client), accept))
	}
	return []chain{query, leak, reply, question, answer}
}

// portRules enter them: by the source port, and by the destination's.
func portRules(r ruleSets, fam int, inbound bool, source, destination string) [][]expr.Any {
	return [][]expr.Any{
		concat(loadPeerPort(fam, inbound, 0), lookup(r.ports), []expr.Any{jump(source)}),
		concat(loadPeerPort(fam, inbound, 2), lookup(r.ports), []expr.Any{jump(destination)}),
	}
}
