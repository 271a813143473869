#!/bin/sh
# Builds Kubernetes' own programs for the tests that need a real API server, and fetches Debian's
# etcd: into ${EDGEWAY_KUBE_DIR:-~/.cache/edgeway/kube}/VERSION. Does nothing for those that are
# there. The first time takes some 15 minutes of CPU, 4 GB of disk, and the Go module proxy.
#
#	scripts/kube/build.sh                  # all
#	scripts/kube/build.sh kube-apiserver   # these
#	scripts/kube/build.sh kubeadm          # what a cluster of kubeadm has beside them: see make e2e-kubeadm
#	scripts/kube/build.sh flanneld         # a neighbour of edgeway in the tests
#	scripts/kube/build.sh e2e.test         # Kubernetes' own tests; make e2e-upstream names the rest
set -eu

all='etcd kube-apiserver kube-controller-manager kubectl kube-scheduler kubelet kube-proxy'
kubeadm='kubeadm etcd-3.6 coredns' # Debian's etcd is older than kubeadm's flags for it
coredns=v1.14.2                    # kubeadm's constants.CoreDNSVersion
upstream='e2e.test ginkgo agnhost regression-issue-74839 coredns netpol'
flannel=v0.28.10
policies=v0.8.0 # of deploy/overlays/networkpolicy

cd "$(dirname "$0")/build"
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
dir=${EDGEWAY_KUBE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/edgeway/kube}/$version
mkdir -p "$dir"

# One build at a time: the second finds what the first made.
if [ -z "${EDGEWAY_KUBE_LOCKED:-}" ] && command -v flock >/dev/null 2>&1; then
	export EDGEWAY_KUBE_LOCKED=yes
	exec flock "$dir/.lock" ./../build.sh "$@"
fi

work=$(mktemp -d "$dir/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

# The package is unpacked and not installed: nothing is started, and it needs no root.
fetch_etcd() {
	if ! command -v apt-get >/dev/null 2>&1; then
		echo "etcd: this machine has no apt-get; put etcd 3.4 or newer into PATH or $dir" >&2
		return 1
	fi
	if ! (cd "$work" && apt-get -qq download etcd-server) >"$work/log" 2>&1; then
		apt-get update >>"$work/log" 2>&1 || true # perhaps its lists are empty
		(cd "$work" && apt-get -qq download etcd-server) >>"$work/log" 2>&1 || {
			tail -n 5 "$work/log" >&2
			echo "etcd: apt-get could not download etcd-server; run 'apt-get update' as root" >&2
			return 1
		}
	fi
	dpkg-deb -x "$work"/etcd-server_*.deb "$work/etcd-server"
	mv "$work/etcd-server/usr/bin/etcd" "$dir/etcd"
}

# build PROGRAM PACKAGE [COMMAND]. Without the version the API server says v0.0.0, and clients warn.
build() {
	stamp=k8s.io/component-base/version
	minor=${version#v1.}
	# shellcheck disable=SC2086 # the command is a list of words
	CGO_ENABLED=0 GOFLAGS=-mod=readonly GOWORK=off go ${3:-build} -trimpath -buildvcs=false \
		-ldflags "-s -w -X $stamp.gitVersion=$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=${minor%%.*}" \
		-o "$work/$1" "$2"
	mv "$work/$1" "$dir/$1"
}

# install PROGRAM PACKAGE@VERSION
install() {
	GOBIN="$work" CGO_ENABLED=0 GOWORK=off go install -trimpath -ldflags "-s -w" "$2"
	package=${2%@*}
	mv "$work/${package##*/}" "$dir/$1"
}

# Its main, without two backends: one needs a module that the proxy does not give, the other a C compiler.
build_flanneld() {
	mkdir "$work/flanneld"
	(
		cd "$work/flanneld"
		printf 'module flanneld\n\ngo 1.26.0\n\nrequire github.com/flannel-io/flannel %s\n' "$flannel" >go.mod
		grep -vE 'backend/(tencentvpc|udp)"' "$(go mod download -json "github.com/flannel-io/flannel@$flannel" | sed -n 's/.*"Dir": "\(.*\)",/\1/p')/main.go" >main.go
		CGO_ENABLED=0 GOWORK=off go build -mod=mod -trimpath -buildvcs=false -ldflags "-s -w" -o "$work/flanneld/flanneld" .
	)
	mv "$work/flanneld/flanneld" "$dir/flanneld"
}

[ $# -gt 0 ] || set -- $all # a list of words
for program in "$@"; do
	case " $all $kubeadm $upstream flanneld " in *" $program "*) ;; *)
		echo "$program: not one of $all $kubeadm $upstream flanneld" >&2
		exit 1
		;;
	esac
	[ -x "$dir/$program" ] && continue
	[ "$program" = etcd ] || echo "building $program for Kubernetes $version into $dir"
	case $program in
	etcd) command -v etcd >/dev/null 2>&1 || fetch_etcd ;;
	etcd-3.6) build "$program" go.etcd.io/etcd/server/v3 ;;
	coredns) install coredns "github.com/coredns/coredns@$coredns" ;;
	flanneld) build_flanneld ;;
	netpol) install netpol "sigs.k8s.io/kube-network-policies/cmd@$policies" ;;
	ginkgo) build "$program" github.com/onsi/ginkgo/v2/ginkgo ;;
	agnhost | regression-issue-74839) build "$program" "k8s.io/kubernetes/test/images/$program" ;;
	e2e.test) build "$program" k8s.io/kubernetes/test/e2e 'test -c -vet=off' ;;
	*) build "$program" "k8s.io/kubernetes/cmd/$program" ;;
	esac
done
