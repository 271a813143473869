#!/bin/sh
# After the programs went. dpkg: "remove", then perhaps "purge"; rpm has no purge: 0 is the end.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi
[ "$1" = purge ] || exit 0

rm -f /etc/systemd/system/multi-user.target.wants/edgewayd.service
for settings in /etc/systemd/network/05-edgeway.network /etc/systemd/network/05-edgeway-name.network \
	/etc/systemd/networkd.conf.d/05-edgeway.conf /etc/NetworkManager/conf.d/05-edgeway.conf /etc/cloud/cloud.cfg.d/99-edgeway.cfg; do
	! grep -qs '^# Written by edgewayd unmanage\.' "$settings" || rm -f "$settings"
done
for state in /var/lib/edgeway/ipam.db* /var/lib/edgeway/plugin.lock /var/lib/edgeway/world.json* /var/lib/edgeway/.world.json* \
	/var/lib/edgeway/uplinks.json* /var/lib/edgeway/.uplinks.json* /run/edgeway/edgewayd.sock; do
	rm -f "$state"
done
for dir in /var/lib/edgeway /run/edgeway /etc/edgeway/cluster.d /etc/edgeway; do
	[ ! -d "$dir" ] || rmdir "$dir" 2>/dev/null || echo "edgeway: left $dir, which is not empty"
done

# Pods that run keep their network: their links, routes and rules stay until they or the machine go.
if ! command -v ip >/dev/null; then
	echo "edgeway: left routes and rules of protocols 119 and 121 and the links edgeway.1 and edgeway.6, if there are any: there is no ip to look with; a reboot removes them"
	exit 0
fi
pods=$(ip -o link show type veth 2>/dev/null | grep -cE ': ew[0-9a-f]{11}([0-9a-f]{2})?@' || true)
if [ "$pods" != 0 ]; then
	echo "edgeway: left the network of $pods pods that run, and the routes to other nodes; a reboot removes them"
	exit 0
fi
for protocol in 101 119 121; do
	for family in -4 -6; do # table all: each uplink has a table
		ip $family route flush table all proto $protocol
		ip $family rule flush protocol $protocol
	done
done
ip neigh show proxy | sed -n 's/^\([^ ]*\) dev \([^ ]*\) .*proto 119.*/\1 \2/p' | while read -r address link; do
	ip neigh del proxy "$address" dev "$link"
done
ip link del edgeway.1 2>/dev/null || true
ip link del edgeway.6 2>/dev/null || true
if command -v nft >/dev/null; then
	nft delete table inet edgeway 2>/dev/null || true
	nft delete table inet edgeway-vxlan 2>/dev/null || true
	nft delete table inet edgeway-source 2>/dev/null || true
	nft delete table inet edgeway-uplink 2>/dev/null || true
	nft delete table arp edgeway-announced 2>/dev/null || true
elif [ -e /proc/net/netfilter ]; then
	echo "edgeway: left the nftables tables inet edgeway*, if there are any: there is no nft to look with; a reboot removes them"
fi
