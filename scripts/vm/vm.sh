#!/bin/sh
# Runs tests on another kernel than this machine's: Debian's, with all its modules, in qemu without hardware support.
# The machine boots in some ten seconds from a small initramfs. Its root is this machine's, read-only, below a layer in
# memory: it has the same programs and paths, and changes nothing here. Needs root, and fetches what is missing from
# Debian: qemu, and the kernel into ${XDG_CACHE_HOME:-~/.cache}/edgeway/vm.
#
#	scripts/vm/vm.sh                                   # what needs the module 8021q
#	scripts/vm/vm.sh ./routes -test.run TestRule       # tests of one package; -test.run . for all: ten minutes
#	EDGEWAY_VM_KERNEL=linux-image-6.12-amd64 scripts/vm/vm.sh
set -eu

cd "$(dirname "$0")/../.."
here=$PWD
metapackage=${EDGEWAY_VM_KERNEL:-linux-image-amd64}
limit=${EDGEWAY_VM_LIMIT:-1800} # seconds
cache=${XDG_CACHE_HOME:-$HOME/.cache}/edgeway/vm
mkdir -p "$cache"
work=$(mktemp -d "$cache/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

PATH=$PATH:/usr/sbin:/sbin
packages=''
for line in qemu-system-x86_64:qemu-system-x86 modprobe:kmod cpio:cpio busybox:busybox-static xz:xz-utils; do
	command -v "${line%%:*}" >/dev/null 2>&1 || packages="$packages ${line##*:}"
done
if [ -n "$packages" ]; then
	echo "installing:$packages"
	# shellcheck disable=SC2086 # a list of words
	{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $packages; } >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
fi

# The package is unpacked and not installed: no boot loader and no initramfs of this machine is touched.
package=$(apt-cache depends "$metapackage" | awk '/Depends: linux-image-[0-9]/ { print $2; exit }')
root=$cache/${package:?apt-cache knows no kernel of this name: apt-get update}
if [ ! -d "$root" ]; then
	echo "fetching $package"
	(cd "$work" && apt-get -qq download "$package") >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
	dpkg -x "$work/$package"_*.deb "$work/root"
	find "$work/root" -name '*.ko.xz' -exec xz -d {} + # busybox loads the first of them, and cannot decompress
	release=$(ls "$work/root/lib/modules")
	depmod -b "$work/root" "$release"
	mv "$work/root" "$root"
fi
release=$(ls "$root/lib/modules")

# job PACKAGE FLAG...: a line of what the machine runs.
job() {
	dir=$1
	shift
	name=$(echo "$dir" | tr -c 'a-z0-9\n' _)
	CGO_ENABLED=0 go test -c -o "$work/$name.test" "$dir"
	flags=''
	for flag in "$@"; do flags="$flags '$flag'"; done
	echo "cd $here/$dir && $work/$name.test$flags || failed=1" >>"$work/jobs"
}
if [ $# -gt 0 ]; then
	job "$@"
else
	CGO_ENABLED=0 go build -o "$work/bin/" ./plugin/edgeway ./daemon/edgewayd
	job ./routes -test.v -test.run VLAN
	never='SKIP: TestLAN/bird/uplink-vlan'
	job ./scripts/lab -test.v -test.run TestLAN/bird/uplink-vlan
fi

mkdir -p "$work/initramfs/bin" "$work/initramfs/lib/modules/$release"
cp "$(command -v busybox)" "$work/initramfs/bin/busybox"
for module in virtio_pci 9pnet_virtio 9p overlay; do
	modprobe -d "$root" -S "$release" --show-depends "$module" | awk '/^insmod/ { print $2 }'
done | sort -u | while read -r file; do
	install -D "$file" "$work/initramfs/${file#"$root"/}"
done
cp "$root/lib/modules/$release"/modules.order "$root/lib/modules/$release"/modules.builtin* "$work/initramfs/lib/modules/$release/"
depmod -b "$work/initramfs" "$release"

cat >"$work/initramfs/init" <<EOF
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /host /layer /machine
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in virtio_pci 9pnet_virtio 9p overlay; do modprobe \$module; done
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=524288 host /host
mount -t tmpfs layer /layer && mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work machine /machine || poweroff -f
for dir in proc sys dev; do mount --move /\$dir /machine/\$dir; done
mount -t tmpfs run /machine/run; mount -t tmpfs tmp /machine/tmp
mkdir -p /machine$work /machine/lib/modules
mount --bind /host$work /machine$work
mount --bind /host$root/lib/modules /machine/lib/modules
exec switch_root /machine /bin/sh $work/run
EOF
chmod +x "$work/initramfs/init"
cat >"$work/run" <<EOF
export PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root EDGEWAY_BIN=${EDGEWAY_BIN:-$work/bin}
mkdir -p /dev/shm /dev/pts
mount -t devpts pts /dev/pts; mount -t cgroup2 cgroup /sys/fs/cgroup
ip link set lo up
failed=0
uname -a
. $work/jobs
echo "result: \$failed"
echo o >/proc/sysrq-trigger
while :; do :; done
EOF
(cd "$work/initramfs" && find . | cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initramfs.gz"

# Without hardware support the guest is slow: a test that fails here for its time alone says nothing.
timeout "$limit" nice -n 10 qemu-system-x86_64 -machine q35,accel=tcg -cpu max -smp 1 -m 2048 -nodefaults -no-reboot -nographic -serial stdio \
	-kernel "$root/boot/vmlinuz-$release" -initrd "$work/initramfs.gz" -append 'console=ttyS0 quiet panic=-1' \
	-fsdev local,id=host,path=/,security_model=none,readonly=on,multidevs=remap -device virtio-9p-pci,fsdev=host,mount_tag=host \
	</dev/null | tee "$work/console"
grep -q '^result: 0' "$work/console" && ! grep -q -e "--- ${never:-no such line}" "$work/console" || { echo "the tests did not pass on $release" >&2; exit 1; }
