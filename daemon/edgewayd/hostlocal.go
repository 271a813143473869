package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/edgeway-cni/edgeway/ipam"
)

// maxRecord bounds how much is read of one file of host-local or libcni.
const maxRecord = 1 << 20

// cached holds the fields that name the pod in the runtime library's record of an ADD
// (containernetworking/cni, libcni/api.go: cachedInfo).
type cached struct {
	ContainerID string      `json:"containerId"`
	IfName      string      `json:"ifName"`
	Network     string      `json:"networkName"`
	Netns       string      `json:"netns"`
	Args        [][2]string `json:"cniArgs"`
}

func (c cached) pod() (p ipam.Pod) {
	for _, kv := range c.Args {
		switch kv[0] {
		case "K8S_POD_NAMESPACE":
			p.Namespace = kv[1]
		case "K8S_POD_NAME":
			p.Name = kv[1]
		case "K8S_POD_UID":
			p.UID = kv[1]
		}
	}
	return p
}

// readHostLocal reads host-local's directory of one network (containernetworking/plugins,
// plugins/ipam/host-local/backend/disk) and the runtime's results. It returns one lease for each container
// interface. said lists the files that it does not understand.
func readHostLocal(dir, results string) (leases []ipam.Lease, said []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("import: %w; name host-local's directory of one network, such as /var/lib/cni/networks/cbr0", err)
	}
	known, said, err := readResults(results)
	if err != nil {
		return nil, nil, err
	}
	others := len(said)
	at := map[ipam.Attachment]int{}
	for _, e := range entries {
		l, err := readReservation(dir, e)
		if err != nil {
			said = append(said, err.Error())
			continue
		}
		if l == nil {
			continue
		}
		identify(l, known, filepath.Base(dir))
		if i, ok := at[l.Attachment]; ok {
			leases[i].Addrs = append(leases[i].Addrs, l.Addrs...)
			slices.SortFunc(leases[i].Addrs, netip.Addr.Compare)
			continue
		}
		at[l.Attachment] = len(leases)
		leases = append(leases, *l)
	}
	if len(leases) == 0 && len(said) == others {
		err = fmt.Errorf("import %s: no file is named by an address; name host-local's directory of one network, such as /var/lib/cni/networks/cbr0", dir)
	}
	return leases, said, err
}

// readReservation reads one file. Its name is the address. Its content is the container ID and, since version
// 0.8, the interface. A file that is not a reservation gives nil.
func readReservation(dir string, e fs.DirEntry) (*ipam.Lease, error) {
	name := e.Name()
	if name == "lock" || strings.HasPrefix(name, "last_reserved_ip.") {
		return nil, nil
	}
	path := filepath.Join(dir, name)
	addr, err := netip.ParseAddr(name)
	if err != nil || !e.Type().IsRegular() || addr.Zone() != "" {
		return nil, fmt.Errorf("%s: not a reservation: its name is not an address", path)
	}
	text, info, err := readRecord(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the address has been released
	}
	if err != nil {
		return nil, err
	}
	id, ifName, _ := strings.Cut(string(text), "\n")
	id, ifName = strings.TrimSpace(id), strings.TrimSpace(ifName)
	switch {
	case id == "":
		return nil, fmt.Errorf("%s: empty: a crash or a power cut left it; no pod is known to have the address", path)
	case !isWord(id) || ifName != "" && !isWord(ifName):
		return nil, fmt.Errorf("%s: not a container ID and an interface name", path)
	}
	return &ipam.Lease{Attachment: ipam.Attachment{ContainerID: id, IfName: ifName}, Addrs: []netip.Addr{addr.Unmap()}, Since: info.ModTime().UTC()}, nil
}

// isWord reports whether the CNI specification allows s as an ID. The same words serve runtimes as interface
// names.
func isWord(s string) bool {
	return len(s) <= 256 && !strings.ContainsFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '_' || r == '.' || r == '-')
	})
}

func readRecord(path string) ([]byte, fs.FileInfo, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if info.Size() > maxRecord {
		return nil, nil, fmt.Errorf("%s: %d bytes are too many", path, info.Size())
	}
	text, err := os.ReadFile(path)
	return text, info, err
}

// readResults reads the runtime's cache. A missing cache is not an error: then no pod is known.
func readResults(dir string) (known []cached, said []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, []string{dir + ": does not exist: no address can be kept for its pod; name the runtime's results with --results"}, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("import: %w", err)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		path := filepath.Join(dir, e.Name())
		text, _, err := readRecord(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var c cached
		if err == nil {
			err = json.Unmarshal(text, &c)
		}
		if err == nil && c.ContainerID == "" {
			continue // libcni before 0.8 stored only the result
		}
		if err != nil {
			said = append(said, fmt.Sprintf("%s: %v", path, err))
			continue
		}
		known = append(known, c)
	}
	return known, said, nil
}

// identify completes a lease from the cache. The container's record for another network counts only if this
// network has no record.
func identify(l *ipam.Lease, known []cached, network string) {
	best := -1
	for i, c := range known {
		if c.ContainerID != l.Attachment.ContainerID || l.Attachment.IfName != "" && c.IfName != l.Attachment.IfName {
			continue
		}
		if best < 0 || c.Network == network && known[best].Network != network {
			best = i
		}
	}
	if best >= 0 {
		c := known[best]
		l.Attachment.IfName, l.Pod, l.Netns = c.IfName, c.pod(), c.Netns
	}
	if l.Attachment.IfName == "" {
		l.Attachment.IfName = "eth0" // the interface name of Kubernetes runtimes
	}
}
