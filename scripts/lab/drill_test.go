package lab_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// fault is one fault that an operator meets, as docs/drill.md numbers it.
type fault struct {
	id, at         string // at is the machine
	inject, repair string // shell commands; "edit FILE OLD => NEW" changes a manifest, and is repaired by itself
	node, says     string // what the node's status says at last, as a regular expression
	ask            string // a command on the node instead of status
	restart        bool   // the fault is injected, and repaired, while the daemon of the machine is stopped
}

// The problems of a status begin with "OBJECT: REASON".
var faults = []fault{
	{id: "B9", at: "switch-a", inject: "ip route add unreachable 10.10.2.128/25", repair: "ip route del unreachable 10.10.2.128/25", node: "Node-4", says: "Node/Node-2: podCIDRNotRouted"},
	{id: "B14", at: "Node-1", inject: "nft 'add table ip g; add chain ip g o { type filter hook output priority 0; }; add rule ip g o tcp dport 179 drop'", repair: "nft delete table ip g",
		node: "Node-1", says: "hostDropped"},
	{id: "B17", inject: "edit peers.yaml peerIP: 10.0.10.1, => peerIP: 203.0.113.1,", node: "Node-1", says: "peerOffSubnet"},
	{id: "B20", node: "Node-1", says: "peer-a: singleSpeaker"},
	{id: "B23", at: "Node-1", inject: "cp CLUSTER/peers.yaml DIR/peers; sed -i '1,/^---/d' CLUSTER/peers.yaml", repair: "cp DIR/peers CLUSTER/peers.yaml", node: "Node-2", says: "peeringGone"},
	{id: "B24", inject: `edit nodes.yaml {name: Node-2, labels: {ASN: "65010"}} => {name: Node-2}`, node: "Node-2", says: "notSelected"},
	{id: "N1", at: "Node-3", inject: "iptables -P FORWARD DROP", repair: "iptables -P FORWARD ACCEPT", node: "Node-3", says: "forwardDropped"},
	{id: "N2", at: "Node-3", inject: "nft 'add table inet f; add chain inet f f { type filter hook forward priority 0; }; add rule inet f f ip daddr 10.10.3.0/24 drop'", repair: "nft delete table inet f",
		node: "Node-3", says: "forwardDropped"},
	{id: "N3", at: "Node-3", inject: "iptables-legacy -A FORWARD -s 10.10.3.0/24 -j DROP", repair: "iptables-legacy -F FORWARD", node: "Node-3", says: "forwardDropped"},
	{id: "N4", at: "Node-3", inject: "sysctl -qw net.ipv4.ip_forward=0", node: "Node-3", ask: "sysctl net.ipv4.ip_forward", says: "= 1"},
	{id: "N6", at: "Node-3", inject: "ip link set eth0 mtu 1400", repair: "ip link set eth0 mtu 1500", node: "Node-3", says: "mtuHole|otherMTU|mtuTooLarge"},
	{id: "N7", inject: "edit nodes.yaml 10.10.3.0/24 => 10.10.2.0/24", node: "Node-1", says: "overlap"},
	{id: "N8", inject: "edit nodes.yaml 10.10.3.0/24 => 10.0.10.0/24", node: "Node-1", says: "overlap"},
	{id: "N9", at: "Node-1", inject: "ip route replace 10.10.2.0/24 via 10.0.10.1 proto static", repair: "ip route del 10.10.2.0/24 proto static", node: "Node-1", says: "foreignRoute"},
	{id: "N10", at: "Node-1", inject: "ip route add 10.10.2.128/25 via 10.0.10.1 proto static", repair: "ip route del 10.10.2.128/25", node: "Node-1", says: "shadowed"},
	{id: "N11", at: "Node-1", inject: "ip route add default via 10.0.10.1 table 77; ip rule add to 10.10.2.0/24 lookup 77", repair: "ip rule del to 10.10.2.0/24 lookup 77", node: "Node-1", says: "shadowed"},
	{id: "N12", at: "Node-3", inject: "touch DIR/net.d/05-other.conflist", repair: "rm DIR/net.d/05-other.conflist", node: "Node-3", says: "competingNetwork"},
	{id: "N13", at: "Node-3", inject: "rm DIR/net.d/10-edgeway.conflist", node: "Node-3", ask: "ls DIR/net.d", says: "10-edgeway.conflist"},
	{id: "N14", at: "Node-3", inject: "cp DIR/edgewayd.yaml DIR/kept; mkdir -p DIR/empty; sed -i 's, binDir:.*, binDir: DIR/empty,' DIR/edgewayd.yaml", repair: "cp DIR/kept DIR/edgewayd.yaml", restart: true, node: "Node-3", says: "noPlugin"},
	{id: "N20", at: "switch-a", inject: "ip addr add 10.0.10.13/32 dev eth0 || ip addr add 10.0.10.13/32 dev lan-a", repair: "ip addr del 10.0.10.13/32 dev lan-a", node: "Node-3", ask: "EDGEWAYD doctor", says: "10.0.10.13.*MAC"},
	{id: "N22", inject: "edit nodes.yaml name: Node-3 => name: Other-3", node: "Node-3", says: "noSelf"},
	{id: "N23", inject: "edit nodes.yaml name: Node-3 => name: node-3", node: "Node-3", says: "noSelf(.|\n)*differs in upper and lower case"},
	{id: "N24", inject: "edit nodes.yaml address: 10.0.10.13 => address: 10.0.10.12", node: "Node-2", says: "sharedAddress"},
	{id: "N25", inject: "edit nodes.yaml address: 10.0.10.13 => address: 10.0.10.43", node: "Node-3", says: "addressNotHere"},
	{id: "N26", at: "Node-2", inject: "ip route del default", repair: "ip route add default via 10.0.10.1", node: "Node-2", says: "noRouteToLAN"},
	{id: "N27", inject: "edit peers.yaml peerIP: 10.0.10.1, => peerIP: 10.0.10.1, gateway: 10.0.10.77,", node: "Node-2", says: "silentGateway"},
	{id: "N28", at: "Node-2", inject: "ip route replace default via 10.0.10.77", repair: "ip route replace default via 10.0.10.1", node: "Node-2", says: "silentGateway"},
	{id: "N29", at: "Node-3", inject: "ip addr del 10.0.10.13/24 dev eth0", repair: "ip addr add 10.0.10.13/24 dev eth0; ip route add default via 10.0.10.1", node: "Node-3", says: "addressNotHere"},
	{id: "N30", at: "Node-3", inject: "ip link set eth0 down", repair: "ip link set eth0 up; ip addr replace fd00:10:0:10::13/64 dev eth0; ip route replace default via 10.0.10.1; ip -6 route replace default via fd00:10:0:10::1 || true", node: "Node-3", says: "linkDown"},
	{id: "N31", at: "Node-3", inject: "for i in 1 2 3; do ip link set eth0 down; sleep 0.5; ip link set eth0 up; sleep 0.5; done; ip addr replace fd00:10:0:10::13/64 dev eth0; ip route replace default via 10.0.10.1; ip -6 route replace default via fd00:10:0:10::1 || true",
		node: "Node-3", ask: "EDGEWAYD status -o json", says: `"appeared": \{[^}]*"linkDown": [1-9]`},
	{id: "N32", at: "Node-3", inject: "iptables -t nat -A POSTROUTING -s 10.10.0.0/16 -j MASQUERADE", repair: "iptables -t nat -F POSTROUTING", node: "Node-3", says: "foreignNAT"},
	{id: "D5", at: "Node-3", inject: "echo nonsense > DIR/state/ipam.db", repair: "true", restart: true, node: "Node-3", says: "storeRebuilt"},
	{id: "D6", inject: "edit peers.yaml metadata: {name: peer-a} => metadata: {name: peer-a", node: "Node-1", says: "badManifest"},
	{id: "D7", at: "Node-1", inject: "cp CLUSTER/nodes.yaml CLUSTER/copy.yaml", repair: "rm CLUSTER/copy.yaml", node: "Node-1", says: "duplicateObject"},
	{id: "D8", inject: "edit peers.yaml peerIP: 10.0.10.1, => peerIp: 10.0.10.1,", node: "Node-1", says: "unknownKey"},
	{id: "D9", at: "Node-1", inject: "mkdir DIR/away; mv CLUSTER/* DIR/away", repair: "mv DIR/away/* CLUSTER; rmdir DIR/away", node: "Node-1", says: "emptyDirectory"},
	{id: "O1", at: "Node-5", inject: "nft 'add table ip g; add chain ip g i { type filter hook input priority 0; }; add rule ip g i udp dport 8472 drop'", repair: "nft delete table ip g",
		node: "Node-5", says: "hostDropped"},
	{id: "O2", at: "wire", inject: "nft 'add table bridge f; add chain bridge f f { type filter hook forward priority 0; }; add rule bridge f f udp dport 8472 drop'", repair: "nft delete table bridge f",
		node: "Node-6", says: "tunnelFiltered"},
	{id: "O5", at: "Node-6", inject: "cp DIR/edgewayd.yaml DIR/kept; echo 'vxlan: {port: 8473}' >> DIR/edgewayd.yaml", repair: "cp DIR/kept DIR/edgewayd.yaml", restart: true, node: "Node-5", says: "Node/Node-6: termsDiffer"},
	{id: "O6", inject: "edit nodes.yaml address: 10.0.20.16 => address: 10.0.20.15", node: "Node-5", says: "sharedAddress"},
	{id: "O7", at: "Node-5", inject: "ip link del edgeway.1", node: "Node-5", ask: "ip -d link show edgeway.1", says: "vxlan id 1 "},
	{id: "O9", at: "Node-5", inject: "ip link set eth0 mtu 1400", repair: "ip link set eth0 mtu 1500", node: "Node-5", says: "mtuHole|otherMTU"},
}

