#!/bin/sh
# Writes the Debian and RPM packages of both architectures into dist/, with nfpm from the Go module
# proxy. `make packages` builds the programs and calls it. VERSION is what git describe says.
set -eu
cd "$(dirname "$0")/../.."
nfpm="${NFPM:-${GO:-go} run github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.4}"
out=${OUT:-dist}

# v1.2.3 is 1.2.3; commits after it (v1.2.3-4-gabc) make a later version, not an earlier one; without
# any tag the version is older than every release.
version() {
	case "$1" in
	v[0-9]*-*-g*) echo "$1" | sed -E 's/^v//; s/-([0-9]+)-(g[0-9a-f]+)/+\1.\2/; s/-/./g' ;;
	v[0-9]*) echo "$1" | sed -E 's/^v//; s/-dirty$/+dirty/; s/-/~/g' ;;
	*) echo "0.0.0+$1" | tr - . ;;
	esac
}
PACKAGE_VERSION=$(version "$VERSION")
STAGE=$out/stage
mkdir -p "$STAGE"
sed 's|/usr/local/bin|/usr/bin|' deploy/systemd/edgewayd.service >"$STAGE/edgewayd.service"
# What the commands say of themselves; the tests hold docs/cli.md equal to it.
mkdir -p "$STAGE/man" "$STAGE/completion"
${GO:-go} test ./daemon/edgewayd -count=1 -run '^TestPages$' -man "$(cd "$STAGE" && pwd)/man" >/dev/null
for shell in bash zsh fish; do
	${GO:-go} run ./daemon/edgewayd completion $shell >"$STAGE/completion/$shell"
done
# One time for all files: the same programs give the same package.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export PACKAGE_VERSION STAGE SOURCE_DATE_EPOCH ARCH BIN
for ARCH in ${ARCHES:-amd64 arm64}; do
	BIN=${BINS:-dist}/$ARCH
	for format in deb rpm; do
		$nfpm package --config deploy/nfpm/nfpm.yaml --packager $format --target "$out/"
	done
done
