#!/bin/bash
# Builds a program of crates.io, once, and keeps it in the cache.
#
# Usage:   program.sh CRATE VERSION
# Inputs:  RINGBAR_RUST as for cargo.sh.
# Output:  the path of the folder with the program, on stdout.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"

crate=$1
version=$2
program=$cache/$crate-$version
if ! reuse "$program"; then
    lock "$crate"
    if ! reuse "$program"; then
        note "building $crate $version"
        building=$program.tmp
        fresh "$building"
        cd "$building"
        run_logged "$building/log" "$crate" "$toolbox/cargo.sh" install --locked \
            --version "$version" --root "$building" --target-dir "$building/target" "$crate"
        remove "$building/target"
        finish "$building" "$program"
    fi
fi
echo "$program/bin"