// TestDrill injects one fault after the other, and waits for what docs/drill.md says of it. It prints what the node said,
// and after how long. make drill runs it.
func TestDrill(t *testing.T) {
	if os.Getenv("EDGEWAY_DRILL") == "" {
		t.Skip("EDGEWAY_DRILL is not set; run make drill")
	}
	lab.Need(t, append(lab.Tools(lab.BIRD), "iptables", "iptables-legacy", "nft")...)
	needPrograms(t)
	ctx := t.Context()
	l := peace(t, strings.NewReplacer())
	for name, n := range l.Nodes() {
		if err := n.Start(ctx); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := n.AddPod(ctx, "default", "pod-of-"+name); err != nil {
			t.Fatal(err)
		}
	}
	quiet(t, l)
	only := os.Getenv("EDGEWAY_DRILL")
	for _, f := range faults {
		if only != "1" && !strings.Contains(","+only+",", ","+f.id+",") {
			continue
		}
		t.Run(f.id, func(t *testing.T) {
			run := func(machine, script string) (string, error) {
				dir := ""
				if n := l.Node(machine); n != nil {
					dir = n.Dir
					script = strings.ReplaceAll(script, "EDGEWAYD", n.Program()+" --config "+n.Config)
				}
				return l.Machine(machine).Run(ctx, "sh", "-c", strings.NewReplacer("DIR", dir, "CLUSTER", l.ClusterDir).Replace(script))
			}
			do := func(script string) {
				t.Helper()
				if script == "" {
					return
				}
				n := l.Node(f.at)
				if f.restart {
					if err := n.Terminate(); err != nil {
						t.Fatal(err)
					}
				}
				if out, err := run(f.at, script); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				if f.restart {
					if err := n.Start(ctx); err != nil {
						t.Fatal(err)
					}
				}
			}
			if rest, ok := strings.CutPrefix(f.inject, "edit "); ok {
				file, change, _ := strings.Cut(rest, " ")
				path := filepath.Join(l.ClusterDir, file)
				before, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				old, now, _ := strings.Cut(change, " => ")
				after := strings.Replace(string(before), old, now, 1)
				if after == string(before) {
					t.Fatalf("%s has no %q", file, old)
				}
				write := func(text string) {
					if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
						t.Error(err)
					}
				}
				write(after)
				defer write(string(before))
			} else {
				do(f.inject)
				defer func() { do(f.repair) }()
			}
			began, re := time.Now(), regexp.MustCompile(f.says)
			said := ""
			if err := lab.Wait(ctx, waitLimit, func() (err error) {
				if f.ask != "" {
					said, err = run(f.node, f.ask+"; true")
				} else {
					said, err = l.Node(f.node).Command(ctx, "status")
				}
				if err == nil && !re.MatchString(said) {
					err = fmt.Errorf("it says: %s", said)
				}
				return err
			}); err != nil {
				t.Error(err)
				return
			}
			if _, problems, ok := strings.Cut(said, "\nProblems:"); ok {
				said = problems
			}
			t.Logf("%s after %v: %s", f.node, time.Since(began).Round(100*time.Millisecond), said)
		})
		quiet(t, l)
	}
}

