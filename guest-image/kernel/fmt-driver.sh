#!/bin/bash
# Formats the driver's Rust files as the kernel formats its own.
#
# Usage:   fmt-driver.sh [--check]
# Inputs:  driver/ without the crates of user space in it, and the drivers of the cards in ci/kit;
#          the toolbox's rustfmt with the kernel's settings.
# Output:  the files, formatted; with --check the differences on stdout instead,
#          and failure when there are any.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=../toolbox/lib.sh
. "$here/../toolbox/lib.sh"

check=${1:-}
root=$("$toolbox/root.sh" toolbox)
kernel=$("$here/kernel.sh" "$root")
cd "$checkout"

# Each file by itself, through stdin: rustfmt would otherwise follow the module
# that device and driver share, which is formatted with the user-space crates.
# shellcheck disable=SC2016  # The inner shell expands these.
find driver ci/kit/*/driver \( -path driver/tool -o -path driver/uapi \) -prune -o -name '*.rs' -print0 | LC_ALL=C sort -z | "$toolbox/enter.sh" "$root" --bind "$kernel:/kernel" -- \
    bash -euc '
        status=0
        formatted=$(mktemp)
        trap '\''rm -f "$formatted"'\'' EXIT
        while IFS= read -r -d "" file; do
            rustfmt --config-path /kernel/linux/.rustfmt.toml <"$file" >"$formatted" || { echo "in $file" >&2; exit 1; }
            if [[ $1 == --check ]]; then
                diff -u --label "$file" --label "$file, formatted" "$file" "$formatted" || status=1
            else
                cmp -s "$file" "$formatted" || {
                    cp -p "$file" "$file.new"
                    cat "$formatted" >"$file.new"
                    mv "$file.new" "$file"
                }
            fi
        done
        exit "$status"' bash "$check"
