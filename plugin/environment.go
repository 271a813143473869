package plugin

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/ipam"
)

// maxIfName is the longest interface name in bytes (linux/if.h: IFNAMSIZ without the final NUL).
const maxIfName = unix.IFNAMSIZ - 1

func badCommand(command string) error {
	if command == "" {
		return fault(codeEnvironment, "CNI_COMMAND is not set").next("edgeway is a CNI plugin: container runtimes call it; operators use edgewayd")
	}
	return fault(codeEnvironment, "CNI_COMMAND %q is not known", command).next("use ADD, DEL, CHECK, GC, STATUS or VERSION")
}

// checkContainerID applies SPEC 1.1.0 section 2, "Parameters".
func checkContainerID(id string) error {
	if id == "" {
		return fault(codeEnvironment, "CNI_CONTAINERID is not set").next("the runtime must name the container")
	}
	if !isIdentifier(id) {
		return fault(codeEnvironment, "CNI_CONTAINERID %q is not an identifier", id).next("an identifier starts with a letter or digit, followed by letters, digits, '_', '.' and '-'")
	}
	return nil
}

// isIdentifier reports whether the SPEC allows s as a container ID and a network name.
func isIdentifier(s string) bool {
	for i, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case i > 0 && (c == '_' || c == '.' || c == '-'):
		default:
			return false
		}
	}
	return s != ""
}

// checkIfName applies the kernel's rules (net/core/dev.c: dev_valid_name). The kernel takes a '%' as a
// template to number, never as a character (__dev_alloc_name).
func checkIfName(name string) error {
	why := ""
	switch {
	case name == "":
		return fault(codeEnvironment, "CNI_IFNAME is not set").next("the runtime must name the interface to make")
	case len(name) > maxIfName:
		why = "is longer than 15 bytes"
	case name == "." || name == "..":
		why = "names a directory"
	case strings.ContainsAny(name, "/:%") || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == 0x7f || r == 0x85 || r == 0xa0 }):
		why = "has a character that the kernel does not allow in interface names"
	}
	if why != "" {
		return fault(codeEnvironment, "CNI_IFNAME %q %s", name, why).next("use 1 to 15 bytes without space, '/', ':' and '%%'")
	}
	return nil
}

// checkNetns checks that the call has a network namespace, and not the host's.
func checkNetns(rq request, home *os.File) error {
	if rq.netns == nil {
		return fault(codeEnvironment, "CNI_NETNS %s was not opened", rq.cni.Netns).next("pass the namespace's file beside its path")
	}
	if !isNetnsFile(rq.netns) {
		return fault(codeEnvironment, "CNI_NETNS %s is not a network namespace", rq.cni.Netns).next("name the namespace as /run/netns/NAME or /proc/PID/ns/net")
	}
	pod, err := rq.netns.Stat()
	if err != nil {
		return fault(codeIO, "CNI_NETNS: %w", err).next("check that the namespace exists: its container may have ended")
	}
	host, err := home.Stat()
	if err != nil {
		return fault(codeIO, "the host's network namespace: %w", err).next("mount /proc")
	}
	if os.SameFile(pod, host) {
		return fault(codeEnvironment, "CNI_NETNS %s is the host's own network namespace", rq.cni.Netns).next("a pod on the host's network needs no CNI call")
	}
	return nil
}

func (n *Node) podNetns(rq request) error { return checkNetns(rq, n.home) }

// args holds CNI_ARGS. Unknown keys are ignored, since runtimes add theirs.
type args struct {
	pod ipam.Pod
	ip  string // not parsed: each IPAM plugin has its own format
	mac string
}

func parseArgs(s string) (args, error) {
	var a args
	if s == "" {
		return a, nil
	}
	for pair := range strings.SplitSeq(s, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			return a, fault(codeEnvironment, "CNI_ARGS: %q is not KEY=VALUE", pair).next("separate pairs with ';'")
		}
		var err error
		switch key {
		case "K8S_POD_NAMESPACE":
			a.pod.Namespace = value
		case "K8S_POD_NAME":
			a.pod.Name = value
		case "K8S_POD_UID":
			a.pod.UID = value
		case "IP":
			a.ip = value
		case "MAC":
			a.mac, err = parseMAC(value)
		}
		if err != nil {
			return a, fault(codeEnvironment, "CNI_ARGS %s: %w", key, err).next("correct the value or leave the key out")
		}
	}
	return a, nil
}

// parseAddr parses an address, and ignores a prefix length after it (CONVENTIONS, "ips").
func parseAddr(s string) (netip.Addr, error) {
	ip := s
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Addr().Unmap(), nil
	}
	a, err := netip.ParseAddr(ip)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, errors.New(`"` + s + `" is not an IP address`)
	}
	return a.Unmap(), nil
}

func parseMAC(s string) (string, error) {
	mac, err := net.ParseMAC(s)
	switch {
	case err != nil || len(mac) != 6:
		return "", errors.New(`"` + s + `" is not a MAC address of 6 bytes`)
	case mac[0]&1 != 0:
		return "", errors.New(s + " is a multicast address")
	case mac.String() == "00:00:00:00:00:00":
		return "", errors.New(s + " is the address of no interface")
	}
	return mac.String(), nil
}
