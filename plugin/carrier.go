package plugin

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// settle makes the host's end of a pair send at once. The end that was set up first got no queue
// discipline, for the other end was down (net/sched/sch_generic.c: dev_activate); when the other
// end comes up a work queue makes up for it (net/core/link_watch.c), and until then what the host
// sends is dropped. To ask for the carrier brings that forward (net/ethtool/ioctl.c:
// ethtool_op_get_link calls linkwatch_sync_dev). socket is one of the host's namespace.
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
