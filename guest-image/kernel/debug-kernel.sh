#!/bin/bash
# Builds the kernel with which the tests look for what the driver does wrong: the
# same source as Debian's kernel, with the checkers of debug.config switched on.
#
# Usage:   debug-kernel.sh ROOT KERNEL
# Inputs:  the toolbox ROOT; KERNEL, which has the source (kernel.sh); debug.config.
# Output:  the path of a folder with build/, on stdout: the kernel is
#          build/arch/x86/boot/bzImage, and modules are built there. Named after its
#          inputs, made once, complete when it exists.
#
# Made and used at one path inside the toolbox, /kernel-debug (see kbuild.sh), and
# with clang: the kernel's Rust and KASAN go together with no other compiler.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=../toolbox/lib.sh
. "$here/../toolbox/lib.sh"

# To be raised when this script builds a kernel differently.
layout=1

root=$1
source=$2
key=$({
    basename "$source"
    echo "layout $layout"
    cat "$here/debug.config"
} | digest)
kernel=$cache/debug-kernel-$key
if reuse "$kernel"; then
    echo "$kernel"
    exit
fi
lock debug-kernel
if reuse "$kernel"; then
    echo "$kernel"
    exit
fi
for stale in "$cache"/debug-kernel-*.tmp; do
    [[ ! -e $stale ]] || remove "$stale"
done
building=$kernel.tmp
fresh "$building"
mkdir "$building/build"
in_tree() {
    "$toolbox/enter.sh" "$root" --bind "$source:/kernel" --bind "$building:/kernel-debug" -- \
        make --no-print-directory -C /kernel/linux O=/kernel-debug/build LLVM=1 "$@"
}

note "debug kernel: built once, takes about half an hour on two processors"
# The shell does not end at an error in a function whose result is asked for.
configure() {
    in_tree tinyconfig &&
        cat "$here/debug.config" >>"$building/build/.config" &&
        in_tree olddefconfig
}
run_logged "$building/log" "debug kernel: configuring" configure ||
    die "configuring the debug kernel failed, see above"

# What another option excludes is dropped without a word.
missing=$(grep -E '^CONFIG_[A-Z0-9_]+=y$' "$here/debug.config" | grep -vxFf "$building/build/.config" || true)
[[ -z $missing ]] ||
    die "the kernel's configuration does not take ${missing//$'\n'/, }: correct guest-image/kernel/debug.config"

run_logged "$building/log" "debug kernel: build steps done" in_tree -j"$(nproc)" bzImage modules ||
    die "building the debug kernel failed, see above"

# Modules are built against headers and rust/; the kernel's own objects only fill
# the cache.
find "$building/build" \( -name '*.o' -o -name '*.a' -o -name '.*.cmd' \) \
    -not -path '*/scripts/*' -not -path '*/rust/*' -not -path '*/tools/*' -delete
rm -f "$building"/build/vmlinux* "$building"/build/.tmp_vmlinux*
finish "$building" "$kernel"
echo "$kernel"
