package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/edgeway-cni/edgeway/daemon/api"
	"github.com/edgeway-cni/edgeway/ipam"
)

// golden compares text with a file, or writes it with -update.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

// leaseList is a node in the middle of a migration, with one pod that died without DEL.
func leaseList() api.LeaseList {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	return api.LeaseList{
		Now: now, Outside: 1,
		Leases: []api.Lease{
			{Addrs: []string{"10.10.1.2", "fd00:10:1::2"}, Pod: "default/till-1", ContainerID: "64dfdb43a7f2c0ffee00", IfName: "eth0", Network: "edgeway", Since: now.Add(-90 * time.Minute), State: "alive", Link: "ew81f3a2c04d5"},
			{Addrs: []string{"10.10.1.3"}, Pod: "default/till-2", ContainerID: "0a1b2c3d4e5f60718293", IfName: "eth0", Network: "edgeway", Since: now.Add(-50 * time.Hour), State: "dead", Link: "ew00112233445"},
			{Addrs: []string{"10.10.1.7"}, Pod: "default/printer-0", ContainerID: "feed00feed00feed00ff", IfName: "eth0", Network: "edgeway/adopted/host-local", Since: now.Add(-30 * time.Second), State: "foreign"},
			{Addrs: []string{"10.99.0.7"}, ContainerID: "c1", IfName: "eth0", Network: "dbnet/bridge", Since: now.Add(-26 * time.Hour), State: "earlier boot"},
		},
		Pools: []api.PoolUsage{
			{CIDR: "10.10.1.0/24", Total: 254, Used: 3, Free: 251, Remembered: 2},
			{CIDR: "fd00:10:1::/64", Total: 1 << 62, Used: 1, Free: 1<<62 - 1},
		},
		Remembered: []api.Remembered{{Addr: "10.10.1.9", Pod: "default/shop-0", IfName: "eth0", Network: "edgeway"}, {Addr: "10.10.1.12", Pod: "kube-system/dns-x7", IfName: "eth0", Network: "edgeway"}},
	}
}

func TestListScreen(t *testing.T) {
	a := leaseList()
	var out bytes.Buffer
	printLeases(&out, a, leaseLines)
	printPools(&out, a)
	out.WriteString("\n")
	printRemembered(&out, a, leaseLines)
	golden(t, "testdata/ipam-list.txt", out.String())

	for i := range 60 {
		l := a.Leases[0]
		l.Addrs = []string{fmt.Sprintf("10.10.1.%d", 100+i)}
		a.Leases = append(a.Leases, l)
	}
	out.Reset()
	printLeases(&out, a, leaseLines)
	if lines := strings.Split(strings.TrimSpace(out.String()), "\n"); len(lines) != leaseLines+2 || lines[leaseLines+1] != "... and 24 more; --all shows them" {
		t.Errorf("not one screen:\n%s", out.String())
	}
	out.Reset()
	printLeases(&out, a, 0)
	if n := strings.Count(out.String(), "\n"); n != len(a.Leases)+1 {
		t.Errorf("--all prints %d lines", n)
	}
	out.Reset()
	printLeases(&out, api.LeaseList{}, 0)
	printPools(&out, api.LeaseList{})
	if got := out.String(); got != "No pod holds an address.\n\nPOD CIDR  USED  FREE  REMEMBERED\nnot known yet\n" {
		t.Errorf("an empty store: %q", got)
	}
}

