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
# The other root is only there where the host's Rust does not do.
if compgen -G "$cache/rust-*" >/dev/null; then
    "$here/resolve.sh" --update rust >/dev/null
fi

mapfile -t unused < <(find "$cache" -mindepth 1 -maxdepth 1 -type d -mtime +30 \
    \( -name 'toolbox-*' -o -name 'rust-*' -o -name 'kernel-*' -o -name 'debug-kernel-*' -o -name 'guest-*' -o -name 'download-*' -o -name 'bench-plugin-*' \))
for folder in "${unused[@]}"; do
    note "deleting ${folder##*/}, not used for a month"
    remove "$folder"
done
