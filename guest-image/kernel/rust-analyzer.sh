#!/bin/bash
# Describes the driver to rust-analyzer.
#
# Usage:   rust-analyzer.sh
# Inputs:  driver/, toolbox, kernel tree.
# Output:  build/rust-analyzer/rust-project.json, and its path on stdout. A script of the kernel makes
#          it; here the paths of the toolbox become those of this host.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=../toolbox/lib.sh
. "$here/../toolbox/lib.sh"

root=$("$toolbox/root.sh" toolbox)
kernel=$("$here/kernel.sh" "$root")
project=$checkout/build/rust-analyzer/rust-project.json
"$here/kbuild.sh" stock build/rust-analyzer rust-analyzer >&2
sed -i -e "s#\"/kernel/#\"$kernel/#g" -e "s#\"/usr\([/\"]\)#\"$root/usr\1#g" "$project"
echo "$project"
