#!/bin/sh
# Builds containerd 2.x from its Go module for the test of this directory, which otherwise runs
# with the machine's containerd (Debian 12: 1.6). Takes some four minutes of CPU the first time,
# and is not part of `make test`. Prints the line that runs the test with it.
set -eu

version=${CONTAINERD_VERSION:-v2.4.2}
dir=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/edgeway/containerd-$version}

if [ ! -x "$dir/containerd" ] || [ ! -x "$dir/containerd-shim-runc-v2" ] || [ ! -x "$dir/ctr" ]; then
	mkdir -p "$dir"
	module=$(mktemp -d)
	trap 'rm -rf "$module"' EXIT INT TERM
	cd "$module"
	commands=''
	for name in containerd containerd-shim-runc-v2 ctr; do
		commands="$commands github.com/containerd/containerd/v2/cmd/$name"
	done
	go mod init edgeway.test/containerd >/dev/null 2>&1
	# shellcheck disable=SC2086 # a list of words
	{
		go get "github.com/containerd/containerd/v2@$version" $commands
		CGO_ENABLED=0 go build -trimpath -tags 'no_btrfs no_devmapper no_zfs' -o "$dir/" $commands
	}
fi

echo "CONTAINERD_BIN_DIR=$dir go test -count=1 -v ./scripts/cri"
