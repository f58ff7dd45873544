#!/bin/bash
# Makes the book of the documents.
#
# Usage:   book.sh
# Inputs:  docs/, README.md, ci/README.md, and the sources that they link to.
# Output:  build/book/html, and the path of its first page on stdout.
#
# mdBook is built once, by cargo, and kept in the cache.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=../guest-image/toolbox/lib.sh
. "$here/../guest-image/toolbox/lib.sh"
version=0.5.4

mdbook=$cache/mdbook-$version
if ! reuse "$mdbook"; then
    lock mdbook
    if ! reuse "$mdbook"; then
        note "docs: building mdBook $version"
        building=$mdbook.tmp
        fresh "$building"
        cd "$building"
        run_logged "$building/log" "docs: mdBook" "$toolbox/cargo.sh" install --locked \
            --version "$version" --root "$building" --target-dir "$building/target" mdbook
        remove "$building/target"
        finish "$building" "$mdbook"
    fi
    unlock
fi

src=$checkout/build/book/src
html=$checkout/build/book/html
fresh "$src"
fresh "$html"
cd "$checkout"
# What is generated within these folders is not a source.
find README.md Makefile LICENSES docs ci device driver guest-image \
    \( -name build -o -name target -o -name corpus \) -prune -o -type f -print0 |
    xargs -0 cp --parents -t "$src"
# The links of the summary begin in docs/, and mdBook expects it at the top.
rm "$src/docs/SUMMARY.md"
sed -e 's#](\.\./#](#' -e t -e 's#](#](docs/#' docs/SUMMARY.md >"$src/SUMMARY.md"

"$mdbook/bin/mdbook" build docs >&2
echo "$html/index.html"
