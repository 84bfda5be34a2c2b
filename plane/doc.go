// Package plane is what both data planes are made of besides their ESP: which Pairs and selectors they accept (spec.go), IKE's views of
// their sockets (conn.go), the packets that wait (queue.go), what guard is asked for the traffic of two addresses and until when
// (policies.go), their events and their goroutines (run.go).
//
// It keeps no lock over a data plane's state: what says so is called under its owner's.
package plane
