#!/bin/sh
# Installs the two programs, the systemd unit and an example configuration below $DESTDIR.
# Executables are replaced by rename: a pod that starts at that moment finds the old or the new.
set -eu
cd "$(dirname "$0")/.."
root=${DESTDIR:-}
bin=$root${PREFIX:-/usr/local}/bin
cni=$root/opt/cni/bin

place() { # FILE TARGET MODE
    if cmp -s "$1" "$2" && [ "$(stat -c %a "$2")" = "${3#0}" ]; then
        echo "kept      $2"
        return
    fi
    install -D -m "$3" "$1" "$2.new"
    sync "$2.new" # after a power cut the name must not lead to half a file
    mv -f "$2.new" "$2"
    echo "installed $2"
}
place bin/edgeway "$cni/edgeway" 0755
place bin/edgewayd "$bin/edgewayd" 0755
sed "s|/usr/local/bin|${PREFIX:-/usr/local}/bin|" deploy/systemd/edgewayd.service >bin/edgewayd.service
place bin/edgewayd.service "$root/etc/systemd/system/edgewayd.service" 0644
place deploy/systemd/10-edgeway-networkd.conf "$root/etc/systemd/networkd.conf.d/10-edgeway.conf" 0644
if [ ! -e "$root/etc/edgeway/edgewayd.yaml" ]; then
    place deploy/example/edgewayd.yaml "$root/etc/edgeway/edgewayd.yaml" 0644
else
    echo "kept      $root/etc/edgeway/edgewayd.yaml"
fi
mkdir -p "$root/etc/edgeway/cluster.d" "$root/etc/cni/net.d"
if [ -z "$root" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    if systemctl --quiet is-active edgewayd; then
        echo "next: systemctl restart edgewayd; routes and the switches' routes stay over it"
    else
        echo "next: put manifests into /etc/edgeway/cluster.d, or name a kubeconfig in /etc/edgeway/edgewayd.yaml, then systemctl enable --now edgewayd"
    fi
fi
