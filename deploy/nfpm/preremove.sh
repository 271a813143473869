#!/bin/sh
# Before the programs go. dpkg: "remove" or "upgrade VERSION"; rpm: how many versions will be left.
# What uninstall does not find or refuses does not keep the package from being removed.
set -e
case "$1" in
remove | 0) ;;
*) exit 0 ;;
esac
if [ -d /run/systemd/system ]; then
	systemctl stop edgewayd.service || true
fi
# dpkg may install it again: then it is enabled as it was. rpm knows no later.
if [ "$1" = 0 ] && command -v systemctl >/dev/null; then
	systemctl disable edgewayd.service || true
fi
# The plugin is the package's to remove; the configuration must go before it.
edgewayd uninstall --force --plugin-dir /nonexistent || true
