#!/bin/bash
# Runs the kernel's make on our module.
#
# Usage:   kbuild.sh OUTPUT [MAKE-ARGUMENT...]
# Inputs:  driver/, and what it includes from device/spec; toolbox, kernel tree.
# Output:  everything that is generated, in the folder OUTPUT.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")

output=$1
shift
mkdir -p "$output"
output=$(readlink -f "$output")
driver=$(dirname "$here")/driver
root=$("$here/root.sh" toolbox)
kernel=$("$here/kernel.sh" "$root")

exec "$here/enter.sh" "$root" --bind "$kernel:/kernel" -- \
    make --no-print-directory -C /kernel/linux O=/kernel/build M="$driver" MO="$output" \
    LOCALVERSION="$(cat "$kernel/localversion")" "$@"
