#!/bin/bash
# Builds the QEMU plugin with which the benchmark counts instructions.
#
# Usage:   build.sh
# Inputs:  instructions.c; the compiler of the toolbox.
# Output:  the path of the plugin, on stdout. It is named after its inputs, made once,
#          complete when it exists.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=../../../guest-image/toolbox/lib.sh
. "$here/../../../guest-image/toolbox/lib.sh"
source=$here/instructions.c

root=$("$toolbox/root.sh" toolbox)
key=$({
    basename "$root"
    cat "$0" "$source"
} | digest)
output=$cache/bench-plugin-$key
if ! reuse "$output"; then
    lock bench-plugin
    if ! reuse "$output"; then
        note "benchmark: building the QEMU plugin that counts instructions"
        for stale in "$cache"/bench-plugin-*.tmp; do
            [[ ! -e $stale ]] || remove "$stale"
        done
        building=$output.tmp
        fresh "$building"
        cp "$source" "$building/"
        cd "$building"
        # What is missing here is QEMU's, found when QEMU loads the plugin.
        "$toolbox/enter.sh" "$root" -- gcc -std=gnu11 -O2 -Wall -Wextra -Werror -fPIC -shared \
            -fvisibility=hidden -o instructions.so instructions.c >&2
        cd "$cache"
        finish "$building" "$output"
    fi
    unlock
fi
echo "$output/instructions.so"
