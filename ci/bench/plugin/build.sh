#!/bin/bash
# Builds the QEMU plugin with which the benchmark counts instructions, and runs its tests.
#
# Usage:   build.sh
# Inputs:  instructions.c, test.c; the compiler of the toolbox.
# Output:  the path of the plugin, on stdout. It is named after its inputs, made once,
#          complete when it exists. There is none if a test fails.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=../../../guest-image/toolbox/lib.sh
. "$here/../../../guest-image/toolbox/lib.sh"
sources=("$here/instructions.c" "$here/test.c")

root=$("$toolbox/root.sh" toolbox)
key=$({
    basename "$root"
    cat "$0" "${sources[@]}"
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
        cp "${sources[@]}" "$building/"
        cd "$building"
        # What is missing in the plugin is QEMU's, found when QEMU loads it.
        compile=("$toolbox/enter.sh" "$root" -- gcc -std=gnu11 -O2 -Wall -Wextra -Werror)
        "${compile[@]}" -pthread -o test test.c >&2
        "$toolbox/enter.sh" "$root" -- ./test >&2
        "${compile[@]}" -fPIC -shared -fvisibility=hidden -o instructions.so instructions.c >&2
        cd "$cache"
        finish "$building" "$output"
    fi
    unlock
fi
echo "$output/instructions.so"
