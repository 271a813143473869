#!/bin/sh
# Starts edgewayd with everything below one directory: edgewayd.sh DIRECTORY EXECUTABLE.
set -eu
dir=$1
mkdir -p "$dir/cluster.d" "$dir/net.d"
cat >"$dir/edgewayd.yaml" <<END
nodeName: node-1
cluster: {manifests: $dir/cluster.d}
cni: {confDir: $dir/net.d, binDir: $dir/net.d}
stateDir: $dir
socket: $dir/edgewayd.sock
metrics: ""
END
cat >"$dir/cluster.d/node.yaml" <<END
apiVersion: v1
kind: Node
metadata: {name: node-1}
spec: {podCIDRs: [10.88.0.0/16, "fd00:88::/64"]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: "2001:db8::1"}]}
END
exec "$2" run --config "$dir/edgewayd.yaml"
