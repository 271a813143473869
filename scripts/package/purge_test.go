package main

import (
	"os/exec"
	"testing"

	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// A node with uplinks that was purged still sent packets by its uplinks: their rules and tables stayed. What other
// programs have in the same places stays.
func TestPurgeTakesUplinksAway(t *testing.T) {
	lab.Need(t, "unshare", "ip", "nft")
	const script = `set -e
for dir in /run /etc /var/lib; do mount -t tmpfs none $dir; done
mkdir -p /var/lib/edgeway /etc/edgeway
ip link add eth1 type veth peer name eth2
ip link set eth1 up
ip link set eth2 up
ip rule add pref 900 from 10.0.0.99 lookup 100
ip route add unreachable 10.3.0.0/24 table 100
ip neigh add proxy 10.0.0.99 dev eth1
state() { find /var/lib/edgeway /etc/edgeway; ip rule; ip -6 rule; ip -4 route show table all; ip neigh show proxy; nft list tables; }
state > /mnt/before
touch /var/lib/edgeway/uplinks.json
ip rule add pref 2048 from 10.0.0.31 lookup 1695047690 protocol 119
ip -6 rule add pref 512 lookup main suppress_prefixlength 127 protocol 119
ip route add unreachable default proto 119 table 1695047690 metric 4278198272
ip route add unreachable 10.0.0.31/32 proto 119 metric 4278198272
ip neigh add proxy 10.0.0.31 dev eth1 protocol 119
nft add table inet edgeway-uplink
nft add table arp edgeway-announced
sh "$0" purge
mkdir -p /var/lib/edgeway /etc/edgeway
state | diff /mnt/before -
`
	out, err := exec.CommandContext(t.Context(), "unshare", "--mount", "--net", "sh", "-c", "mount -t tmpfs none /mnt && "+script, "../../deploy/nfpm/postremove.sh").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
