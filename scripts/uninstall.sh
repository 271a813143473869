#!/bin/sh
# Removes what install.sh put there. Leases, configuration and the kernel's routes stay, so that
# running pods go on and a later install finds everything; the last lines say what was left.
set -eu
root=${DESTDIR:-}
bin=$root${PREFIX:-/usr/local}/bin
if [ -z "$root" ] && [ -d /run/systemd/system ]; then
    systemctl disable --now edgewayd 2>/dev/null || true
fi
for f in "$root/opt/cni/bin/edgeway" "$bin/edgewayd" "$root/etc/systemd/system/edgewayd.service" \
    "$root/etc/systemd/networkd.conf.d/10-edgeway.conf" "$root/etc/cni/net.d/10-edgeway.conflist"; do
    [ -e "$f" ] || continue
    rm -f "$f"
    echo "removed $f"
done
for f in "$root/etc/edgeway" "$root/var/lib/edgeway"; do
    [ -e "$f" ] && echo "left    $f"
done
if [ -z "$root" ]; then
    echo "left    routes of protocols 101, 119 and 121 and links ew*, edgeway.1: a reboot removes them, or"
    echo "        for p in 119 121; do ip route flush proto \$p; ip -6 route flush proto \$p; done"
fi
