#!/bin/sh
# Removes what install.sh put there. Leases, configuration and the kernel's routes stay, so that
# running pods go on and a later install finds everything; what was left is said. PURGE=1 removes
# leases, routes, links and firewall rules too, unless pods run.
set -eu
root=${DESTDIR:-}
bin=$root${PREFIX:-/usr/local}/bin
if [ -z "$root" ]; then
    if [ -d /run/systemd/system ]; then
        systemctl disable --now edgewayd 2>/dev/null || true
    fi
    if [ -x "$bin/edgewayd" ]; then
        if [ -n "${PURGE:-}" ]; then
            "$bin/edgewayd" uninstall --purge
        else
            "$bin/edgewayd" uninstall --force
        fi
    fi
fi
for f in "$root/etc/cni/net.d/10-edgeway.conflist" "$root/opt/cni/bin/edgeway" "$bin/edgewayd" \
    "$root/etc/systemd/system/edgewayd.service" "$root/etc/systemd/networkd.conf.d/10-edgeway.conf"; do
    [ -e "$f" ] || continue
    rm -f "$f"
    echo "delete $f"
done
for f in "$root/etc/edgeway" "$root/var/lib/edgeway"; do
    [ ! -e "$f" ] || echo "left   $f"
done
if [ -z "$root" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
