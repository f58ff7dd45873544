#!/bin/bash
# Runs the kernel's make on our module.
#
# Usage:   kbuild.sh OUTPUT [MAKE-ARGUMENT...]
# Inputs:  driver/, and what it includes from device/spec; toolbox, kernel tree.
# Output:  everything that is generated, in the folder OUTPUT.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")

output=$(realpath -m "$1")
shift
driver=$(dirname "$here")/driver
root=$("$here/root.sh" toolbox)
kernel=$("$here/kernel.sh" "$root")

# Objects made for another kernel are of no use, and make could take them for
# up to date.
if [[ ! -e $output/kernel || $(cat "$output/kernel") != "$kernel" ]]; then
    rm -rf "$output"
    mkdir -p "$output"
    echo "$kernel" >"$output/kernel"
fi

exec "$here/enter.sh" "$root" --bind "$kernel:/kernel" -- \
    make --no-print-directory -C /kernel/linux O=/kernel/build M="$driver" MO="$output" \
    LOCALVERSION="$(cat "$kernel/localversion")" "$@"
