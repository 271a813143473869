package plugin

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// localTimeout bounds the wait for a new IPv6 address; on an idle machine it takes 0.1 ms.
	localTimeout = 200 * time.Millisecond
	localPoll    = 100 * time.Microsecond
)

// settle makes an end of a pair work at once. The kernel leaves to a work queue what follows from
// a carrier that comes up, for up to a second (net/core/link_watch.c): the queue discipline of the
// end that was set up first (net/sched/sch_generic.c: dev_activate), without which all it sends is
// dropped, and the state UP, without which IPv6 addresses stay unusable (net/ipv6/addrconf.c:
// addrconf_dad_begin). To ask for the carrier brings that forward (net/ethtool/ioctl.c:
// ethtool_op_get_link calls linkwatch_sync_dev). socket is one of the end's namespace.
func settle(socket int, link string) error {
	// struct ethtool_value (linux/ethtool.h) and struct ifreq (linux/if.h).
	value := struct{ cmd, data uint32 }{cmd: unix.ETHTOOL_GLINK}
	var ifreq struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(ifreq.name[:unix.IFNAMSIZ-1], link)
	ifreq.data = unsafe.Pointer(&value)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(socket), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq)))
	runtime.KeepAlive(&value)
	if errno != 0 {
		return fmt.Errorf("carrier of %s: %w", link, errno)
	}
	return nil
}

// awaitLocal waits until the pod receives packets for its IPv6 addresses: the kernel installs
// their local routes from a work queue, also when there is no duplicate detection to wait for
// (net/ipv6/addrconf.c: addrconf_dad_work). What is not there in time comes soon after.
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
