//go:build !linux

package upstream

import (
	"context"

	"github.com/miekg/dns"

	"tacit/dnssec"
)

// shot is a question that was sent; there are none here.
type shot struct{ way *way }

func (h *shot) resume(context.Context) (*dns.Msg, error) { return nil, errGone }

// Send leaves it to Exchange.
func (r *Router) Send(*dns.Msg) dnssec.Sent { return nil }
