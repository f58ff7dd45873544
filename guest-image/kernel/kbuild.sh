#!/bin/bash
# Runs the kernel's make on our module, or that of another card.
#
# Usage:   kbuild.sh stock|debug OUTPUT [--module FOLDER] [MAKE-ARGUMENT...]
# Inputs:  which kernel, Debian's or the debug one; driver/, and what it includes from device/spec,
#          or FOLDER with the sources of another module; toolbox, kernel tree.
# Output:  everything that is generated, in the folder OUTPUT.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=../toolbox/lib.sh
. "$here/../toolbox/lib.sh"

which=$1
output=$(realpath -m "$2")
shift 2
driver=$checkout/driver
if [[ ${1:-} == --module ]]; then
    driver=$(realpath -e "$2")
    shift 2
fi
root=$("$toolbox/root.sh" toolbox)
source=$("$here/kernel.sh" "$root")
case $which in
    stock)
        kernel=$source
        binds=(--bind "$kernel:/kernel")
        tree=(O=/kernel/build LOCALVERSION="$(cat "$kernel/localversion")")
        ;;
    debug)
        kernel=$("$here/debug-kernel.sh" "$root" "$source")
        binds=(--bind "$source:/kernel" --bind "$kernel:/kernel-debug")
        tree=(O=/kernel-debug/build LLVM=1)
        ;;
    *) die "kbuild.sh: no kernel is called $which" ;;
esac

# Two runs in one folder would build each other's objects. The lock ends with make.
lock "$(basename "$output")-$(digest <<<"$output")"

# Objects made for another kernel are of no use, and make could take them for
# up to date.
if [[ ! -e $output/kernel || $(cat "$output/kernel") != "$kernel" ]]; then
    rm -rf "$output"
    mkdir -p "$output"
    echo "$kernel" >"$output/kernel"
fi

exec "$toolbox/enter.sh" "$root" "${binds[@]}" -- \
    make --no-print-directory -C /kernel/linux "${tree[@]}" M="$driver" MO="$output" "$@"
