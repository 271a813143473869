package routes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	v4Forwarding = "net/ipv4/ip_forward"
	v6Forwarding = "net/ipv6/conf/all/forwarding"
)

// Refusals returns the settings that keep the other end of the link from changing this machine's routes.
// The machine accepts no router advertisements, and so takes no default route, on-link prefix or address
// from them (RFC 4861 section 6.3.4, RFC 4862 section 5.5; net/ipv6/ndisc.c: ndisc_router_discovery). It
// accepts no redirects (RFC 4861 section 8.3, RFC 1122 section 3.2.2.2). For IPv4 the kernel also accepts
// redirects on a link that does not forward if conf/all says so (linux/inetdevice.h: IN_DEV_RX_REDIRECTS).
//
// In one State with a Link, they take effect before the link is up.
func Refusals(link string) []Sysctl {
	return []Sysctl{
		{"net/ipv6/conf/" + link + "/accept_ra", "0"},
		{"net/ipv6/conf/" + link + "/accept_redirects", "0"},
		{"net/ipv4/conf/" + link + "/accept_redirects", "0"},
	}
}

// Forwarding returns the setting that makes the host forward packets of a family that arrive on the link;
// "" means the whole namespace. A new link has the value of net/*/conf/default/forwarding.
func Forwarding(link string, v6 bool) Sysctl {
	switch {
	case link != "" && v6:
		return Sysctl{"net/ipv6/conf/" + link + "/forwarding", "1"}
	case link != "":
		return Sysctl{"net/ipv4/conf/" + link + "/forwarding", "1"}
	case v6:
		return Sysctl{v6Forwarding, "1"}
	}
	return Sysctl{"net/ipv4/ip_forward", "1"}
}

// isRefusal reports whether the key is one of Refusals. A link without IPv6 (MTU below 1280,
// ipv6.disable=1) or a deleted link has no such file, and accepts nothing.
func isRefusal(key string) bool {
	parts := strings.Split(key, "/")
	return len(parts) == 5 && parts[2] == "conf" && (parts[4] == "accept_ra" || parts[4] == "accept_redirects")
}

// procSys is the directory of the settings. In a container /proc/sys is read-only, and runtimes mount
// nothing there; the daemon's pod mounts the host's /proc/sys/net below /host.
var procSys = sync.OnceValue(func() string {
	const mounted = "/host/proc/sys"
	if _, err := os.Stat(mounted + "/net"); err == nil {
		return mounted
	}
	return "/proc/sys"
})

// observeSysctls reads the desired keys. It leaves out a key that it cannot read: setting the key reports
// the error. proc/sys/net shows the namespace of the thread that opens it (net/sysctl_net.c), so all files
// are opened inside the Kernel's namespace.
func (k *Kernel) observeSysctls(v *view, desired []Sysctl) (out []Sysctl, err error) {
	var files []Sysctl
	for _, s := range desired {
		if link, ok := softened(s.Key); ok {
			if value, err := k.checksums(link); err == nil {
				out = append(out, Sysctl{s.Key, value})
			}
			continue
		}
		switch value, known := v.told(s.Key); {
		case !known:
			files = append(files, s)
		case value != "":
			out = append(out, Sysctl{s.Key, value})
		}
	}
	if len(files) == 0 {
		return out, nil
	}
	err = inside(k.ns, func() error {
		for _, s := range files {
			value, err := readSysctl(s.Key)
			if err == nil {
				out = append(out, Sysctl{s.Key, value})
			}
		}
		return nil
	})
	return out, err
}

// setSysctls writes settings and returns one error for each. It prevents a side effect of IPv6 forwarding.
// While forwarding is on, an interface with accept_ra=1 takes no router advertisements, and the kernel drops
// the default route learned from them the moment forwarding changes (net/ipv6/addrconf.c:
// dev_forward_change, addrconf_fixup_forwarding: rt6_purge_dflt_routers). So interfaces with accept_ra=1
// first get 2, which means "although forwarding". Our own links are left alone: they accept no router
// advertisements (see Refusals).
func (k *Kernel) setSysctls(settings []Sysctl) []error {
	errs := make([]error, len(settings))
	outside := inside(k.ns, func() error {
		for i, s := range settings {
			if link, ok := softened(s.Key); ok {
				errs[i] = k.setChecksums(link, s.Value)
				continue
			}
			if s.Key == v4Forwarding || s.Key == v6Forwarding { // MakePair has not read the value
				if value, err := readSysctl(s.Key); err == nil && value == s.Value {
					continue
				}
			}
			if s.Key == v6Forwarding && s.Value == "1" {
				errs[i] = keepAdvertisedRoutes()
			}
			if errs[i] == nil {
				errs[i] = writeSysctl(s.Key, s.Value)
			}
			if errors.Is(errs[i], fs.ErrNotExist) && isRefusal(s.Key) {
				errs[i] = nil
			}
		}
		return nil
	})
	for i := range errs {
		errs[i] = errors.Join(outside, errs[i])
	}
	return errs
}

// keepAdvertisedRoutes runs inside the namespace.
func keepAdvertisedRoutes() error {
	top := procSys()
	keys, err := filepath.Glob(top + "/net/ipv6/conf/*/accept_ra")
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range keys {
		link := filepath.Base(filepath.Dir(path))
		if link == "all" || link == "default" || link == "lo" || ours(link) {
			continue
		}
		key := strings.TrimPrefix(path, top+"/")
		value, err := readSysctl(key)
		if err == nil && value == "1" {
			err = writeSysctl(key, "2")
		}
		if !errors.Is(err, fs.ErrNotExist) { // the link disappeared meanwhile
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func sysctlPath(key string) (string, error) {
	if key == "" || !filepath.IsLocal(key) {
		return "", fmt.Errorf("sysctl %q: want a key like net/ipv4/ip_forward", key)
	}
	return filepath.Join(procSys(), key), nil
}

func readSysctl(key string) (string, error) {
	value := make([]byte, 512) // the settings of links and families are short
	n, err := sysctlFile(key, unix.O_RDONLY, func(fd int) (int, error) { return unix.Read(fd, value) })
	return strings.TrimSpace(string(value[:max(n, 0)])), err
}

func writeSysctl(key, value string) error {
	_, err := sysctlFile(key, unix.O_WRONLY, func(fd int) (int, error) { return unix.Write(fd, []byte(value)) })
	return err
}

// sysctlFile opens the file of a setting for one read or write. An os.File would be given to the Go runtime's
// poller, with four more system calls. The file is never created: a missing key is an error.
func sysctlFile(key string, flags int, do func(fd int) (int, error)) (n int, err error) {
	path, err := sysctlPath(key)
	if err != nil {
		return 0, err
	}
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err == nil {
		n, err = do(fd)
		err = errors.Join(err, unix.Close(fd))
	}
	if err != nil {
		return n, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}
