package routes

import (
	"fmt"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Features of links are settings with keys of their own: ethtool has them, and /proc/sys does not.
const (
	features = "net/ethtool/features/"
	checksum = "/tx-checksum-ip-generic"
)

// SoftChecksum returns the setting that makes the kernel compute the checksums of packets before they enter the link:
// ethtool -K LINK tx-checksum-ip-generic off. The kernel then also cuts TCP's large packets before.
func SoftChecksum(link string) Sysctl { return Sysctl{features + link + checksum, "off"} }

// softened returns the link of a SoftChecksum.
func softened(key string) (link string, ok bool) {
	link, ok = strings.CutPrefix(key, features)
	link, suffix := strings.CutSuffix(link, checksum)
	return link, ok && suffix
}

// checksums returns "on" or "off".
func (k *Kernel) checksums(link string) (string, error) {
	on, err := k.ethtool(link, unix.ETHTOOL_GTXCSUM, 0)
	if on == 0 {
		return "off", err
	}
	return "on", err
}

func (k *Kernel) setChecksums(link, value string) error {
	on := uint32(1)
	if value == "off" {
		on = 0
	}
	if _, err := k.ethtool(link, unix.ETHTOOL_STXCSUM, on); err != nil {
		return fmt.Errorf("checksums of %s: %w", link, err)
	}
	return nil
}

// ethtool makes a request that has one number (struct ethtool_value of linux/ethtool.h, struct ifreq of linux/if.h).
// Linux before 5.6 has no netlink for it.
func (k *Kernel) ethtool(link string, cmd, data uint32) (uint32, error) {
	value := struct{ cmd, data uint32 }{cmd, data}
	var ifreq struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(ifreq.name[:unix.IFNAMSIZ-1], link)
	ifreq.data = unsafe.Pointer(&value)
	k.c.mu.Lock()
	defer k.c.mu.Unlock()
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(k.c.fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq)))
	runtime.KeepAlive(&value)
	if errno != 0 {
		return 0, errno
	}
	return value.data, nil
}
