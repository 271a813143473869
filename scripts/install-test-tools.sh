#!/bin/sh
# Installs what the tests, the demonstration and the benchmarks need and this machine lacks,
# from Debian's packages. Does nothing when all is there.
set -eu

# command or file: package
tools='
ip:iproute2
ping:iputils-ping
nft:nftables
iptables:iptables
strace:strace
conntrack:conntrack
iperf3:iperf3
tcpdump:tcpdump
ethtool:ethtool
bird:bird2
birdc:bird2
vtysh:frr
/usr/lib/frr/zebra:frr
/usr/lib/frr/bgpd:frr
bgpctl:openbgpd
containerd:containerd
runc:runc
busybox:busybox-static
curl:curl
wget:wget
nc.openbsd:netcat-openbsd
promtool:prometheus
firewalld:firewalld
ufw:ufw
'

# Daemons that Debian puts into sbin are often outside an ordinary user's PATH.
PATH=$PATH:/usr/sbin:/sbin

packages=''
for line in $tools; do
	tool=${line%%:*}
	package=${line##*:}
	command -v "$tool" >/dev/null 2>&1 && continue
	case " $packages " in *" $package "*) continue ;; esac
	packages="$packages $package"
done
[ -n "$packages" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
	echo "missing:$packages (names of Debian's packages); this machine has no apt-get: install them by its own means" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "missing:$packages; run 'sudo scripts/install-test-tools.sh', or 'sudo apt-get install$packages'" >&2
	exit 1
fi

echo "installing:$packages"
export DEBIAN_FRONTEND=noninteractive

# Debian starts what it installs. The laboratories start routing daemons of their own, inside
# their network namespaces; none of them must run on the machine itself because of us.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod +x "$policy"
	trap 'rm -f "$policy"' EXIT INT TERM
fi

log=$(mktemp)
# shellcheck disable=SC2086 # a list of words
if ! { apt-get update && apt-get install -y --no-install-recommends $packages; } >"$log" 2>&1; then
	tail -n 20 "$log" >&2
	echo "apt-get could not install:$packages; its whole output is in $log" >&2
	exit 1
fi
rm -f "$log"

# Nor must one start at the next boot.
for unit in bird frr openbgpd containerd prometheus firewalld ufw; do
	case "$packages" in
	*" $unit"*) systemctl disable "$unit" >/dev/null 2>&1 || true ;; # absent in containers
	esac
done