// The scores of docs/drill.md add up to the sums that the page names, and the page says of the faults that TestDrill
// injects, and of no others, that the drill plays them.
func TestDrillPage(t *testing.T) {
	text, err := os.ReadFile("../../docs/drill.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`(?m)^\| ([BNPDO])(\d+) \|.*\| ([^|]*) \| ([012]) \|$`).FindAllStringSubmatch(string(text), -1)
	var played, injected []string
	got, most := map[string]int{}, map[string]int{}
	for _, row := range rows {
		for _, of := range []string{"all", row[1]} {
			got[of] += int(row[4][0] - '0')
			most[of] += 2
		}
		if slices.Contains(strings.Split(row[3], ", "), "drill") {
			played = append(played, row[1]+row[2])
		}
	}
	for _, f := range faults {
		injected = append(injected, f.id)
	}
	if diff := cmp.Diff(injected, played); diff != "" {
		t.Errorf("faults of the drill and of the page (-drill +page):\n%s", diff)
	}
	sum := func(of string) string { return fmt.Sprintf("%d of %d", got[of], most[of]) }
	count := fmt.Sprintf("These are %d faults", len(rows))
	sums := fmt.Sprintf("The sum is %s: BGP %s, the node and its data path %s, pods %s, the daemon and manifests %s, the overlay %s.",
		sum("all"), sum("B"), sum("N"), sum("P"), sum("D"), sum("O"))
	for _, sentence := range []string{count, sums} {
		if !strings.Contains(string(text), sentence) {
			t.Errorf("docs/drill.md lacks %q", sentence)
		}
	}
}
