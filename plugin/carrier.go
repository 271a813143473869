package plugin

import (
	"context"
	"net/netip"
	"time"
)

const (
	// localTimeout bounds the wait for a new IPv6 address; on an idle machine it takes 0.1 ms.
	localTimeout = 200 * time.Millisecond
	localPoll    = 100 * time.Microsecond
)

// awaitLocal waits until the pod receives packets for its IPv6 addresses: the kernel installs
// their local routes from a work queue, also when there is no duplicate detection to wait for
// (net/ipv6/addrconf.c: addrconf_dad_work). A route that is late comes soon after.
func awaitLocal(ctx context.Context, pod kernel, addrs []netip.Addr) {
	ctx, cancel := context.WithTimeout(ctx, localTimeout)
	defer cancel()
	tick := time.NewTicker(localPoll)
	defer tick.Stop()
	for _, a := range addrs {
		if a.Is4() {
			continue
		}
		for {
			way, err := pod.Lookup(ctx, a)
			if err == nil && !way.Via.IsValid() {
				break
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}
}
