#!/bin/bash
# Makes the guest's root file system.
#
# Usage:   initramfs.sh stock|debug MODULE PROGRAMS
# Inputs:  which kernel it is for, Debian's or the debug one; MODULE, the driver;
#          PROGRAMS, the folder with ringbar-init, ringbar-guest-tests, ringbar-perf and
#          ringbar;
#          the base from guest-base.sh.
# Output:  build/guest/{stock,debug}/initramfs.cpio: the base followed by an archive
#          with what is developed here. Not compressed, which saves more time at
#          boot than it costs. Left alone when its inputs are those it was made from.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=../toolbox/lib.sh
. "$here/../toolbox/lib.sh"
# shellcheck source-path=SCRIPTDIR source=guest-files.sh
. "$here/guest-files.sh"

which=$1
module=$(readlink -e "$2") || die "$2 is missing: make driver"
programs=$(readlink -e "$3") || die "$3 is missing: make device"
root=$("$toolbox/root.sh" toolbox)
kernel=$("$here/../kernel/kernel.sh" "$root")
base=$("$here/guest-base.sh" "$root" "$kernel")
# Where depmod finds what the kernel has built in, and the modules beside ours.
case $which in
    stock)
        release=$(basename "$root"/usr/lib/modules/*)
        others=$base/modules/usr/lib/modules/$release
        ;;
    debug)
        others=$("$here/../kernel/debug-kernel.sh" "$root" "$kernel")/build
        release=$(cat "$others/include/config/kernel.release")
        ;;
    *) die "initramfs.sh: no kernel is called $which" ;;
esac

output=$checkout/build/guest/$which
mkdir -p "$output"
exec {lock_fd}>"$output/lock"
flock "$lock_fd"

inputs=$({
    basename "$base"
    echo "$others"
    sha256sum <"$0"
    sha256sum "$module" "$programs/ringbar-init" "$programs/ringbar-guest-tests" "$programs/ringbar-perf" "$programs/ringbar"
})
if [[ -e $output/initramfs.cpio && -e $output/inputs && $(cat "$output/inputs") == "$inputs" ]]; then
    exit
fi
rm -f "$output/inputs"

# depmod has to see all modules, so its result is part of this archive and
# replaces that of the base. Debug information stays on the host.
overlay=$output/overlay
fresh "$overlay"
cd "$overlay"
modules=usr/lib/modules/$release
mkdir -p "tree/$modules/extra"
ln -s usr/lib tree/lib # where depmod looks
cp "$others"/modules.{order,builtin,builtin.modinfo} "tree/$modules/"
# The debug kernel has everything built in.
[[ $which == debug ]] || cp -r "$others/kernel" "tree/$modules/"
# shellcheck disable=SC2016  # The inner shell expands these.
"$toolbox/enter.sh" "$root" -- sh -euc '
    strip --strip-debug -o "$1/extra/ringbar.ko" "$2"
    depmod -b tree "$3"
    for program in ringbar-init ringbar-guest-tests ringbar-perf ringbar; do
        strip --strip-debug -o "$program" "$4/$program"
    done
' sh "tree/$modules" "$module" "$release" "$programs"

{
    guest_file /init ringbar-init
    guest_file /usr/bin/ringbar-guest-tests ringbar-guest-tests
    guest_file /usr/bin/ringbar-perf ringbar-perf
    guest_file /usr/bin/ringbar ringbar
    guest_tree "tree/$modules/extra" "/$modules/extra"
    find "tree/$modules" -maxdepth 1 -type f -printf "file /$modules/%f tree/$modules/%f 0644 0 0\n" | LC_ALL=C sort
} | guest_folders >overlay.list
"$toolbox/enter.sh" "$root" -- "$base/gen_init_cpio" -t 0 overlay.list >overlay.cpio

cat "$base/base.cpio" overlay.cpio >"$output/initramfs.cpio.tmp"
mv "$output/initramfs.cpio.tmp" "$output/initramfs.cpio"
echo "$inputs" >"$output/inputs"
note "guest: $(du -m --apparent-size "$output/initramfs.cpio" | cut -f1) MiB image made"
