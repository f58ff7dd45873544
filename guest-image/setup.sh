#!/bin/bash
# Makes everything that the other targets need, or finds it made, and writes down
# where it is.
#
# Usage:   setup.sh [stock|debug]
# Inputs:  the guest's kernel, Debian's if not said, or the debug one, which is built;
#          RINGBAR_ACCEL=kvm|tcg and RINGBAR_QEMU=path|toolbox force a choice.
# Output:  build/setup.json or build/setup-debug.json, read by ringbar-ci.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=toolbox/lib.sh
. "$here/toolbox/lib.sh"
which=${1:-stock}

# make and the kernel's makefiles split paths at blanks, mounts at colons.
[[ $checkout$cache != *[[:space:]:]* ]] ||
    die "the paths $checkout and $cache must not contain blanks or colons: move the checkout, or set XDG_CACHE_HOME"

# Before a long download, what would make it useless.
"$toolbox/enter.sh" --check

root=$("$toolbox/root.sh" toolbox)
kernel=$("$here/kernel/kernel.sh" "$root")
"$here/rootfs/guest-base.sh" "$root" "$kernel" >/dev/null
"$toolbox/cargo.sh" --version >/dev/null
case $which in
    stock)
        release=$(basename "$root"/usr/lib/modules/*)
        image=$root/usr/lib/modules/$release/vmlinuz
        record=$checkout/build/setup.json
        ;;
    debug)
        debug=$("$here/kernel/debug-kernel.sh" "$root" "$kernel")
        release=$(cat "$debug/build/include/config/kernel.release")
        image=$debug/build/arch/x86/boot/bzImage
        record=$checkout/build/setup-debug.json
        ;;
    *) die "setup.sh: no kernel is called $which" ;;
esac

# KVM needs the processor's help and a device we may open. /dev/kvm alone says
# little: a virtual machine can have it and still not run a guest.
accel=${RINGBAR_ACCEL:-}
case $accel in
    kvm | tcg) ;;
    '')
        accel=tcg
        if grep -qwE 'vmx|svm' /proc/cpuinfo && [[ -w /dev/kvm ]]; then
            accel=kvm
        fi
        ;;
    *) die "RINGBAR_ACCEL is '$accel': it takes kvm or tcg" ;;
esac

# The version of a QEMU that has the device we need, or nothing.
qemu_version() {
    local version major
    version=$("$@" --version 2>/dev/null | sed -nE '1s/.*version ([0-9]+\.[0-9.]+[0-9]).*/\1/p')
    major=${version%%.*}
    if ((${major:-0} >= 11)) && "$@" -device help 2>/dev/null | grep -q '"vhost-user-test-device-pci"'; then
        echo "$version"
    fi
}
qemu=(qemu-system-x86_64)
version=
case ${RINGBAR_QEMU:-} in
    path | '')
        if path=$(command -v "${qemu[0]}"); then
            version=$(qemu_version "$path")
            qemu=("$path")
        fi
        ;;
    toolbox) ;;
    *) die "RINGBAR_QEMU is '$RINGBAR_QEMU': it takes path or toolbox" ;;
esac
if [[ -z $version ]]; then
    [[ ${RINGBAR_QEMU:-} != path ]] ||
        die "RINGBAR_QEMU=path, but there is no qemu-system-x86_64 of version 11 or later with vhost-user-test-device-pci in PATH"
    qemu=("$toolbox/enter.sh" "$root" -- qemu-system-x86_64)
    version=$(qemu_version "${qemu[@]}")
    [[ -n $version ]] || die "QEMU in $root does not run; try: ${qemu[*]} --version"
fi

# JSON strings: paths may hold quotes and backslashes.
json() {
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}
json_list() {
    local separator=
    printf '['
    for item; do
        printf '%s' "$separator"
        json "$item"
        separator=', '
    done
    printf ']'
}

mkdir -p "$checkout/build"
{
    echo '{'
    echo "  \"kernel_release\": $(json "$release"),"
    echo "  \"kernel_image\": $(json "$image"),"
    echo "  \"qemu\": $(json_list "${qemu[@]}"),"
    echo "  \"qemu_version\": $(json "$version"),"
    echo "  \"initramfs\": $(json "$checkout/build/guest/$which/initramfs.cpio"),"
    echo "  \"accel\": $(json "$accel"),"
    echo "  \"toolbox\": $(json "$root"),"
    echo "  \"device\": $(json "$checkout/build/cargo/x86_64-unknown-linux-gnu/release/ringbar-device")"
    echo '}'
} >"$record.$$"
mv "$record.$$" "$record"
