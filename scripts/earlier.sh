#!/bin/sh
# earlier.sh COMMIT COMMAND...: runs the command with EDGEWAY_EARLIER, a directory with the files of that commit and its
# programs in bin/. The directory is removed at the end.
set -eu
commit=$1
shift
EDGEWAY_EARLIER=$(mktemp -d)
export EDGEWAY_EARLIER
trap 'rm -rf "$EDGEWAY_EARLIER"' EXIT
git archive "$commit" | tar -x -C "$EDGEWAY_EARLIER"
for name in plugin/edgeway daemon/edgewayd; do
	(cd "$EDGEWAY_EARLIER" && CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=earlier-$commit" -o bin/ "./$name")
done
"$@"
