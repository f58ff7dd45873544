#!/bin/bash
# Makes the book of the documents.
#
# Usage:   book.sh
# Inputs:  docs/, the pages beside it and in ci/, and the sources that they link to.
# Output:  build/book/html, and the path of its first page on stdout.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=../guest-image/toolbox/lib.sh
. "$here/../guest-image/toolbox/lib.sh"

src=$checkout/build/book/src
html=$checkout/build/book/html
fresh "$src"
fresh "$html"
cd "$checkout"
# What is generated within these folders is not a source.
find ./*.md Makefile Cargo.toml LICENSES docs ci device driver guest-image \
    \( -name build -o -name target -o -name corpus \) -prune -o -type f -print0 |
    xargs -0 cp --parents -t "$src"
# The links of the summary begin in docs/, and mdBook expects it at the top.
rm "$src/docs/SUMMARY.md"
sed -e 's#](\.\./#](#' -e t -e 's#](#](docs/#' docs/SUMMARY.md >"$src/SUMMARY.md"

"$toolbox/program.sh" mdbook 0.5.4 mdbook build docs >&2
echo "$html/index.html"
