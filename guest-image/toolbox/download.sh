#!/bin/bash
# Downloads packages.
#
# Usage:   download.sh NAME RECORD FOLDER
# Inputs:  the packages of NAME as resolve.sh has written them down in RECORD;
#          what is in FOLDER already.
# Output:  FOLDER with all of them, and log, what the download program said.
#          Fails when a package is missing or is not the one of the record.
#
# What programs say is shown and counted, never gone by: it depends on the
# language, and on the version.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"

# apt's own, which Debian keeps out of PATH.
PATH=$PATH:/usr/lib/apt

name=$1
record=$2
mkdir -p "$3"
cd "$3"

# complete SUM FILE: whether the file is there, with this content.
complete() {
    [[ -e $2 ]] && sha256sum --check --status <<<"$1  $2"
}

# The packages that are not there yet, as the triples that apt-helper takes.
triples=()
bytes=0
while read -r _ _ size sum uri; do
    file=${uri##*/}
    if ! complete "$sum" "$file"; then
        rm -f "$file"
        triples+=("$uri" "$PWD/$file" "SHA256:$sum")
        bytes=$((bytes + size))
    fi
done <"$record"
((${#triples[@]})) || exit 0

count=$((${#triples[@]} / 3))
note "$name: $count of $(wc -l <"$record") packages to download, $((bytes / 1048576)) MiB"
apt-helper -o APT::Sandbox::User=root -o Acquire::Retries=3 download-file "${triples[@]}" 2>&1 |
    tee log | sed -un '/^Get:/p' | progress "$name: packages downloaded" "$count"

while read -r _ _ _ sum uri; do
    complete "$sum" "${uri##*/}" || exit 1
done <"$record"
