#!/bin/sh
# After unpacking. dpkg calls it with "configure" and the version before, rpm with how many versions
# there are. A first install starts the daemon; it does nothing to the machine before manifests name
# it. An upgrade restarts it: routes stay, and the switches keep theirs over a restart.
set -e

first=no
case "$1" in
configure) [ -n "$2" ] || first=yes ;;
abort-*) exit 0 ;;
1) first=yes ;;
esac

if [ -e /etc/systemd/system/edgewayd.service ]; then
	echo "edgeway: /etc/systemd/system/edgewayd.service, from make install, comes before this package's unit and runs another program: run make uninstall"
fi
command -v systemctl >/dev/null || exit 0
if [ "$first" = yes ]; then
	systemctl enable edgewayd.service
fi
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
if systemctl --quiet is-enabled edgewayd.service; then
	systemctl restart edgewayd.service
else
	systemctl try-restart edgewayd.service # the operator disabled it: what does not run stays so
fi
if [ "$first" = yes ]; then
	echo "edgeway: put manifests into /etc/edgeway/cluster.d, or name a kubeconfig in /etc/edgeway/edgewayd.yaml; edgewayd status says what is missing"
fi