// On a node with uplinks, the list and the details say whose interface an address is.
func TestUplinkOfALease(t *testing.T) {
	a := leaseList()
	a.Leases[1].Uplink = "00:16:3e:08:60:0a"
	var out bytes.Buffer
	printLeases(&out, a, leaseLines)
	printDetails(&out, api.LeaseDetails{Now: a.Now, Leases: []api.LeaseDetail{{Lease: a.Leases[1]}}})
	for _, want := range []string{"STATE         UPLINK\n", "dead          00:16:3e:08:60:0a\n", "alive         -\n", "Uplink      00:16:3e:08:60:0a\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestDetailsAndFindingsScreen(t *testing.T) {
	a := leaseList()
	details := api.LeaseDetails{Now: a.Now, Remembered: a.Remembered[:1]}
	for i, l := range a.Leases[:3] {
		details.Leases = append(details.Leases, api.LeaseDetail{Lease: l, KeptFor: "edgeway", LinkExists: i == 0})
	}
	details.Leases[0].MAC, details.Leases[0].PodMAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
	details.Leases[0].Netns = "/var/run/netns/cni-1"
	details.Leases[0].HostEnd = []string{"10.10.1.2/32 dev ew81f3a2c04d5 proto 101"}
	details.Leases[0].PodEnd = []string{"default via 169.254.1.1 dev eth0 proto 101"}
	details.Leases[1].NoPod = "its namespace /var/run/netns/cni-2 is gone"
	details.Leases[2].PodMAC = "02:00:00:00:00:03"
	var out bytes.Buffer
	printDetails(&out, details)
	out.WriteString("\n")
	printFindings(&out, api.Findings{Leases: 4, Findings: []api.Finding{
		{Object: "pod default/till-2 (10.10.1.3)", Got: "its link ew00112233445 does not exist", Repair: "release 10.10.1.3; the address remembers its pod"},
		{Object: "link ew0123456789a", Got: "no lease owns it", Repair: "delete it", Done: true},
		{Object: "pod default/till-1 (10.10.1.2)", Got: "eth0 is down", Next: "delete the pod"},
	}})
	out.WriteString("\n")
	printFindings(&out, api.Findings{Leases: 4})
	out.WriteString("\n")
	printImport(&out, []api.Imported{{Lease: a.Leases[2], Action: "hold"}, {Lease: a.Leases[3], Action: "skip", Why: "the container is gone, and its pod is not known"}})
	golden(t, "testdata/ipam-show.txt", out.String())
}

// A release or import without a terminal must not wait for an answer, nor take silence for one.
func TestNobodyToAsk(t *testing.T) {
	cmd := releaseCommand(&leaseFlags{flags: &flags{}})
	cmd.SetIn(strings.NewReader("y\n"))
	no, yes := false, true
	if err := confirm(cmd, "Release 1?", &no); err == nil || !strings.Contains(err.Error(), "add --yes") {
		t.Errorf("confirm: %v", err)
	}
	if err := confirm(cmd, "Release 1?", &yes); err != nil {
		t.Errorf("confirm with --yes: %v", err)
	}
}

func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// The files that versions of host-local and libcni leave on a disk are read, also after crashes.
func TestReadHostLocal(t *testing.T) {
	result := func(id, ifName, network, pod string) string {
		return fmt.Sprintf(`{"kind":"cniCacheV1","containerId":%q,"config":"e30=","ifName":%q,"networkName":%q,"netns":"/var/run/netns/%s","cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","d"],["K8S_POD_NAME",%q],["K8S_POD_UID","u"]],"result":{}}`,
			id, ifName, network, id, pod)
	}
	lease := func(id, ifName, pod string, addrs ...string) ipam.Lease {
		l := ipam.Lease{Attachment: ipam.Attachment{ContainerID: id, IfName: ifName}}
		if pod != "" {
			l.Pod, l.Netns = ipam.Pod{Namespace: "d", Name: pod, UID: "u"}, "/var/run/netns/"+id
		}
		for _, a := range addrs {
			l.Addrs = append(l.Addrs, netip.MustParseAddr(a))
		}
		return l
	}
	for _, tt := range []struct {
		name           string
		files, results map[string]string
		want           []ipam.Lease
		said           []string // a part of each
		err            string
	}{
		{"a pod", map[string]string{"10.1.0.5": "c1\r\neth0", "last_reserved_ip.0": "10.1.0.5", "lock": ""}, map[string]string{"cbr0-c1-eth0": result("c1", "eth0", "cbr0", "p1")},
			[]ipam.Lease{lease("c1", "eth0", "p1", "10.1.0.5")}, nil, ""},
		{"both families are one lease", map[string]string{"10.1.0.5": "c1\r\neth0", "fd00::5": "c1\r\neth0", "last_reserved_ip.1": "fd00::5"}, map[string]string{"x": result("c1", "eth0", "cbr0", "p1")},
			[]ipam.Lease{lease("c1", "eth0", "p1", "10.1.0.5", "fd00::5")}, nil, ""},
		{"before 0.8: no interface", map[string]string{"10.1.0.5": "c1"}, map[string]string{"x": result("c1", "net1", "cbr0", "p1")},
			[]ipam.Lease{lease("c1", "net1", "p1", "10.1.0.5")}, nil, ""},
		{"before 0.8, nothing cached", map[string]string{"10.1.0.5": "c1\n"}, map[string]string{},
			[]ipam.Lease{lease("c1", "eth0", "", "10.1.0.5")}, nil, ""},
		{"the interface tells", map[string]string{"10.1.0.5": "c1\r\nnet1"}, map[string]string{"a": result("c1", "eth0", "cbr0", "wrong"), "b": result("c1", "net1", "cbr0", "p1")},
			[]ipam.Lease{lease("c1", "net1", "p1", "10.1.0.5")}, nil, ""},
		{"this network's record first", map[string]string{"10.1.0.5": "c1\r\neth0"}, map[string]string{"a": result("c1", "eth0", "other", "wrong"), "b": result("c1", "eth0", "cbr0", "p1"), "c": result("c1", "eth0", "third", "wrong")},
			[]ipam.Lease{lease("c1", "eth0", "p1", "10.1.0.5")}, nil, ""},
		{"no results at all", map[string]string{"10.1.0.5": "c1\r\neth0"}, nil,
			[]ipam.Lease{lease("c1", "eth0", "", "10.1.0.5")}, []string{"does not exist: no address can be kept for its pod"}, ""},
		{"damaged", map[string]string{"10.1.0.5": "", "10.1.0.6": "a b\x00c", "10.1.0.7": "c7\r\neth0/../x", "10.1.0.8": "\r\neth0", "10.1.0.300": "c9", "notes": "x"},
			map[string]string{"bad": "{", "old": `{"cniVersion":"0.3.1"}`},
			nil, []string{"results/bad: ", "10.1.0.300: not a reservation", "10.1.0.5: empty", "10.1.0.6: not a container ID", "10.1.0.7: not a container ID", "10.1.0.8: empty", "notes: not a reservation"}, ""},
		{"not host-local's", map[string]string{"lock": ""}, nil, nil, nil, "no file is named by an address"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			dir, results := filepath.Join(root, "networks/cbr0"), filepath.Join(root, "results")
			writeFiles(t, dir, tt.files)
			if tt.results != nil {
				writeFiles(t, results, tt.results)
				if err := os.MkdirAll(results, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			got, said, err := readHostLocal(dir, results)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.IgnoreFields(ipam.Lease{}, "Since"), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("leases (-want +got):\n%s", diff)
			}
			if len(said) != len(tt.said) {
				t.Fatalf("said %q", said)
			}
			for i, part := range tt.said {
				if !strings.Contains(said[i], part) {
					t.Errorf("said %q, want %q", said[i], part)
				}
			}
		})
	}
	if _, _, err := readHostLocal("/nonexistent/dir", "/nonexistent"); err == nil || !strings.Contains(err.Error(), "name host-local's directory") {
		t.Errorf("missing directory: %v", err)
	}
}

// On a terminal only a yes is one.
func TestConfirmOnATerminal(t *testing.T) {
	for answer, want := range map[string]bool{"y\n": true, "YES\n": true, "\n": false, "n\n": false, "yess\n": false, "\x04": false} {
		master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			t.Skip("no terminals here: ", err)
		}
		n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
		if err == nil {
			err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			t.Skip("no terminals here: ", err)
		}
		if _, err := master.WriteString(answer); err != nil {
			t.Fatal(err)
		}
		cmd, yes := releaseCommand(&leaseFlags{flags: &flags{}}), false
		var asked bytes.Buffer
		cmd.SetIn(terminal)
		cmd.SetErr(&asked)
		err = confirm(cmd, "Release 1?", &yes)
		if (err == nil) != want || asked.String() != "Release 1? [y/N] " {
			t.Errorf("answer %q: %v, asked %q", answer, err, asked.String())
		}
		if err := errors.Join(terminal.Close(), master.Close()); err != nil {
			t.Error(err)
		}
	}
}
