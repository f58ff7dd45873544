#!/bin/bash
# Makes the part of the guest's root file system that does not depend on what is
# being developed: programs, their libraries, kernel modules.
#
# Usage:   guest-base.sh ROOT KERNEL
# Inputs:  the toolbox ROOT; the prepared kernel tree KERNEL; files/, copied as is.
# Output:  the path of a folder, on stdout. It holds base.cpio; modules/, the same
#          kernel modules as a tree; and gen_init_cpio, which writes such archives.
#          Named after its inputs, made once, complete when it exists.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=../toolbox/lib.sh
. "$here/../toolbox/lib.sh"

# Programs besides BusyBox, and modules besides our own. What they need follows.
# Those of util-linux know what BusyBox's of the same name do not.
programs=(bash fio gdb kmod lspci mke2fs setpci)
programs+=(blkdiscard blockdev losetup mount umount)
modules=(9p 9pnet_virtio button ext4 loop nvme overlay virtio_blk virtio-iommu)
# Other names, under which a program of the above does something else.
links=(
    modprobe:kmod insmod:kmod rmmod:kmod lsmod:kmod modinfo:kmod depmod:kmod
    mkfs.ext2:mke2fs mkfs.ext4:mke2fs
    # BusyBox's own shell would run its own modprobe whatever is in PATH.
    sh:bash
)

root=$1
kernel=$2
key=$({
    basename "$root"
    cat "$0" "$here/guest-files.sh"
    (cd "$here/files" && find . -type f | LC_ALL=C sort | xargs sha256sum)
} | digest)
base=$cache/guest-$key
if reuse "$base"; then
    echo "$base"
    exit
fi
lock guest
if reuse "$base"; then
    echo "$base"
    exit
fi
note "guest: packing programs, libraries and modules"
for stale in "$cache"/guest-*.tmp; do
    [[ ! -e $stale ]] || remove "$stale"
done
building=$base.tmp
fresh "$building"
cp -r "$here/files" "$building/files"
release=$(basename "$root"/usr/lib/modules/*)
tree=$building/modules/usr/lib/modules/$release
mkdir -p "$tree"
ln -s usr/lib "$building/modules/lib" # where depmod looks
cd "$building"
inside() {
    "$toolbox/enter.sh" "$root" --bind "$kernel:/kernel" -- "$@"
}

inside gcc -O1 -w -o gen_init_cpio /kernel/linux/usr/gen_init_cpio.c

# The modules with those they depend on, unpacked: the guest then spends no time
# on it. Names of modules and of their files differ in - and _.
installed=$root/usr/lib/modules/$release
cp "$installed"/modules.{order,builtin,builtin.modinfo} "$tree/"
while ((${#modules[@]})); do
    module=${modules[0]}
    modules=("${modules[@]:1}")
    file=$(find "$installed/kernel" -name "${module//[-_]/[-_]}.ko*" -printf '%P\n')
    [[ -n $file ]] || die "kernel $release has no module $module"
    target=$tree/kernel/${file%.xz}
    [[ ! -e $target ]] || continue
    mkdir -p "$(dirname "$target")"
    inside xz -dc "/usr/lib/modules/$release/kernel/$file" >"$target"
    mapfile -t -O "${#modules[@]}" modules < <(inside modinfo -F depends "$target" | tr ',' '\n' | grep . || true)
done
inside depmod -b "$building/modules" "$release"

# The description that gen_init_cpio reads.
# shellcheck source-path=SCRIPTDIR source=guest-files.sh
. "$here/guest-files.sh"
{
    # A console before /dev is mounted, for what PID 1 may have to say by then.
    echo 'nod /dev/console 0600 0 0 c 5 1'
    for folder in /dev /proc /sys /run /tmp /root /mnt; do
        echo "dir $folder 0755 0 0"
    done
    # All programs in one folder.
    echo 'slink /bin usr/bin 0777 0 0'
    echo 'slink /sbin usr/bin 0777 0 0'
    echo 'slink /usr/sbin bin 0777 0 0'
    echo 'slink /lib usr/lib 0777 0 0'
    echo 'slink /lib64 usr/lib64 0777 0 0'

    for program in "${programs[@]}"; do
        file=/usr/bin/$program
        [[ -e $root$file ]] || file=/usr/sbin/$program
        guest_file "/usr/bin/$program" "$file"
        inside /lib64/ld-linux-x86-64.so.2 --list "$file" |
            sed -nE 's|^.* => (/[^ ]+) .*|\1|p; s|^\s*(/[^ ]+) .*|\1|p'
    done | sed -E 's|^/lib|/usr/lib|' | LC_ALL=C sort -u | while read -r line; do
        case $line in
            /*) guest_file "$line" "$line" ;;
            *) echo "$line" ;;
        esac
    done
    guest_file /usr/share/misc/pci.ids /usr/share/misc/pci.ids
    # The parts of Python without which gdb does not start: those that it loads, in
    # the guest's language.
    inside env LC_ALL=C gdb -nx -batch -ex 'python
import sys
for module in list(sys.modules.values()):
    if getattr(module, "__file__", None):
        print(module.__file__)
' | LC_ALL=C sort -u | while read -r file; do
        guest_file "$file" "$file"
    done
    for link in "${links[@]}"; do
        echo "slink /usr/bin/${link%:*} ${link#*:} 0777 0 0"
    done
    guest_file /usr/bin/busybox /usr/bin/busybox
    # BusyBox is whatever is not there already.
    inside busybox --list | grep -vxFf <(printf '%s\n' busybox "${programs[@]}" "${links[@]%:*}") |
        sed 's|.*|slink /usr/bin/& busybox 0777 0 0|'

    guest_tree files ''
    guest_tree modules ''
} | guest_folders >base.list
inside ./gen_init_cpio -t 0 base.list >base.cpio

cd "$cache"
finish "$building" "$base"
echo "$base"
