#!/bin/bash
# Chooses the packages anew, as the archive has them today.
#
# Usage:   update.sh
# Output:  new records in the cache; set-up makes the rest from them. What no
#          set-up has used for a month is deleted from the cache.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"

"$here/resolve.sh" --update toolbox >/dev/null
# The other roots are only there where the host's Rust does not do, and after `make check`.
for name in rust check; do
    if compgen -G "$cache/$name-*" >/dev/null; then
        "$here/resolve.sh" --update "$name" >/dev/null
    fi
done

mapfile -t unused < <(find "$cache" -mindepth 1 -maxdepth 1 -type d -mtime +30 \
    \( -name 'toolbox-*' -o -name 'rust-*' -o -name 'check-*' -o -name 'mdbook-*' -o -name 'typos-cli-*' -o -name 'cargo-deny-*' -o -name 'kernel-*' -o -name 'debug-kernel-*' -o -name 'guest-*' -o -name 'download-*' -o -name 'bench-plugin-*' \))
for folder in "${unused[@]}"; do
    note "deleting ${folder##*/}, not used for a month"
    remove "$folder"
done
