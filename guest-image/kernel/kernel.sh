#!/bin/bash
# Prepares the kernel's source tree for building modules.
#
# Usage:   kernel.sh ROOT
# Inputs:  the toolbox: the kernel's source, its configuration and its symbols.
# Output:  the path of a folder with linux/ (source) and build/, on stdout. It is
#          named after the toolbox, made once, and complete when it exists.
#
# The kernel itself is not built: a module made here loads in Debian's kernel.
# Object files and makefiles hold absolute paths, so the tree is made and used
# at one path inside the toolbox, /kernel, wherever the cache is (see kbuild.sh).
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=../toolbox/lib.sh
. "$here/../toolbox/lib.sh"

# To be raised when this script prepares a tree differently.
layout=1

root=$1
key=$(echo "$(basename "$root") layout $layout" | digest)
kernel=$cache/kernel-$key
if reuse "$kernel"; then
    echo "$kernel"
    exit
fi
lock kernel
if reuse "$kernel"; then
    echo "$kernel"
    exit
fi

for stale in "$cache"/kernel-*.tmp; do
    [[ ! -e $stale ]] || remove "$stale"
done
building=$kernel.tmp
fresh "$building"
mkdir "$building/linux" "$building/build"

release=$(basename "$root"/usr/lib/modules/*)
tarball=$(basename "$root"/usr/src/linux-source-*.tar.xz)
inside() {
    "$toolbox/enter.sh" "$root" --bind "$building:/kernel" -- "$@"
}
in_tree() {
    inside make --no-print-directory -C /kernel/linux O=/kernel/build "$@"
}

run_logged "$building/log" "kernel $release: source files unpacked" \
    inside tar -C /kernel/linux --strip-components=1 -xvf "/usr/src/$tarball" ||
    die "unpacking $tarball failed: is the disk full? Free some space and run it again"

cp "$root/usr/lib/modules/$release/config" "$building/build/.config"
run_logged "$building/log" "kernel $release: configuring" in_tree olddefconfig ||
    die "configuring the kernel tree failed, see above"
grep -q '^CONFIG_RUST=y$' "$building/build/.config" ||
    die "Rust for the kernel is off: the tools of $root are not those that kernel $release wants"

# The release is the source's version and what Debian appended when it built it.
version=$(in_tree -s kernelversion)
suffix=${release#"$version"}
run_logged "$building/log" "kernel $release: build steps done" \
    in_tree -j"$(nproc)" LOCALVERSION="$suffix" modules_prepare ||
    die "preparing the kernel tree failed, see above"
built=$(in_tree -s LOCALVERSION="$suffix" kernelrelease)
[[ $built == "$release" ]] ||
    die "the prepared tree is for $built, not for $release: modules would not load"

cp "$root/usr/src/linux-headers-$release/Module.symvers" "$building/build/"
echo "$suffix" >"$building/localversion"
finish "$building" "$kernel"
echo "$kernel"
