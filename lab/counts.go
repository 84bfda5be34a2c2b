package lab

import (
	"fmt"
	"strings"
)

// Count is a number of frames and of their bytes.
type Count struct{ Packets, Bytes int }

// Counts holds what passed between two addresses, by class.
type Counts [classes]Count

func (c *Counts) add(k Class, length int) {
	c[k].Packets++
	c[k].Bytes += length
}

func (c Counts) plus(d Counts) Counts {
	for i := range c {
		c[i].Packets += d[i].Packets
		c[i].Bytes += d[i].Bytes
	}
	return c
}

// Clear is the number of packets in clear.
func (c Counts) Clear() int { return c[ClassClear].Packets }

// ESP is the number of ESP packets, plain and in UDP.
func (c Counts) ESP() int { return c[ClassESP].Packets + c[ClassESPUDP].Packets }

// String lists the classes that were seen.
func (c Counts) String() string {
	var parts []string
	for k, n := range c {
		if n.Packets > 0 {
			parts = append(parts, fmt.Sprintf("%s %d (%d bytes)", Class(k), n.Packets, n.Bytes))
		}
	}
	if parts == nil {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}
